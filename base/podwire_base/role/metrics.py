"""Prometheus metrics: a histogram, and the text exposition format (version 0.0.4). Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
_ESCAPES = {ord("\\"): "\\\\", ord("\n"): "\\n"}
_LABEL_ESCAPES = {**_ESCAPES, ord('"'): '\\"'}


def check_address(address: str) -> None:
    """address: of a page /metrics, "" for no such page. Raises ValueError for what is not HOST:PORT."""
    _, colon, port = address.rpartition(":")
    if address and not (colon and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"metrics_address: {address!r} is not HOST:PORT")


@dataclass(slots=True)
class Histogram:
    """A histogram. bounds: the inclusive upper bounds of the buckets, ascending. counts: the number of values in each
    bucket, and last the number of values above the last bound. total: the sum of all values.
    """

    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = empty(self.bounds)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def empty(bounds: Sequence[float]) -> list[int]:
    """Returns the counts of an empty histogram, for a hot path that has the counts and the sum in its own fields."""
    return [0] * (len(bounds) + 1)


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """cpu: seconds. descriptors: open files, and their limit. virtual, resident: bytes of memory, and the limit of the
    address space. started: Unix time. process.py reads them.
    """

    cpu: float = 0.0
    descriptors: int = 0
    descriptor_limit: float = 0
    virtual: int = 0
    virtual_limit: float = 0
    resident: int = 0
    started: float = 0.0


@dataclass(slots=True)
class Page:
    """A page in the text exposition format."""

    lines: list[str] = field(default_factory=list)

    def family(self, name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Add a metric family. kind: "counter" or "gauge". text: the help text; "": no help line."""
        self._head(name, kind, text)
        self.lines += [f"{name}{_labels(labels)} {value!r}" for labels, value in samples]

    def process(self, figures: ProcessFigures) -> None:
        """Add the families process_* of Prometheus' client libraries, which every page has."""
        for name, kind, text, value in (
            ("cpu_seconds_total", "counter", "CPU time of this process.", figures.cpu),
            ("open_fds", "gauge", "Open file descriptors.", figures.descriptors),
            ("max_fds", "gauge", "The limit of open file descriptors.", figures.descriptor_limit),
            ("virtual_memory_bytes", "gauge", "Address space of this process.", figures.virtual),
            ("virtual_memory_max_bytes", "gauge", "The limit of address space.", figures.virtual_limit),
            ("resident_memory_bytes", "gauge", "Memory of this process.", figures.resident),
            ("start_time_seconds", "gauge", "Start time of this process.", figures.started),
        ):
            self.family(f"process_{name}", kind, text, [({}, value)])

    def histogram(
        self, name: str, text: str, bounds: Sequence[float], series: Iterable[tuple[Labels, Sequence[int], float]]
    ) -> None:
        """Add histograms of one family. series: labels, counts and total of each histogram; see Histogram."""
        self._head(name, "histogram", text)
        ends = [*(f"{bound:.9g}" for bound in bounds), "+Inf"]
        for labels, counts, total in series:
            below = 0
            for end, count in zip(ends, counts, strict=True):
                below += count
                self.lines.append(f"{name}_bucket{_labels({**labels, 'le': end})} {below}")
            self.lines += [f"{name}_sum{_labels(labels)} {total!r}", f"{name}_count{_labels(labels)} {below}"]

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def _head(self, name: str, kind: str, text: str) -> None:
        if text:
            self.lines.append(f"# HELP {name} {text.translate(_ESCAPES)}")
        self.lines.append(f"# TYPE {name} {kind}")


def _labels(labels: Labels) -> str:
    escaped = (f'{name}="{value.translate(_LABEL_ESCAPES)}"' for name, value in labels.items())
    return "{" + ",".join(escaped) + "}" if labels else ""

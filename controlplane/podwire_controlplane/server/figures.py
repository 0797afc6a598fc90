"""The API server's metrics, with the names of kube-apiserver. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from podwire_base.role.metrics import Histogram, Page, ProcessFigures

_BOUNDS = (
    0.005,
    0.025,
    0.05,
    0.1,
    0.2,
    0.4,
    0.6,
    0.8,
    1.0,
    1.25,
    1.5,
    2.0,
    3.0,
    4.0,
    5.0,
    6.0,
    8.0,
    10.0,
    15.0,
    20.0,
    30.0,
    60.0,
)
Gauge = tuple[str, str, str, Callable[[], float]]  # name, kind, help, value


@dataclass(slots=True)
class Figures:
    """requests: (verb, resource, code) -> number. gauges: read when the page is made."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    durations: dict[str, Histogram] = field(default_factory=dict)
    gauges: list[Gauge] = field(default_factory=list)

    def served(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count an answer. resource: "" for a path that names no known resource, so that clients cannot add names."""
        self.requests[verb, resource, code] += 1
        if verb != "WATCH":
            if verb not in self.durations:
                self.durations[verb] = Histogram(_BOUNDS)
            self.durations[verb].observe(seconds)

    def page(self, process: ProcessFigures | None = None) -> str:
        page = Page()
        page.family(
            "apiserver_request_total",
            "counter",
            "Answers by verb, resource and HTTP status.",
            (({"verb": v, "resource": r, "code": str(c)}, n) for (v, r, c), n in sorted(self.requests.items())),
        )
        page.histogram(
            "apiserver_request_duration_seconds",
            "Time from the head of a request to its answer, without watches.",
            _BOUNDS,
            self._series(),
        )
        for name, kind, text, value in self.gauges:
            page.family(name, kind, text, [({}, value())])
        if process is not None:
            page.process(process)
        return page.text()

    def _series(self) -> Iterable[tuple[dict[str, str], list[int], float]]:
        return (({"verb": verb}, h.counts, h.total) for verb, h in sorted(self.durations.items()))

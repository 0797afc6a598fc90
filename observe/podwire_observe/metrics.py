"""The page /metrics of the role: connections and bytes by Service. Pure.

Series are of at most MOST Services; those of all others are one, named "other". Pods are never labels. What dialled no
Service has empty labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass

from podwire_base.role.metrics import Page, ProcessFigures

from .record import Service
from .sums import Pair

MOST = 1000
Name = tuple[str, str]  # namespace and name of a Service
NONE, OTHER = ("", ""), ("", "other")


@dataclass(frozen=True, slots=True)
class Figures:
    """lost: events that the kernel dropped. unshown: refused packets that were counted but not logged. live:
    connections that are followed. pairs: rows of the sums in memory.
    """

    lost: int = 0
    unshown: int = 0
    live: int = 0
    pairs: int = 0


class Totals:
    """Counts since the role began. The nodes' probes are left out."""

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.verdicts = Counter[tuple[Name, str, str]]()
        self.bytes = Counter[tuple[Name, str]]()
        self._services = set[Name]()

    def judged(self, pair: Pair) -> None:
        """Takes the verdict of a connection. One whose verdict changes, because an answer came late, counts again."""
        if not pair.probe:
            self.verdicts[self._name(pair.service), pair.verdict, pair.reason] += 1

    def passed(self, pair: Pair, out: int, back: int) -> None:
        """Takes bytes of the network layer from the client, and to it."""
        if not pair.probe:
            name = self._name(pair.service)
            self.bytes[name, "out"] += out
            self.bytes[name, "back"] += back

    def keep(self, services: Container[Name]) -> None:
        """Forgets the series of Services that are gone."""
        gone = {name for name in self._services if name not in services}
        if gone:
            self._services -= gone
            self.verdicts = Counter({key: count for key, count in self.verdicts.items() if key[0] not in gone})
            self.bytes = Counter({key: count for key, count in self.bytes.items() if key[0] not in gone})

    def _name(self, service: Service) -> Name:
        name = service.namespace, service.name
        if name == NONE or name in self._services:
            return name
        if len(self._services) >= self.most:
            return OTHER
        self._services.add(name)
        return name


def page(totals: Totals, figures: Figures, process: ProcessFigures) -> str:
    """Returns the page in Prometheus' text format."""
    made = Page()
    made.family(
        "podwire_observe_connections_total",
        "counter",
        "Connections that this node tells of, by Service, verdict and reason.",
        [
            ({"namespace": name[0], "service": name[1], "verdict": verdict, "reason": reason}, float(count))
            for (name, verdict, reason), count in sorted(totals.verdicts.items())
        ],
    )
    made.family(
        "podwire_observe_bytes_total",
        "counter",
        "Bytes of connections, from the client (out) and to it (back).",
        [
            ({"namespace": name[0], "service": name[1], "direction": direction}, float(count))
            for (name, direction), count in sorted(totals.bytes.items())
        ],
    )
    for name, kind, text, value in (
        ("events_lost_total", "counter", "Events of conntrack that the kernel dropped.", figures.lost),
        ("packets_not_shown_total", "counter", "Refused packets that were counted but not logged.", figures.unshown),
        ("connections", "gauge", "Connections that are followed.", figures.live),
        ("pairs", "gauge", "Rows of the sums in memory.", figures.pairs),
    ):
        made.family(f"podwire_observe_{name}", kind, text, [({}, float(value))])
    made.process(process)
    return made.text()

"""Counts answers and, on request, logs a line for each query. Several threads use it."""

from __future__ import annotations

import threading
import time
from typing import Any

from dnslib import RCODE

from podwire_base.role import logs
from podwire_base.role.metrics import Histogram

from . import names
from .clients import Clients
from .metrics import PATHS, PROGRAMMING_BOUNDS, Tally, response_class, total
from .rtypes import type_name

log = logs.get("dns")


class Observer:
    """Counts and logs answers.

    clients: finds the pod of an address; None: do not log queries. programming: seconds from a change of a headless
    Service's pods to the new answers.
    """

    def __init__(self, clients: Clients | None) -> None:
        self.clients = clients
        self.classes: tuple[str, ...] = ("all",)
        self.zones: tuple[str, ...] = ()
        self.programming = Histogram(PROGRAMMING_BOUNDS)
        self._tallies = {path: Tally() for path in PATHS}
        self._lock = threading.Lock()

    def configure(self, clients: Clients | None, classes: tuple[str, ...], zones: tuple[str, ...]) -> None:
        """Applies new settings.

        classes: results of metrics.response_class, or all. zones: log only names below these zones; empty: all names.
        """
        self.clients, self.classes = clients, classes
        self.zones = tuple(f".{zone.strip('.').lower()}." for zone in zones)

    def programmed(self, seconds: float) -> None:
        self.programming.observe(seconds)

    def total(self, path: str) -> Tally:
        """Returns a copy of the counts of one of PATHS."""
        with self._lock:
            return total((self._tallies[path],))

    def add_native(self, path: str, counts: Any) -> None:
        """Adds the counts of a compiled loop that has ended."""
        with self._lock:
            self._tallies[path].add_native(counts)

    def failed(self, path: str, peer: tuple[Any, ...], query: bytes, error: Exception) -> None:
        with self._lock:
            self._tallies[path].errors += 1
        log.error("query failed", peer=peer[0], query=query[:64].hex(), error=repr(error))

    def answered(
        self, path: str, peer: tuple[Any, ...], query: bytes, answer: bytes, began: float, plugin: str = ""
    ) -> None:
        """Counts one answer and logs its query. path: one of PATHS. began: the monotonic time at which the query
        arrived. plugin: as in Tally.
        """
        now = time.monotonic()
        with self._lock:
            self._tallies[path].answered(query, answer, now - began, plugin)
        if self.clients is not None and ("all" in self.classes or response_class(answer) in self.classes):
            name, rtype = question_of(answer)
            if self.zones and not f".{name.lower()}".endswith(self.zones):
                return
            log.info(
                "query",
                client=peer[0],
                pod=self.clients.pod(str(peer[0]), now),
                protocol=path.removesuffix("6"),
                name=name,
                type=rtype,
                rcode=str(RCODE.forward.get(answer[3] & 0xF, answer[3] & 0xF)),
                size=len(answer),
                query_size=len(query),
                took_ms=(now - began) * 1000,
            )


def question_of(answer: bytes) -> tuple[str, str]:
    """Returns the name and type in a response of this server; two empty texts if it echoes no question."""
    if answer[4:6] != b"\0\1":
        return "", ""
    at = 12
    while answer[at]:
        at += 1 + answer[at]
    return names.from_wire(answer[12 : at + 1]), type_name(int.from_bytes(answer[at + 1 : at + 3]))

"""Counts what was answered and, where asked to, writes a line for each query. Used by several threads."""

from __future__ import annotations

import threading
import time
from typing import Any

from dnslib import RCODE

from podwire_controlplane.client import logs

from . import names
from .answer import type_name
from .clients import Clients
from .metrics import Tally

log = logs.get("dns")


class Observer:
    """clients: names pods by address; None: no line for each query."""

    def __init__(self, clients: Clients | None) -> None:
        self.clients = clients
        self._tallies = {"udp": Tally(), "tcp": Tally()}
        self._lock = threading.Lock()

    def total(self, protocol: str) -> Tally:
        """A copy."""
        found, mine = Tally(), self._tallies[protocol]
        with self._lock:
            found.types.update(mine.types)
            found.rcodes.update(mine.rcodes)
            found.took = list(mine.took)
            found.took_seconds, found.errors = mine.took_seconds, mine.errors
        return found

    def failed(self, protocol: str, peer: tuple[Any, ...], query: bytes, error: Exception) -> None:
        with self._lock:
            self._tallies[protocol].errors += 1
        log.error("query failed", peer=peer[0], query=query[:64].hex(), error=repr(error))

    def answered(self, protocol: str, peer: tuple[Any, ...], query: bytes, answer: bytes, began: float) -> None:
        """`began`: when the query came, by the monotonic clock."""
        now = time.monotonic()
        with self._lock:
            self._tallies[protocol].answered(answer, now - began)
        if self.clients is not None:
            name, rtype = question_of(answer)
            log.info("query", client=peer[0], pod=self.clients.pod(str(peer[0]), now), protocol=protocol, name=name, type=rtype,
                     rcode=str(RCODE.forward.get(answer[3] & 0xF, answer[3] & 0xF)), size=len(answer),
                     query_size=len(query), took_ms=(now - began) * 1000)


def question_of(answer: bytes) -> tuple[str, str]:
    """Name and type of a response of ours; empty where it echoes no question."""
    if answer[4:6] != b"\0\1":
        return "", ""
    at = 12
    while answer[at]:
        at += 1 + answer[at]
    return names.from_wire(answer[12:at + 1]), type_name(int.from_bytes(answer[at + 1:at + 3]))

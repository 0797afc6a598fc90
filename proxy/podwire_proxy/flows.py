"""The conntrack entries that changes of the dataplane leave behind. Every backend shares it.

Nothing is deleted at the change itself: an answer may still be on its way, and so may be a packet that was translated by the
rules of a moment ago. `note` remembers, `sweep` does it some milliseconds later, held against the dataplane of then.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from podwire_controlplane.client import logs
from podwire_controlplane.client.netns import in_thread, setns

from .conntrack import Flow, Place, provocation, serving, stale
from .ctnetlink import Conntrack, Family
from .dataplane import Dataplane, Delta, Key

log = logs.get("proxy")
IPPROTO_IPV6, IPV6_HDRINCL = 41, 36
TOLD = 8  # flows of a sweep that get a log line each


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep deleted: UDP entries that led nowhere, TCP flows that were reset. seconds: conntrack's part of the time.
    by_family: the UDP entries by family."""

    udp: int = 0
    tcp: int = 0
    seconds: float = 0.0
    by_family: Mapping[str, int] = field(default_factory=dict)


class FlowKeeper:
    """`note` after each sync that the kernel took, `sweep` a moment later; after an error `note` everything (delta None)."""

    def __init__(self, ns_fd: int | None = None) -> None:
        self._ns_fd = ns_fd
        self._dataplane: Dataplane | None = None
        self._keys: set[Key] | None = set()  # None: all

    @property
    def pending(self) -> bool:
        return self._keys is None or bool(self._keys)

    def note(self, dataplane: Dataplane, delta: Delta | None) -> None:
        """The frontends of `delta` changed; None: any may have, while nobody looked."""
        self._dataplane = dataplane
        if delta is None:
            self._keys = None
        elif self._keys is not None:
            self._keys |= {key for key in delta.frontends if key.protocol != "SCTP"}

    def sweep(self, families: Iterable[Family]) -> Swept:
        """Raises OSError, and then the keys are still noted."""
        plane, keys = self._dataplane, self._keys
        if plane is None or (keys is not None and not keys):
            return Swept()
        started, counts, by_family = time.monotonic(), {"UDP": 0, "TCP": 0}, dict[str, int]()
        wanted = serving(plane.frontends if keys is None else keys, plane)
        if wanted:
            with Conntrack(self._ns_fd) as conntrack:
                for family in families:
                    mine = {key: alive for key, alive in wanted.items() if (":" in key.ip) == (family == "ip6")}
                    for flow in conntrack.delete(family, list(stale(conntrack.flows(family, mine), mine))):
                        counts[flow.destination.protocol] += 1
                        by_family[family] = by_family.get(family, 0) + (flow.destination.protocol == "UDP")
                        self._end(flow, tell=sum(counts.values()) <= TOLD)
        self._keys = set()
        if sum(counts.values()) > TOLD:
            log.info("flows ended in all", stale_udp=counts["UDP"], reset_tcp=counts["TCP"])
        return Swept(counts["UDP"], counts["TCP"], time.monotonic() - started, by_family)

    def _end(self, flow: Flow, *, tell: bool) -> None:
        frontend = (flow.destination.ip, flow.destination.port)
        what = "stale UDP flow deleted"
        if flow.destination.protocol == "TCP":
            what = "connection reset, its endpoint is gone"
            self._provoke(frontend, flow.source)
            self._provoke(flow.seen, (flow.answers.ip, flow.answers.port))
        if tell:
            log.info(what, client=f"{flow.source[0]}:{flow.source[1]}", frontend=f"{frontend[0]}:{frontend[1]}",
                     backend=flow.answers.ip)

    def _provoke(self, source: Place, destination: Place) -> None:
        """Best effort: the rules reset the flow with the next packet in any case."""
        v6 = ":" in destination[0]

        def send() -> None:
            if self._ns_fd is not None:
                setns(self._ns_fd)
            with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
                if v6:
                    sock.setsockopt(IPPROTO_IPV6, IPV6_HDRINCL, 1)
                sock.sendto(provocation(source, destination), (destination[0], 0))

        with contextlib.suppress(OSError):
            if self._ns_fd is None:
                send()
            else:
                in_thread(send)

"""Deletes the conntrack entries that become stale when the dataplane changes. All backends use this module.

The module deletes no entry at the time of the change, because an answer or a packet that the previous rules translated
may be in flight. `note` records the change. `look` takes the records some milliseconds later and compares them with the
dataplane of that time.

For each dump the kernel traverses its whole table, which takes milliseconds even without a result. Therefore another
thread may call `Look.run` (sweeper.py).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.conntrack.codec import TCP, UDP, Flow, matching
from podwire_base.kernel.conntrack.socket import Conntrack
from podwire_base.kernel.ip import Family
from podwire_base.kernel.netns import within
from podwire_base.role import logs

from .conntrack import (
    Closed,
    Place,
    challenge_ack_probe,
    destination_of,
    queries,
    serving,
    stale,
    stale_attempts,
    untranslated,
)
from .dataplane import Dataplane, Delta, Frontend, Key
from .model import PROTOCOLS, Destination, covers, is_v6

log = logs.get("proxy")
SCTP = PROTOCOLS["SCTP"]
IPPROTO_IPV6, IPV6_HDRINCL = 41, 36
TOLD = 8  # the maximum number of log lines about flows per sweep


@dataclass(frozen=True, slots=True)
class Swept:
    """The result of a sweep: the numbers of deleted entries, and the cost.

    The entries are stale UDP entries, reset TCP flows, and opening: SYNs that no endpoint will answer. seconds: the
    duration of the sweep. by_family: the UDP entries by family. dumps, entries: the number of requested dumps and of
    received entries. busy: CPU seconds, including the kernel's.
    """

    udp: int = 0
    tcp: int = 0
    seconds: float = 0.0
    by_family: Mapping[str, int] = field(default_factory=dict)
    opening: int = 0
    dumps: int = 0
    entries: int = 0
    busy: float = 0.0


class FlowKeeper:
    """Records changed frontends and deletes their stale conntrack entries.

    Call `note` after each successful sync, and `sweep` a moment later. After an error, call `note` with delta None.
    """

    def __init__(self, families: Iterable[Family], ns_fd: int | None = None) -> None:
        self._families, self._ns_fd = tuple(families), ns_fd
        self._dataplane: Dataplane | None = None
        self._keys: set[Key] | None = set()  # None: all
        self._moved: set[Key] = set()
        self._outside: set[Key] = set()  # UDP frontends at addresses of nodes, where a hostPort may have been before
        self._fresh: set[Key] = set()  # those of them that are new
        self._ips: set[str] = set()  # new ClusterIPs outside the ranges whose unallocated addresses are closed

    @property
    def pending(self) -> bool:
        return self._keys is None or bool(self._keys or self._ips)

    def note(self, dataplane: Dataplane, delta: Delta | None) -> None:
        """Records the frontends of `delta`. delta None: records all, because any frontend may have changed."""
        self._dataplane = dataplane
        if delta is None:
            self._keys = None
            self._outside = {key for key, frontend in dataplane.frontends.items() if _at_node(key, frontend)}
            self._fresh = set()
            return
        self._note_outside(dataplane, delta)
        if self._keys is not None:
            self._keys |= {key for key in delta.frontends if key.protocol != "SCTP"}
            self._moved |= {key for key in delta.moved if key.protocol == "TCP"}
            # An address inside the ranges was closed before, and its packets left no entry.
            ranges = dataplane.node.service_cidrs
            self._ips |= {ip for ip in delta.cluster_ips if ip in dataplane.cluster_ips and not covers(ranges, ip)}

    def _note_outside(self, dataplane: Dataplane, delta: Delta) -> None:
        for key in delta.frontends:
            if key.protocol == "UDP":
                frontend = dataplane.frontends.get(key)
                if frontend is None:
                    self._outside.discard(key)
                    self._fresh.discard(key)
                elif _at_node(key, frontend) and key not in self._outside:
                    self._outside.add(key)
                    self._fresh.add(key)

    def look(self) -> Look:
        """Returns the recorded frontends for a check in any thread, and clears the record."""
        plane = self._dataplane
        found = plane.frontends if plane is not None else {}
        if self._keys is None:
            closed = Closed()
            if plane is not None:
                closed = Closed(dict(found), frozenset(plane.cluster_ips), plane.node.service_cidrs)
            look = Look(self._families, self._ns_fd, dict(found), dict(found), closed)
        else:
            look = Look(
                self._families,
                self._ns_fd,
                {key: found[key] for key in self._keys if key in found},
                {key: found[key] for key in self._moved if key in found},
                Closed(dict(found), frozenset(self._ips)) if self._ips else Closed(),
                frozenset(self._fresh),
            )
        self._keys, self._moved, self._ips, self._fresh = set(), set(), set(), set()
        return look

    def sweep(self) -> Swept:
        """Checks the recorded frontends at once. The record is empty after an OSError: call `note` with delta None."""
        return self.look().run()


def _at_node(key: Key, frontend: Frontend) -> bool:
    return key.protocol == "UDP" and frontend.kind != "ClusterIP"


@dataclass(frozen=True)
class Look:
    """One check of flows. frontends: the changed frontends. moved: the frontends that lost endpoints. closed: the
    addresses that were perhaps open before. fresh: the new UDP frontends at addresses of nodes.

    All have the current state.
    """

    families: tuple[Family, ...]
    ns_fd: int | None
    frontends: Mapping[Key, Frontend]
    moved: Mapping[Key, Frontend]
    closed: Closed = field(default_factory=Closed)
    fresh: frozenset[Key] = frozenset()

    def run(self) -> Swept:
        """Finds the stale flows and ends them. Raises OSError."""
        began, worked, ended, by_family = time.monotonic(), time.thread_time(), Counter[str](), dict[str, int]()
        wanted = serving(self.frontends)
        if not wanted and not self.moved and not self.closed:
            return Swept()
        with Conntrack(self.ns_fd) as conntrack:
            for family in self.families:
                for flow in conntrack.delete(self._lost(conntrack, family, wanted)):
                    ended[_kind(flow)] += 1
                    by_family[family] = by_family.get(family, 0) + (flow.protocol == UDP)
                    self._end(flow, tell=ended.total() <= TOLD)
        if ended.total() > TOLD:
            log.info(
                "number of flows ended", stale_udp=ended["UDP"], reset_tcp=ended["TCP"], unanswered_tcp=ended["opening"]
            )
        return Swept(
            ended["UDP"],
            ended["TCP"],
            time.monotonic() - began,
            by_family,
            ended["opening"],
            conntrack.dumps,
            conntrack.entries,
            time.thread_time() - worked,
        )

    def _lost(self, conntrack: Conntrack, family: Family, wanted: Mapping[Key, frozenset[Destination]]) -> list[Flow]:
        mine, lost = {key: alive for key, alive in wanted.items() if _of(family, key)}, list[Flow]()
        for query in queries(mine):
            lost += stale(conntrack.flows(family, query), mine, self.fresh)
        if self.closed or any(_of(family, key) for key in self.moved):
            opening = list(conntrack.flows(family, matching(TCP, unanswered=True)))
            lost += stale_attempts(opening, self.moved)
            lost += self.closed.missed(opening, self._local)
        for number in (UDP, SCTP) if self.closed else ():
            lost += self.closed.missed(conntrack.flows(family, matching(number)), self._local)
        return list({flow.ident: flow for flow in lost}.values())

    def _local(self) -> frozenset[str]:
        return frozenset(map(str, within(self.ns_fd, local_addresses)))

    def _end(self, flow: Flow, *, tell: bool) -> None:
        frontend = (flow.original.destination, flow.original.destination_port)
        client = (flow.original.source, flow.original.source_port)
        what = "stale UDP flow deleted"
        if untranslated(flow):
            what = "flow from before its address had rules deleted"
        elif flow.opening:
            what = "connection attempt released from an endpoint that is gone"
        elif flow.protocol == TCP:
            what = "connection reset, its endpoint is gone"
            self._probe_both_ends(frontend, client)
            self._probe_both_ends((flow.reply.destination, flow.reply.destination_port), destination_of(flow))
        if tell:
            log.info(
                what,
                client=f"{client[0]}:{client[1]}",
                frontend=f"{frontend[0]}:{frontend[1]}",
                destination=flow.reply.source,
            )

    def _probe_both_ends(self, source: Place, destination: Place) -> None:
        """Sends a probe to both ends of a flow. Best effort: the rules reset the flow at the next packet anyway."""
        v6 = ":" in destination[0]

        def send() -> None:
            with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
                if v6:
                    sock.setsockopt(IPPROTO_IPV6, IPV6_HDRINCL, 1)
                sock.sendto(challenge_ack_probe(source, destination), (destination[0], 0))

        with contextlib.suppress(OSError):
            within(self.ns_fd, send)


def _of(family: Family, key: Key) -> bool:
    return is_v6(key.ip) == (family == "ip6")


def _kind(flow: Flow) -> str:
    return "opening" if flow.opening else {TCP: "TCP", UDP: "UDP"}.get(flow.protocol, "")

"""Decides which pods the bypass carries (native/bypass.bpf.c). Pure.

A pod is fast if its packets need none of what they pass by: no rate limit of its link, no network policy, and no
translated flow of its own, whose answers must come back through the rules.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podwire_base.kernel.conntrack.codec import Flow

from ..model import is_v6
from .maps import mapped

FAST = 1
QUIET = 2_000_000_000  # ns after which a pod that sent to a Service's address may be looked at again
NO_QUEUE = ("noqueue", "clsact", "ingress", "")  # queues that delay and drop nothing
_POD = struct.Struct("<II6sHQ")
_DOOR = struct.Struct(">HBB")


class Seat(NamedTuple):
    """A pod's place. ips: its addresses. ifindex: the node's end of its link. mac: the pod's. limited: a queue limits
    its rate.
    """

    ips: tuple[str, ...]
    ifindex: int
    mac: bytes
    limited: bool = False


class Entry(NamedTuple):
    """An element of the map `pods`. wire: when the pod last sent to a Service's address itself (ns), 0: not."""

    ifindex: int
    fast: bool
    mac: bytes
    wire: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """What the tables of network policies say. there: the families (whether IPv6) that have such a table. judged: pods
    that were looked at. policed: pods that a policy isolates.
    """

    there: frozenset[bool] = frozenset()
    judged: frozenset[str] = frozenset()
    policed: frozenset[str] = frozenset()

    def free(self, ip: str) -> bool:
        return is_v6(ip) not in self.there or (ip in self.judged and ip not in self.policed)


@dataclass(slots=True)
class Plan:
    """slow, fast: elements to write, the slow ones first. drop: addresses without a pod."""

    slow: dict[str, Entry] = field(default_factory=dict)
    fast: dict[str, Entry] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.slow or self.fast or self.drop)


def why_slow(seat: Seat, judged: Judged, translated: frozenset[str]) -> str:
    """Returns why the pod is not fast; "" if it may be. translated: addresses of pods with a translated flow."""
    if seat.limited:
        return "bandwidth"
    if not all(judged.free(ip) for ip in seat.ips):
        return "policy"
    if any(ip in translated for ip in seat.ips):
        return "translated-flows"
    return ""


def candidates(seats: Iterable[Seat], have: Mapping[str, Entry], judged: Judged, now: int) -> set[str]:
    """Returns the addresses that only translated flows can keep slow: conntrack has to be asked for them. now: ns."""
    found = set[str]()
    for seat in seats:
        if why_slow(seat, judged, frozenset()):
            continue
        for ip in seat.ips:
            entry = have.get(ip)
            if entry is None or not entry.fast or entry.ifindex != seat.ifindex or 0 < entry.wire < now - QUIET:
                found.add(ip)
    return found


def plan(
    seats: Iterable[Seat], have: Mapping[str, Entry], judged: Judged, translated: frozenset[str], now: int
) -> Plan:
    """Returns the changes from what the map has. An address that sent to a Service a moment ago keeps its mark."""
    made, wanted = Plan(), set[str]()
    for seat in seats:
        fast = not why_slow(seat, judged, translated)
        for ip in seat.ips:
            wanted.add(ip)
            old = have.get(ip)
            same = old is not None and old.ifindex == seat.ifindex
            wire = old.wire if old and same and (ip in translated or old.wire >= now - QUIET) else 0
            entry = Entry(seat.ifindex, fast, seat.mac, wire)
            if entry != old:
                (made.fast if fast and not wire else made.slow)[ip] = entry
    made.drop = [ip for ip in have if ip not in wanted]
    return made


def translated(flows: Iterable[Flow]) -> frozenset[str]:
    """Returns the clients of flows whose destination is translated while their source stays: the answers have the
    endpoint's address, and only conntrack can put the dialled one back.
    """
    return frozenset(
        flow.original.source
        for flow in flows
        if flow.original.source == flow.reply.destination and flow.original.destination != flow.reply.source
    )


def between(flows: Iterable[Flow], pods: frozenset[str]) -> list[Flow]:
    """Returns the flows between two of these pods that nothing translates."""
    return [
        flow
        for flow in flows
        if flow.original.source in pods
        and flow.original.destination in pods
        and (flow.original.source, flow.original.destination) == (flow.reply.destination, flow.reply.source)
    ]


def element(ip: str, entry: Entry) -> tuple[bytes, bytes]:
    return mapped(ip), _POD.pack(entry.ifindex, FAST * entry.fast, entry.mac, 0, entry.wire)


def entry_of(value: bytes) -> Entry:
    ifindex, flags, mac, _, wire = _POD.unpack(value)
    return Entry(ifindex, bool(flags & FAST), mac, wire)


def door(port: int, protocol: int) -> bytes:
    """Returns the key of an element of the map `doors`: a port of the node that leads into a pod."""
    return _DOOR.pack(port, protocol, 0)

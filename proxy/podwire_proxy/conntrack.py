"""Finds the conntrack entries that send packets to a wrong destination. Pure; flows.py reads and deletes the entries.

UDP: a flow without a handshake keeps its first translation forever. An entry is stale if its original destination is a
frontend with endpoints that serve, but none of these endpoints is the source of its answers. Either the endpoint was
removed or stopped serving, or the flow began before the translation existed (its answers would then come from the
Service address). An endpoint that serves keeps its flows even if it gets no new ones: because it terminates, or because
a traffic policy or a hint prefers others (topology.answers).

A flow that began before its address had rules was never translated, and no chain of nat sees it again. UDP and attempts
of other protocols to an address that the rules refuse or drop now would go on to wherever routes lead. Their entries go
too, so that the next packet meets the rules: `untranslated` says which.

TCP without an answer yet: the entry of a SYN leads its retransmissions to the same endpoint for two minutes, even if
that endpoint is gone. Without the entry, the next retransmission is a new connection and reaches a current endpoint.

Other TCP flows stay: an established connection to a removed endpoint ends by itself. Only if a Service requests it
(Frontend.alive), the flows of removed endpoints (not of terminating endpoints) are stale too, and their entries are
deleted. The next packet of such a client belongs to no flow, and the rules answer with a reset. A client that only
waits must also get a reset, so both ends get a `challenge_ack_probe`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from podwire_base.kernel import frames
from podwire_base.kernel.conntrack.codec import SEEN_REPLY, TCP, UDP, Flow, matching
from podwire_base.kernel.ip import packed

from .dataplane import Frontend, Key
from .model import PROTOCOLS, Destination, Protocol, covers
from .verdict import PASS

SYN_FIN = 0x03
Place = tuple[str, int]  # address, port
FEW = 8  # up to this number of frontends, one dump per frontend; for more, one dump per protocol
_PROTOCOLS: dict[int, Protocol] = {6: "TCP", 17: "UDP", 132: "SCTP"}


def frontend_of(flow: Flow) -> Key | None:
    """Returns the destination that the client dialled; None for a protocol that Services do not support."""
    protocol = _PROTOCOLS.get(flow.protocol)
    return None if protocol is None else Key(flow.original.destination, protocol, flow.original.destination_port)


def destination_of(flow: Flow) -> Destination:
    """Returns the source of the flow's replies."""
    return Destination(flow.reply.source, flow.reply.source_port)


def queries(frontends: Collection[Key]) -> list[bytes]:
    """Returns the dump requests that together cover all flows to these frontends (and perhaps other flows).

    For each dump, the kernel traverses its whole table.
    """
    if len(frontends) > FEW:
        return [matching(PROTOCOLS[protocol]) for protocol in sorted({key.protocol for key in frontends})]
    return [matching(PROTOCOLS[key.protocol], key.ip, key.port) for key in frontends]


def serving(frontends: Mapping[Key, Frontend]) -> dict[Key, frozenset[Destination]]:
    """Returns frontend -> current valid destinations, for each given frontend whose flows need a check.

    UDP without valid destinations: only flows that were never translated are checked.
    """
    out: dict[Key, frozenset[Destination]] = {}
    for key, frontend in frontends.items():
        if key.protocol == "UDP":
            if not _passes(frontend):
                out[key] = frontend.destinations.union(frontend.serving)
        elif frontend.alive is not None:
            out[key] = frozenset(frontend.alive)
    return out


def stale(
    flows: Iterable[Flow], serving: Mapping[Key, frozenset[Destination]], fresh: Collection[Key] = ()
) -> Iterator[Flow]:
    """Yields the entries of the frontends in `serving` that lead to no current destination. fresh: new frontends; what
    was translated at their addresses before was so by another program, for a hostPort.
    """
    for flow in flows:
        frontend = frontend_of(flow)
        destinations = serving.get(frontend) if frontend is not None else None
        if frontend is None or destinations is None or flow.over:
            continue
        answers = destination_of(flow)
        if answers in destinations:
            continue
        if frontend.protocol == "UDP":
            # a translated flow without destinations: no other endpoint exists
            if destinations or untranslated(flow) or frontend in fresh:
                yield flow
        elif answers != (frontend.ip, frontend.port):  # the flow was never translated: not a flow of the proxy
            yield flow


def stale_attempts(flows: Iterable[Flow], frontends: Mapping[Key, Frontend]) -> Iterator[Flow]:
    """Yields the entries of unanswered SYNs whose destination gets no new connections now."""
    for flow in flows:
        key = frontend_of(flow) if flow.opening else None
        frontend = frontends.get(key) if key is not None else None
        if frontend is None or _passes(frontend):
            continue
        destinations = frontend.destinations
        if not destinations and not untranslated(flow):
            continue  # no other endpoint exists
        if destination_of(flow) not in destinations:
            yield flow


def untranslated(flow: Flow) -> bool:
    """Whether the answers come from the very address and port that the client dialled."""
    return (flow.reply.source, flow.reply.source_port) == (flow.original.destination, flow.original.destination_port)


@dataclass(frozen=True, slots=True)
class Closed:
    """The addresses that refuse or drop every packet for which there is no frontend.

    frontends: all frontends. `stale` and `stale_attempts` check their flows, but not those of SCTP. cluster_ips:
    addresses of Services (verdict.WRONG_PORT). ranges: the CIDRs of Services; their unallocated addresses are closed,
    but not those of this machine (verdict.UNALLOCATED).
    """

    frontends: Mapping[Key, Frontend] = field(default_factory=dict)
    cluster_ips: Collection[str] = ()
    ranges: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.cluster_ips or self.ranges)

    def missed(self, flows: Iterable[Flow], local: Callable[[], Collection[str]]) -> Iterator[Flow]:
        """Yields the untranslated entries to closed addresses. local: returns the addresses of this machine."""
        mine: Collection[str] | None = None
        for flow in flows:
            key = frontend_of(flow)
            if key is None or not untranslated(flow) or not _beginning(flow):
                continue
            if (frontend := self.frontends.get(key)) is not None:
                if (
                    key.protocol == "SCTP"
                    and not _passes(frontend)
                    and destination_of(flow) not in frontend.destinations
                ):
                    yield flow
            elif key.ip in self.cluster_ips:
                yield flow
            elif covers(self.ranges, key.ip):
                mine = local() if mine is None else mine
                if key.ip not in mine:
                    yield flow


def _beginning(flow: Flow) -> bool:
    """Whether the flow may still be led elsewhere: UDP always, other protocols until the first answer."""
    return flow.protocol == UDP or (flow.opening if flow.protocol == TCP else not flow.status & SEEN_REPLY)


def _passes(frontend: Frontend) -> bool:
    """Whether untranslated packets to the frontend go on as if it did not exist."""
    return PASS in (frontend.internal, frontend.external)


def challenge_ack_probe(source: Place, destination: Place) -> bytes:
    """Returns an IP packet that makes the TCP stack at `destination` send an ACK to `source`.

    The packet has a SYN in an established connection (RFC 5961, 4.2). It also has a FIN, which makes the packet invalid
    for conntrack, so that the packet leaves no entry.
    """
    src, dst = packed(source[0]), packed(destination[0])
    tcp = struct.pack("!HHIIBBHHH", source[1], destination[1], 1, 0, 5 << 4, SYN_FIN, 0, 0, 0)
    tcp = tcp[:16] + frames.upper_checksum(src, dst, frames.TCP, tcp) + tcp[18:]
    if len(src) == 4:  # the kernel fills in length, ident and checksum
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, frames.TCP, 0) + src + dst + tcp
    return frames.ipv6(src, dst, frames.TCP, 64, tcp)

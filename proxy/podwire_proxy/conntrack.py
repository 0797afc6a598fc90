"""Finds the conntrack entries that send packets to a wrong destination. Pure; flows.py reads and deletes the entries.

UDP: a flow without a handshake keeps its first translation forever. An entry is stale if its original destination is a
frontend with endpoints that serve, but none of these endpoints is the source of its answers. Either the endpoint was
removed or stopped serving, or the flow began before the translation existed (its answers would then come from the
Service address). An endpoint that serves keeps its flows even if it gets no new ones: because it terminates, or because
a traffic policy or a hint prefers others (topology.answers).

TCP without an answer yet: the entry of a SYN leads its retransmissions to the same endpoint for two minutes, even if
that endpoint is gone. Without the entry, the next retransmission is a new connection and reaches a current endpoint.

Other TCP flows stay: an established connection to a removed endpoint ends by itself. Only if a Service requests it
(Frontend.alive), the flows of removed endpoints (not of terminating endpoints) are stale too, and their entries are
deleted. The next packet of such a client belongs to no flow, and the rules answer with a reset. A client that only
waits must also get a reset, so both ends get a `challenge_ack_probe`.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator, Mapping

from podwire_base.kernel import frames
from podwire_base.kernel.conntrack.codec import Flow, matching
from podwire_base.kernel.ip import packed

from .dataplane import Frontend, Key
from .model import PROTOCOLS, Destination, Protocol

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
    """Returns frontend -> current valid destinations, for each given frontend whose flows need a check."""
    out: dict[Key, frozenset[Destination]] = {}
    for key, frontend in frontends.items():
        if key.protocol == "UDP":
            if destinations := frontend.destinations.union(frontend.serving):
                out[key] = destinations
        elif frontend.alive is not None:
            out[key] = frozenset(frontend.alive)
    return out


def stale(flows: Iterable[Flow], serving: Mapping[Key, frozenset[Destination]]) -> Iterator[Flow]:
    """Yields the entries of the frontends in `serving` that lead to no current destination."""
    for flow in flows:
        frontend = frontend_of(flow)
        destinations = serving.get(frontend) if frontend is not None else None
        if frontend is None or destinations is None or flow.over:
            continue
        answers = destination_of(flow)
        if answers in destinations:
            continue
        if frontend.protocol == "UDP":
            if destinations:  # without destinations: no other endpoint exists
                yield flow
        elif answers != (frontend.ip, frontend.port):  # the flow was never translated: not a flow of the proxy
            yield flow


def stale_attempts(flows: Iterable[Flow], frontends: Mapping[Key, Frontend]) -> Iterator[Flow]:
    """Yields the entries of unanswered SYNs whose destination gets no new connections now."""
    for flow in flows:
        key = frontend_of(flow) if flow.opening else None
        frontend = frontends.get(key) if key is not None else None
        if frontend is None or not (destinations := frontend.destinations):
            continue  # no other endpoint exists
        if destination_of(flow) not in destinations:
            yield flow


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

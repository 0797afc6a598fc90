"""Which conntrack entries keep packets away from where they belong. Pure; flows.py reads and
deletes them.

UDP: a flow without a handshake keeps its first translation forever. An entry is stale if its original destination is a
frontend with endpoints but its answers come from none of them: the endpoint was removed, or the flow began before any
translation existed (then its answers would come from the Service address itself).

TCP without an answer yet: the entry of a SYN leads its retransmissions to the same endpoint for two minutes, even if
that endpoint is gone. Without the entry, the next retransmission is a new connection and finds a living endpoint.

Other TCP flows are left alone: established connections to a removed endpoint end in their own time. Only if a Service
requests it (Frontend.alive), the flows of endpoints that are gone (not just terminating) are stale too. Their entries
are deleted. The next packet of such a client belongs to no flow, and the rules answer it with a reset. A client that
only waits must learn of it too, so both ends get a `challenge_ack_probe`.
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
FEW = 8  # up to this number of frontends, a dump for each; above it, one dump of all entries of a protocol
_PROTOCOLS: dict[int, Protocol] = {6: "TCP", 17: "UDP", 132: "SCTP"}


def frontend_of(flow: Flow) -> Key | None:
    """The destination that the client dialled; None for a protocol that Services do not have."""
    protocol = _PROTOCOLS.get(flow.protocol)
    return None if protocol is None else Key(flow.original.destination, protocol, flow.original.destination_port)


def destination_of(flow: Flow) -> Destination:
    """The source of the flow's replies."""
    return Destination(flow.reply.source, flow.reply.source_port)


def queries(frontends: Collection[Key]) -> list[bytes]:
    """The dumps to request from the kernel so that they contain all flows to these frontends (and perhaps others). Each
    dump walks the kernel's whole table.
    """
    if len(frontends) > FEW:
        return [matching(PROTOCOLS[protocol]) for protocol in sorted({key.protocol for key in frontends})]
    return [matching(PROTOCOLS[key.protocol], key.ip, key.port) for key in frontends]


def serving(frontends: Mapping[Key, Frontend]) -> dict[Key, frozenset[Destination]]:
    """The frontends, of those given, whose flows are checked, each with the destinations that may answer for it now."""
    out: dict[Key, frozenset[Destination]] = {}
    for key, frontend in frontends.items():
        if key.protocol == "UDP":
            if destinations := frontend.destinations:
                out[key] = destinations
        elif frontend.alive is not None:
            out[key] = frozenset(frontend.alive)
    return out


def stale(flows: Iterable[Flow], serving: Mapping[Key, frozenset[Destination]]) -> Iterator[Flow]:
    """Entries of the frontends in `serving` that lead nowhere."""
    for flow in flows:
        frontend = frontend_of(flow)
        destinations = serving.get(frontend) if frontend is not None else None
        if frontend is None or destinations is None or flow.over:
            continue
        answers = destination_of(flow)
        if answers in destinations:
            continue
        if frontend.protocol == "UDP":
            if destinations:  # else: there is no other endpoint
                yield flow
        elif answers != (frontend.ip, frontend.port):  # never translated: not our flow
            yield flow


def stale_attempts(flows: Iterable[Flow], frontends: Mapping[Key, Frontend]) -> Iterator[Flow]:
    """Unanswered SYNs to these frontends that went where no new connection goes now."""
    for flow in flows:
        key = frontend_of(flow) if flow.opening else None
        frontend = frontends.get(key) if key is not None else None
        if frontend is None or not (destinations := frontend.destinations):
            continue  # without endpoints: there is no other one
        if destination_of(flow) not in destinations:
            yield flow


def challenge_ack_probe(source: Place, destination: Place) -> bytes:
    """A whole IP packet that makes the TCP at `destination` send an ACK to `source`: a SYN in an established connection
    (RFC 5961, 4.2). The FIN beside it makes the packet invalid for conntrack, so it leaves no entry.
    """
    src, dst = packed(source[0]), packed(destination[0])
    tcp = struct.pack("!HHIIBBHHH", source[1], destination[1], 1, 0, 5 << 4, SYN_FIN, 0, 0, 0)
    tcp = tcp[:16] + frames.upper_checksum(src, dst, frames.TCP, tcp) + tcp[18:]
    if len(src) == 4:  # the kernel fills in length, ident and checksum
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, frames.TCP, 0) + src + dst + tcp
    return frames.ipv6(src, dst, frames.TCP, 64, tcp)

"""Which conntrack entries keep packets away from where they belong. Pure; flows.py reads and
deletes them.

UDP: a flow without a handshake goes on for ever with the translation it began with. An entry is stale when its original
destination is a frontend that has backends and its answers come from none of them: the backend went away, or the flow
began before any translation existed (then its answers would come from the Service address itself).

TCP that nobody has answered yet: the entry of a SYN leads its retransmissions to the same endpoint, for two minutes,
also when that endpoint is gone. Without the entry the next one is a new connection and finds a living endpoint.

Other TCP is left alone: established connections to a removed endpoint end in their own time. Only where a Service asks
for it (Frontend.alive) are the flows of endpoints that are gone, and not just terminating, stale too. Their entries are
deleted; the rules answer what comes next from such a client, which belongs to no flow, with a reset. So that a client
which only waits hears of it as well, both ends get a `challenge_ack_probe`.
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
FEW = 8  # up to so many frontends the kernel is asked for each; more: for all entries of a protocol at once
_PROTOCOLS: dict[int, Protocol] = {6: "TCP", 17: "UDP", 132: "SCTP"}


def frontend_of(flow: Flow) -> Key | None:
    """What the client dialled; None for a protocol that Services have no ports of."""
    protocol = _PROTOCOLS.get(flow.protocol)
    return None if protocol is None else Key(flow.original.destination, protocol, flow.original.destination_port)


def destination_of(flow: Flow) -> Destination:
    """Where the flow's replies come from."""
    return Destination(flow.reply.source, flow.reply.source_port)


def queries(frontends: Collection[Key]) -> list[bytes]:
    """What to ask the kernel for, so that it tells of all flows to these frontends (and perhaps of others): each dump
    goes through its whole table."""
    if len(frontends) > FEW:
        return [matching(PROTOCOLS[protocol]) for protocol in sorted({key.protocol for key in frontends})]
    return [matching(PROTOCOLS[key.protocol], key.ip, key.port) for key in frontends]


def serving(frontends: Mapping[Key, Frontend]) -> dict[Key, frozenset[Destination]]:
    """Of these frontends those whose flows are looked after, with the backends that may answer for them now."""
    out: dict[Key, frozenset[Destination]] = {}
    for key, frontend in frontends.items():
        if key.protocol == "UDP":
            if destinations := frontend.destinations:
                out[key] = destinations
        elif frontend.alive is not None:
            out[key] = frozenset(frontend.alive)
    return out


def stale(flows: Iterable[Flow], serving: Mapping[Key, frozenset[Destination]]) -> Iterator[Flow]:
    """Entries of `serving`'s frontends that lead nowhere."""
    for flow in flows:
        frontend = frontend_of(flow)
        destinations = serving.get(frontend) if frontend is not None else None
        if frontend is None or destinations is None or flow.over:
            continue
        answers = destination_of(flow)
        if answers in destinations:
            continue
        if frontend.protocol == "UDP":
            if destinations:  # else: nowhere to go instead
                yield flow
        elif answers != (frontend.ip, frontend.port):  # never translated: none of ours
            yield flow


def stale_attempts(flows: Iterable[Flow], frontends: Mapping[Key, Frontend]) -> Iterator[Flow]:
    """Unanswered SYNs to these frontends that went where no new connection goes now."""
    for flow in flows:
        key = frontend_of(flow) if flow.opening else None
        frontend = frontends.get(key) if key is not None else None
        if frontend is None or not (destinations := frontend.destinations):
            continue  # without backends: nowhere to go instead
        if destination_of(flow) not in destinations:
            yield flow


def challenge_ack_probe(source: Place, destination: Place) -> bytes:
    """A whole IP packet that makes the TCP at `destination` send an ACK to `source`: SYN in an established connection
    (RFC 5961, 4.2). The FIN beside it makes conntrack take the packet for invalid, so it leaves no entry on its way."""
    src, dst = packed(source[0]), packed(destination[0])
    tcp = struct.pack("!HHIIBBHHH", source[1], destination[1], 1, 0, 5 << 4, SYN_FIN, 0, 0, 0)
    tcp = tcp[:16] + frames.upper_checksum(src, dst, frames.TCP, tcp) + tcp[18:]
    if len(src) == 4:  # the kernel fills length, ident and checksum in
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, frames.TCP, 0) + src + dst + tcp
    return frames.ipv6(src, dst, frames.TCP, 64, tcp)

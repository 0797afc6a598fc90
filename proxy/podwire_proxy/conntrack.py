"""Which conntrack entries keep packets away from where they belong. Pure; ctnetlink.py reads and deletes them.

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from podwire_base.kernel import frames
from podwire_base.kernel.ip import packed

from .dataplane import Frontend, Key
from .model import Destination

SYN_FIN = 0x03
Place = tuple[str, int]  # address, port


@dataclass(frozen=True, slots=True)
class Flow:
    """A conntrack entry. destination: what the client dialled; answers: where its replies come from.

    source: client address and port; seen: what the backend takes the client for. ident: the kernel's own description of
    the entry, for deleting exactly this one. over: TCP that was closed or reset; the entry only waits to expire.
    opening: TCP of which only the client's SYN was seen.
    """

    destination: Key
    answers: Destination
    source: Place
    ident: bytes = b""
    seen: Place = ("", 0)
    over: bool = False
    opening: bool = False


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
        destinations = serving.get(flow.destination)
        if destinations is None or flow.over or flow.answers in destinations:
            continue
        if flow.destination.protocol == "UDP":
            if destinations:  # else: nowhere to go instead
                yield flow
        elif flow.answers != (flow.destination.ip, flow.destination.port):  # never translated: none of ours
            yield flow


def stale_attempts(flows: Iterable[Flow], frontends: Mapping[Key, Frontend]) -> Iterator[Flow]:
    """Unanswered SYNs to these frontends that went where no new connection goes now."""
    for flow in flows:
        frontend = frontends.get(flow.destination) if flow.opening else None
        if frontend is not None and (destinations := frontend.destinations) and flow.answers not in destinations:
            yield flow  # without backends: nowhere to go instead


def challenge_ack_probe(source: Place, destination: Place) -> bytes:
    """A whole IP packet that makes the TCP at `destination` send an ACK to `source`: SYN in an established connection
    (RFC 5961, 4.2). The FIN beside it makes conntrack take the packet for invalid, so it leaves no entry on its way."""
    src, dst = packed(source[0]), packed(destination[0])
    tcp = struct.pack("!HHIIBBHHH", source[1], destination[1], 1, 0, 5 << 4, SYN_FIN, 0, 0, 0)
    tcp = tcp[:16] + frames.upper_checksum(src, dst, frames.TCP, tcp) + tcp[18:]
    if len(src) == 4:  # the kernel fills length, ident and checksum in
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, frames.TCP, 0) + src + dst + tcp
    return frames.ipv6(src, dst, frames.TCP, 64, tcp)

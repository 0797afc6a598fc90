"""Which established flows a change of policies ends, and what ends them. Pure; cutter.py does it.

The API leaves open what becomes of a flow that was allowed when it began. Here it ends. To delete its conntrack entry
is not enough: if the server speaks next, conntrack takes the stream up in the server's direction, in which it may be
allowed. So for a while both tuples of the flow are refused (tables/layout.py, the set `cut`), and both ends get a
segment to which they answer at once, so that both meet the reset.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from podwire_base.kernel.conntrack.codec import Flow, Tuple
from podwire_base.kernel.frames import ipv6, upper_checksum
from podwire_base.kernel.ip import Family, packed

from .cells import Group
from .compiled import Compiled, Delta
from .decide import decide
from .model import PROTOCOLS, Packet, Pods
from .tables import layout

TCP = PROTOCOLS["TCP"]
_ACK = 0x10
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_TTL = 64


def touched(compiled: Compiled, delta: Delta) -> set[str]:
    """Returns the addresses of this node's pods whose flows a change may forbid: those that are judged by another
    program than before, and those with a selector that some address left.
    """
    left = {selector for selector, change in delta.members.items() if not all(change.values())}
    found = {ip for ip in delta.addresses if ip in compiled.addresses}
    if left:
        shrunk = {group for group in compiled.groups() if left & _selectors(group)}
        found |= {ip for ip, one in compiled.addresses.items() if one.ingress in shrunk or one.egress in shrunk}
    return {ip for ip in found if (one := compiled.addresses[ip]).ingress is not None or one.egress is not None}


def _selectors(group: Group) -> set[Pods]:
    return {step.peer for cell in group.cells() for step in cell.steps if isinstance(step.peer, Pods)}


def packet(flow: Flow) -> Packet:
    """Returns the first packet of a flow as the policies saw it: behind the translation of its destination."""
    return Packet(flow.original.source, flow.reply.source, flow.protocol, flow.reply.source_port)


def forbidden(compiled: Compiled, flows: Iterable[Flow], own: Set[str], own_node: bool = False) -> list[Flow]:
    """Returns the flows that the policies forbid now. own: addresses of the node, whose packets nobody judges.
    own_node: packets to the node are judged.
    """
    found = []
    for flow in flows:
        ends = flow.original.source, flow.reply.source
        local = ends[0] in compiled.addresses or ends[1] in compiled.addresses
        if (
            local
            and not own & set(ends[: 1 if own_node else 2])
            and not flow.over
            and not decide(compiled, packet(flow)).allowed
        ):
            found.append(flow)
    return found


def keys(flow: Flow) -> list[bytes]:
    """Returns the elements of `cut` for what each end sends, and for what the role sends to each end."""
    if not flow.original.destination_port:
        return []  # without ports there is no stream to take up
    sent = (flow.original, flow.reply)
    both = [*sent, *(Tuple(t.destination, t.destination_port, t.source, t.source_port) for t in sent)]
    made = (
        layout.cut_key(t.source, t.destination, flow.protocol, t.source_port, t.destination_port)
        for t in dict.fromkeys(both)
    )
    return list(made)


def provocations(flow: Flow) -> list[tuple[Family, str, bytes]]:
    """Returns (family, destination, IP packet) for each end of a TCP flow: an acknowledgement outside of its window, as
    if the other end had sent it, which RFC 9293 (3.10.7.4) has answered with an acknowledgement.
    """
    if flow.protocol != TCP:
        return []
    return [
        (flow.family, t.source, _segment(t.destination, t.destination_port, t.source, t.source_port))
        for t in (flow.original, flow.reply)
    ]


def _segment(source: str, source_port: int, destination: str, destination_port: int) -> bytes:
    src, dst = packed(source), packed(destination)
    tcp = struct.pack("!HHIIBBHHH", source_port, destination_port, 0, 0, 5 << 4, _ACK, 0, 0, 0)
    tcp = tcp[:16] + upper_checksum(src, dst, TCP, tcp) + tcp[18:]
    if len(src) == 16:
        return ipv6(src, dst, TCP, _TTL, tcp)
    return _IPV4.pack(0x45, 0, 20 + len(tcp), 0, 0, _TTL, TCP, 0, src, dst) + tcp  # the kernel fills the checksum in


@dataclass(slots=True)
class Held:
    """The flows that are in `cut`, with the time at which their elements expire, so that a change that allows a flow
    again takes it out before.
    """

    flows: dict[Flow, float] = field(default_factory=dict)

    def add(self, flows: Iterable[Flow], until: float) -> None:
        self.flows.update(dict.fromkeys(flows, until))

    def released(self, compiled: Compiled, now: float) -> list[Flow]:
        """Forgets what has expired, and forgets and returns what is allowed again."""
        self.flows = {flow: until for flow, until in self.flows.items() if until > now}
        found = [flow for flow in self.flows if decide(compiled, packet(flow)).allowed]
        for flow in found:
            del self.flows[flow]
        return found

"""Implements backend.Live for the maps and the table beneath them, as read back. Pure.

It walks the maps as the programs do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from podwire_base.kernel.ip import Family

from ..backend import Trace
from ..dataplane import Key
from ..decide import Packet
from ..model import NodeInfo, covers
from ..nftables.live import Tables
from ..verdict import forward
from .maps import NODE, POD, SERVED
from .plan import State


@dataclass(frozen=True, slots=True)
class Hooks:
    """clients: the addresses of the pods whose sockets meet the hooks; None: those of all pods. node_too: whether the
    node's sockets do.
    """

    states: Mapping[Family, State]
    clients: frozenset[str] | None = None
    node_too: bool = True
    place: str = "the socket hooks and table podwire"

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        return self._tables().node(name, addresses)

    def traces(self, packet: Packet, node: NodeInfo) -> Iterator[Trace]:
        """Yields the paths from a socket: a hook sees the call of connect() or sendmsg(), before there is a packet."""
        state = self.states.get("ip6" if ":" in packet.dst else "ip")
        who = self._who(packet, node)
        if state is None or not who or packet.protocol not in SERVED:
            yield from self._tables().traces(packet, node)
            return
        key = Key(packet.dst, packet.protocol, packet.port)  # type: ignore[arg-type]  # SERVED has no ICMP
        row = state.services.get(key)
        if row is None or not row.flags & who:
            yield from self._tables().traces(packet, node)
            return
        for destination in state.held(key).destinations:
            if Key(destination.ip, key.protocol, destination.port) in state.services:
                yield from self._tables().traces(packet, node)
                continue
            hairpin = destination.ip == packet.src
            steps = [f"socket hook: map services: {key.ip} {key.protocol} {key.port} : {row.number} endpoints"]
            if hairpin:  # the declared difference: with nftables the pod would see the node's address
                steps.append("hairpin: the connection stays in the pod")
            masqueraded = who == NODE or hairpin
            yield Trace(forward([(destination, masqueraded)]), tuple(steps))

    def _who(self, packet: Packet, node: NodeInfo) -> int:
        if covers(node.pod_cidrs, packet.src):
            known = self.clients is None or packet.src in self.clients
            return POD if known and not packet.node else 0
        return NODE if packet.node and self.node_too else 0

    def _tables(self) -> Tables:
        return Tables({family: state.table for family, state in self.states.items() if state.table is not None})

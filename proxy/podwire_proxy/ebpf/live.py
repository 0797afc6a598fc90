"""Implements backend.Live for the maps and the table beneath them, as read back. Pure.

It walks the maps as the programs do, or has the kernel run the program that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from podwire_base.kernel.ip import Family

from ..backend import Trace
from ..dataplane import Key
from ..decide import Packet
from ..model import Destination, NodeInfo, covers
from ..nftables.live import Tables
from ..verdict import forward
from .maps import NODE, POD, SERVED
from .plan import State

# (frontend, who, number of its endpoints) -> an endpoint or None (nftables serves) for each; None: cannot be asked
Ask = Callable[[Key, int, int], Sequence[Destination | None] | None]


@dataclass(frozen=True, slots=True)
class Hooks:
    """clients: the addresses of the pods whose sockets meet the hooks; None: those of all pods. node_too: whether the
    node's sockets do. ask: what the program itself answers; without it the maps are walked here.
    """

    states: Mapping[Family, State]
    clients: frozenset[str] | None = None
    node_too: bool = True
    ask: Ask | None = None
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
        if row is None:
            yield from self._tables().traces(packet, node)
            return
        told = self.ask(key, who, row.number) if self.ask else None
        by = "map services" if told is None else "the program's answer"
        for destination in walked(state, key, who) if told is None else told:
            if destination is None:
                yield from self._tables().traces(packet, node)
                continue
            hairpin = destination.ip == packet.src
            steps = [f"socket hook: {by}: {key.ip} {key.protocol} {key.port} : {row.number} endpoints"]
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


def walked(state: State, key: Key, who: int) -> list[Destination | None]:
    """Returns what the program answers for each endpoint of a frontend: the endpoint, or None where nftables serves."""
    if not state.services[key].flags & who:
        return [None]
    found = state.held(key).destinations
    return [None if Key(to.ip, key.protocol, to.port) in state.services else to for to in found]

"""What the policies of a node do with a packet. Pure: the kernel's rules must come to the same."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .cells import Cell, Origin
from .compiled import Compiled
from .model import DIRECTIONS, Block, Direction, Packet, Peer


class Trail(NamedTuple):
    """How one direction decided. pod: the pod that is judged. isolated: the policies that isolate it in this direction;
    () if nobody does. by: the rules that allowed the packet; () if it was denied, or not judged.
    """

    direction: Direction
    pod: str
    isolated: tuple[str, ...]
    verdict: Literal["allow", "deny"]
    by: tuple[Origin, ...] = ()


class Decision(NamedTuple):
    """trails: of the directions that were judged, egress first. A packet that is denied at egress has no ingress."""

    allowed: bool
    trails: tuple[Trail, ...] = ()


def decide(compiled: Compiled, packet: Packet) -> Decision:
    """Judges the first packet of a flow, as it is behind the translation of its destination. A pod reaches itself."""
    if packet.src == packet.dst:
        return Decision(True)
    trails = []
    for direction in reversed(DIRECTIONS):
        judged = compiled.addresses.get(packet.src if direction == "egress" else packet.dst)
        program = judged.program(direction) if judged else None
        if judged is None or program is None:
            continue
        cell = program.cell(packet.protocol, packet.port)
        verdict, by = _walk(compiled, cell, packet.dst if direction == "egress" else packet.src)
        trails.append(Trail(direction, judged.pod, cell.policies, verdict, by))
        if verdict == "deny":
            return Decision(False, tuple(trails))
    return Decision(True, tuple(trails))


def _walk(compiled: Compiled, cell: Cell, other: str) -> tuple[Literal["allow", "deny"], tuple[Origin, ...]]:
    for step in cell.steps:
        if step.peer is None or has(compiled, step.peer, other):
            return ("allow" if step.action == "allow" else "deny"), step.origins
    return cell.otherwise, ()


def has(compiled: Compiled, peer: Peer, address: str) -> bool:
    """Whether the address is one of the peer's."""
    if isinstance(peer, Block):
        return peer.has(address)
    return address in compiled.selected[peer]

"""What the policies of a node do with a packet. Pure: the kernel's rules must come to the same."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .cells import Cell, Origin
from .compiled import Compiled
from .model import DIRECTIONS, Block, Direction, Itself, Packet, Peer


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
    """Judges the first packet of a flow, as it is behind the translation of its destination."""
    trails = []
    for direction in reversed(DIRECTIONS):
        judged = compiled.addresses.get(packet.src if direction == "egress" else packet.dst)
        program = judged.program(direction) if judged else None
        if judged is None or program is None:
            continue
        cell = program.cell(packet.protocol, packet.port)
        verdict, by, policies = _walk(compiled, cell, packet)
        trails.append(Trail(direction, judged.pod, policies, verdict, by))
        if verdict == "deny":
            return Decision(False, tuple(trails))
    return Decision(True, tuple(trails))


def _walk(
    compiled: Compiled, cell: Cell, packet: Packet
) -> tuple[Literal["allow", "deny"], tuple[Origin, ...], tuple[str, ...]]:
    for step in cell.steps:
        if step.peer is None or has(compiled, step.peer, packet, cell.direction):
            if step.action == "pass":
                break
            return ("allow" if step.action == "allow" else "deny"), step.origins, cell.policies
    if cell.after is not None:
        return _walk(compiled, cell.after, packet)
    return cell.otherwise, (), cell.policies


def has(compiled: Compiled, peer: Peer, packet: Packet, direction: Direction) -> bool:
    """Whether the other end of the packet is the peer, or one of the peer's."""
    if isinstance(peer, Itself):
        return packet.src == packet.dst
    address = packet.dst if direction == "egress" else packet.src
    return peer.has(address) if isinstance(peer, Block) else address in compiled.selected[peer]

"""What the policies of a node do with a packet. Pure: the kernel's rules must come to the same."""

from __future__ import annotations

from typing import Literal, NamedTuple

from .cells import Cell, Origin
from .compiled import Compiled
from .model import DIRECTIONS, Block, Direction, Itself, Packet, Peer


class Trail(NamedTuple):
    """How one direction decided. pod: the pod that is judged. isolated: the policies that isolate it in this direction;
    () if nobody does. by: the rules that allowed the packet, or denied it by name; () if no rule speaks of it. staged:
    rules that are not in force and would deny it.
    """

    direction: Direction
    pod: str
    isolated: tuple[str, ...]
    verdict: Literal["allow", "deny"]
    by: tuple[Origin, ...] = ()
    staged: tuple[Origin, ...] = ()


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
        trails.append(_walk(compiled, cell, packet, Trail(direction, judged.pod, (), "allow")))
        if trails[-1].verdict == "deny":
            return Decision(False, tuple(trails))
    return Decision(True, tuple(trails))


def _walk(compiled: Compiled, cell: Cell, packet: Packet, trail: Trail) -> Trail:
    """Returns the trail with what this cell and those after it decide."""
    for step in cell.steps:
        if step.peer is None or has(compiled, step.peer, packet, cell.direction):
            if step.action == "log":
                trail = trail._replace(staged=(*trail.staged, *step.origins))
            if step.action in ("pass", "log"):
                break
            verdict: Literal["allow", "deny"] = "allow" if step.action == "allow" else "deny"
            return trail._replace(isolated=cell.policies, verdict=verdict, by=step.origins)
    if cell.after is not None:
        return _walk(compiled, cell.after, packet, trail)
    return trail._replace(isolated=cell.policies, verdict=cell.otherwise)


def has(compiled: Compiled, peer: Peer, packet: Packet, direction: Direction) -> bool:
    """Whether the other end of the packet is the peer, or one of the peer's."""
    if isinstance(peer, Itself):
        return packet.src == packet.dst
    address = packet.dst if direction == "egress" else packet.src
    return peer.has(address) if isinstance(peer, Block) else address in compiled.selected[peer]

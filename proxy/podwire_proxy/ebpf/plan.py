"""Decides which frontends the socket hooks serve, and computes the changes of the maps. Pure.

The nftables backend serves every frontend below the hooks. The hooks serve a client of a frontend if the result equals
that of nftables but for conntrack: the client gets one of several endpoints, no source range decides, and the source
stays (a pod) or is that of the route to the endpoint (the node, where nftables masquerades). Everything else stays with
nftables: refusals and drops, source ranges, session affinity, SCTP, clients whose kind the namespace does not tell.
Every frontend of TCP and UDP is in the map nevertheless: an endpoint that is itself an address of a Service must not be
dialled, because nftables would take the packet for that Service's.

Order: nftables first. Then new blocks of endpoints, then the elements of `services`, each with one update that switches
from the old block to the new. The old block is free at the sweep.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podwire_base.kernel.ip import Family
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.codec import TableDump

from ..dataplane import Balance, Dataplane, Delta, Frontend, Key
from ..model import Destination, NodeInfo, covers, is_v6
from ..nftables.layout import Layout
from ..nftables.plan import Planner as Beneath
from .blocks import Blocks, size_of
from .maps import ENDPOINTS, MAX_COUNT, NODE, POD, SERVED, SERVICES, Row, destination_of, endpoint

ROOM = SERVICES // 2  # of each family, and of its endpoints the half of the array
SHARE = ENDPOINTS // 2
LEFT = Row(0, 0, 0)  # a frontend that stays with nftables


class Held(NamedTuple):
    """What the maps hold for a frontend. destinations: in the order of the slots."""

    row: Row
    destinations: tuple[Destination, ...]


@dataclass(frozen=True, slots=True)
class State:
    """One family as read back. table: of nftables. slots: the endpoints by their place in the array."""

    table: TableDump | None = None
    services: Mapping[Key, Row] = field(default_factory=dict)
    slots: Mapping[int, bytes] = field(default_factory=dict)

    def held(self, key: Key) -> Held:
        row = self.services[key]
        found = (self.slots.get(row.base + n) for n in range(row.number))
        return Held(row, tuple(destination_of(data) for data in found if data is not None))


@dataclass(slots=True)
class Plan:
    """beneath: the transaction of nftables. slots: endpoints to write first. write, drop: of the map `services`.
    held: what the mirror has for the keys of `write` afterwards.
    """

    beneath: nft.Transaction
    slots: dict[int, bytes] = field(default_factory=dict)
    write: dict[Key, Row] = field(default_factory=dict)
    drop: list[Key] = field(default_factory=list)
    held: dict[Key, Held] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.beneath or self.slots or self.write or self.drop)

    @property
    def operations(self) -> int:
        return self.beneath.operations + len(self.write) + len(self.drop) + bool(self.slots)

    @property
    def elements(self) -> int:
        return self.beneath.elements + len(self.slots) + len(self.write) + len(self.drop)

    @property
    def verdicts(self) -> int:
        return self.beneath.verdicts

    def lines(self) -> Iterator[str]:
        yield from self.beneath.lines()
        for key, row in self.write.items():
            to = ", ".join(f"{d.ip}:{d.port}" for d in self.held[key].destinations)
            served = f"for {who(row.flags)}: {to}" if row.flags else "left to nftables"
            yield f"socket hooks: {key.ip} {key.protocol} {key.port} {served}"
        for key in self.drop:
            yield f"socket hooks: {key.ip} {key.protocol} {key.port}: no more"


def _block(row: Row) -> tuple[int, int]:
    return row.base, size_of(row.number)


def who(flags: int) -> str:
    return " and ".join(name for bit, name in ((POD, "pods"), (NODE, "the node")) if flags & bit)


def served(frontend: Frontend, node: NodeInfo) -> int:
    """Returns whom the hooks serve at this frontend: POD, NODE, both or 0.

    A pod is a client whose address is in the pods' ranges, so a family without such a range, or pods that are known by
    their interface, stay with nftables.
    """
    treatment = frontend.internal
    if not isinstance(treatment, Balance) or treatment.sticky or frontend.sources:
        return 0
    if len(treatment.destinations) > MAX_COUNT or any(covers(node.service_cidrs, d.ip) for d in treatment.destinations):
        return 0
    detects = any(is_v6(cidr) == is_v6(frontend.key.ip) for cidr in node.pod_cidrs)
    if frontend.kind == "ClusterIP":
        pods = detects and not node.masquerade_all
        nodes = node.masquerade_all or bool(node.pod_cidrs or node.pod_interface)
    else:
        pods, nodes = detects and frontend.masquerade == "node", True
    return (POD if pods else 0) | (NODE if nodes else 0)


class Planner:
    """Holds the mirror of one family: nftables' and the maps'. on: whether the hooks are loaded; without them only
    nftables is planned. See backend.Planner.
    """

    def __init__(self, family: Family, node: NodeInfo) -> None:
        self.family: Family = family
        self.beneath = Beneath(Layout(family), node)
        self.on = True
        self.mirror: dict[Key, Held] = {}
        # Endpoints that clients got and that new ones do not get: their sockets are looked at after each sweep. None:
        # those of all frontends, as after a start.
        self.left: dict[Key, set[Destination]] | None = None
        self.frontends: Mapping[Key, Frontend] = {}
        self._node = node
        self._blocks = self._fresh(())

    @property
    def node(self) -> NodeInfo:
        return self.beneath.node

    def _fresh(self, taken: Iterable[tuple[int, int]]) -> Blocks:
        first = SHARE if self.family == "ip6" else 0
        return Blocks(first, first + SHARE, taken)

    def full(self, dataplane: Dataplane, found: State | None) -> Plan:
        plan = Plan(self.beneath.full(dataplane, found.table if found else None))
        if not self.on:
            return plan
        have = {key: found.held(key) for key in found.services} if found else {}
        sound = {key: held for key, held in have.items() if self._sound(held)}
        self.mirror, self.left = sound, None
        self._blocks = self._fresh(_block(held.row) for held in sound.values() if held.row.number)
        self._changes(plan, dataplane, {*have, *dataplane.frontends})
        plan.drop += [key for key in have if key not in sound and key not in plan.write]
        return plan

    def _sound(self, held: Held) -> bool:
        """Whether the block is one of ours, complete, with each endpoint once."""
        first, row = SHARE if self.family == "ip6" else 0, held.row
        inside = first <= row.base and row.base + size_of(max(row.number, 1)) <= first + SHARE
        return row == LEFT or (0 < row.number == len(set(held.destinations)) and inside)

    def change(self, dataplane: Dataplane, delta: Delta) -> Plan:
        plan = Plan(self.beneath.change(dataplane, delta))
        if self.on:
            everything = dataplane.node != self._node
            self._changes(plan, dataplane, {*self.mirror, *dataplane.frontends} if everything else delta.frontends)
        return plan

    def _changes(self, plan: Plan, dataplane: Dataplane, keys: Iterable[Key]) -> None:
        self._node, self.frontends = dataplane.node, dataplane.frontends
        v6 = self.family == "ip6"
        count = len(self.mirror)
        for key in keys:
            if is_v6(key.ip) != v6:
                continue
            frontend, old = dataplane.frontends.get(key), self.mirror.get(key)
            flags = served(frontend, dataplane.node) if frontend else 0
            made = self._placed(frontend, flags, old, plan) if frontend and key.protocol in SERVED else None
            if made and old is None and count >= ROOM:
                raise OSError(errno.ENOSPC, f"socket hooks: more than {ROOM} addresses and ports of Services")
            if made == old:
                continue
            if old and self.left is not None:
                self.left.setdefault(key, set()).update(old.destinations)
            if old and old.row.number and (made is None or made.row.base != old.row.base):
                self._blocks.release(*_block(old.row))
            count += (made is not None) - (old is not None)
            if made is None:
                plan.drop.append(key)
            else:
                plan.write[key], plan.held[key] = made.row, made

    def _placed(self, frontend: Frontend, flags: int, old: Held | None, plan: Plan) -> Held | None:
        """Returns the frontend in the block that it has, if the endpoints are the same, else in a new one. Without a
        free block it stays with nftables.
        """
        if not flags or not isinstance(frontend.internal, Balance):
            return Held(LEFT, ())
        wanted = frontend.internal.destinations
        if old and len(old.destinations) == len(wanted) and set(old.destinations) == set(wanted):
            return Held(Row(old.row.base, old.row.number, flags), old.destinations)
        base = self._blocks.take(size_of(len(wanted)))
        if base is None:
            return Held(LEFT, ())
        plan.slots.update((base + n, endpoint(destination)) for n, destination in enumerate(wanted))
        return Held(Row(base, len(wanted), flags), wanted)

    def gone(self, key: Key, destination: Destination) -> bool:
        """Whether the sockets of clients that got this endpoint must end: of UDP, if the endpoint does not serve any
        more; of TCP, if the Service asks for it (Frontend.alive).
        """
        frontend = self.frontends.get(key)
        if is_v6(key.ip) != (self.family == "ip6") or (frontend and destination in frontend.destinations):
            return False
        if key.protocol == "UDP":
            return frontend is None or destination not in frontend.serving
        return frontend is not None and frontend.alive is not None and destination not in frontend.alive

    def looked(self) -> None:
        """Call this when the sockets of the endpoints in `left` that are gone were destroyed."""
        held = self.left or {}
        waiting = {key: {to for to in ends if not self._settled(key, to)} for key, ends in held.items()}
        self.left = {key: ends for key, ends in waiting.items() if ends}

    @property
    def sockets_to_end(self) -> bool:
        if self.left is None:
            return True
        return any(self.gone(key, to) for key, ends in self.left.items() for to in ends)

    def _settled(self, key: Key, destination: Destination) -> bool:
        """Whether nothing is to be waited for: the endpoint is gone, or has come back."""
        frontend = self.frontends.get(key)
        waits = frontend is not None and destination in frontend.serving and destination not in frontend.destinations
        return not waits

    @property
    def unswept(self) -> bool:
        return self.beneath.unswept or bool(self._blocks.waiting)

    def sweep(self) -> Plan:
        self._blocks.settle()
        return Plan(self.beneath.sweep())

    def committed(self, plan: Plan) -> None:
        self.beneath.committed(plan.beneath)
        for key in plan.drop:
            self.mirror.pop(key, None)
        self.mirror.update(plan.held)

    def parted(self, plan: Plan) -> list[tuple[Key, frozenset[Destination]]]:
        """Returns the frontends that `plan` drops, or takes endpoints from, with those endpoints. Call it before
        `committed`.
        """
        found = [(key, frozenset(held.destinations)) for key in plan.drop if (held := self.mirror.get(key))]
        for key, now in plan.held.items():
            if (held := self.mirror.get(key)) and (ends := frozenset(held.destinations) - set(now.destinations)):
                found.append((key, ends))
        return found

    def rule_counts(self) -> dict[str, int]:
        counts = self.beneath.rule_counts()
        return {**counts, "socket hooks": len(self.mirror)} if self.on else counts

"""A third backend, as small as can be: "rules" that are frontends in memory, judged by the oracle itself. It shows the
required parts of a backend, and that the registry, the driver and the shared tests need nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from podwire_base.kernel.ip import Family
from podwire_base.kernel.reasons import Reason
from podwire_base.role.counts import Counts
from podwire_proxy.backend import Live, MetricNames, Setting, Trace, Watch
from podwire_proxy.dataplane import Balance, Dataplane, Delta, Frontend, Key
from podwire_proxy.decide import Packet, chosen, decide, remembered
from podwire_proxy.hostfacts import Foreign
from podwire_proxy.model import Destination, NodeInfo
from podwire_proxy.verdict import Kind, forward

Who = tuple[Key, bool, str]


@dataclass(frozen=True)
class State:
    """What one family holds."""

    node: NodeInfo | None = None
    frontends: Mapping[Key, Frontend] = field(default_factory=dict)
    cluster_ips: frozenset[str] = frozenset()
    memory: Mapping[Who, Destination] = field(default_factory=dict)

    def dataplane(self, node: NodeInfo) -> Dataplane:
        made = Dataplane(node)
        made.frontends, made.cluster_ips = dict(self.frontends), dict.fromkeys(self.cluster_ips, 1)
        return made


@dataclass(frozen=True)
class Plan:
    """write: frontends; None: the family is removed."""

    node: NodeInfo
    write: Mapping[Key, Frontend | None]
    cluster_ips: frozenset[str]
    changed: bool
    verdicts = 0

    def __bool__(self) -> bool:
        return self.changed

    @property
    def elements(self) -> int:
        return len(self.write)

    @property
    def operations(self) -> int:
        return len(self.write) + self.changed

    def lines(self) -> Iterator[str]:
        return map(str, self.write.items())


class Planner:
    unswept = False

    def __init__(self, family: Family, node: NodeInfo) -> None:
        self.family: Family = family
        self.node, self.mirror = node, State()

    def full(self, dataplane: Dataplane, found: State | None) -> Plan:
        self.mirror = found or State()
        return self._plan(dataplane, {*self.mirror.frontends, *dataplane.frontends})

    def change(self, dataplane: Dataplane, delta: Delta) -> Plan:
        return self._plan(dataplane, delta.frontends)

    def _plan(self, dataplane: Dataplane, keys: set[Key]) -> Plan:
        self.node = dataplane.node
        mine = {key for key in keys if (":" in key.ip) == (self.family == "ip6")}
        now = {key: dataplane.frontends.get(key) for key in mine}
        write = {key: frontend for key, frontend in now.items() if frontend != self.mirror.frontends.get(key)}
        ips = frozenset(ip for ip in dataplane.cluster_ips if (":" in ip) == (self.family == "ip6"))
        changed = bool(write) or (self.node, ips) != (self.mirror.node, self.mirror.cluster_ips)
        return Plan(self.node, write, ips, changed)

    def sweep(self) -> Plan:
        return Plan(self.node, {}, self.mirror.cluster_ips, False)

    def committed(self, plan: Plan) -> None:
        self.mirror = applied(self.mirror, plan)

    def rule_counts(self) -> dict[str, int]:
        return {"toy": len(self.mirror.frontends)}


def applied(state: State, plan: Plan) -> State:
    frontends = {**state.frontends, **plan.write}
    left = {key: frontend for key, frontend in frontends.items() if frontend is not None}
    return State(plan.node, left, plan.cluster_ips, state.memory)


class Memory:
    """Kernel and fake in one."""

    no_notifications = False

    def __init__(self) -> None:
        self.states: dict[Family, State] = {"ip": State(), "ip6": State()}
        self.closed = self.retired = False

    def read(self, family: Family) -> State:
        return self.states[family]

    def commit(self, planner: Planner, plan: Plan) -> None:
        if plan:
            self.states[planner.family] = applied(self.states[planner.family], plan)

    def settle(self, planner: Planner, *, swept: bool) -> None:
        state = self.states[planner.family]
        there = {to for frontend in state.frontends.values() for to in frontend.destinations}
        memory = {who: to for who, to in state.memory.items() if to in there}
        self.states[planner.family] = replace(state, memory=memory)

    def content(self, family: Family) -> object:
        state = self.states[family]
        return state.node, state.frontends, state.cluster_ips

    def holds(self, planner: Planner) -> bool:
        return planner.mirror.frontends == self.states[planner.family].frontends

    def note(self, family: Family, noted: Any) -> None:
        self.states[family] = replace(self.states[family], memory={**self.states[family].memory, noted[0]: noted[1]})

    def forget(self, family: Family, noted: Any) -> None:
        memory = {who: to for who, to in self.states[family].memory.items() if who != noted[0]}
        self.states[family] = replace(self.states[family], memory=memory)

    def stages(self, planner: Planner, plan: Plan) -> Sequence[Plan]:
        return [replace(plan, write={key: frontend}) for key, frontend in plan.write.items()]

    def damage(self, family: Family) -> None:
        self.states[family] = replace(self.states[family], cluster_ips=frozenset(), frontends={})

    def counted(self, planners: Sequence[Planner]) -> Mapping[Reason, int]:
        return {Reason.INVALID_STATE: 7}

    def foreign_commits(self) -> int:
        return 0

    def counts(self, planners: Sequence[Planner]) -> list[Counts]:
        return []

    def watch(self, planners: Sequence[Planner]) -> list[Watch]:
        return []

    def retire(self) -> list[str]:
        self.retired = True
        return ["an older toy"]

    def close(self) -> None:
        self.closed = True


@dataclass(frozen=True)
class Judged:
    states: Mapping[Family, State]
    place: str = "a toy"

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        return next(replace(state.node, name=name, addresses=addresses) for state in self.states.values() if state.node)

    def traces(self, packet: Packet, node: NodeInfo) -> Iterator[Trace]:
        state = self.states.get("ip6" if ":" in packet.dst else "ip", State())
        verdict = decide(state.dataplane(node), packet, state.memory)
        if verdict.kind is not Kind.FORWARD:
            yield Trace(verdict)
            return
        frontend = state.frontends[Key(packet.dst, packet.protocol, packet.port)]  # type: ignore[arg-type]  # no ICMP here
        balance = chosen(frontend, packet, node)
        assert isinstance(balance, Balance)
        for delivery in sorted(verdict.to):
            noted = {(remembered(balance.sticky, packet), delivery[0])} if balance.sticky else set()
            yield Trace(forward([delivery]), (f"frontend {frontend.key}",), frozenset(noted))


class Toy:
    """See backend.Backend."""

    name = "toy"
    place = "toy chest"
    beneath: tuple[str, ...] = ()
    metrics = MetricNames("toy_failures", rules="toy_rules")
    settings = (Setting("toy_colour", ("red", "blue"), "of the toy"),)

    def __init__(self) -> None:
        self.chest = Memory()

    def having(self, values: Mapping[str, str]) -> Toy:
        return self

    def planner(self, family: Family, node: NodeInfo) -> Planner:
        return Planner(family, node)

    def live(self, states: Mapping[Family, State]) -> Live:
        return Judged(states)

    def fake(self) -> Memory:
        return Memory()

    def kernel(self, planners: Sequence[Planner], ns_fd: int | None = None) -> Memory:
        return self.chest

    def observe(self, ns_fd: int | None = None) -> Live | None:
        return Judged(self.chest.states) if self.existing() else None

    def existing(self, ns_fd: int | None = None) -> list[str]:
        return [f"{len(state.frontends)} toys" for state in self.chest.states.values() if state.frontends]

    def cleanup(self, ns_fd: int | None = None, *, patient: bool = True) -> list[str]:
        found, self.chest = self.existing(), Memory()
        return found

    def remove_idle(self, node: NodeInfo, ns_fd: int | None = None) -> None:
        """Nothing is idle."""

    def newer(self, ns_fd: int | None = None) -> str:
        return ""

    def downgrade(self, ns_fd: int | None = None) -> list[str]:
        return []

    def foreign(self) -> Foreign:
        return Foreign(findings=("a foreign toy",))

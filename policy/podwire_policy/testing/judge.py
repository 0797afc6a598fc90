"""Feeds the objects of a world to compilers, one for each node, and asks decide() and the plans about packets. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_base.kube import meta

from .. import convertcluster
from ..compiler import Compiler
from ..convert import labels_of, pod, policy
from ..decide import decide
from ..model import PROTOCOLS, Packet
from ..tables import layout, trace
from ..tables.plan import Planner
from . import oracle, table
from .oracle import World
from .worlds import NODES


def packet(src: str, dst: str, protocol: str, port: int) -> Packet:
    return Packet(src, dst, PROTOCOLS.get(protocol, 1), port)


@dataclass(slots=True)
class NodeJudge:
    """One node: its compiler, and a fake kernel with both tables."""

    node: str
    compiler: Compiler = field(init=False)
    kernel: FakeConnection = field(default_factory=FakeConnection)
    planners: dict[Family, Planner] = field(default_factory=lambda: {f: Planner(f) for f in FAMILIES})

    def __post_init__(self) -> None:
        self.compiler = Compiler(self.node)

    def take(self, world: World, kind: str, key: str) -> None:
        """Notes one object as the world has it now."""
        obj = getattr(world, kind).get(key)
        if kind == "namespaces":
            self.compiler.namespace(key, None if obj is None else labels_of(meta.labels(obj)))
        elif kind == "pods":
            self.compiler.pod(key, None if obj is None else pod(obj))
        elif kind == "nodes":
            self.compiler.machine(key, None if obj is None else convertcluster.node(obj))
        elif kind == "clusters":
            self.compiler.policy(key, None if obj is None else convertcluster.policy(obj))
        else:
            self.compiler.policy(key, None if obj is None else policy(obj))

    def take_all(self, world: World) -> None:
        """Notes every object of the world, and what it no longer has."""
        for kind in oracle.KINDS:
            held = self.compiler.policies if kind in ("policies", "clusters") else dict[str, object]()
            gone = {key for key in held if ("/" in key) == (kind == "policies")}
            for key in gone | getattr(world, kind).keys():
                self.take(world, kind, key)

    def whole(self) -> int:
        """Writes everything that differs. Returns the number of operations."""
        self.compiler.flush()
        done = 0
        for family, planner in self.planners.items():
            tx = planner.full(self.compiler.compiled, self.kernel.dump(layout.table(family)))
            self.kernel.commit(tx)
            done += tx.operations
        return done

    def change(self) -> int:
        """Writes what changed. Returns the number of elements."""
        delta, done = self.compiler.flush(), 0
        for planner in self.planners.values():
            tx = planner.change(self.compiler.compiled, delta)
            self.kernel.commit(tx)
            done += tx.elements
        return done

    def content(self) -> object:
        """What the kernel has, without the order in which it came."""
        return {
            family: (
                {name: [rule.comment for rule in rules] for name, rules in dump.rules.items()},
                {name: dict(held) for name, held in dump.elements.items()},
            )
            for family in FAMILIES
            if (dump := self.kernel.state.get(layout.table(family)))
        }

    def decides(self, asked: Packet) -> bool:
        return decide(self.compiler.compiled, asked).allowed

    def traces(self, asked: Packet) -> bool:
        family: Family = "ip6" if ":" in asked.src else "ip"
        return trace.allowed(self.kernel.state[layout.table(family)], asked)


def judges(world: World, nodes: Iterable[str] = NODES) -> list[NodeJudge]:
    """Returns a judge of each node, with everything of the world written."""
    made = []
    for node in nodes:
        judge = NodeJudge(node)
        judge.take_all(world)
        judge.whole()
        made.append(judge)
    return made


def play(row: table.Row, *, asked: int, traced: int) -> str:
    """Plays a row of the scenario table on two nodes. asked, traced: how many probes decide() and traces answer at each
    stage, drawn by the row's name. Returns the first disagreement, "" if there is none.
    """
    rng, nodes, every = Random(row.name), judges(table.world()), list(table.probes())
    for world, lines, _ in table.stages(row):
        for node in nodes:
            node.take_all(world)
            node.change()
        for number, probe in enumerate(rng.sample(every, asked)):
            if world.clusters and probe.src == probe.dst:
                continue  # such a policy may keep a pod from itself; the random worlds ask that
            family = rng.choice(FAMILIES)
            src, dst = (table.address(key, family) for key in probe[:2])
            truth, first = table.expected(lines, probe), packet(src, dst, probe.protocol, probe.port)
            found = {
                "the oracle": oracle.allowed(world, src, dst, probe.protocol, probe.port),
                "decide()": all(node.decides(first) for node in nodes),
                "the plan": all(node.traces(first) for node in nodes) if number < traced else truth,
            }
            for who, answer in found.items():
                if answer != truth:
                    return f"{who} says {answer}: {probe} {family}, expected {lines}"
    return ""

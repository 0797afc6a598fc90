"""Computes the input of iptables-restore from the Dataplane and the kernel's rules. Pure.

The cost is proportional to the change. A change rewrites only the chains whose rules differ: the chains of the
frontend, and the chain that leads to a new or removed frontend. All changes of one table are one commit. Table `filter`
refuses the packets that `nat` did not translate. The plan writes `filter` first, and only adds rules. A *later* commit
(`sweep`) removes its old rules, because a packet in flight may have passed the previous `nat` and must not leak to the
default route. Sets grow before the rules change and shrink afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from podwire_base import progress
from podwire_base.kernel.ip import Family

from ..dataplane import Dataplane, Delta, Frontend, Key
from ..model import NodeInfo
from .fixed import static_rules
from .layout import (
    FILTER,
    SERVICES,
    Built,
    Chain,
    Rules,
    Step,
    TableName,
    build,
    cluster_ips,
    hooks,
    is_ours,
    ours,
    way,
)

TABLES: tuple[TableName, ...] = ("raw", "filter", "nat")  # in the order of writing
_ROOTS: dict[TableName, str] = {"nat": SERVICES, "filter": FILTER}
_NOTHING = Built()


class SetOp(NamedTuple):
    """One operation on a set. timeout: for `create`, whether members expire."""

    kind: Literal["create", "add", "del", "flush", "destroy"]
    name: str
    members: tuple[str, ...] = ()
    timeout: bool = False

    def __str__(self) -> str:
        kind = f" hash:ip{' timeout 0' if self.timeout else ''}" if self.kind == "create" else ""
        return f"ipset {self.kind} {self.name}{kind}" + "".join(f" {ip}" for ip in self.members)


@dataclass(slots=True)
class KernelState:
    """The rules and sets in the kernel.

    chains: the PODWIRE-* chains, and the rules in built-in chains that jump to them. sets: the PODWIRE-* sets, with
    members if known (the kernel owns the members for session affinity).
    """

    chains: dict[Chain, Rules] = field(default_factory=dict)
    sets: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """The changes to write.

    before, after: operations on sets. write: chains with their new rules. delete: chains to delete. have: the current
    rules of built-in chains, which the plan replaces.
    """

    before: tuple[SetOp, ...] = ()
    write: Mapping[Chain, Rules] = field(default_factory=dict)
    delete: tuple[Chain, ...] = ()
    have: Mapping[Chain, Rules] = field(default_factory=dict)
    after: tuple[SetOp, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.before or self.write or self.delete or self.after)

    @property
    def elements(self) -> int:
        """Returns the number of written rules, a measure of the cost of a change."""
        return sum(map(len, self.write.values()))

    @property
    def verdicts(self) -> int:
        """Returns 0: iptables has no verdict maps."""
        return 0

    @property
    def operations(self) -> int:
        members = sum(len(op.members) for op in (*self.before, *self.after))
        return self.elements + len(self.write) + len(self.delete) + members

    @property
    def tables(self) -> tuple[TableName, ...]:
        touched = {chain.table for chain in (*self.write, *self.delete)}
        return tuple(table for table in TABLES if table in touched)

    def restore(self) -> str:
        """Returns the input of iptables-restore --noflush."""
        return "".join(f"{line}\n" for table in self.tables for line in self._table(table))

    def lines(self) -> Iterator[str]:
        """Yields the whole plan as readable lines."""
        yield from map(str, self.before)
        for table in self.tables:
            yield from self._table(table)
        yield from map(str, self.after)

    def _table(self, table: TableName) -> Iterator[str]:
        write = [
            (chain.name, rules, self.have.get(chain, ())) for chain, rules in self.write.items() if chain.table == table
        ]
        gone = [chain.name for chain in self.delete if chain.table == table]
        yield f"*{table}"
        yield from (f":{name} - [0:0]" for name in (*(name for name, _, _ in write if is_ours(name)), *gone))
        for name, rules, have in write:
            if is_ours(name):
                yield from (f"-A {name} {rule}" for rule in rules)
            else:
                yield from (f"-D {name} {rule}" for rule in have if rule not in rules)
                yield from (f"-I {name} 1 {rule}" for rule in rules if rule not in have)
        yield from (f"-X {name}" for name in gone)
        yield "COMMIT"


class Planner:
    """Holds the mirror of one family's tables; `full` and `change` return the plan, `committed` updates the mirror."""

    def __init__(self, family: Family, node: NodeInfo) -> None:
        self.family: Family = family
        self.node = node
        self.logs = True  # whether the kernel can log refused packets
        self.mirror = KernelState()
        self._late: set[Chain] = set()  # chains with rules that the next sweep removes
        self._idle: set[str] = set()  # sets that no rule uses any more
        self._reset()

    def _reset(self) -> None:
        self._wanted: dict[Chain, Rules] = {}
        self._built: dict[Key, Built] = {}
        self._leaves: dict[Chain, dict[Key, Rules]] = {}
        self._ways: dict[Chain, dict[str, Step]] = {}  # dispatching chain -> its targets
        self._uses: Counter[str] = Counter()  # set of session affinity -> number of frontends

    # Plans

    def full(self, dataplane: Dataplane, found: KernelState | None) -> Plan:
        """Returns the plan from the rules read back (None: the mirror) to the dataplane."""
        if found is not None:
            self.mirror = found
        self.node = dataplane.node
        self._reset()
        self._fixed = static_rules(self.family, self.node, logs=self.logs)
        self._wanted.update(self._fixed)
        self._wanted.update(hooks(self.family, self.node))
        for key in progress.every(sorted(key for key in dataplane.frontends if ours(self.family, key.ip))):
            self._put(key, dataplane.frontends[key], set())
        ips = frozenset(ip for ip in dataplane.cluster_ips if ours(self.family, ip))
        held = self.mirror.sets.get(cluster_ips(self.family), set())
        self._late = set()
        self._idle = {name for name in self.mirror.sets if not self._uses[name] and name != cluster_ips(self.family)}
        return self._plan(self._wanted.keys() | self.mirror.chains.keys(), ips - held, held - ips)

    def change(self, dataplane: Dataplane, delta: Delta) -> Plan:
        """Returns the plan for `delta`. The mirror must be correct."""
        if dataplane.node != self.node:
            return self.full(dataplane, None)
        touched: set[Chain] = set()
        for key in sorted(delta.frontends):
            if ours(self.family, key.ip):
                self._put(key, dataplane.frontends.get(key), touched)
        held = self.mirror.sets.get(cluster_ips(self.family), set())
        ips = {ip for ip in delta.cluster_ips if ours(self.family, ip)}
        return self._plan(
            touched,
            {ip for ip in ips if ip in dataplane.cluster_ips and ip not in held},
            {ip for ip in ips if ip not in dataplane.cluster_ips and ip in held},
        )

    def sweep(self) -> Plan:
        """Returns the plan that removes the rules that packets in flight no longer need."""
        idle = sorted(name for name in self._idle if name in self.mirror.sets)
        write, delete = self._difference(self._late, keep=False)
        return Plan((), write, delete, {}, tuple(SetOp("destroy", name) for name in idle))

    @property
    def cluster_ips(self) -> int:
        """Returns the wanted number of members of the set of ClusterIPs."""
        return len(self.mirror.sets.get(cluster_ips(self.family), ()))

    @property
    def unswept(self) -> bool:
        return bool(self._late or self._idle)

    def rule_counts(self) -> dict[str, int]:
        """Returns the number of rules by table."""
        found: Counter[str] = Counter()
        for chain, rules in self.mirror.chains.items():
            found[chain.table] += len(rules)
        return dict(found)

    def committed(self, plan: Plan) -> None:
        """Updates the mirror: the kernel accepted the plan."""
        for op in (*plan.before, *plan.after):
            if op.kind == "destroy":
                self.mirror.sets.pop(op.name, None)
                self._idle.discard(op.name)
            elif op.kind == "del":
                self.mirror.sets.setdefault(op.name, set()).difference_update(op.members)
            else:
                self.mirror.sets.setdefault(op.name, set()).update(op.members)
        self.mirror.chains.update(plan.write)
        for chain in (
            *plan.delete,
            *(chain for chain, rules in plan.write.items() if not rules and not is_ours(chain.name)),
        ):
            self.mirror.chains.pop(chain, None)
        changed = {
            chain
            for chain in {*plan.write, *plan.delete} | self._late
            if self.mirror.chains.get(chain) != self._wanted.get(chain)
        }
        self._late = {chain for chain in changed if chain.table == "filter" and is_ours(chain.name)}

    def _plan(self, touched: Iterable[Chain], new_ips: Iterable[str], old_ips: Iterable[str]) -> Plan:
        own, sets = cluster_ips(self.family), self.mirror.sets
        before = [] if own in sets else [SetOp("create", own)]
        before += [
            SetOp("create", name, timeout=True) for name in sorted(self._uses) if self._uses[name] and name not in sets
        ]
        before += [SetOp("add", own, members)] if (members := tuple(sorted(new_ips))) else []
        after = [SetOp("del", own, members)] if (members := tuple(sorted(old_ips))) else []
        idle = sorted(name for name in self._idle if name in sets)
        after += [SetOp("flush", name) for name in idle]  # a client that returns later is not remembered from before
        write, delete = self._difference(touched, keep=True)
        have = {chain: self.mirror.chains.get(chain, ()) for chain in write if not is_ours(chain.name)}
        return Plan(tuple(before), write, delete, have, tuple(after))

    def _difference(self, touched: Iterable[Chain], *, keep: bool) -> tuple[dict[Chain, Rules], tuple[Chain, ...]]:
        """Returns (chains to write, chains to delete). keep: the plan removes nothing from `filter`."""
        write: dict[Chain, Rules] = {}
        delete: list[Chain] = []
        for chain in sorted(touched):
            want, have = self._wanted.get(chain), self.mirror.chains.get(chain)
            if want == have:
                self._late.discard(chain)
                continue
            if keep and have and chain.table == "filter" and is_ours(chain.name):
                self._late.add(chain)
                if set(want or ()) <= set(have):
                    continue
                want = (*(want or ()), *(rule for rule in have if rule not in (want or ())))
            if want is None and is_ours(chain.name):
                delete.append(chain)
            else:
                write[chain] = want or ()
        return write, tuple(delete)

    # What is wanted

    def _put(self, key: Key, frontend: Frontend | None, touched: set[Chain]) -> None:
        old = self._built.pop(key, _NOTHING)
        new = build(frontend, self.node) if frontend is not None else _NOTHING
        if frontend is not None:
            self._built[key] = new
        for chain in old.chains.keys() - new.chains.keys():
            self._want(chain, None, touched)
        for chain, rules in new.chains.items():
            self._want(chain, rules, touched)
        for table in _ROOTS:
            if old.rules(table) != new.rules(table):
                self._lead(table, key, new.rules(table), touched)
        if old.sets != new.sets:
            self._uses.update(new.sets)
            self._uses.subtract(old.sets)
            for name in {*old.sets, *new.sets}:
                if self._uses[name]:
                    self._idle.discard(name)
                else:
                    del self._uses[name]
                    self._idle.add(name)

    def _want(self, chain: Chain, rules: Rules | None, touched: set[Chain]) -> None:
        touched.add(chain)
        if rules is None:
            self._wanted.pop(chain, None)
        else:
            self._wanted[chain] = rules

    def _lead(self, table: TableName, key: Key, rules: Rules, touched: set[Chain]) -> None:
        """Puts the rules of a frontend into the chain of its bucket.

        If this creates or deletes the chain, the method also adds or removes the jump to the chain.
        """
        middle, last = way(key, self.node)
        leaf, upper, root = Chain(table, last.chain), Chain(table, middle.chain), Chain(table, _ROOTS[table])
        held = self._leaves.setdefault(leaf, {})
        if rules:
            held[key] = rules
        else:
            held.pop(key, None)
        if held:
            self._want(leaf, tuple(rule for one in sorted(held) for rule in held[one]), touched)
        else:
            del self._leaves[leaf]
            self._want(leaf, None, touched)
        if self._link(upper, last, bool(held), touched):
            self._link(root, middle, upper in self._ways, touched)

    def _link(self, chain: Chain, step: Step, there: bool, touched: set[Chain]) -> bool:
        """Adds or removes the jump of a step. Returns whether the rules changed."""
        steps = self._ways.setdefault(chain, {})
        if (step.chain in steps) == there:
            return False
        if there:
            steps[step.chain] = step
        else:
            del steps[step.chain]
        rules = tuple(f"{match} -j {name}" for name in sorted(steps, reverse=True) for match in steps[name].matches)
        if not steps:
            del self._ways[chain]
        fixed = self._fixed.get(chain)
        self._want(chain, (*rules, *fixed) if fixed is not None else rules or None, touched)
        return True

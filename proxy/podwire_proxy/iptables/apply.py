"""The IO of the iptables backend: keep a namespace's chains and sets PODWIRE-* equal to the Dataplane."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from functools import partial

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.role import logs

from ..backend import Counted, Synced, Watch, families
from ..dataplane import Dataplane, Delta
from ..flows import FlowKeeper, Swept
from ..model import NodeInfo
from . import programs
from .ipset import IpSets
from .layout import Chain, Rules, TableName, is_ours
from .plan import TABLES, KernelState, Plan, Planner, SetOp
from .programs import Variant
from .text import parse
from .watch import Generations, Legacy, TableWatch, Timer, lost

log = logs.get("proxy")
IN_FLIGHT = 0.05  # seconds: far longer than a packet is on its way through the hooks
DESTROY_TURNS = 20


class Proxier:
    """`sync` after each change, `sweep` a moment later; errors change nothing. Raises OSError."""

    def __init__(self, node: NodeInfo, ns_fd: int | None = None, variant: Variant | None = None) -> None:
        """variant None: the one that the host uses."""
        self._ns_fd = ns_fd
        self.variant: Variant = variant or programs.detect(ns_fd)
        self._planners = [Planner(family, node) for family in families(node)]
        for planner in self._planners:
            programs.program(self.variant, planner.family, "restore")  # named now, not at the first change
        self._sets = IpSets(ns_fd)
        self.flows = FlowKeeper(families(node), ns_fd)
        self._conn = nft_socket.Connection(ns_fd)
        self._generations = Generations(self._conn)
        self._legacy = Legacy(ns_fd)
        self._shapes: dict[tuple[Family, TableName], tuple[int, int]] = {}
        self.watchers: list[Watch] = []
        log.info("iptables", variant=self.variant)

    def close(self) -> None:
        """The rules stay."""
        for watcher in self.watchers:
            watcher.close()
        self._sets.close()
        self._conn.close()
        self._legacy.close()

    def sync(self, dataplane: Dataplane, delta: Delta | None) -> Synced:
        """Write what `delta` changed; None: read the kernel's state back and write what differs."""
        started = time.monotonic()
        operations = rules = 0
        for planner in self._planners:
            plan = (
                planner.full(dataplane, self._read(planner.family))
                if delta is None
                else planner.change(dataplane, delta)
            )
            self._commit(planner, plan)
            operations, rules = operations + plan.operations, rules + plan.rules
        self.flows.note(dataplane, delta)
        return Synced(delta is None, operations, rules, time.monotonic() - started)

    @property
    def no_notifications(self) -> bool:
        """A rule of a legacy table that is replaced by one of its size is not noticed."""
        return self.variant == "legacy"

    def rule_counts(self) -> dict[tuple[str, str], int]:
        """Our rules in the kernel, by (family, table)."""
        found: Counter[tuple[str, str]] = Counter()
        for planner in self._planners:
            for chain, rules in planner.mirror.chains.items():
                found[planner.family, chain.table] += len(rules)
        return dict(found)

    def _read(self, family: Family) -> KernelState:
        if self.variant == "legacy":
            tables = programs.legacy_tables(family, self._ns_fd)
            self._note(
                family, (table for table in TABLES if table in tables)
            )  # before reading: what changes meanwhile differs
        there = programs.present(self.variant, family, self._ns_fd)
        chains = parse(programs.save(self.variant, family, self._ns_fd)) if there else {}
        return KernelState(chains, self._sets.ours(family))

    def _commit(self, planner: Planner, plan: Plan) -> None:
        for op in plan.before:
            self._set(planner.family, op)
        if plan.tables:
            self._restore(planner.family, plan)
        for op in plan.after:
            self._set(planner.family, op)
        planner.committed(plan)

    def _restore(self, family: Family, plan: Plan) -> None:
        heard = [
            watcher.changed() for watcher in self.watchers if isinstance(watcher, TableWatch)
        ]  # every queue is drained
        if any(heard):
            self._generations.suspect = True  # what others did before us must not count as ours
        commits = len(plan.tables) if self.variant == "nft" else 0
        self._generations.during(lambda: programs.restore(self.variant, family, self._ns_fd, plan.restore()), commits)
        if self.variant == "legacy":
            self._note(family, plan.tables)

    def _note(self, family: Family, tables: Iterable[TableName]) -> None:
        self._shapes.update({(family, table): self._legacy.shape(family, table) for table in tables})

    def _set(self, family: Family, op: SetOp) -> None:
        match op.kind:
            case "create":
                self._sets.create(op.name, family, timeout=op.timeout)
            case "add":
                self._sets.add(op.name, op.members)
            case "del":
                self._sets.remove(op.name, op.members)
            case "flush":
                self._sets.flush(op.name)
            case "destroy":
                for _ in range(
                    DESTROY_TURNS
                ):  # rules that went a moment ago hold it until the kernel has a quiet moment
                    if self._sets.destroy(op.name):
                        return
                    time.sleep(0.005)
                log.warn("a set that is not needed any more is still used by a rule", set=op.name)

    @property
    def unswept(self) -> bool:
        return any(planner.unswept for planner in self._planners)

    def sweep(self) -> Swept:
        """Both at once: the rules and the flows that changes left behind."""
        self.sweep_rules()
        return self.flows.sweep()

    def sweep_rules(self) -> None:
        """Delete what no packet in flight needs any more; call it some milliseconds after the sync."""
        for planner in self._planners:
            self._commit(planner, planner.sweep())

    def counted(self) -> Counted:
        """A program a table; for any thread."""
        invalid = localhost = 0
        for planner in self._planners:
            look = partial(programs.counted, self.variant, planner.family, self._ns_fd)
            if planner.node.drop_invalid:
                invalid += look("filter", "PODWIRE-FORWARD", "ctstate INVALID")
            if planner.family == "ip" and planner.node.localhost:
                localhost += look("nat", "PODWIRE-POSTROUTING", "ctorigdst")
        return Counted(invalid, localhost)

    def foreign_commits(self) -> int:
        """A number that rises with every commit in this namespace that was not ours; the legacy variant cannot tell."""
        return self._generations.foreign() if self.variant == "nft" else 0

    def watch(self) -> list[Watch]:
        """Start to hear of foreign changes to our tables. After the first sync, so that our own load is no news."""
        self.watchers = [Timer(self._differs)]
        if self.variant == "nft":
            self.watchers += [
                TableWatch(planner.family, table, self._generations, self._ns_fd)
                for planner in self._planners
                for table in TABLES
            ]
        return self.watchers

    def _differs(self) -> bool:
        """A cheap look for what nobody tells us of."""
        return any(
            self._legacy.shape(family, table) != shape for (family, table), shape in self._shapes.items()
        ) or any(lost(self._sets, planner.family, planner.cluster_ips) for planner in self._planners)


def existing(ns_fd: int | None = None) -> list[str]:
    """What of ours is in the namespace, one line for each table and set."""
    with IpSets(ns_fd) as sets:
        return [*_told(programs.found(ns_fd)), *(f"set {name}" for name in _names(sets))]


def _told(there: Iterable[tuple[Variant, Family, dict[Chain, Rules]]]) -> list[str]:
    return [
        f"{count} chains of table {table} (iptables-{variant}, {'IPv4' if family == 'ip' else 'IPv6'})"
        for variant, family, chains in there
        for table, count in _counts(chains).items()
    ]


def _names(sets: IpSets) -> list[str]:
    return [name for family in FAMILIES for name in sorted(sets.ours(family))]


def _counts(chains: Iterable[Chain]) -> dict[str, int]:
    names = [chain.table for chain in chains if is_ours(chain.name)]
    return {table: names.count(table) for table in TABLES if table in names}


def cleanup(ns_fd: int | None = None, keep: Variant | None = None, wait: int = programs.PATIENT) -> list[str]:
    """Remove all that this backend ever wrote, in both variants; returns what was there. keep: leave this variant's
    rules, and the sets that they use. wait: seconds for the lock of legacy iptables. Raises OSError."""
    there = [item for item in programs.found(ns_fd) if item[0] != keep]
    lines = _told(there)
    # No new flow is translated from here on; those in flight still find their way through postrouting.
    for variant, family, chains in there:
        entries = {
            chain: rules
            for chain, rules in chains.items()
            if not is_ours(chain.name) and chain.name in ("PREROUTING", "OUTPUT") and chain.table == "nat"
        }
        if entries:
            programs.restore(variant, family, ns_fd, _removal(entries), wait)
    if there:
        time.sleep(IN_FLIGHT)
    for variant, family, _ in there:
        programs.restore(variant, family, ns_fd, _removal(parse(programs.save(variant, family, ns_fd))), wait)
    with IpSets(ns_fd) as sets:
        for name in _names(sets) if keep is None else ():
            lines.append(f"set {name}")
            for _ in range(DESTROY_TURNS):
                if sets.destroy(name):
                    break
                time.sleep(0.02)
    return lines


def _removal(chains: dict[Chain, Rules]) -> str:
    gone = tuple(chain for chain in chains if is_ours(chain.name))
    have = {chain: rules for chain, rules in chains.items() if not is_ours(chain.name)}
    return Plan(write=dict.fromkeys(have, ()), delete=gone, have=have).restore()

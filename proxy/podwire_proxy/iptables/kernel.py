"""The I/O of the iptables backend: reads and writes the chains and sets PODWIRE-* of a network namespace."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kernel.reasons import Reason
from podwire_base.role import logs
from podwire_base.role.counts import Counts

from ..backend import NotGone, Watch
from . import programs, withoutprograms
from .fixed import trial
from .ipset import IpSets
from .layout import Chain, Rules, TableName, is_ours, layout_of
from .plan import TABLES, KernelState, Plan, Planner, SetOp
from .programs import Variant
from .text import parse
from .watch import Generations, Legacy, TableWatch, Timer, lost

log = logs.get("proxy")
IN_FLIGHT = 0.05  # seconds; a packet needs far less time for the hooks
DESTROY_TURNS = 20


class Chains:
    """The chains and sets of one network namespace. Implements backend.Kernel."""

    def __init__(self, planners: Sequence[Planner], ns_fd: int | None = None, variant: Variant | None = None) -> None:
        """variant None: the variant that the host uses."""
        self._ns_fd = ns_fd
        self.variant: Variant = variant or programs.detect(ns_fd)
        for planner in planners:
            # report a missing program now, not at the first change
            programs.program(self.variant, planner.family, "restore")
        self._sets = IpSets(ns_fd)
        # The legacy variant runs on kernels without nf_tables, which have no generations.
        self._generations = Generations(ns_fd) if self.variant == "nft" else None
        self._legacy = Legacy(ns_fd)
        self._shapes: dict[tuple[Family, TableName], tuple[int, int]] = {}
        self._heard: list[TableWatch] = []
        log.info("iptables", variant=self.variant)

    def close(self) -> None:
        self._sets.close()
        if self._generations:
            self._generations.close()
        self._legacy.close()

    @property
    def no_notifications(self) -> bool:
        """Whether changes can stay unreported: in a legacy table, the replacement of a rule by a rule of equal size."""
        return self.variant == "legacy"

    def can_log(self, family: Family) -> bool:
        """Whether the kernel can log refused packets (xt_NFLOG, xt_limit, nfnetlink_log)."""
        try:
            programs.restore(self.variant, family, self._ns_fd, trial())
        except programs.ProgramError as err:
            log.warn("refused packets are not logged", family=family, error=str(err))
            return False
        return True

    def read(self, family: Family) -> KernelState:
        if self.variant == "legacy":
            tables = programs.legacy_tables(family, self._ns_fd)
            self._note(
                family, (table for table in TABLES if table in tables)
            )  # before reading: a change in between then shows as a difference
        there = programs.present(self.variant, family, self._ns_fd)
        chains = parse(programs.save(self.variant, family, self._ns_fd)) if there else {}
        return KernelState(chains, self._sets.ours(family))

    def commit(self, planner: Planner, plan: Plan) -> None:
        for op in plan.before:
            self._set(planner.family, op)
        if plan.tables:
            self._restore(planner.family, plan)
        for op in plan.after:
            self._set(planner.family, op)

    def settle(self, planner: Planner, *, swept: bool) -> None:
        """Does nothing: the plan flushes the sets of clients."""

    def _restore(self, family: Family, plan: Plan) -> None:
        def restore() -> None:
            programs.restore(self.variant, family, self._ns_fd, plan.restore())

        if self._generations is None:
            restore()
            self._note(family, plan.tables)
            return
        heard = [watcher.changed() for watcher in self._heard]  # drain every queue
        if any(heard):
            self._generations.suspect = True  # foreign changes before the start must not count as own changes
        self._generations.during(restore, len(plan.tables))

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
                for _ in range(DESTROY_TURNS):  # deleted rules use the set until the kernel frees the rules
                    if self._sets.destroy(op.name):
                        return
                    time.sleep(0.005)
                log.warn("a set that is not needed any more is still used by a rule", set=op.name)

    def counted(self, planners: Sequence[Planner]) -> Mapping[Reason, int]:
        """Returns the packet counts by reason. Starts one program per table. Thread-safe."""
        found = Counter[Reason]()
        for planner in planners:
            look = partial(programs.counted, self.variant, planner.family, self._ns_fd)
            if planner.node.drop_invalid:
                found[Reason.INVALID_STATE] += look("filter", "PODWIRE-FORWARD", Reason.INVALID_STATE)
            if planner.family == "ip" and planner.node.localhost:
                found[Reason.LOCALHOST_NODE_PORT] += look("nat", "PODWIRE-POSTROUTING", Reason.LOCALHOST_NODE_PORT)
        return found

    def foreign_commits(self) -> int:
        """Returns the number of foreign commits; constant for the legacy variant, which does not report commits."""
        return self._generations.foreign() if self._generations else 0

    def counts(self, planners: Sequence[Planner]) -> tuple[Counts, ...]:
        return ()  # the watches compare counts at intervals

    def watch(self, planners: Sequence[Planner]) -> list[Watch]:
        if self._generations:
            self._heard = [
                TableWatch(planner.family, table, self._generations, self._ns_fd)
                for planner in planners
                for table in TABLES
            ]
        return [Timer(lambda: self._differs(planners)), *self._heard]

    def _differs(self, planners: Sequence[Planner]) -> bool:
        """Checks cheaply for changes that the kernel does not report."""
        return any(
            self._legacy.shape(family, table) != shape for (family, table), shape in self._shapes.items()
        ) or any(lost(self._sets, planner.family, planner.cluster_ips) for planner in planners)

    def retire(self) -> list[str]:
        return cleanup(self._ns_fd, keep=self.variant, wait=0)


def newest(ns_fd: int | None = None) -> int:
    """Returns the layout that the chains of either variant tell; 0 without chains, and for those of version 0.2."""
    names = list[str]()
    if not nft_socket.missing(ns_fd):
        with nft_socket.Connection(ns_fd) as conn:  # the programs need seconds where there are thousands of chains
            names += [chain.name for chain in conn.chains()]
    if programs.installed("legacy"):
        for family in FAMILIES:
            if "nat" in programs.legacy_tables(family, ns_fd):
                names += [chain.name for chain in parse(programs.save("legacy", family, ns_fd))]
    return max(map(layout_of, names), default=0)


def existing(ns_fd: int | None = None) -> list[str]:
    """Returns one line for each table with PODWIRE-* chains, and for each PODWIRE-* set, of the namespace."""
    with IpSets(ns_fd) as sets:
        there = [*_told(programs.found(ns_fd)), *withoutprograms.existing(ns_fd)]
        return [*there, *(f"set {name}" for name in _names(sets))]


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
    """Removes everything that this backend ever wrote, in both variants. Returns a line for each item found.

    keep: keep the rules of this variant, and the sets that these rules use. wait: maximum seconds for the legacy lock.
    Raises NotGone and other OSErrors.
    """
    there = [item for item in programs.found(ns_fd) if item[0] != keep]
    lines = _told(there)
    # After this step the rules translate no new flow. Flows in progress still pass postrouting.
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
    left = [line for line in _told(programs.found(ns_fd)) if keep is None]
    lines = [line for line in lines if line not in left]
    problem = f"still there, another program wrote them again: {'; '.join(left)}" if left else ""
    if keep is None:
        gone, stays = withoutprograms.cleanup(ns_fd)
        lines, problem = [*lines, *gone], problem or stays
    with IpSets(ns_fd) as sets:
        for name in _names(sets) if keep is None else ():
            for _ in range(DESTROY_TURNS):
                if sets.destroy(name):
                    lines.append(f"set {name}")
                    break
                time.sleep(0.02)
            else:
                problem = problem or f"set {name} stays, a rule still uses it"
    if problem:
        raise NotGone(problem, lines)
    return lines


def _removal(chains: dict[Chain, Rules]) -> str:
    gone = tuple(chain for chain in chains if is_ours(chain.name))
    have = {chain: rules for chain, rules in chains.items() if not is_ours(chain.name)}
    return Plan(write=dict.fromkeys(have, ()), delete=gone, have=have).restore()

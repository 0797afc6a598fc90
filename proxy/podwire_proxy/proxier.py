"""The loop that all backends share: read back, plan, commit, sweep, watch. I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from podwire_base.kernel.reasons import Reason
from podwire_base.role import beat
from podwire_base.role.counts import Counts

from .backend import AnyBackend, Figures, Planner, Rules, Watch, families
from .dataplane import Dataplane, Delta
from .flows import FlowKeeper, Swept
from .model import NodeInfo


@dataclass(frozen=True, slots=True)
class Synced:
    """The work of one sync. operations, elements, verdicts: as in a Plan."""

    full: bool
    operations: int
    elements: int
    seconds: float
    verdicts: int = 0


class Engine:
    """Keeps Rules equal to the Dataplane, without I/O of its own.

    If a method raises OSError, the method has changed nothing.
    """

    def __init__(self, planners: Sequence[Planner[Any, Any]], rules: Rules[Any, Any, Any]) -> None:
        self.planners, self.rules = planners, rules

    def sync(self, dataplane: Dataplane, delta: Delta | None) -> Synced:
        """Writes the changes of `delta`. delta None: reads the kernel's state back and writes the differences."""
        started = time.monotonic()
        operations = elements = verdicts = 0
        for planner in self.planners:
            if delta is None:
                found = self.rules.read(planner.family)
                beat.tick(f"read {planner.family}")
                plan = planner.full(dataplane, found)
                beat.tick(f"write {planner.family}")
            else:
                plan = planner.change(dataplane, delta)
            self.rules.commit(planner, plan)
            planner.committed(plan)
            self.rules.settle(planner, swept=False)
            operations, elements = operations + plan.operations, elements + plan.elements
            verdicts += plan.verdicts
        return Synced(delta is None, operations, elements, time.monotonic() - started, verdicts)

    @property
    def unswept(self) -> bool:
        """Whether some rules are needed only by packets in flight."""
        return any(planner.unswept for planner in self.planners)

    def sweep_rules(self) -> None:
        """Deletes the rules that only packets in flight needed. Call this some milliseconds after a sync."""
        for planner in self.planners:
            plan = planner.sweep()
            self.rules.commit(planner, plan)
            planner.committed(plan)
            self.rules.settle(planner, swept=True)


class Proxier(Engine):
    """Keeps a network namespace's kernel equal to the Dataplane: `sync` after each change, `sweep` a moment later."""

    def __init__(self, backend: AnyBackend, node: NodeInfo, ns_fd: int | None = None) -> None:
        """ns_fd: file descriptor of the network namespace; None: the caller's namespace."""
        self.backend, self.ns_fd = backend, ns_fd
        planners = [backend.planner(family, node) for family in families(node)]
        self.kernel = backend.kernel(planners, ns_fd)
        super().__init__(planners, self.kernel)
        self.flows = FlowKeeper(families(node), ns_fd)
        self.watchers: Sequence[Watch] = ()

    @property
    def no_notifications(self) -> bool:
        """Whether other programs can make changes that no watch reports."""
        return self.kernel.no_notifications

    def sync(self, dataplane: Dataplane, delta: Delta | None) -> Synced:
        done = super().sync(dataplane, delta)
        self.flows.note(dataplane, delta)
        return done

    def sweep(self) -> Swept:
        """Deletes the rules and the flows that changes made stale."""
        self.sweep_rules()
        return self.flows.sweep()

    def watch(self) -> Sequence[Watch]:
        """Starts to watch for foreign changes to the rules.

        Call `watch` after the first sync, so that the watch does not report the proxy's first load.
        """
        self.watchers = self.kernel.watch(self.planners)
        return self.watchers

    def counted(self) -> Mapping[Reason, int]:
        """Returns packet counts by the reason code of the counting rules. Thread-safe."""
        return self.kernel.counted(self.planners)

    def figures(self) -> Sequence[Figures]:
        """Returns what the backend's own parts count, for /metrics. Thread-safe."""
        return tuple(self.kernel.figures(self.planners)) if hasattr(self.kernel, "figures") else ()

    def counts(self) -> Sequence[Counts]:
        """Returns what is counted of the rules in the kernel. Thread-safe."""
        return self.kernel.counts(self.planners)

    def foreign_commits(self) -> int:
        """Returns a number that grows when another program changes rules, as far as the kernel reports changes."""
        return self.kernel.foreign_commits()

    def rule_counts(self) -> dict[tuple[str, str], int]:
        """Returns the number of the proxy's rules in the kernel, by (family, table)."""
        return {
            (planner.family, table): count
            for planner in self.planners
            for table, count in planner.rule_counts().items()
        }

    @property
    def told(self) -> tuple[str, ...]:
        """Returns what the backend says of its parts, for the role's status."""
        return tuple(getattr(self.kernel, "told", ()))

    def close(self) -> None:
        """Closes the connections. The rules stay."""
        for watcher in self.watchers:
            watcher.close()
        self.kernel.close()

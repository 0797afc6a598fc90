"""The interface of a backend, which connects the proxy with the rules in a kernel. backends.py lists the backends.

Every backend implements the verdicts of decide(). Backends differ in speed and in the rules that an administrator sees.
A backend has three parts. The pure half has a Planner, which turns the Dataplane and the kernel's content into a Plan,
and a Live, which computes the path of a packet through rules that were read back. The Kernel reads and commits; only
the Kernel does I/O. The Fake is a kernel in memory that refuses the same plans as a real kernel. All backends read,
plan, commit and sweep in the same order (proxier.py).

S: the type of one IP family's rules as read back. P: the type of the plan. N: the type of the planner.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.reasons import Reason
from podwire_base.role.counts import Counts

from .dataplane import Dataplane, Delta
from .decide import Packet
from .hostfacts import Foreign
from .model import NodeInfo
from .verdict import Verdict

OFF = "socket hooks: off"  # how a proxy's status begins to tell of a part that was asked for and cannot run

# A family of metrics that only one backend has: its name and kind, and (labels, value) of each row
Figures = tuple[str, str, Sequence[tuple[dict[str, str], float]]]

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
P = TypeVar("P", bound="Plan")
P_contra = TypeVar("P_contra", bound="Plan", contravariant=True)
N = TypeVar("N")
N_contra = TypeVar("N_contra", contravariant=True)


class NotGone(OSError):
    """Something of ours stays. removed: what is gone, a line each."""

    def __init__(self, why: str, removed: list[str]) -> None:
        super().__init__(why)
        self.removed = tuple(removed)


@dataclass(frozen=True, slots=True)
class Trace:
    """One path of a packet through the rules. verdict: FORWARD has the single delivery of this path. steps: the rules
    and elements that decided. noted: the data about the client that rules on this path recorded, in a backend-specific
    form.
    """

    verdict: Verdict
    steps: tuple[str, ...] = ()
    noted: frozenset[Hashable] = frozenset()


class Live(Protocol):
    """Rules that were read back. place: the name of the rules in the kernel."""

    @property
    def place(self) -> str: ...

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        """Returns the node, with the pod and Service ranges of the rules. addresses: all addresses of the machine."""

    def traces(self, packet: Packet, node: NodeInfo) -> Iterator[Trace]:
        """Yields every possible path of the packet. Raises NotImplementedError for a rule of another program."""


class Plan(Protocol):
    """The changes to write.

    operations: the number of steps. elements: the number of set elements or rules in the steps. verdicts: the number of
    elements in verdict maps, which cost the kernel most.
    """

    def __bool__(self) -> bool: ...

    @property
    def operations(self) -> int: ...
    @property
    def elements(self) -> int: ...
    @property
    def verdicts(self) -> int: ...

    def lines(self) -> Iterator[str]:
        """The whole plan as readable lines."""


class Planner(Protocol[S_contra, P]):
    """Holds the mirror of one family's rules. Pure. Callers call `committed` when the kernel has accepted a plan."""

    @property
    def family(self) -> Family: ...
    @property
    def node(self) -> NodeInfo: ...

    def full(self, dataplane: Dataplane, found: S_contra | None) -> P:
        """Returns the plan from the rules that were read back to the dataplane; empty if nothing differs."""

    def change(self, dataplane: Dataplane, delta: Delta) -> P:
        """Returns the plan for `delta`. The mirror must be correct."""

    @property
    def unswept(self) -> bool:
        """Whether some rules are needed only by packets in flight."""

    def sweep(self) -> P:
        """Returns the plan that removes the rules that only packets in flight needed."""

    def committed(self, plan: P) -> None:
        """Updates the mirror: the kernel accepted the plan."""

    def rule_counts(self) -> Mapping[str, int]:
        """Returns the number of the proxy's rules in the kernel, by table."""


class Watch(Protocol):
    """Reports changes by other programs. When `fileno` becomes readable in an event loop, call `changed`."""

    def fileno(self) -> int: ...
    def changed(self) -> bool: ...
    def close(self) -> None: ...


class Rules(Protocol[N_contra, S_co, P_contra]):
    """The rules of one network namespace, in a kernel or in memory: read, commit, settle. Raises OSError."""

    def read(self, family: Family) -> S_co | None:
        """Returns the current rules; None if the rules do not exist."""

    def commit(self, planner: N_contra, plan: P_contra) -> None:
        """Writes the plan. If the kernel supports it, the write is atomic: an error changes nothing."""

    def settle(self, planner: N_contra, *, swept: bool) -> None:
        """Updates the data that rules also write, which no plan can contain.

        Call `settle` after each commit of a sync and of a sweep.
        """


class Kernel(Rules[N_contra, S_co, P_contra], Protocol[N_contra, S_co, P_contra]):
    """Rules in a real kernel. Raises OSError."""

    @property
    def no_notifications(self) -> bool:
        """Whether other programs can make changes that no watch reports."""

    def watch(self, planners: Sequence[N_contra]) -> Sequence[Watch]:
        """Starts to watch for foreign changes. Call `watch` after the first sync."""

    def counted(self, planners: Sequence[N_contra]) -> Mapping[Reason, int]:
        """Returns the packet counts of the rules with the codes INVALID_STATE and LOCALHOST_NODE_PORT.

        Thread-safe.
        """

    def foreign_commits(self) -> int:
        """Returns a number that grows when another program changes rules, as far as the kernel reports changes."""

    def counts(self, planners: Sequence[N_contra]) -> Sequence[Counts]:
        """Returns what is counted of the rules, for a look that costs little; (): the watches count themselves.

        Thread-safe.
        """

    def retire(self) -> list[str]:
        """Removes the rules of this backend's other variants. Returns a line for each item found."""

    def close(self) -> None:
        """Closes the connections. The rules stay."""


class Fake(Rules[N_contra, S_co, P], Protocol[N_contra, S_co, P]):
    """Rules in memory. Raises for a plan that a kernel would refuse."""

    def content(self, family: Family) -> object:
        """Returns the meaning of the rules. Equal Dataplanes give equal results, independent of the history."""

    def holds(self, planner: N_contra) -> bool:
        """Whether the planner's mirror equals these rules."""

    def note(self, family: Family, noted: Hashable) -> None:
        """Records the data about a client from Trace.noted."""

    def forget(self, family: Family, noted: Hashable) -> None: ...

    def stages(self, planner: N_contra, plan: P) -> Sequence[P]:
        """Returns the steps in which a plan reaches the kernel. A kill can interrupt between any two steps."""

    def damage(self, family: Family) -> None:
        """Damages some of the rules, as another program might."""


@dataclass(frozen=True, slots=True)
class MetricNames:
    """The metric names that kube-proxy uses for this kind of rules; "" if kube-proxy has no such metric.

    failures: syncs that the kernel refused. cleanup_failures: failed sweeps. partial_failures: failed syncs that were
    not full. rules: gauge of rules by table. last: the number of rules that the last sync wrote. packets: the prefix of
    the names of packet counters.
    """

    failures: str
    cleanup_failures: str = ""
    partial_failures: str = ""
    rules: str = ""
    last: str = ""
    packets: str = "podwire_proxy"


class Setting(NamedTuple):
    """A setting of one backend. field: a field of ProxyConfig. choices: the first is the default."""

    field: str
    choices: tuple[str, ...]
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")


class Backend(Protocol[N, S, P]):
    """A way to write the Dataplane into a kernel.

    name: the backend's name in settings. place: the name of the rules in a kernel. beneath: the names of backends whose
    rules this one loads too, and leaves to them in `existing` and `cleanup`. settings: the settings of this
    backend only. ns_fd: file descriptor of the network namespace; None: the caller's namespace. Every method of the
    kernel's side raises OSError, and returns an empty result if the kernel has no such rules.
    """

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def beneath(self) -> tuple[str, ...]: ...
    @property
    def metrics(self) -> MetricNames: ...
    @property
    def settings(self) -> tuple[Setting, ...]: ...

    # The pure half

    def planner(self, family: Family, node: NodeInfo) -> N: ...
    def live(self, states: Mapping[Family, S]) -> Live: ...
    def fake(self) -> Fake[N, S, P]: ...

    # The kernel's side

    def having(self, values: Mapping[str, str]) -> Backend[N, S, P]:
        """Returns the backend with other settings, by field."""

    def kernel(self, planners: Sequence[N], ns_fd: int | None = None) -> Kernel[N, S, P]:
        """Opens the kernel. Raises OSError, which names the missing kernel feature or program."""

    def observe(self, ns_fd: int | None = None) -> Live | None:
        """Returns the live rules; None if the kernel has no rules of this backend."""

    def existing(self, ns_fd: int | None = None) -> list[str]:
        """Returns one line for each item that `cleanup` would remove."""

    def cleanup(self, ns_fd: int | None = None, *, patient: bool = True) -> list[str]:
        """Removes everything that this backend ever wrote. Returns a line for each item found.

        patient: wait for locks that other programs hold; if False, raise OSError (EAGAIN) instead.
        """

    def remove_idle(self, node: NodeInfo, ns_fd: int | None = None) -> None:
        """Removes the rules of a family that no longer has a Service range."""

    def newer(self, ns_fd: int | None = None) -> str:
        """Returns a sentence if a later version of podwire wrote the rules, with a layout that this version does not
        know; else "".
        """

    def downgrade(self, ns_fd: int | None = None) -> list[str]:
        """Removes what the version before does not know, and would leave. Returns a line for each item found."""

    def foreign(self) -> Foreign:
        """Returns the rules of this kind that other programs made, in the caller's namespace."""


AnyBackend = Backend[Any, Any, Any]


def families(node: NodeInfo) -> tuple[Family, ...]:
    """Returns the families with Service addresses.

    NAT hooks enable conntrack for their family, so the proxy writes no rules for a family without Services.
    """
    return tuple(f for f in FAMILIES if any((":" in cidr) == (f == "ip6") for cidr in node.service_cidrs))


def dry_run(backend: AnyBackend, dataplane: Dataplane) -> Iterator[str]:
    """Yields one line for each step that a first sync would write into an empty kernel."""
    for family in families(dataplane.node):
        yield f"# {'IPv4' if family == 'ip' else 'IPv6'}"
        yield from backend.planner(family, dataplane.node).full(dataplane, backend.fake().read(family)).lines()

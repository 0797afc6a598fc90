"""The interface of a backend, which connects the proxy with the rules in a kernel. backends.py lists the backends.

Every backend behaves as decide() says; where they differ is speed, and what an administrator sees. A backend has three
parts. The pure half plans: a Planner turns the Dataplane and the kernel's content into a Plan, and Live computes what
rules that were read back do with a packet. The Kernel reads and commits; it alone does I/O. The Fake is a Kernel in
memory that refuses what the real one would refuse. The order of reading, planning, committing and sweeping is the same
for all backends (proxier.py).

S: the type of one IP family's rules as read back. P: the backend's plan. N: its planner.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.reasons import Reason

from .dataplane import Dataplane, Delta
from .decide import Packet
from .hostfacts import Foreign
from .model import NodeInfo
from .verdict import Verdict

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
P = TypeVar("P", bound="Plan")
P_contra = TypeVar("P_contra", bound="Plan", contravariant=True)
N = TypeVar("N")
N_contra = TypeVar("N_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Trace:
    """One path of a packet through the rules. verdict: FORWARD has the one delivery of this path. steps: the rules and
    elements that decided. noted: what rules recorded about the client on this path, in the backend's own terms.
    """

    verdict: Verdict
    steps: tuple[str, ...] = ()
    noted: frozenset[Hashable] = frozenset()


class Live(Protocol):
    """Rules as they were read back. place: their name in the kernel."""

    @property
    def place(self) -> str: ...

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        """The node as the rules describe pods and Services; addresses: all addresses of the machine."""

    def traces(self, packet: Packet, node: NodeInfo) -> Iterator[Trace]:
        """Every path that the packet can take. Raises NotImplementedError for a rule that is not the proxy's."""


class Plan(Protocol):
    """The changes to write. operations: its steps. elements: set elements, or rules, in them. verdicts: elements in
    verdict maps, which cost the kernel most.
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
    """Holds the mirror of one family's rules. Pure: `committed` is called when the kernel has accepted a plan."""

    @property
    def family(self) -> Family: ...
    @property
    def node(self) -> NodeInfo: ...

    def full(self, dataplane: Dataplane, found: S_contra | None) -> P:
        """From the rules that were read back to the dataplane; empty if nothing differs."""

    def change(self, dataplane: Dataplane, delta: Delta) -> P:
        """The changes for `delta`, given that the mirror is correct."""

    @property
    def unswept(self) -> bool:
        """Whether there are rules that only packets in flight need."""

    def sweep(self) -> P:
        """Remove those rules."""

    def committed(self, plan: P) -> None:
        """The kernel accepted the plan."""

    def rule_counts(self) -> Mapping[str, int]:
        """Our rules in the kernel, by table."""


class Watch(Protocol):
    """Reports changes that others make. `fileno` is for an event loop; when it is readable, call `changed`."""

    def fileno(self) -> int: ...
    def changed(self) -> bool: ...
    def close(self) -> None: ...


class Rules(Protocol[N_contra, S_co, P_contra]):
    """The rules of one network namespace, in a kernel or in memory: read, commit, settle. Raises OSError."""

    def read(self, family: Family) -> S_co | None:
        """The present rules."""

    def commit(self, planner: N_contra, plan: P_contra) -> None:
        """Write the plan. If the kernel allows it, an error changes nothing."""

    def settle(self, planner: N_contra, *, swept: bool) -> None:
        """The work that no plan can do, because rules write there too; call it after each commit of a sync and of a
        sweep.
        """


class Kernel(Rules[N_contra, S_co, P_contra], Protocol[N_contra, S_co, P_contra]):
    """Rules in a real kernel. Raises OSError."""

    @property
    def no_notifications(self) -> bool:
        """Whether there are changes by others that no watch reports."""

    def watch(self, planners: Sequence[N_contra]) -> Sequence[Watch]:
        """Start to watch for foreign changes; call it after the first sync."""

    def counted(self, planners: Sequence[N_contra]) -> Mapping[Reason, int]:
        """The number of packets that rules with these codes have counted: INVALID_STATE, LOCALHOST_NODE_PORT.
        Thread-safe.
        """

    def foreign_commits(self) -> int:
        """A number that increases when another program changes rules, as far as the kernel reports it."""

    def retire(self) -> list[str]:
        """Remove the rules of this same backend in another variant; returns the rules found."""

    def close(self) -> None:
        """Close the connections; the rules stay."""


class Fake(Rules[N_contra, S_co, P], Protocol[N_contra, S_co, P]):
    """Rules in memory. Raises for a plan that a kernel would refuse."""

    def content(self, family: Family) -> object:
        """The meaning of the rules: equal for equal Dataplanes, whatever the history."""

    def holds(self, planner: N_contra) -> bool:
        """Whether the planner's mirror equals the rules here."""

    def note(self, family: Family, noted: Hashable) -> None:
        """Record what a rule noted about a client (Trace.noted)."""

    def forget(self, family: Family, noted: Hashable) -> None: ...

    def stages(self, planner: N_contra, plan: P) -> Sequence[P]:
        """The steps in which a plan reaches the kernel; a kill can come between any two."""

    def damage(self, family: Family) -> None:
        """Damage some of the rules, as another program might."""


@dataclass(frozen=True, slots=True)
class MetricNames:
    """kube-proxy's names, if it has one for this kind of rules; "" for none. failures: syncs that the kernel refused.
    cleanup_failures: sweeps. partial_failures: of syncs that were not full ones. rules: gauge of rules by table. last:
    those written by the last sync. packets: the prefix of the names of packet counters.
    """

    failures: str
    cleanup_failures: str = ""
    partial_failures: str = ""
    rules: str = ""
    last: str = ""
    packets: str = "podwire_proxy"


class Setting(NamedTuple):
    """A setting of one backend. field: of ProxyConfig. choices: the first one is the default."""

    field: str
    choices: tuple[str, ...]
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.field.replace("_", "-")


class Backend(Protocol[N, S, P]):
    """name: in settings. place: the name of its rules in a kernel. settings: its own settings. ns_fd: of the network
    namespace; None: the caller's. Every method of the kernel's side raises OSError, and returns an empty result if the
    kernel has nothing of the kind.
    """

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str: ...
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
        """The backend with other settings, by their fields."""

    def kernel(self, planners: Sequence[N], ns_fd: int | None = None) -> Kernel[N, S, P]:
        """Raises OSError that names what the host lacks."""

    def observe(self, ns_fd: int | None = None) -> Live | None:
        """The live rules; None if there are none of this backend."""

    def existing(self, ns_fd: int | None = None) -> list[str]:
        """What `cleanup` would remove, one line for each item."""

    def cleanup(self, ns_fd: int | None = None, *, patient: bool = True) -> list[str]:
        """Remove everything that this backend ever wrote; returns what was found. patient: wait for locks that other
        programs hold; else raise OSError (EAGAIN).
        """

    def remove_idle(self, node: NodeInfo, ns_fd: int | None = None) -> None:
        """Remove rules of a family that has no Service range any more."""

    def foreign(self) -> Foreign:
        """Rules of this backend's kind that other programs made, in the caller's namespace."""


AnyBackend = Backend[Any, Any, Any]


def families(node: NodeInfo) -> tuple[Family, ...]:
    """The families with Service addresses. Rules with NAT hooks switch conntrack on for their family, so idle families
    get none.
    """
    return tuple(f for f in FAMILIES if any((":" in cidr) == (f == "ip6") for cidr in node.service_cidrs))


def dry_run(backend: AnyBackend, dataplane: Dataplane) -> Iterator[str]:
    """What a first sync would write into an empty kernel, one line for each step."""
    for family in families(dataplane.node):
        yield f"# {'IPv4' if family == 'ip' else 'IPv6'}"
        yield from backend.planner(family, dataplane.node).full(dataplane, backend.fake().read(family)).lines()

"""What a backend is: the one interface between the proxy and the rules in a kernel. backends.py lists them.

Every backend behaves as decide() says; where they differ is speed, and what an administrator sees. A backend has three
parts. The pure half plans: a Planner turns the Dataplane and what the kernel holds into a Plan, and Live tells what
rules that were read back do with a packet. The Kernel reads and commits; it alone does IO. The Fake is a Kernel in
memory that refuses what the real one would refuse. What all have in common, the order of reading, planning, committing
and sweeping, is in proxier.py.

S: what one IP family's rules are read back as. P: the backend's plan. N: its planner.
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
    """One way of a packet through the rules. verdict: FORWARD has the one delivery of this way. steps: the rules and
    elements that decided. noted: what rules wrote of the client on this way, in the backend's own terms."""

    verdict: Verdict
    steps: tuple[str, ...] = ()
    noted: frozenset[Hashable] = frozenset()


class Live(Protocol):
    """Rules as they were read back. place: what they are called in the kernel."""

    @property
    def place(self) -> str: ...

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        """What the rules themselves say of pods and Services; addresses: all that the machine has."""

    def traces(self, packet: Packet, node: NodeInfo) -> Iterator[Trace]:
        """Every way that the packet can take. Raises NotImplementedError for a rule that is not the proxy's."""


class Plan(Protocol):
    """What is to be written. operations: its steps. elements: set elements, or rules, in them. verdicts: elements in
    verdict maps, which cost the kernel most."""

    def __bool__(self) -> bool: ...

    @property
    def operations(self) -> int: ...
    @property
    def elements(self) -> int: ...
    @property
    def verdicts(self) -> int: ...

    def lines(self) -> Iterator[str]:
        """All of it, for people."""


class Planner(Protocol[S_contra, P]):
    """Holds the mirror of one family's rules. Pure: `committed` tells it that the kernel took a plan."""

    @property
    def family(self) -> Family: ...
    @property
    def node(self) -> NodeInfo: ...

    def full(self, dataplane: Dataplane, found: S_contra | None) -> P:
        """From what was read back to the dataplane; empty where nothing differs."""

    def change(self, dataplane: Dataplane, delta: Delta) -> P:
        """What `delta` needs, given that the mirror is true."""

    @property
    def unswept(self) -> bool:
        """Are there rules that only packets in flight need?"""

    def sweep(self) -> P:
        """Take them away."""

    def committed(self, plan: P) -> None:
        """The kernel took it."""

    def rule_counts(self) -> Mapping[str, int]:
        """Our rules in the kernel, by table."""


class Watch(Protocol):
    """Hears of changes that others make. `fileno` is for an event loop; readable: ask `changed`."""

    def fileno(self) -> int: ...
    def changed(self) -> bool: ...
    def close(self) -> None: ...


class Rules(Protocol[N_contra, S_co, P_contra]):
    """The rules of one network namespace, in a kernel or in memory: read, commit, settle. Raises OSError."""

    def read(self, family: Family) -> S_co | None:
        """What is there."""

    def commit(self, planner: N_contra, plan: P_contra) -> None:
        """Write it. An error changes nothing, as far as the kernel can do that."""

    def settle(self, planner: N_contra, *, swept: bool) -> None:
        """What no plan can do, because rules write there too; after each commit of a sync and of a sweep."""


class Kernel(Rules[N_contra, S_co, P_contra], Protocol[N_contra, S_co, P_contra]):
    """Rules in a real kernel. Raises OSError."""

    @property
    def no_notifications(self) -> bool:
        """Are there changes by others that no watch hears of?"""

    def watch(self, planners: Sequence[N_contra]) -> Sequence[Watch]:
        """Start to hear of foreign changes; to be called after the first sync."""

    def counted(self, planners: Sequence[N_contra]) -> Mapping[Reason, int]:
        """Packets that rules with these codes have counted: INVALID_STATE, LOCALHOST_NODE_PORT. For any thread."""

    def foreign_commits(self) -> int:
        """A number that rises when somebody else changes rules, as far as the kernel tells."""

    def retire(self) -> list[str]:
        """Remove what this very backend left in another variant; returns what was there."""

    def close(self) -> None:
        """The rules stay."""


class Fake(Rules[N_contra, S_co, P], Protocol[N_contra, S_co, P]):
    """Rules in memory. Raises for a plan that a kernel would refuse."""

    def content(self, family: Family) -> object:
        """What the rules mean: equal for equal Dataplanes, whatever came before."""

    def holds(self, planner: N_contra) -> bool:
        """Is the planner's mirror what is here?"""

    def note(self, family: Family, noted: Hashable) -> None:
        """A rule wrote this of a client (Trace.noted)."""

    def forget(self, family: Family, noted: Hashable) -> None: ...

    def stages(self, planner: N_contra, plan: P) -> Sequence[P]:
        """The steps in which a plan gets to the kernel; a kill can come between any two."""

    def damage(self, family: Family) -> None:
        """Somebody else breaks some of the rules."""


@dataclass(frozen=True, slots=True)
class MetricNames:
    """kube-proxy's names, where it has one for this kind of rules; "" for none. failures: syncs that the kernel
    refused. cleanup_failures: sweeps. partial_failures: of syncs that were not full ones. rules: gauge of rules by
    table. last: those that the last sync wrote. packets: how names of packet counters begin."""

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
    """name: in settings. place: what its rules are called in a kernel. settings: its own. ns_fd: of the network
    namespace; None: the caller's. Every method of the kernel's side raises OSError, and returns nothing found where the
    kernel has nothing of the kind."""

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
        """The same with other settings, by their fields."""

    def kernel(self, planners: Sequence[N], ns_fd: int | None = None) -> Kernel[N, S, P]:
        """Raises OSError that says what the host lacks."""

    def observe(self, ns_fd: int | None = None) -> Live | None:
        """The live rules; None where there are none of this backend."""

    def existing(self, ns_fd: int | None = None) -> list[str]:
        """What `cleanup` would remove, one line each."""

    def cleanup(self, ns_fd: int | None = None, *, patient: bool = True) -> list[str]:
        """Remove all that this backend ever wrote; returns what was there. patient: wait for locks that other programs
        hold; else raise OSError (EAGAIN)."""

    def remove_idle(self, node: NodeInfo, ns_fd: int | None = None) -> None:
        """Remove rules of a family that has no Service range (any more)."""

    def foreign(self) -> Foreign:
        """Rules of others of this backend's kind, in the caller's namespace."""


AnyBackend = Backend[Any, Any, Any]


def families(node: NodeInfo) -> tuple[Family, ...]:
    """The families with Service addresses; rules with NAT hooks switch conntrack on for their family, so no idle
    ones."""
    return tuple(f for f in FAMILIES if any((":" in cidr) == (f == "ip6") for cidr in node.service_cidrs))


def dry_run(backend: AnyBackend, dataplane: Dataplane) -> Iterator[str]:
    """What a first sync would write into an empty kernel, one line a step."""
    for family in families(dataplane.node):
        yield f"# {'IPv4' if family == 'ip' else 'IPv6'}"
        yield from backend.planner(family, dataplane.node).full(dataplane, backend.fake().read(family)).lines()

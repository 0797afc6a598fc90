"""What a backend is: the one interface between the proxy and the rules in a kernel. backends.py chooses among them.

Every backend behaves as decide() says; where they differ is speed, and what an administrator sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from podwire_base.kernel.ip import FAMILIES, Family

from .dataplane import Dataplane, Delta
from .decide import Packet
from .model import Destination, NodeInfo

if TYPE_CHECKING:
    from .flows import FlowKeeper, Swept


@dataclass(frozen=True, slots=True)
class Synced:
    """What one sync did. operations: steps of the transactions, elements: set elements or rules in them, verdicts:
    elements in verdict maps, which cost the kernel most."""

    full: bool
    operations: int
    elements: int
    seconds: float
    verdicts: int = 0


class Counted(NamedTuple):
    """Packets since the rules were written. invalid: dropped because conntrack calls them so; localhost: that began a
    connection to a NodePort on 127.0.0.1."""

    invalid: int = 0
    localhost: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """One way of a packet through the rules. verdict: "accept", "drop" or "reject"; to: where it is translated to;
    trail: the rules and elements that decided."""

    verdict: str
    to: Destination | None
    masquerade: bool
    steps: tuple[str, ...]


class Watch(Protocol):
    """Hears of changes that others make. `fileno` is for an event loop; readable: ask `changed`."""

    def fileno(self) -> int: ...
    def changed(self) -> bool: ...
    def close(self) -> None: ...


class Proxier(Protocol):
    """Keeps a kernel equal to the Dataplane. Every method raises OSError, and then nothing was changed."""

    @property
    def watchers(self) -> Sequence[Watch]: ...

    @property
    def no_notifications(self) -> bool:
        """Are there changes by others that no watcher hears of?"""

    def sync(self, dataplane: Dataplane, delta: Delta | None) -> Synced:
        """Write what `delta` changed; None: read the kernel's state back and write what differs."""

    @property
    def flows(self) -> FlowKeeper:
        """Knows which flows the syncs leave behind."""

    @property
    def unswept(self) -> bool:
        """Are there rules that only packets in flight need?"""

    def sweep_rules(self) -> None:
        """Delete these; to be called some milliseconds after a sync that left them."""

    def sweep(self) -> Swept:
        """The rules and the flows, at once."""

    def counted(self) -> Counted:
        """What the rules have counted; may be called in another thread."""

    def foreign_commits(self) -> int:
        """A number that rises when somebody else changes rules, as far as the kernel tells."""

    def watch(self) -> Sequence[Watch]:
        """Start to hear of foreign changes; to be called after the first sync."""

    def close(self) -> None:
        """The rules stay."""


class Live(Protocol):
    """The rules that are in a kernel now. place: what they are called there."""

    @property
    def place(self) -> str: ...

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        """What the rules themselves say of pods and Services; addresses: all that the machine has."""

    def traces(self, packet: Packet, node: NodeInfo) -> Iterator[Trace]:
        """Every way that the packet can take. Raises NotImplementedError for a rule that is not the proxy's."""


class Backend(Protocol):
    """ns_fd: of the network namespace; None: the caller's."""

    @property
    def name(self) -> str: ...

    def plan(self, dataplane: Dataplane) -> Iterator[str]:
        """What a first sync would write into an empty kernel, one line a step."""

    def proxier(self, node: NodeInfo, ns_fd: int | None = None) -> Proxier: ...

    def observe(self, ns_fd: int | None = None) -> Live | None:
        """The live rules; None where there are none of this backend."""

    def existing(self, ns_fd: int | None = None) -> list[str]:
        """What `cleanup` would remove, one line each."""

    def cleanup(self, ns_fd: int | None = None) -> list[str]:
        """Remove all that this backend ever wrote; returns what was there."""


def families(node: NodeInfo) -> tuple[Family, ...]:
    """The families with Service addresses; rules with NAT hooks switch conntrack on for their family, so no idle
    ones."""
    return tuple(f for f in FAMILIES if any((":" in cidr) == (f == "ip6") for cidr in node.service_cidrs))

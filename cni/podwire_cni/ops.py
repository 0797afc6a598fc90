"""The steps of attaching a pod as data ("ops"), and for each step the step that undoes it.

`place` is the network namespace of a step: the node's or the pod's. To undo an ADD takes few steps, because deleting
one end of the veth also removes the other end, the pod's addresses, routes and neighbours, and the bridge port.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from .types import IPAddress, IPInterface, IPNetwork

Place = Literal["node", "pod"]


class CreateVeth(NamedTuple):
    """Create a veth pair: `host` in the node's namespace and `peer` in the pod's namespace."""

    host: str
    host_mac: str
    peer: str
    peer_mac: str
    mtu: int
    place: Place = "node"


class SetUp(NamedTuple):
    """Set `link` up. port: it is the node's end of a pod's veth; it has a link group and answers no ARP. quiet: it gets
    no link-local IPv6 address.
    """

    link: str
    place: Place
    alias: str = ""
    port: bool = False
    quiet: bool = False


class EnableIPv6(NamedTuple):
    """Enable IPv6 on `link`, in a namespace where IPv6 is disabled on new links (disable_ipv6)."""

    link: str
    place: Place = "pod"


class AddAddress(NamedTuple):
    link: str
    address: IPInterface
    place: Place = "pod"


class AddRoute(NamedTuple):
    """Add a route. `via` None: a link-scope route. The numbers are those of types.Route; None: the kernel's default."""

    link: str
    dst: IPNetwork
    via: IPAddress | None = None
    place: Place = "pod"
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class AddNeighbour(NamedTuple):
    """Add a permanent neighbour entry on `link`."""

    link: str
    address: IPAddress
    mac: str
    place: Place


class JoinBridge(NamedTuple):
    """Make `link` a port of `bridge`, in hairpin mode. learning: whether the bridge learns source MACs from frames of
    this port. The port itself accepts no IPv6 router; packets of the pod arrive on the bridge.
    """

    link: str
    bridge: str
    learning: bool = False
    place: Place = "node"


class AddForwarding(NamedTuple):
    """Add the static entry `mac` -> `link` to the forwarding table of the bridge that has the port `link`. sticky: the
    entry never moves to another port.
    """

    link: str
    mac: str
    sticky: bool = True
    place: Place = "node"


class Announce(NamedTuple):
    """Announce on the link which MAC these addresses have now, with gratuitous ARP or unsolicited neighbour
    advertisements.
    """

    link: str
    mac: str
    addresses: tuple[IPAddress, ...]
    place: Place = "pod"


class CreateIfb(NamedTuple):
    """Create an intermediate functional block device (ifb). Packets that Redirect sends to the device pass its queue
    and then continue their path.
    """

    link: str
    mtu: int
    place: Place = "node"


class LimitRate(NamedTuple):
    """Make a token bucket the queue of `link`. rate: bytes per second. burst: bytes. queue: the bytes that may wait.
    packet: longer packets (of generic segmentation offload) are segmented before they wait; 0: they wait whole.
    """

    link: str
    rate: int
    burst: int
    queue: int
    packet: int = 0
    place: Place = "node"


class Redirect(NamedTuple):
    """Redirect every packet that arrives on `link` through the queue of `to`."""

    link: str
    to: str
    place: Place = "node"


class DeleteLink(NamedTuple):
    link: str
    place: Place = "node"


class DeleteNeighbour(NamedTuple):
    link: str
    address: IPAddress
    place: Place = "node"


class DeleteRoute(NamedTuple):
    link: str
    dst: IPNetwork
    place: Place = "node"


Op = (
    CreateVeth
    | SetUp
    | AddAddress
    | AddRoute
    | AddNeighbour
    | JoinBridge
    | AddForwarding
    | Announce
    | CreateIfb
    | LimitRate
    | Redirect
    | EnableIPv6
    | DeleteLink
    | DeleteNeighbour
    | DeleteRoute
)


def inverse(op: Op) -> Op | None:
    """Returns the step that undoes `op`; None if deleting the veth undoes the op too, or if there is
    nothing to undo.
    """
    if isinstance(op, CreateVeth):
        return DeleteLink(op.host)
    if isinstance(op, CreateIfb):
        return DeleteLink(op.link)
    if isinstance(op, AddNeighbour) and op.place == "node":
        return DeleteNeighbour(op.link, op.address)
    return None


def with_ipv6(ops: Sequence[Op]) -> tuple[Op, ...]:
    """Returns the steps for a pod whose namespace has IPv6 disabled. After each step that creates a veth, a step
    enables IPv6 on the pod's end.
    """
    return tuple(each for op in ops for each in ((op, EnableIPv6(op.peer)) if isinstance(op, CreateVeth) else (op,)))


def undo(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """Returns the steps that undo a sequence of steps, in reverse order."""
    return tuple(back for op in reversed(ops) if (back := inverse(op)) is not None)

"""The single steps of attaching a pod, as data, and the step that undoes each.

`place` is the network namespace of a step: the node's or the pod's. Undoing needs few steps, because deleting a veth's
end also removes the pod's whole side (addresses, routes, neighbours) and the bridge port.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from .types import IPAddress, IPInterface, IPNetwork

Place = Literal["node", "pod"]


class CreateVeth(NamedTuple):
    """A veth pair: `host` in the node's namespace, `peer` created in the pod's."""

    host: str
    host_mac: str
    peer: str
    peer_mac: str
    mtu: int
    place: Place = "node"


class SetUp(NamedTuple):
    link: str
    place: Place
    alias: str = ""


class EnableIPv6(NamedTuple):
    """Allow IPv6 addresses on `link` in a namespace where new links have none (disable_ipv6)."""

    link: str
    place: Place = "pod"


class AddAddress(NamedTuple):
    link: str
    address: IPInterface
    place: Place = "pod"


class AddRoute(NamedTuple):
    """`via` None: a link-scope route. The numbers are those of types.Route; None: the kernel's default."""

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
    """A permanent neighbour entry on `link`."""

    link: str
    address: IPAddress
    mac: str
    place: Place


class JoinBridge(NamedTuple):
    """Make `link` a port of `bridge`, in hairpin mode. learning: the bridge learns from its frames where a MAC is."""

    link: str
    bridge: str
    learning: bool = False
    place: Place = "node"


class AddForwarding(NamedTuple):
    """A static entry `mac` -> port in the forwarding table of the bridge that `link` is a port of. sticky: it never
    moves to another port."""

    link: str
    mac: str
    sticky: bool = True
    place: Place = "node"


class Announce(NamedTuple):
    """Announce to the link's network which MAC has these addresses now: gratuitous ARP, unsolicited neighbour
    advertisement."""

    link: str
    mac: str
    addresses: tuple[IPAddress, ...]
    place: Place = "pod"


class CreateIfb(NamedTuple):
    """An intermediate device: packets that Redirect sends to it pass its queue and then continue on their way."""

    link: str
    mtu: int
    place: Place = "node"


class LimitRate(NamedTuple):
    """A token bucket as the queue of `link`. rate: bytes a second; burst: bytes."""

    link: str
    rate: int
    burst: int
    place: Place = "node"


class Redirect(NamedTuple):
    """Every packet that arrives on `link` passes the queue of `to` first."""

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
    """The step that undoes `op`; None if deleting the veth is enough, or if there is nothing to undo."""
    if isinstance(op, CreateVeth):
        return DeleteLink(op.host)
    if isinstance(op, CreateIfb):
        return DeleteLink(op.link)
    if isinstance(op, AddNeighbour) and op.place == "node":
        return DeleteNeighbour(op.link, op.address)
    return None


def with_ipv6(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The same step for a pod whose namespace has IPv6 off."""
    return tuple(each for op in ops for each in ((op, EnableIPv6(op.peer)) if isinstance(op, CreateVeth) else (op,)))


def undo(ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """The inverse of a sequence of steps, last step first."""
    return tuple(back for op in reversed(ops) if (back := inverse(op)) is not None)

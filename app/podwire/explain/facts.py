"""What a node's kernel says, as data; observe.py reads it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from podwire_base.kernel.nft.anytable import AnyTable
from podwire_proxy.backend import Live
from podwire_proxy.model import NodeInfo

if TYPE_CHECKING:
    from podwire_base.kernel.listening import Listener

RouteKind = Literal["unicast", "local", "broadcast", "unreachable", "blackhole", "prohibit", "none", "martian"]


@dataclass(frozen=True, slots=True)
class Link:
    """up: administratively. carrier: the other end is up too. master: the bridge, "" without one. group: link group."""

    name: str
    index: int
    mtu: int = 1500
    up: bool = True
    carrier: bool = True
    master: str = ""
    kind: str = ""
    mac: str = ""
    group: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """The kernel's own answer for one packet. mtu 0: that of the link. source: the address that the node would send
    from. error: the kernel's words.
    """

    kind: RouteKind
    dev: str = ""
    via: str = ""
    mtu: int = 0
    source: str = ""
    error: str = ""

    @property
    def good(self) -> bool:
        return self.kind in ("unicast", "local", "broadcast")

    def __str__(self) -> str:
        if self.kind == "local":
            return "delivered on this node"
        if self.kind == "unicast":
            return f"{f'via {self.via} ' if self.via else ''}out of {self.dev}"
        return self.error or self.kind


# (destination, source or "", incoming link or "") -> the route
Router = Callable[[str, str, str], Route]


@dataclass(frozen=True, slots=True)
class Inside:
    """A pod's network namespace. port: the node's end of its veth, "" if not known. problem: why no more is known."""

    ip: str
    pod: str = ""
    port: str = ""
    links: Mapping[str, Link] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    listeners: tuple[Listener, ...] = ()
    tables: tuple[AnyTable, ...] = ()
    route: Router = lambda _dst, _src, _iif: Route("none")
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """One node. live: the proxy's rules, None without any. info: the node as those rules know it. legacy: table ->
    chain -> rules of iptables-legacy, as iptables-save prints them, by family. inside: the pod with an address, None if
    the node has none. roles: the status of each role. notes: what could not be read.
    """

    name: str
    addresses: tuple[str, ...]
    info: NodeInfo
    live: Live | None = None
    tables: tuple[AnyTable, ...] = ()
    legacy: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, Link] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    route: Router = lambda _dst, _src, _iif: Route("none")
    inside: Callable[[str], Inside | None] = lambda _ip: None
    forwarding: Mapping[str, bool] = field(default_factory=dict)  # family -> whether the node forwards
    conntrack: tuple[int, int] = (0, 0)  # entries, greatest number
    roles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

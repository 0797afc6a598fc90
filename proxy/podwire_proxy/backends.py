"""The only file that knows the concrete backends: which there are, which one is chosen, and what the others left.
IO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from podwire_base.kernel.ip import FAMILIES
from podwire_base.kernel.nft import socket as nft_socket

from .backend import Backend, Live, Proxier
from .backend import families as families_of
from .dataplane import Dataplane
from .iptables import apply as iptables_apply
from .iptables import live as iptables_live
from .iptables import plan as iptables_plan
from .iptables.programs import Variant
from .model import NodeInfo
from .nftables import apply as nftables_apply
from .nftables.layout import Layout
from .nftables.live import Tables
from .nftables.plan import Planner


class Nftables:
    name = "nftables"

    def plan(self, dataplane: Dataplane) -> Iterator[str]:
        for family in families_of(dataplane.node):
            yield from map(str, Planner(Layout(family), dataplane.node).full(dataplane, None))

    def proxier(self, node: NodeInfo, ns_fd: int | None = None) -> Proxier:
        return nftables_apply.Proxier(node, ns_fd)

    def observe(self, ns_fd: int | None = None) -> Live | None:
        with nft_socket.Connection(ns_fd) as conn:
            dumps = {family: dump for family in FAMILIES if (dump := conn.dump(Layout(family).table, exprs=True))}
        return Tables(dumps) if dumps else None

    def existing(self, ns_fd: int | None = None) -> list[str]:
        return nftables_apply.existing(ns_fd)

    def cleanup(self, ns_fd: int | None = None) -> list[str]:
        return nftables_apply.cleanup(ns_fd)


@dataclass(frozen=True)
class Iptables:
    """variant None: the one that the host uses."""

    variant: Variant | None = None
    name: str = "iptables"

    def plan(self, dataplane: Dataplane) -> Iterator[str]:
        for family in families_of(dataplane.node):
            yield f"# {'IPv4' if family == 'ip' else 'IPv6'}"
            yield from (
                iptables_plan.Planner(family, dataplane.node).full(dataplane, iptables_plan.KernelState()).lines()
            )

    def proxier(self, node: NodeInfo, ns_fd: int | None = None) -> Proxier:
        return iptables_apply.Proxier(node, ns_fd, self.variant)

    def observe(self, ns_fd: int | None = None) -> Live | None:
        return iptables_live.read(ns_fd)

    def existing(self, ns_fd: int | None = None) -> list[str]:
        return iptables_apply.existing(ns_fd)

    def cleanup(self, ns_fd: int | None = None) -> list[str]:
        return iptables_apply.cleanup(ns_fd)


ALL: tuple[Backend, ...] = (Nftables(), Iptables())


def choose(name: str, variant: str = "auto") -> Backend:
    """name, variant: as config.check lets them through."""
    if name == "nftables":
        return Nftables()
    return Iptables(None if variant == "auto" else variant)  # type: ignore[arg-type]  # config.check knows the names


def retire(proxier: Proxier, ns_fd: int | None = None) -> list[str]:
    """Remove what every other backend, and the other variant of iptables, left; returns what was there. To be called
    when `proxier` has made its first sync: flows that are translated stay so, and new ones find its rules. Raises
    OSError."""
    if isinstance(proxier, iptables_apply.Proxier):
        return [*nftables_apply.cleanup(ns_fd), *iptables_apply.cleanup(ns_fd, keep=proxier.variant, wait=0)]
    return iptables_apply.cleanup(ns_fd, wait=0)


def existing(ns_fd: int | None = None) -> list[str]:
    return [line for backend in ALL for line in backend.existing(ns_fd)]


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Remove everything that any backend ever wrote; returns what was there."""
    return [line for backend in ALL for line in backend.cleanup(ns_fd)]


def observe(ns_fd: int | None = None) -> Live | None:
    """The rules that serve Services here. Where two backends are (one is being replaced), the one that is met first."""
    return next((live for backend in ALL if (live := backend.observe(ns_fd)) is not None), None)

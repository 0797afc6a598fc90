"""Implements backend.Live for the chains and sets PODWIRE-* of a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from podwire_base.kernel.ip import FAMILIES, Family

from ..backend import Trace
from ..decide import Packet
from ..model import NodeInfo
from . import programs
from .ipset import IpSets
from .layout import FILTER, Chain
from .plan import KernelState
from .programs import Variant
from .text import take_apart
from .trace import Tracer


@dataclass(frozen=True, slots=True)
class Chains:
    """The chains of one variant."""

    states: Mapping[Family, KernelState]
    variant: Variant

    @property
    def place(self) -> str:
        return f"chains PODWIRE-* of iptables-{self.variant}"

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        pods = tuple(
            cidr for state in self.states.values() for cidr in _named(state, "nat", "PODWIRE-OFF-CLUSTER", "-s")
        )
        services = tuple(
            cidr
            for state in self.states.values()
            for cidr in _named(state, "filter", FILTER, "-d")
            if cidr.partition("/")[2].isdecimal() and cidr.partition("/")[2] not in ("32", "128")
        )
        return NodeInfo(name, addresses, pod_cidrs=pods, service_cidrs=services)

    def traces(self, packet: Packet, node: NodeInfo) -> Iterator[Trace]:
        state = self.states.get("ip6" if ":" in packet.dst else "ip", KernelState())
        yield from Tracer(state, node).traces(packet)


def _named(state: KernelState, table: str, chain: str, option: str) -> Iterator[str]:
    """Yields the ranges in the rules of a chain."""
    # callers name existing tables
    for rule in state.chains.get(Chain(table, chain), ()):  # type: ignore[arg-type]
        yield from (arguments[0] for name, arguments, _ in take_apart(rule).options if name == option)


def read(ns_fd: int | None = None) -> Chains | None:
    """Returns the current PODWIRE-* chains, from iptables-save; None if neither variant has such chains."""
    variants: dict[Variant, dict[Family, KernelState]] = {}
    for variant, family, chains in programs.found(ns_fd):
        variants.setdefault(variant, {})[family] = KernelState(chains)
    for variant, states in variants.items():
        with IpSets(ns_fd) as sets:
            for family in FAMILIES:
                if family in states:
                    states[family].sets = sets.ours(family)
        return Chains(states, variant)
    return None

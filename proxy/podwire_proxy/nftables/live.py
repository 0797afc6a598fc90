"""Implements backend.Live for the tables `podwire` that were read back from a kernel. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from podwire_base.kernel.ip import Family
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.codec import TableDump

from ..backend import Trace
from ..decide import Packet
from ..model import NodeInfo
from ..verdict import PASS
from .trace import Tracer


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of both families. dumps: with the rules' expressions."""

    dumps: Mapping[Family, TableDump]
    place: str = "table podwire"

    def node(self, name: str, addresses: tuple[str, ...]) -> NodeInfo:
        pods, services = (
            tuple(cidr for dump in self.dumps.values() for cidr in _cidrs(dump.elements.get(set_, {})))
            for set_ in ("pods", "service-cidrs")
        )
        return NodeInfo(name, addresses, pod_cidrs=pods, service_cidrs=services)

    def traces(self, packet: Packet, node: NodeInfo) -> Iterator[Trace]:
        dump = self.dumps.get("ip6" if ":" in packet.dst else "ip")
        if dump is None:
            yield Trace(PASS)
        else:
            yield from Tracer(dump, node).traces(packet)


def _cidrs(held: Mapping[bytes, nft.Value]) -> Iterable[str]:
    """Returns the ranges of an interval set. A range without an end extends to the last address."""
    starts = sorted(held)
    for index, start in enumerate(starts):
        if held[start] == nft.INTERVAL_END:
            continue
        first = ipaddress.ip_address(start)
        highest = type(first)((1 << first.max_prefixlen) - 1)
        last = ipaddress.ip_address(starts[index + 1]) - 1 if index + 1 < len(starts) else highest
        yield from map(str, ipaddress.summarize_address_range(first, last))

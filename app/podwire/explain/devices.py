"""The chains of a packet's way that are no hooks of IP: those of a device (netdev ingress and egress), those of the
bridge behind the route, and those of ARP, without which the next hop has no MAC. Pure.

A pod's frames are routed, so they never pass the bridge's hook forward: they come in by its input and leave by its
output and postrouting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from podwire_base.kernel.nft.anytable import AnyChain, AnyTable
from podwire_base.kernel.nft.judge import Seen, judge

from .facts import Facts

BRIDGE_OUT = ("output", "postrouting")
_LOST = ("drop", "reject", "unknown")


def at(facts: Facts, hook: str, device: str) -> Iterator[tuple[AnyTable, AnyChain]]:
    """Yields the chains that see the packets of a device. hook: "ingress" or "egress"."""
    for table in facts.tables:
        for chain in table.chains.values() if table.family in ("netdev", "inet") else ():
            if chain.hook == hook and device in chain.devices:
                yield table, chain


def neighbour_doubts(facts: Facts, device: str, via: str) -> list[str]:
    """Returns a line for each chain of ARP that may keep this node from learning the next hop's MAC."""
    if not via or ":" in via:  # a neighbour on the link is learned as needed; IPv6 asks by ICMP
        return []
    doubts = []
    unknown = Seen("arp", (), (), 0, iif=None, oif=None, indices={name: one.index for name, one in facts.links.items()})
    for table in facts.tables:
        for chain in table.chains.values() if table.family == "arp" else ():
            if chain.hook not in ("input", "output"):
                continue
            side = {"iif": device} if chain.hook == "input" else {"oif": device}
            ends = judge(table, chain, replace(unknown, **side), lambda _: False)  # type: ignore[arg-type]  # names
            if any(end.verdict in _LOST for end in ends):
                where = f"arp {table.name} {chain.name} ({chain.hook})"
                doubts.append(f"{where} may drop the ARP of {via} on {device}: then its MAC is not learned again")
    return doubts

"""The sets and maps of the tables `podwire-cni`, and the offsets, lengths and types of the two IP families, which all
rules of this package need. Pure.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import ruleset as nft

TABLE = "podwire-cni"
RAW = -300
R0 = 8  # the first register
SIZE = {"ip": 4, "ip6": 16}
SADDR_AT, DADDR_AT = {"ip": 12, "ip6": 8}, {"ip": 16, "ip6": 24}
TYPE = {"ip": "ipv4_addr", "ip6": "ipv6_addr"}


def cidr_family(cidr: str) -> Family:
    return "ip" if ip_network(cidr, strict=False).version == 4 else "ip6"


def link_name(link: str) -> bytes:
    return link.encode().ljust(16, b"\0")


def named(key: Literal["iifname", "oifname"], link: str) -> tuple[nft.Expr, ...]:
    return nft.Meta(key), nft.Cmp(link_name(link))


@dataclass(frozen=True, slots=True)
class Sets:
    """The sets and maps of one IP family. Their elements belong to pods."""

    hostports: nft.Set
    hostports_on: nft.Set
    hairpin: nft.Set


@functools.cache
def sets_of(family: Family) -> Sets:
    table, kind, port = nft.Table(family, TABLE), TYPE[family], ("inet_proto", "inet_service")
    return Sets(
        nft.Set(table, "hostports", port, (kind, "inet_service")),
        nft.Set(table, "hostports-on", (kind, *port), (kind, "inet_service")),
        nft.Set(table, "hairpin", (kind, kind)),
    )


BRIDGE_TABLE = nft.Table("bridge", TABLE)
PORTS = nft.Set(BRIDGE_TABLE, "ports", ("ifname",))
MACS = nft.Set(BRIDGE_TABLE, "macs", ("ifname", "ether_addr"))
SUBNET_PORTS = nft.Set(BRIDGE_TABLE, "subnet-ports", ("ifname",))  # ports of pods that may send to each other directly
LEASES = {family: nft.Table(family, "podwire-leases") for family in FAMILIES}
LEASED = {family: nft.Set(LEASES[family], "leased", (TYPE[family],)) for family in FAMILIES}  # the addresses of pods
SENDERS = {family: nft.Set(BRIDGE_TABLE, f"senders-{family}", ("ifname", TYPE[family])) for family in FAMILIES}

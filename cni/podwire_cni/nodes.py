"""Applies routes.py to the kernel. Only routes that carry our protocol number are ever changed or deleted."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from . import routes
from .types import IPAddress, IPNetwork

MAIN = 254


def present(ipr: IPRoute) -> dict[IPNetwork, IPAddress]:
    """Our routes with a gateway in the main table, as they are now."""
    found = {}
    for family in (AF_INET, AF_INET6):
        for route in ipr.get_routes(family=family, table=MAIN):
            if route["proto"] == routes.PROTOCOL and route.get("RTA_GATEWAY") and route.get("RTA_DST"):
                dst = ip_network(f"{route.get('RTA_DST')}/{route['dst_len']}")
                found[dst] = ip_address(route.get("RTA_GATEWAY"))
    return found


def sync(desired: Mapping[IPNetwork, IPAddress]) -> tuple[list[str], list[str]]:
    """Make our routes the desired ones. Returns (what was done, what the kernel refused); a refusal stops no other route."""
    done, refused = [], []
    with IPRoute() as ipr:
        put, drop = routes.changes(desired, present(ipr))
        for dst, via in drop.items():
            ipr.route("del", dst=str(dst), gateway=str(via), proto=routes.PROTOCOL, table=MAIN)
            done.append(f"removed {dst} via {via}")
        for dst, via in put.items():
            try:
                ipr.route("replace", dst=str(dst), gateway=str(via), proto=routes.PROTOCOL, table=MAIN)
                done.append(f"{dst} via {via}")
            except NetlinkError as err:
                refused.append(f"{dst} via {via}: {err} (nodes must share a link: no tunnel is made)")
    return done, refused

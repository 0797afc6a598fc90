"""Applies the plan of overlay.py to the kernel: routes, tunnel interfaces, and their neighbour and forwarding entries.

This module is not a hot path, so it uses pyroute2. It reads the kernel's state first and writes only differences. It
changes and deletes only routes with podwire's protocol number and links with podwire's names.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from socket import AF_BRIDGE, AF_INET, AF_INET6
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from . import routes
from .overlay import TUNNELS, NextHop, PeerRoutes, Tunnel, changes
from .plan import host_route
from .types import IPAddress, IPNetwork
from .wiring import allow_ipv6

MAIN = 254
ONLINK, NOARP, PERMANENT, NODAD = 4, 0x40, 0x80, 0x02


def near(addresses: Iterable[IPAddress]) -> tuple[frozenset[IPAddress], frozenset[IPAddress]]:
    """Returns (addresses that this node reaches without a router, addresses without a route). Routes through podwire's
    own tunnels do not count.
    """
    found, lost = set(), set()
    with IPRoute() as ipr:
        for address in addresses:
            try:
                answers = ipr.route("get", dst=str(address))
            except NetlinkError as err:
                if err.code not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
                    raise
                lost.add(address)
                continue
            if answers and not answers[0].get("RTA_GATEWAY") and not answers[0].get("RTA_VIA"):
                found.add(address)
    return frozenset(found), frozenset(lost)


def present(ipr: IPRoute, links: Mapping[int, str]) -> dict[IPNetwork, NextHop]:
    """Returns podwire's present routes with a gateway in the main table. links: index -> name of podwire's tunnels."""
    found = {}
    for family in (AF_INET, AF_INET6):
        for route in ipr.get_routes(family=family, table=MAIN):
            if route["proto"] == routes.PROTOCOL and route.get("RTA_GATEWAY") and route.get("RTA_DST"):
                dst = ip_network(f"{route.get('RTA_DST')}/{route['dst_len']}")
                found[dst] = NextHop(ip_address(route.get("RTA_GATEWAY")), links.get(route.get("RTA_OIF"), ""))
    return found


def sync(wanted: PeerRoutes, ends: Sequence[Tunnel] = ()) -> tuple[list[str], list[str]]:
    """Apply the wanted routes and tunnels to the kernel. Continues after a refusal. Returns (changes, refusals), one
    line for each.
    """
    done, refused = list[str](), list[str]()
    with IPRoute() as ipr:
        made = {end.link: end for end in ends}
        index = {link: _end(ipr, end, done) for link, end in made.items()}
        _entries(ipr, wanted, index, done)
        there = {number: link for link in TUNNELS.values() for number in ipr.link_lookup(ifname=link)}
        put, drop = changes(wanted.routes, present(ipr, there))
        for dst, hop in drop.items():
            ipr.route("del", dst=str(dst), gateway=str(hop.via), proto=routes.PROTOCOL, table=MAIN)
            done.append(f"removed {dst} via {hop}")
        for dst, hop in put.items():
            try:
                ipr.route(
                    "replace",
                    dst=str(dst),
                    gateway=str(hop.via),
                    proto=routes.PROTOCOL,
                    table=MAIN,
                    **_through(hop, index, made, dst),
                )
                done.append(f"{dst} via {hop}")
            except NetlinkError as err:
                refused.append(
                    f"{dst} via {hop}: {err} (without a shared link a tunnel is needed: --encapsulation auto)"
                )
        for number, link in there.items():
            if link not in made:
                ipr.link("del", index=number)
                done.append(f"tunnel {link} removed, no node needs it")
    return done, refused


def _through(hop: NextHop, index: Mapping[str, int], ends: Mapping[str, Tunnel], dst: IPNetwork) -> dict[str, Any]:
    if not hop.link:
        return {}
    # The node's own packets get the node's address inside the tunnel as source, so that the answers also return through
    # the tunnel.
    source = next((gateway for gateway in ends[hop.link].gateways if gateway.version == dst.version), None)
    return {"oif": index[hop.link], "flags": ONLINK, **({"prefsrc": str(source)} if source else {})}


def _end(ipr: IPRoute, end: Tunnel, done: list[str]) -> int:
    """Create or correct the tunnel interface and its addresses. Returns the index of the interface."""
    version = next(v for v, link in TUNNELS.items() if link == end.link)
    found = ipr.get_links(ifname=end.link) if ipr.link_lookup(ifname=end.link) else []
    if found and not _same(found[0], end, version):
        ipr.link("del", index=found[0]["index"])
        done.append(f"tunnel {end.link} removed: this node's address changed")
        found = []
    if not found:
        local = {"vxlan_local" if version == 4 else "vxlan_local6": str(end.local)} if end.local else {}
        if version == 6 and end.local is None:
            local = {"vxlan_group6": "::"}  # selects IPv6 for the outer packets
        ipr.link(
            "add",
            ifname=end.link,
            kind="vxlan",
            address=end.mac,
            mtu=end.mtu,
            vxlan_id=end.vni,
            vxlan_port=end.port,
            vxlan_learning=False,
            **local,
        )
        done.append(f"tunnel {end.link} made, VNI {end.vni}, from {end.local or 'any address'}")
        found = ipr.get_links(ifname=end.link)
        # The tunnel needs no link-local address, router solicitation or multicast group.
        for key, value in (("addr_gen_mode", "1"), ("accept_ra", "0")):
            path = Path("/proc/sys/net/ipv6/conf") / end.link / key
            if path.exists():
                path.write_text(value)
    if any(gateway.version == 6 for gateway in end.gateways):
        done += allow_ipv6(end.link)
    index, want = int(found[0]["index"]), dict[str, Any]()
    want.update({"mtu": end.mtu} if found[0].get("IFLA_MTU") != end.mtu else {})
    want.update({"state": "up"} if found[0]["state"] != "up" else {})
    if want:
        ipr.link("set", index=index, **want)
    _addresses(ipr, index, end, done)
    return index


def _same(link: Any, end: Tunnel, version: int) -> bool:
    data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    if data is None:
        return False
    local = data.get("IFLA_VXLAN_LOCAL" if version == 4 else "IFLA_VXLAN_LOCAL6")
    return (link.get("IFLA_ADDRESS"), data.get("IFLA_VXLAN_ID"), data.get("IFLA_VXLAN_PORT"), local) == (
        end.mac,
        end.vni,
        end.port,
        None if end.local is None else str(end.local),
    )


def _addresses(ipr: IPRoute, index: int, end: Tunnel, done: list[str]) -> None:
    there = {ip_interface(f"{a.get('IFA_ADDRESS')}/{a['prefixlen']}") for a in ipr.get_addr(index=index)}
    there = {a for a in there if not a.is_link_local}
    want = {host_route(gateway) for gateway in end.gateways}
    for address in want - there:
        ipr.addr(
            "add",
            index=index,
            address=str(address.ip),
            prefixlen=address.network.prefixlen,
            **({"flags": NODAD} if address.version == 6 else {}),
        )
        done.append(f"{address} on {end.link}")
    for address in there - want:
        ipr.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        done.append(f"{address} off {end.link}")


def _entries(ipr: IPRoute, wanted: PeerRoutes, index: Mapping[str, int], done: list[str]) -> None:
    """Apply the neighbour and forwarding entries. Call it before the routes that need the entries are added."""
    name = {number: link for link, number in index.items()}
    neighbours: dict[tuple[str, IPAddress], str] = {}
    forwarding: dict[tuple[str, str], IPAddress] = {}
    for family in (AF_INET, AF_INET6):
        for entry in ipr.get_neighbours(family=family):
            if entry["ifindex"] in name and entry["state"] & PERMANENT:
                neighbours[name[entry["ifindex"]], ip_address(entry.get("NDA_DST"))] = entry.get("NDA_LLADDR")
    for entry in ipr.get_neighbours(family=AF_BRIDGE):
        if entry["ifindex"] in name and entry.get("NDA_DST"):
            forwarding[name[entry["ifindex"]], entry.get("NDA_LLADDR")] = ip_address(entry.get("NDA_DST"))
    put, drop = changes(wanted.forwarding, forwarding)
    for (link, mac), node in drop.items():
        ipr.fdb("del", ifindex=index[link], lladdr=mac, dst=str(node))
    for (link, mac), node in put.items():
        # On a VXLAN link, adding an entry for a known MAC would add a second destination.
        if (link, mac) in forwarding:
            ipr.fdb("del", ifindex=index[link], lladdr=mac, dst=str(forwarding[link, mac]))
        ipr.fdb("add", ifindex=index[link], lladdr=mac, dst=str(node))
        done.append(f"{mac} in {link} is at {node}")
    more, less = changes(wanted.neighbours, neighbours)
    for (link, address), mac in less.items():
        ipr.neigh("del", ifindex=index[link], dst=str(address), lladdr=mac)
    for (link, address), mac in more.items():
        ipr.neigh("replace", ifindex=index[link], dst=str(address), lladdr=mac, state=PERMANENT)

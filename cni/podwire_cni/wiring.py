"""Prepares the node for pods at the start of an agent: the bridge, its addresses and routes, and sysctls.

This module is not a hot path, so it uses pyroute2. It reads the kernel's state first and writes only differences. So a
second run changes nothing, and a restart interrupts no pod. All functions work in the network namespace of the calling
thread.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any

from pyroute2 import IPRoute

from podwire_base.kernel.addresses import uplink
from podwire_base.kernel.netlink import rtnetlink as nl
from podwire_base.kernel.netlink.socket import RouteSocket

from . import routes
from .nodetable import NodeRules
from .plan import NodeNet, host_route
from .types import BRIDGE, IPAddress, IPInterface

LINK_SCOPE, MAIN, NUD_PERMANENT = 253, 254, 0x80
RTPROT_RA = 9
WATCHED_SYSCTLS = (
    "ipv4/ip_forward",
    "ipv4/conf/all/send_redirects",
    f"ipv4/conf/{BRIDGE}/send_redirects",
    "ipv6/conf/all/forwarding",
    *(f"ipv6/conf/{BRIDGE}/{key}" for key in ("accept_ra", "addr_gen_mode", "disable_ipv6")),
)
OURS = "0a:58:"  # the first bytes of the MAC of podwire's bridges


def uplink_mtu(name: str = "") -> int | None:
    """Returns the MTU of the link `name`. If there is no such link, returns the MTU of the link to the default gateway,
    or None if there is no default gateway.
    """
    with IPRoute() as ipr:
        index = ipr.link_lookup(ifname=name) if name else []
        if not index and (link := uplink()):
            index = ipr.link_lookup(ifname=link)
        return int(ipr.get_links(index[0])[0].get("IFLA_MTU")) if index else None


def is_down(name: str) -> bool:
    """Whether there is a link of this name that is set down or has no carrier."""
    with contextlib.suppress(OSError), RouteSocket() as sock:
        return bool(index := sock.index(name)) and not nl.carries(sock.ask([nl.get_link(index)])[0])
    return False


def has_ipv6() -> bool:
    """Whether the kernel has IPv6 (it does not with ipv6.disable=1)."""
    return Path("/proc/sys/net/ipv6").exists()


def bridge_mac(bridge: str) -> str:
    """Returns the present MAC of the bridge if podwire created the bridge; else "". A change of the podCIDR must not
    change the MAC, because pods have it in their neighbour tables.
    """
    with IPRoute() as ipr:
        found = ipr.get_links(ifname=bridge) if ipr.link_lookup(ifname=bridge) else []
        mac = str(found[0].get("IFLA_ADDRESS")) if found else ""
        return mac if mac.startswith(OURS) else ""


def foreign(net: NodeNet) -> str:
    """Returns why the node cannot have a new or changed network; "" if it can. Possible reasons: the node already has
    another link of this name, the node already has some of the addresses, or pods on the bridge would lose their
    connectivity.
    """
    with IPRoute() as ipr:
        found = ipr.get_links(ifname=net.bridge) if ipr.link_lookup(ifname=net.bridge) else []
        if found and found[0].get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "bridge":
            return "the node has an interface of that name which is not a bridge"
        if found and not str(found[0].get("IFLA_ADDRESS")).startswith(OURS):
            return "other software made it and uses it"
        subnets = [r.subnet for ranges in net.ranges for r in ranges]
        for route in ipr.get_routes(table=MAIN):
            if not route.get("RTA_DST") or (found and route.get("RTA_OIF") == found[0]["index"]):
                continue
            there = ip_network(f"{route.get('RTA_DST')}/{route['dst_len']}")
            # one version
            if any(there.version == mine.version and there.subnet_of(mine) for mine in subnets):  # type: ignore[arg-type]
                return f"its addresses are not free, the node has a route to {there}"
        return _cut_off(ipr, net, found[0]) if found else ""


def _cut_off(ipr: IPRoute, net: NodeNet, bridge: Any) -> str:
    """Returns why pods on the bridge would lose their connectivity with `net`; "" if they would not. Possible reasons:
    `net` does not contain their addresses, or its gateway differs from their gateway.
    """
    pods = sorted(
        {
            ip_address(n.get("NDA_DST"))
            for family in (AF_INET, AF_INET6)
            for n in ipr.get_neighbours(family=family)
            if n["ifindex"] == bridge["index"] and n["state"] & NUD_PERMANENT
        },
        key=str,
    )
    if lost := [str(pod) for pod in pods if not net.has(pod)]:
        return f"pods of other ranges are on it: {', '.join(lost[:5])}{' ...' if lost[5:] else ''}"
    kept = {address.ip for address in net.on_bridge()}
    gone = [str(address.ip) for address in _bridge_addresses(ipr, bridge["index"]) if address.ip not in kept]
    if pods and (gone or bridge.get("IFLA_ADDRESS") != net.bridge_mac):
        return f"pods on it have another gateway{': ' + gone[0] if gone else ' first'}"
    return ""


def end_bridge(name: str) -> bool:
    """Remove the bridge if podwire created it and it has no ports. Returns whether the bridge no longer exists."""
    with IPRoute() as ipr:
        found = ipr.get_links(ifname=name) if ipr.link_lookup(ifname=name) else []
        if not found:
            return True
        ours = str(found[0].get("IFLA_ADDRESS")).startswith(OURS)
        if not ours or any(link.get("IFLA_MASTER") == found[0]["index"] for link in ipr.get_links()):
            return False
        ipr.link("del", index=found[0]["index"])
        return True


def _bridge_addresses(ipr: IPRoute, index: int) -> set[IPInterface]:
    present = {ip_interface(f"{a.get('IFA_ADDRESS')}/{a['prefixlen']}") for a in ipr.get_addr(index=index)}
    return {a for a in present if not a.is_link_local}


def ensure_node(node: NodeNet, unwanted: Sequence[IPAddress] = ()) -> list[str]:
    """Make the node ready for pods. Returns one line for each change.

    unwanted: addresses of pods from earlier podCIDRs of the node. Each such address keeps its route until the pod ends.
    """
    done: list[str] = []
    with IPRoute() as ipr:
        index = _bridge(ipr, node, done)
        done += _no_link_local_learning(index, node.bridge)
        if any(address.version == 6 for address in node.on_bridge()):
            done += allow_ipv6(node.bridge)
        _addresses(ipr, node, index, done)
        _pod_routes(ipr, node, index, unwanted, done)
        if any(gateway.version == 6 for gateway in node.gateways):
            _keep_router(ipr, done)
    done += _sysctls(node)
    return done


def allow_ipv6(link: str) -> list[str]:
    """Enable IPv6 on a link of podwire. (A node may disable IPv6 on all new links, but pods need IPv6 there.) Returns
    one line for each change.
    """
    path = Path("/proc/sys/net/ipv6/conf") / link / "disable_ipv6"
    if not path.exists() or path.read_text().strip() == "0":
        return []
    path.write_text("0")
    return [f"net.ipv6.conf.{link}.disable_ipv6=0"]


def _bridge(ipr: IPRoute, node: NodeNet, done: list[str]) -> int:
    found = ipr.link_lookup(ifname=node.bridge)
    if not found:
        # Disable multicast snooping. Multicast between pods is routed or not supported, so the bridge need not track
        # group members.
        ipr.link(
            "add",
            ifname=node.bridge,
            kind="bridge",
            address=node.bridge_mac,
            mtu=node.mtu,
            br_stp_state=0,
            br_forward_delay=0,
            br_mcast_snooping=0,
        )
        done.append(f"bridge {node.bridge} made")
        found = ipr.link_lookup(ifname=node.bridge)
    if node.routed:
        _no_link_local(ipr, node.bridge, found[0], done)
    link = ipr.get_links(found[0])[0]
    if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "bridge":
        raise FileExistsError(
            errno.EEXIST, f"the node has an interface {node.bridge} that is not a bridge; remove or rename it"
        )
    # Set the MAC explicitly. Otherwise the bridge uses the MAC of one of its ports, and its MAC changes when that pod
    # ends.
    want: dict[str, str | int] = {"address": node.bridge_mac} if link.get("IFLA_ADDRESS") != node.bridge_mac else {}
    want.update({"mtu": node.mtu} if link.get("IFLA_MTU") != node.mtu else {})
    want.update({"state": "up"} if link["state"] != "up" else {})
    if want:
        ipr.link("set", index=found[0], **want)
        done.append(f"bridge {node.bridge} set to {want}")
    return int(found[0])


def _no_link_local(ipr: IPRoute, bridge: str, index: int, done: list[str]) -> None:
    """Keep a routed bridge without a link-local IPv6 address, which no pod of it needs. With one, the kernel would send
    redirects, whatever `send_redirects` says, and make a neighbour entry for each destination.
    """
    mode = Path("/proc/sys/net/ipv6/conf") / bridge / "addr_gen_mode"
    if not mode.exists():
        return
    if mode.read_text().strip() != "1":
        mode.write_text("1")
        done.append(f"net.ipv6.conf.{bridge}.addr_gen_mode=1")
    for address in ipr.get_addr(family=AF_INET6, index=index):
        if ip_address(address.get("IFA_ADDRESS")).is_link_local:
            ipr.addr("del", index=index, address=address.get("IFA_ADDRESS"), prefixlen=address["prefixlen"])
            done.append(f"{address.get('IFA_ADDRESS')} off {bridge}")


def _no_link_local_learning(index: int, bridge: str) -> list[str]:
    """Keep the bridge from learning from frames to the reserved group addresses of 802.1D, which it does even at ports
    that do not learn. pyroute2 does not know the option.
    """
    with RouteSocket() as sock:
        if not nl.learns_link_local(sock.ask([nl.get_link(index)])[0]):
            return []
        sock.send([nl.no_link_local_learning(index)])
    return [f"bridge {bridge}: no_linklocal_learn"]


def _addresses(ipr: IPRoute, node: NodeNet, index: int, done: list[str]) -> None:
    present, want = _bridge_addresses(ipr, index), node.on_bridge()
    for address in want - present:
        nodad = {"flags": 0x02} if address.version == 6 else {}
        ipr.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **nodad)
        done.append(f"{address} on {node.bridge}")
    for address in present - want:
        ipr.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        done.append(f"{address} off {node.bridge}")


def _pod_routes(ipr: IPRoute, node: NodeNet, index: int, unwanted: Sequence[IPAddress], done: list[str]) -> None:
    present = {
        (f"{r.get('RTA_DST')}/{r['dst_len']}")
        for r in ipr.get_routes(oif=index, table=MAIN)
        if r["proto"] == routes.PROTOCOL and r.get("RTA_DST") and not r.get("RTA_GATEWAY")
    }
    # If the prefix of the bridge's address is the subnet, the kernel adds the route itself.
    want = {str(r.subnet): str(r.gateway) for ranges in node.ranges for r in ranges if node.routed and node.is_gateway}
    for address in unwanted:
        want[str(host_route(address).network)] = next(
            (str(g) for g in node.gateways if g.version == address.version), ""
        )
    for dst in want.keys() - present:
        source = {} if ":" in dst else {"scope": LINK_SCOPE, **({"prefsrc": want[dst]} if want[dst] else {})}
        ipr.route("replace", dst=dst, oif=index, proto=routes.PROTOCOL, table=MAIN, **source)
        done.append(f"route {dst} to {node.bridge}")
    for dst in present - want.keys():
        ipr.route(
            "del",
            dst=dst,
            oif=index,
            proto=routes.PROTOCOL,
            table=MAIN,
            **({} if ":" in dst else {"scope": LINK_SCOPE}),
        )
        done.append(f"route {dst} removed")


def _keep_router(ipr: IPRoute, done: list[str]) -> None:
    """Keep the node's IPv6 default route. A host with forwarding enabled ignores router advertisements unless accept_ra
    is 2. So before forwarding is enabled, this function sets accept_ra on the links of the IPv6 default route.
    """
    for route in ipr.get_default_routes(family=AF_INET6, table=MAIN):
        if route["proto"] == RTPROT_RA and route.get("RTA_OIF"):
            name = ipr.get_links(route.get("RTA_OIF"))[0].get("IFLA_IFNAME")
            path = Path("/proc/sys/net/ipv6/conf") / name / "accept_ra"
            if path.read_text().strip() == "1":
                path.write_text("2")
                done.append(f"net.ipv6.conf.{name}.accept_ra=2, so that the default route by its router stays")


def _sysctls(node: NodeNet) -> list[str]:
    """Set the node's sysctls: forwarding on, redirects off, router advertisements off. Redirects are off because the
    node routes between pods of one bridge on purpose and must not announce a shorter path. Router advertisements are
    off because on the bridge they come from a pod and would give the node a default route. Returns one line for each
    change.
    """
    want = {"ipv4/ip_forward": "1", "ipv4/conf/all/send_redirects": "0", f"ipv4/conf/{node.bridge}/send_redirects": "0"}
    want[f"ipv6/conf/{node.bridge}/accept_ra"] = "0"
    if any(gateway.version == 6 for gateway in node.gateways):
        want["ipv6/conf/all/forwarding"] = "1"
    done = []
    for key, value in want.items():
        path = Path("/proc/sys/net") / key
        if key.endswith("accept_ra") and not path.exists():
            continue  # the kernel has no IPv6
        if path.read_text().strip() != value:
            path.write_text(value)
            done.append(f"net.{key.replace('/', '.')}={value}")
    return done


def sysctl(key: str) -> str:
    """Returns the value of a sysctl below /proc/sys/net; "" if the kernel has none of that name."""
    with contextlib.suppress(OSError):
        return (Path("/proc/sys/net") / key).read_text().strip()
    return ""


def node_rules(node: NodeNet, native: Iterable[str] | None, unwanted: Sequence[IPAddress] = ()) -> NodeRules:
    cidrs = (
        *(str(r.subnet) for ranges in node.ranges for r in ranges),
        *(str(host_route(a).network) for a in unwanted),
    )
    return NodeRules(
        cidrs, None if native is None else frozenset(native), node.bridge, node.anti_spoofing, mac=node.bridge_mac
    )

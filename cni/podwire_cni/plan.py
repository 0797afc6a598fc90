"""The steps of one ADD, and the state that CHECK expects: pure functions from addresses to steps and results.

The pod has its address with a full-length prefix (/32, /128), a link-scope route to the gateway (the bridge's own
address) and a default route through the gateway. So the node routes every packet of a pod, also to a pod on the same
bridge, and every packet passes the node's NAT. Replies of a Service are translated back whether or not the bridge calls
netfilter (br_netfilter).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network

from . import shaping
from .fields import bad
from .ops import (
    AddAddress,
    AddForwarding,
    AddNeighbour,
    AddRoute,
    Announce,
    CreateIfb,
    CreateVeth,
    JoinBridge,
    LimitRate,
    Op,
    Redirect,
    SetUp,
)
from .types import (
    BRIDGE,
    Attachment,
    Bandwidth,
    Call,
    Interface,
    IPAddress,
    IPConfig,
    IPInterface,
    IPNetwork,
    Limit,
    NetConf,
    Range,
    RangeSet,
    Result,
    Route,
)


def mac_for(address: IPAddress, side: int = 0x58) -> str:
    """Returns a MAC derived from the address. If another pod gets the address later, the MAC is the same, so no
    neighbour entry becomes stale. The first byte 0a means a locally administered unicast address. side: 0x58 for the
    pod's end of the veth, 0x59 for the node's end.
    """
    return f"0a:{side:02x}:{address.packed[-4:].hex(':')}"


@functools.lru_cache(maxsize=256)
def host_veth(owner: Attachment) -> str:
    """Returns the name of the node's end of the veth. The name is derived from the owner, so that DEL can compute it
    from the runtime's arguments.
    """
    return "veth" + hashlib.sha256(str(owner).encode()).hexdigest()[:11]


def ifb_of(owner: Attachment) -> str:
    """Returns the name of the ifb device that limits the rate at which a pod sends."""
    return "ifb" + host_veth(owner)[4:]


OWN_LINK = re.compile(r"(veth|ifb)[0-9a-f]{11}\Z")


@functools.lru_cache(maxsize=256)
def host_route(address: IPAddress) -> IPInterface:
    if address.version == 4:
        return IPv4Interface((int(address), 32))
    return IPv6Interface((int(address), 128))


@dataclass(frozen=True, slots=True)
class NodeNet:
    """The network to which pods of this node are attached. `ranges`: one range set for each IP family, from the node's
    podCIDRs.

    mac: the MAC of the bridge; "": derive the MAC from the first gateway. Pods use the bridge's MAC for their whole
    life. gateways and bridge_mac are computed from the other fields.
    """

    ranges: tuple[RangeSet, ...]
    mtu: int = 1500
    bridge: str = BRIDGE
    anti_spoofing: bool = True  # pods send only from their own addresses and MACs
    mac: str = ""
    routed: bool = True  # pods have full-length prefixes; False: the prefix length of the subnet
    is_gateway: bool = True  # the node has the gateways' addresses
    gateways: tuple[IPAddress, ...] = field(init=False)
    bridge_mac: str = field(init=False)
    ipv6: bool = field(default=True, compare=False)  # whether the kernel has IPv6
    # the cache in which prepared.py stores its templates for this network
    prepared: dict[tuple[object, ...], object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        gateways = tuple(dict.fromkeys(r.gateway for ranges in self.ranges for r in ranges))
        object.__setattr__(self, "gateways", gateways)
        object.__setattr__(self, "bridge_mac", self.mac or mac_for(gateways[0]))

    def on_pod(self, address: IPAddress, home: Range) -> IPInterface:
        """Returns a pod's address with its prefix length."""
        return host_route(address) if self.routed else ip_interface(f"{address}/{home.subnet.prefixlen}")

    def on_bridge(self) -> frozenset[IPInterface]:
        """Returns the node's addresses on the bridge."""
        if not self.is_gateway:
            return frozenset()
        return frozenset(self.on_pod(r.gateway, r) for ranges in self.ranges for r in ranges)

    def has(self, address: IPAddress) -> bool:
        """Whether the address belongs to this node's present podCIDRs."""
        return any(address in r.subnet for ranges in self.ranges for r in ranges)


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of one ADD in order, and the result that the plugin prints when the steps are done."""

    ops: tuple[Op, ...]
    result: Result


def alias_of(call: Call) -> str:
    """Returns the link alias of the node's end: the pod and its interface, as `ip link` shows them. The kernel accepts
    at most 255 bytes, so longer text is cut.
    """
    text = f"{call.pod or call.attachment.container_id} {call.attachment.ifname}"
    return text.encode(errors="replace")[:LONGEST_ALIAS].decode(errors="ignore")


LONGEST_ALIAS = 254
FASTEST = 0xFFFFFFFF  # bytes a second; CHECK cannot distinguish higher rates
LINK = 253  # RT_SCOPE_LINK: destinations on the link itself
_EVERYWHERE = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}


def default_route(address: IPAddress) -> IPNetwork:
    return _EVERYWHERE[address.version]


def _routes(conf: NetConf, node: NodeNet, addresses: Sequence[tuple[IPAddress, Range]]) -> tuple[Route, ...]:
    """Returns the pod's routes: those of the configuration, or else a default route for each IP family. A route without
    a gateway gets the gateway of its IP family.
    """
    gateways: dict[int, IPAddress] = {}
    for address, home in addresses:
        gateways.setdefault(address.version, home.gateway)
    if conf.routes:
        return tuple(
            r if r.gw or r.scope == LINK else replace(r, gw=gateways[r.dst.version])
            for r in conf.routes
            if r.dst.version in gateways
        )
    return tuple(Route(default_route(gw), gw) for gw in gateways.values()) if node.is_gateway else ()


def add_plan(call: Call, conf: NetConf, node: NodeNet, addresses: Sequence[tuple[IPAddress, Range]]) -> Plan:
    """Returns the plan of an ADD. The pod's end of the veth comes up before the node's end joins the bridge. A port
    that has carrier when it joins forwards at once. A port that gets carrier later waits for the kernel's link watch.
    """
    eth, host = call.attachment.ifname, host_veth(call.attachment)
    mac = conf.mac or mac_for(addresses[0][0])
    host_mac, mtu = mac_for(addresses[0][0], 0x59), conf.mtu or node.mtu
    routes = _routes(conf, node, addresses)
    gateways = dict.fromkeys([r.gateway for _, r in addresses]) if node.is_gateway else {}
    alias = alias_of(call)
    ops: list[Op] = [CreateVeth(host, host_mac, eth, mac, mtu), SetUp("lo", "pod")]
    ops += [AddAddress(eth, node.on_pod(address, home)) for address, home in addresses]
    ops.append(SetUp(eth, "pod"))
    for gateway in gateways:
        ops += [AddRoute(eth, host_route(gateway).network)] if node.routed else []
        ops.append(AddNeighbour(eth, gateway, node.bridge_mac, "pod"))
    ops += [AddRoute(eth, r.dst, r.gw, "pod", r.mtu, r.advmss, r.priority, r.table, r.scope) for r in routes]
    ops += [
        SetUp(host, "node", alias, port=True, quiet=node.ipv6),
        JoinBridge(host, node.bridge, learning=not node.routed),
    ]
    ops.append(AddForwarding(host, mac, sticky=node.routed))
    ops += [AddNeighbour(node.bridge, address, mac, "node") for address, _ in addresses]
    ops += _limits(call.attachment, conf.bandwidth, mtu)
    if conf.mac or not node.routed:  # the MAC may be new for the address, or other pods are neighbours
        ops.append(Announce(eth, mac, tuple(address for address, _ in addresses)))
    interfaces = (
        Interface(node.bridge, node.bridge_mac, node.mtu),
        Interface(host, host_mac, mtu),
        Interface(eth, mac, mtu, call.netns),
    )
    ips = tuple(IPConfig(node.on_pod(address, r), r.gateway if gateways else None, 2) for address, r in addresses)
    return Plan(tuple(ops), Result(interfaces, ips, routes, conf.dns))


def rates(owner: Attachment, bandwidth: Bandwidth) -> dict[str, int]:
    """Returns link -> rate of its token bucket in bytes per second. Packets to the pod are queued at the node's end of
    the veth. Packets from the pod are queued at the ifb device.
    """
    pairs = ((host_veth(owner), bandwidth.ingress), (ifb_of(owner), bandwidth.egress))
    return {link: limit.rate // 8 for link, limit in pairs if limit}


def _limits(owner: Attachment, bandwidth: Bandwidth, mtu: int) -> list[Op]:
    host, ifb, ops = host_veth(owner), ifb_of(owner), list[Op]()

    def bucket(link: str, limit: Limit, way: str) -> LimitRate:
        rate = limit.rate // 8
        if rate < (least := shaping.slowest(mtu)):
            raise bad(
                f"runtimeConfig.bandwidth.{way}Rate",
                limit.rate,
                f"at least {8 * least} bits a second, at which a packet of the MTU of {mtu} passes within 275 s",
            )
        return LimitRate(link, rate, *shaping.sizes(rate, limit.burst // 8, mtu))

    if bandwidth.ingress:
        ops.append(bucket(host, bandwidth.ingress, "ingress"))
    if bandwidth.egress:
        ops += [CreateIfb(ifb, mtu), SetUp(ifb, "node"), bucket(ifb, bandwidth.egress, "egress"), Redirect(host, ifb)]
    return ops


def repair_plan(
    owner: Attachment, mac: str, addresses: Sequence[IPAddress], bridge: str, *, routed: bool
) -> tuple[Op, ...]:
    """Returns the node's steps of an ADD again, for a pod whose own end of the veth is intact."""
    host = host_veth(owner)
    return (
        SetUp(host, "node", port=True),
        JoinBridge(host, bridge, learning=not routed),
        AddForwarding(host, mac, sticky=routed),
        *(AddNeighbour(bridge, address, mac, "node") for address in addresses),
    )


@dataclass(frozen=True, slots=True)
class LinkSeen:
    """One link as the kernel reports it. master: the name of the link's bridge, "" if there is none."""

    mac: str
    up: bool
    mtu: int
    master: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """The kernel's state of one attachment; None where a link is missing."""

    pod_link: LinkSeen | None
    host_link: LinkSeen | None
    addresses: frozenset[IPInterface] = frozenset()
    routes: frozenset[tuple[IPNetwork, IPAddress | None]] = frozenset()
    rates: frozenset[tuple[str, int]] = frozenset()  # link, bytes a second
    elsewhere: frozenset[IPNetwork] = frozenset()  # destinations of routes through the pod's other interfaces


def differences(expected: Result, owner: Attachment, bridge: str, bandwidth: Bandwidth, seen: Seen) -> list[str]:
    """Returns the differences between the kernel's state and the result that the runtime stored (prevResult), one text
    for each; [] if there are none.
    """
    found = []
    eth, host = owner.ifname, host_veth(owner)
    position = next((i for i, link in enumerate(expected.interfaces) if link.name == eth and link.sandbox), None)
    if position is None:
        return [f"prevResult.interfaces does not name {eth} with a sandbox"]
    if seen.pod_link is None:
        return [f"the pod has no interface {eth}"]
    want = expected.interfaces[position]
    if want.mac and want.mac != seen.pod_link.mac:
        found.append(f"{eth} has MAC {seen.pod_link.mac}, not {want.mac}")
    if not seen.pod_link.up:
        found.append(f"{eth} is down")
    if seen.host_link is None:
        found.append(f"the node has no interface {host}")
    elif seen.host_link.master != bridge:
        found.append(f"{host} is not a port of {bridge}")
    elif not seen.host_link.up:
        found.append(f"{host} is down")
    found += [
        f"{eth} lacks address {ip.address}"
        for ip in expected.ips
        if ip.interface in (None, position) and ip.address not in seen.addresses
    ]
    found += [
        f"{link} is not limited to {rate} bytes a second"
        for link, rate in rates(owner, bandwidth).items()
        if (link, min(rate, FASTEST)) not in seen.rates
    ]
    found += [
        f"the pod lacks the route to {r.dst} by {r.gw}"
        for r in expected.routes
        if (r.dst, r.gw) not in seen.routes and r.dst not in seen.elsewhere
    ]
    return found

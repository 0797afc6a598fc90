"""A pod can send only from its own addresses and its own MAC."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from lab.capture import Capture
from lab.cnicluster import OUTSIDE, Cluster, two_nodes
from lab.cninode import wait_until
from lab.netns import NetNS
from podwire_base.kernel.reasons import Reason, reason_of, without_reason

OUTSIDE6 = "fd0a::42"
RTPROT_RA = 9


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp, dual=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def unchecked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp, "--no-anti-spoofing", dual=True) as cluster:
        yield cluster


@pytest.fixture(params=["0", "1"])
def cluster(request: pytest.FixtureRequest, checked: Cluster) -> Iterator[Cluster]:
    for node in checked.nodes:
        node.ns.sysctl("net/bridge/bridge-nf-call-iptables", request.param)
        node.ns.sysctl("net/bridge/bridge-nf-call-ip6tables", request.param)
    yield checked
    checked.clear()


@dataclass
class Pod:
    ns: NetNS
    ip: str
    ip6: str
    mac: str


def pod(cluster: Cluster, name: str) -> Pod:
    ns, ip = cluster.pod(cluster.nodes[0], name)
    addresses = ns.netlink(
        lambda ipr: [
            a.get("IFA_ADDRESS")
            for a in ipr.get_addr(family=socket.AF_INET6)
            if a.get("IFA_ADDRESS").startswith("fd00")
        ]
    )
    mac = ns.netlink(lambda ipr: ipr.get_links(ifname="eth0")[0].get("IFLA_ADDRESS"))
    return Pod(ns, ip, addresses[0], mac)


def gateway(cluster: Cluster) -> str:
    return str(cluster.nodes[0].ns.netlink(lambda ipr: ipr.get_links(ifname="podwire0")[0].get("IFLA_ADDRESS")))


def arrived(
    sender: Pod, receivers: list[tuple[NetNS, str]], frames: dict[str, Packet], wanted: Iterable[str]
) -> set[str]:
    """The frames, each with its name as payload, that arrive at any receiver once the wanted ones have arrived. The
    last wanted frames are valid ones, which show that all frames before them could have arrived. Each path is a
    sequence of its own, because a frame that waits for a neighbour's MAC is overtaken.
    """
    captures = [Capture(ns, interface) for ns, interface in receivers]
    raw = sender.ns.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    with raw:
        raw.bind(("eth0", 0))
        for name, frame in frames.items():
            raw.send(bytes(frame / Raw(f"<{name}>".encode())))

    def seen() -> set[str]:
        data = b"".join(bytes(p) for capture in captures for p in capture.packets())
        return {name for name in frames if f"<{name}>".encode() in data}

    wait_until(lambda: set(wanted) <= seen(), f"{', '.join(wanted)}: all of them arrive")
    found = seen()
    for capture in captures:
        capture.sock.close()
    return found


def lies(a: Pod, b: Pod, router: str) -> dict[str, Packet]:
    """Frames that pod a has no right to send; to the outside and to pod b."""
    udp = UDP(sport=5, dport=6)
    own, own6 = IP(src=a.ip, dst=OUTSIDE), IPv6(src=a.ip6, dst=OUTSIDE6)
    return {
        # First: if these were accepted, the neighbour's entry in the bridge's forwarding table would move.
        "straight to a neighbour": Ether(src=a.mac, dst=b.mac) / IP(src="10.244.1.1", dst=b.ip) / udp,
        "address of a neighbour": Ether(src=a.mac, dst=router) / IP(src=b.ip, dst=OUTSIDE) / udp,
        "address of nobody": Ether(src=a.mac, dst=router) / IP(src="203.0.113.9", dst=OUTSIDE) / udp,
        "address of the gateway": Ether(src=a.mac, dst=router) / IP(src="10.244.1.1", dst=OUTSIDE) / udp,
        "MAC of nobody": Ether(src="0a:58:01:02:03:04", dst=router) / own / udp,
        "MAC of a neighbour": Ether(src=b.mac, dst=router) / own / udp,
        "MAC and address of a neighbour": Ether(src=b.mac, dst=router) / IP(src=b.ip, dst=OUTSIDE) / udp,
        "IPv6 of a neighbour": Ether(src=a.mac, dst=router) / IPv6(src=b.ip6, dst=OUTSIDE6) / udp,
        "IPv6 of nobody": Ether(src=a.mac, dst=router) / IPv6(src="fd99::1", dst=OUTSIDE6) / udp,
        "IPv6 with another MAC": Ether(src=b.mac, dst=router) / own6 / udp,
        "IPv6 straight to a neighbour": Ether(src=a.mac, dst=b.mac) / IPv6(src=OUTSIDE6, dst=b.ip6) / udp,
        "ARP for the gateway": Ether(src=a.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=2, hwsrc=a.mac, psrc="10.244.1.1"),
        "IPv6 advertisement for a neighbour": Ether(src=a.mac, dst="33:33:00:00:00:01")
        / IPv6(src="fe80::a", dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(tgt=b.ip6, S=0)
        / ICMPv6NDOptDstLLAddr(lladdr=a.mac),
        "redirect": Ether(src=a.mac, dst=b.mac)
        / IPv6(src="fe80::a", dst=b.ip6, hlim=255)
        / ICMPv6ND_Redirect(tgt="fe80::a", dst=OUTSIDE6),
        "VLAN and other types": Ether(src=a.mac, dst=b.mac, type=0x8100) / Raw(b"\0\x01\x08\0"),
    }


def truths(a: Pod, router: str) -> dict[str, Packet]:
    return {
        "own IPv6": Ether(src=a.mac, dst=router) / IPv6(src=a.ip6, dst=OUTSIDE6) / UDP(sport=5, dport=6),
        "own IPv4": Ether(src=a.mac, dst=router) / IP(src=a.ip, dst=OUTSIDE) / UDP(sport=5, dport=6),
    }


def test_only_the_truth_gets_through(cluster: Cluster) -> None:
    a, b = pod(cluster, "a"), pod(cluster, "b")
    router, truth = gateway(cluster), truths(a, gateway(cluster))
    found = arrived(a, [(cluster.outside, "eth0"), (b.ns, "eth0")], {**lies(a, b, router), **truth}, truth)
    assert found == set(truth)


def test_what_is_dropped_is_counted_with_its_reason(cluster: Cluster) -> None:
    a, b = pod(cluster, "a"), pod(cluster, "b")
    before, truth = drops(cluster), truths(a, gateway(cluster))
    arrived(a, [(cluster.outside, "eth0")], {**lies(a, b, gateway(cluster)), **truth}, truth)
    after = drops(cluster)
    assert {why: after[why] - before[why] for why in after} == {
        "a pod sends from a MAC that is not its own": 4,
        "a pod sends from an address that is not its own": 9,
        "a pod says that it is a router": 0,
        "a pod says that it is a router that redirects": 1,
        "a pod says that it has an address that is not its own": 1,
    }


def drops(cluster: Cluster) -> dict[str, int]:
    """Every counted rule is one that drops, and carries the code."""
    listed = json.loads(cluster.nodes[0].ns.run(["nft", "-j", "list", "table", "bridge", "podwire-cni"]).stdout)
    rules = [entry["rule"] for entry in listed["nftables"] if "rule" in entry]
    counted = [rule for rule in rules if any("counter" in e for e in rule["expr"])]
    assert {reason_of(rule["comment"]) for rule in counted} == {Reason.SPOOFED}
    return {
        without_reason(rule["comment"]): next(e["counter"]["packets"] for e in rule["expr"] if "counter" in e)
        for rule in counted
    }


def learned(ns: NetNS) -> set[str]:
    """The gateways of default routes from router advertisements."""
    return ns.netlink(
        lambda ipr: {
            str(r.get("RTA_GATEWAY")) for r in ipr.get_default_routes(family=socket.AF_INET6) if r["proto"] == RTPROT_RA
        }
    )


def advertise(cluster: Cluster, a: Pod) -> None:
    """Pod a announces on its link that it is a router; once plainly, once behind an extension header."""
    says = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64)
    to = Ether(src=a.mac, dst="33:33:00:00:00:01") / IPv6(src="fe80::a", dst="ff02::1", hlim=255)
    raw = a.ns.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    with raw:
        raw.bind(("eth0", 0))
        for frame in (to / says, to / IPv6ExtHdrDestOpt() / says):
            raw.send(bytes(frame))
    arrived(a, [(cluster.outside, "eth0")], truths(a, gateway(cluster)), ["own IPv4"])


def test_a_pod_is_no_router(cluster: Cluster) -> None:
    """Neither its neighbours nor the node accept a default route from it."""
    a, b = pod(cluster, "a"), pod(cluster, "b")
    advertise(cluster, a)
    assert (learned(b.ns), learned(cluster.nodes[0].ns)) == (set(), set())


def test_the_node_never_has_a_router_among_its_pods(unchecked: Cluster) -> None:
    """It also shows that pods would accept such a route."""
    a, b = pod(unchecked, "a"), pod(unchecked, "b")
    unchecked.nodes[0].ns.sysctl("net/ipv6/conf/all/forwarding", "0")  # as with IPv4 only
    advertise(unchecked, a)
    found = wait_until(lambda: learned(b.ns), "the neighbour believes it"), learned(unchecked.nodes[0].ns)
    unchecked.nodes[0].ns.sysctl("net/ipv6/conf/all/forwarding", "1")
    unchecked.clear()
    assert found == ({"fe80::a"}, set())


def test_it_can_be_turned_off(unchecked: Cluster) -> None:
    """It also shows that without the rules the frames above would be accepted."""
    a, b = pod(unchecked, "a"), pod(unchecked, "b")
    truth = truths(a, gateway(unchecked))
    believed = {"address of a neighbour", "MAC of a neighbour", "straight to a neighbour", "IPv6 of nobody"}
    arrived(
        a,
        [(unchecked.outside, "eth0"), (b.ns, "eth0")],
        {**lies(a, b, gateway(unchecked)), **truth},
        {*believed, *truth},
    )
    unchecked.clear()

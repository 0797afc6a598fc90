"""A pod can send only from its own addresses and its own MAC."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

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

from lab.cnicluster import OUTSIDE, Cluster, two_nodes
from lab.cniframes import OUTSIDE6, Pod, arrived, emit, entries, gateway, pod, truths
from lab.cninode import wait_until
from lab.netns import NetNS
from podwire_base.kernel.reasons import Reason, reason_of, without_reason

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
    after.pop("a pod sends to all others")  # pods' own reports of multicast groups come at any time
    assert {why: after[why] - before[why] for why in after} == {
        "a pod sends from a MAC that is not its own": 4,
        "a pod sends to a reserved group address of 802.1D": 0,
        f"a pod sends to another MAC than {gateway(cluster)}": 4,
        "a pod sends from an address that is not its own": 6,
        "a pod says that it is a router": 0,
        "a pod says that it is a router that redirects": 0,
        "a pod says that it has an address that is not its own": 1,
    }


def test_reserved_group_addresses_end_at_the_port(cluster: Cluster) -> None:
    """ARP and unknown types pass no hook of IP: the bridge table drops and counts these frames."""
    a, why = pod(cluster, "a"), "a pod sends to a reserved group address of 802.1D"
    before = drops(cluster)[why]
    tail = (ARP(op=1, hwsrc=a.mac, psrc=a.ip, pdst="10.244.1.1"), Raw(b"<an unknown type>"))
    emit(a, *(Ether(src=a.mac, dst=f"01:80:c2:00:00:{n:02x}") / end for n in (3, 0x0D, 0x0F) for end in tail))
    wait_until(lambda: drops(cluster)[why] == before + 6, "all six are counted")


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


# Without STP a bridge forwards frames to ...:00, and it always drops those to ...:01. Those to ...:0e (LLDP) meet no
# hook of the bridge.
RESERVED = [f"01:80:c2:00:00:{last:02x}" for last in (0x02, 0x03, 0x0E, 0x0F)]


def past_the_bridge(a: Pod, b: Pod) -> dict[str, Packet]:
    """Frames to reserved group addresses of 802.1D, which a bridge hands to the node with the port as input device."""
    udp = UDP(sport=5, dport=4789)
    return {
        f"{kind} to {group}": Ether(src=b.mac, dst=group) / packet
        for group in RESERVED
        for kind, packet in (
            ("a neighbour's datagram", IP(src=b.ip, dst="10.244.1.1") / udp),
            ("its own datagram", IP(src=a.ip, dst="10.244.1.1") / udp),
            ("a datagram for 127.0.0.1", IP(src=a.ip, dst="127.0.0.1") / udp),
            ("IPv6", IPv6(src=b.ip6, dst="fd00::1") / udp),
            (
                "a router advertisement",
                IPv6(src="fe80::a", dst="ff02::1", hlim=255)
                / ICMPv6ND_RA(routerlifetime=1800)
                / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::", prefixlen=64),
            ),
        )
    }


@pytest.mark.parametrize("policed", [True, False], ids=["checked", "unchecked"])
def test_nothing_comes_past_the_bridge(policed: bool, checked: Cluster, unchecked: Cluster) -> None:
    """Frames to reserved addresses neither move a neighbour's entry in the forwarding table nor reach the node's stack,
    with anti-spoofing and without."""
    cluster = checked if policed else unchecked
    a, b, node = pod(cluster, "a"), pod(cluster, "b"), cluster.nodes[0].ns
    before, uncounted = entries(cluster, b.mac), past_drops(node)
    with node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as heard:
        heard.bind(("0.0.0.0", 4789))
        heard.setblocking(False)
        arrived(a, [(cluster.outside, "eth0")], {**past_the_bridge(a, b), **truths(a, gateway(cluster))}, truths(a, ""))
        with pytest.raises(BlockingIOError):
            heard.recv(100)
    assert len(before) == 1 and entries(cluster, b.mac) == before
    assert learned(node) == set()
    frames = len(past_the_bridge(a, b))
    wait_until(lambda: past_drops(node) - uncounted >= frames, "the rules drop all of them")
    cluster.clear()


def test_a_port_off_its_bridge_is_no_way_into_the_node(unchecked: Cluster) -> None:
    """A program that detaches a port opens no way past the bridge's rules: the group of the port is known to IP."""
    cluster = unchecked
    a, node = pod(cluster, "a"), cluster.nodes[0].ns
    port = entries(cluster, a.mac)[0][0]
    node.netlink(lambda ipr: ipr.link("set", index=port, master=0))
    own = node.netlink(lambda ipr: ipr.get_links(port)[0].get("IFLA_ADDRESS"))
    frame = Ether(src=a.mac, dst=own) / IP(src="198.51.100.7", dst="10.244.1.1") / UDP(sport=5, dport=4789) / Raw(b"x")
    with node.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as heard:
        heard.bind(("0.0.0.0", 4789))
        heard.setblocking(False)
        raw = a.ns.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        with raw:
            raw.bind(("eth0", 0))
            raw.send(bytes(frame))
        wait_until(lambda: dropped(node, "ip", "ports") >= 1, "the rule drops it")
        with pytest.raises(BlockingIOError):
            heard.recv(100)
    cluster.clear()


def past_drops(node: NetNS) -> int:
    return sum(dropped(node, *chain) for chain in (("bridge", "reserved"), ("ip", "ports"), ("ip6", "ports")))


def dropped(node: NetNS, family: str, chain: str) -> int:
    """How many packets the only rule of a chain has dropped."""
    listed = json.loads(node.run(["nft", "-j", "list", "chain", family, "podwire-cni", chain]).stdout)
    (rule,) = [entry["rule"] for entry in listed["nftables"] if "rule" in entry]
    return int(next(e["counter"]["packets"] for e in rule["expr"] if "counter" in e))


def test_honest_frames_reach_the_node_alone(cluster: Cluster) -> None:
    """A pod's own addresses do not open a way to its neighbours past the node's IP rules: neither to their MAC, nor by
    broadcast or multicast."""
    a, b = pod(cluster, "a"), pod(cluster, "b")
    router, udp = gateway(cluster), UDP(sport=5, dport=6)
    frames = {
        "to its MAC": Ether(src=a.mac, dst=b.mac) / IP(src=a.ip, dst=b.ip) / udp,
        "to its MAC, IPv6": Ether(src=a.mac, dst=b.mac) / IPv6(src=a.ip6, dst=b.ip6) / udp,
        "by broadcast": Ether(src=a.mac, dst="ff:ff:ff:ff:ff:ff") / IP(src=a.ip, dst=b.ip) / udp,
        "by multicast": Ether(src=a.mac, dst="01:00:5e:00:00:01") / IP(src=a.ip, dst="224.0.0.1") / udp,
        "by IPv6 multicast": Ether(src=a.mac, dst="33:33:00:00:00:01") / IPv6(src=a.ip6, dst="ff02::1") / udp,
        "by a foreign multicast": Ether(src=a.mac, dst="03:00:00:00:00:01") / IP(src=a.ip, dst=b.ip) / udp,
    }
    honest = {"routed": Ether(src=a.mac, dst=router) / IP(src=a.ip, dst=b.ip) / udp}
    found = arrived(a, [(b.ns, "eth0")], {**frames, **honest}, honest)
    assert found == set(honest)


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

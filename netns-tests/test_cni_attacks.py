"""What a pod can reach or pretend besides a false source: frames of the table in cni/README.md."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.igmp import IGMP
from scapy.layers.inet import GRE, ICMP, IP, UDP, IPOption_LSRR, IPOption_SSRR, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLQuery,
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from lab.capture import Capture
from lab.cnicluster import OUTSIDE, Cluster, two_nodes
from lab.cniframes import OUTSIDE6, Pod, emit, entries, gateway, neighbours, pod, port, truths
from lab.cninode import ask, wait_until
from lab.netns import NetNS
from podwire_cni.overlay import VNI, tunnel_mac

GATEWAY, GATEWAY6, NODE, NODE6 = "10.244.1.1", "fd00:1::1", "192.0.2.1", "fd0a::1"
LLDP = "01:80:c2:00:00:0e"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with two_nodes(tmp_path_factory.mktemp, dual=True) as made:
        yield made


@pytest.fixture(autouse=True)
def no_pods_stay(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.clear()


def link_local(mac: str) -> str:
    """The link-local address that a kernel makes of a MAC."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return socket.inet_ntop(
        socket.AF_INET6, b"\xfe\x80" + bytes(6) + bytes((raw[0] ^ 2, *raw[1:3], 0xFF, 0xFE, *raw[3:]))
    )


def frames(a: Pod, b: Pod, router: str) -> dict[str, list[Packet]]:
    """Name -> frames of pod a with the name as payload. None of them may arrive anywhere."""
    out, own6 = Ether(src=a.mac, dst=router), link_local(a.mac)
    straight, everybody = Ether(src=a.mac, dst=b.mac), Ether(src=a.mac, dst="ff:ff:ff:ff:ff:ff")
    many = Ether(src=a.mac, dst="33:33:00:00:00:01")
    found: dict[str, list[Packet]] = {}

    def body(name: str) -> Packet:
        return UDP(sport=5, dport=6) / Raw(f"<{name}>".encode())

    def put(name: str, head: Packet, *, to: Packet = out) -> None:
        found[name] = [to / head / body(name)]

    for tag, tagged in (
        ("tag 0", Dot1Q(vlan=0)),
        ("tag 5", Dot1Q(vlan=5)),
        ("two tags", Dot1Q(vlan=0) / Dot1Q(vlan=0)),
        ("a service tag", Dot1AD(vlan=0)),
        ("a service tag and a tag", Dot1AD(vlan=0) / Dot1Q(vlan=0)),
    ):
        put(f"{tag}: a neighbour's address", tagged / IP(src=b.ip, dst=OUTSIDE))
        put(f"{tag}: a neighbour's IPv6 address", tagged / IPv6(src=b.ip6, dst=OUTSIDE6))
        put(f"{tag}: to a neighbour's MAC", tagged / IP(src=a.ip, dst=b.ip), to=straight)
        put(f"{tag}: to all", tagged / IP(src=a.ip, dst=b.ip), to=everybody)
    for to in (GATEWAY, NODE, b.ip):
        outer = IP(src=a.ip, dst=to)
        if to != b.ip:  # a neighbour that has a tunnel of its own decides itself whom it trusts
            put(f"IP in IP by {to}", outer / IP(src=b.ip, dst=GATEWAY))
            put(f"GRE by {to}", outer / GRE(proto=0x0800) / IP(src="127.0.0.1", dst=GATEWAY))
            put(f"Ethernet in GRE by {to}", outer / GRE(proto=0x6558) / straight / IP(src=b.ip, dst=GATEWAY))
            put(f"IPv6 in IP by {to}", outer / IPv6(src=b.ip6, dst=GATEWAY6))
    for source in (NODE, GATEWAY, "127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.2.2", "10.244.2.1"):
        put(f"from {source}", IP(src=source, dst=OUTSIDE))
        put(f"from {source} to its node", IP(src=source, dst=GATEWAY))
    for source in (NODE6, GATEWAY6, "::1", "ff02::1", "fd0a::2", "fe80::1234", link_local(b.mac)):
        put(f"from {source}", IPv6(src=source, dst=OUTSIDE6))
        put(f"from {source} to its node", IPv6(src=source, dst=GATEWAY6))
    put("to 127.0.0.1", IP(src=a.ip, dst="127.0.0.1"))
    put("to 127.0.0.53", IP(src=a.ip, dst="127.0.0.53"))
    put("to ::1", IPv6(src=a.ip6, dst="::1"))
    for kind, option in (("loose", IPOption_LSRR), ("strict", IPOption_SSRR)):
        put(f"{kind} source route", IP(src=a.ip, dst=GATEWAY, options=[option(routers=[b.ip])]))
        put(f"{kind} source route out", IP(src=a.ip, dst=GATEWAY, options=[option(routers=[OUTSIDE])]))
    for number in (0, 2, 4):
        way = IPv6ExtHdrRouting(type=number, segleft=1, addresses=[b.ip6])
        put(f"IPv6 routing header of type {number}", IPv6(src=a.ip6, dst=GATEWAY6) / way)
    long = IP(src=b.ip, dst=OUTSIDE) / UDP(sport=5, dport=6) / Raw(b"<fragments from a neighbour>" + bytes(400))
    found["fragments from a neighbour"] = [out / part for part in fragment(long, 64)]
    put("an IPv6 fragment from a neighbour", IPv6(src=b.ip6, dst=OUTSIDE6) / IPv6ExtHdrFragment(m=1, id=7))
    vxlan = (
        VXLAN(vni=VNI, flags="Instance")
        / Ether(src=tunnel_mac("n2"), dst=tunnel_mac("n1"))
        / IP(src="10.244.2.9", dst=b.ip)
        / body("VXLAN in fragments")
    )
    whole = IP(src=a.ip, dst=NODE) / UDP(sport=5, dport=4789) / vxlan
    found["VXLAN in fragments"] = [out / part for part in fragment(whole, 48)]
    put("a DHCP offer", IP(src=a.ip, dst="255.255.255.255") / UDP(sport=67, dport=68), to=everybody)
    put("a DHCP request", IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67), to=everybody)
    put("DHCPv6", IPv6(src=own6, dst="ff02::1:2") / UDP(sport=547, dport=546), to=many)
    for what, number in (("query", 0x11), ("report", 0x16), ("leave", 0x17)):  # RFC 2236
        put(
            f"IGMP {what}",
            IP(src=a.ip, dst="224.0.0.1", ttl=1)
            / IGMP(type=number, gaddr="0.0.0.0" if number == 0x11 else "239.1.1.1"),
            to=Ether(src=a.mac, dst="01:00:5e:00:00:01"),
        )
    alert = IPv6ExtHdrHopByHop(options=[RouterAlert()])
    for kind, says in (("query", ICMPv6MLQuery()), ("report", ICMPv6MLReport())):
        put(f"MLD {kind}", IPv6(src=own6, dst="ff02::1", hlim=1) / alert / says, to=many)
    put("a BPDU", IP(src=a.ip, dst=b.ip), to=Ether(src=a.mac, dst="01:80:c2:00:00:00"))
    return found


def listen(ns: NetNS) -> list[socket.socket]:
    """Sockets for what arrives at UDP port 6 of a node, whatever its source and address."""

    def work() -> list[socket.socket]:
        made = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
        made[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for sock, address in zip(made, ("0.0.0.0", "::"), strict=True):
            sock.bind((address, 6))
            sock.setblocking(False)
        return made

    return ns.call(work)


def drained(socks: list[socket.socket]) -> bytes:
    data = b""
    for sock in socks:
        while True:
            try:
                data += sock.recv(2000)
            except BlockingIOError:
                break
    return data


@pytest.mark.parametrize("filtered", ["0", "1"], ids=["bridge-nf-call-iptables=0", "bridge-nf-call-iptables=1"])
def test_none_of_these_frames_arrives(cluster: Cluster, filtered: str) -> None:
    a, b, node = pod(cluster, "a"), pod(cluster, "b"), cluster.nodes[0].ns
    for family in ("iptables", "ip6tables"):
        node.sysctl(f"net/bridge/bridge-nf-call-{family}", filtered)
    for key in ("all", "podwire0"):  # as a hostPort on 127.0.0.1 needs it
        node.sysctl(f"net/ipv4/conf/{key}/route_localnet", "1")
    router, attacks, inside = gateway(cluster), frames(a, b, gateway(cluster)), listen(node)
    honest = {
        **{name: [frame / Raw(f"<{name}>".encode())] for name, frame in truths(a, router).items()},
        "to its node": [
            Ether(src=a.mac, dst=router) / IP(src=a.ip, dst=GATEWAY) / UDP(sport=5, dport=6) / Raw(b"<to its node>")
        ],
    }
    with Capture(cluster.outside, "eth0") as outside, Capture(b.ns, "eth0") as beside:
        emit(a, *(frame for way in (attacks, honest) for packets in way.values() for frame in packets))
        data = b""

        def seen() -> set[str]:
            nonlocal data
            data += drained(inside)
            caught = b"".join(bytes(p) for capture in (outside, beside) for p in capture.packets())
            return {name for name in (*attacks, *honest) if f"<{name}>".encode() in data + caught}

        wait_until(lambda: set(honest) <= seen(), "what is honest arrives")
        assert seen() == set(honest)
    for sock in inside:
        sock.close()
    node.sysctl("net/ipv4/conf/all/route_localnet", "0")


def test_a_pod_makes_no_neighbour_of_itself(cluster: Cluster) -> None:
    """Neighbor Discovery from addresses that it made up, in every form, and echo requests from them, to be answered."""
    a, b, node = pod(cluster, "a"), pod(cluster, "b"), cluster.nodes[0].ns
    router, before = gateway(cluster), neighbours(node)
    mine, out, solicited = link_local(a.mac), Ether(src=a.mac, dst=router), Ether(src=a.mac, dst="33:33:ff:00:00:01")
    source, target = ICMPv6NDOptSrcLLAddr(lladdr=a.mac), ICMPv6NDOptDstLLAddr(lladdr=a.mac)
    for n in range(100):
        fake = f"fe80::{n + 1:x}"
        emit(
            a,
            solicited / IPv6(src=fake, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=GATEWAY6) / source,
            out / IPv6(src=fake, dst=GATEWAY6, hlim=255) / ICMPv6ND_NS(tgt=GATEWAY6) / source,
            out / IPv6(src=fake, dst=link_local(router), hlim=255) / ICMPv6EchoRequest(),
            out / IPv6(src=fake, dst="ff02::2", hlim=255) / ICMPv6ND_RS() / source,
            out / IPv6(src=mine, dst=GATEWAY6, hlim=255) / ICMPv6ND_NA(tgt=fake, S=0, O=1) / target,
            out / ARP(op=1, hwsrc=a.mac, psrc=f"10.244.1.{n + 100}", pdst=GATEWAY),
        )
    for o, s in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for taken in (b.ip6, link_local(b.mac), GATEWAY6, link_local(router)):
            says = ICMPv6ND_NA(tgt=taken, O=o, S=s) / target
            emit(
                a,
                out / IPv6(src=mine, dst=GATEWAY6, hlim=255) / says,
                out / IPv6(src=a.ip6, dst="ff02::1", hlim=255) / says,
                out / IPv6(src=mine, dst=GATEWAY6, hlim=255) / IPv6ExtHdrFragment() / says,
            )
    held = entries(cluster, b.mac)
    assert neighbours(node) == before == set()
    assert len(held) == 1 and ask_echo(a, b)


def ask_echo(a: Pod, b: Pod) -> bool:
    """Whether b answers a, in both families."""
    for address in (b.ip, b.ip6):
        with pytest.raises(ConnectionRefusedError):
            ask(a.ns, address, 80)
    return True


def test_arp_to_the_device_of_a_port_is_not_answered(cluster: Cluster) -> None:
    """A frame to the group address of LLDP has the port as input device, and ARP passes no hook of IP."""
    a, node = pod(cluster, "a"), cluster.nodes[0].ns
    with Capture(a.ns, "eth0") as seen:
        for to in (LLDP, "01:80:c2:00:00:03", port(node, a).get("IFLA_ADDRESS")):
            emit(a, Ether(src=a.mac, dst=to) / ARP(op=1, hwsrc=a.mac, psrc=a.ip, pdst=NODE))
        emit(a, Ether(src=a.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=a.mac, psrc=a.ip, pdst=GATEWAY))
        answers = wait_until(
            lambda: [p[ARP] for p in seen.packets() if ARP in p and p[ARP].op == 2], "the node answers on its bridge"
        )
    assert {(answer.psrc, answer.hwsrc) for answer in answers} == {(GATEWAY, gateway(cluster))}
    assert neighbours(node) == set()


def test_redirects_change_no_way(cluster: Cluster) -> None:
    """Neither the node nor a neighbour believes an ICMP redirect of a pod, whatever its source."""
    a, b, node = pod(cluster, "a"), pod(cluster, "b"), cluster.nodes[0].ns
    out, straight = Ether(src=a.mac, dst=gateway(cluster)), Ether(src=a.mac, dst=b.mac)
    for victim, address in ((b.ns, b.ip), (node, NODE)):
        for key in ("all", "eth0"):
            victim.sysctl(f"net/ipv4/conf/{key}/accept_redirects", "1")
            victim.sysctl(f"net/ipv4/conf/{key}/secure_redirects", "0")
        quoted = IP(src=address, dst=OUTSIDE) / UDP(sport=5, dport=6)
        for source in (a.ip, GATEWAY, "192.0.2.254"):
            tells = IP(src=source, dst=address) / ICMP(type=5, code=1, gw=a.ip) / quoted
            emit(a, out / tells, straight / tells)
    emit(a, *truths(a, gateway(cluster)).values())

    def gateways(ns: NetNS) -> set[object]:
        return {route.get("RTA_GATEWAY") for route in ns.netlink(lambda ipr: list(ipr.route("get", dst=OUTSIDE)))}

    assert (gateways(b.ns), gateways(node)) == ({GATEWAY}, {None})

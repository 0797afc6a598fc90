"""Nobody but a node writes into a tunnel, and only what belongs to that node comes out of it."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator, Mapping

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from lab.cninode import ask, peer_server, wait_until
from lab.cnirouted import Routed, routed_nodes
from lab.netns import NetNS
from podwire_cni.overlay import PORT, VNI, tunnel_mac

ANYBODY, ANYBODY6 = "203.0.113.9", "2001:db8::9"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    with routed_nodes(tmp_path_factory.mktemp, ipv6=True) as made:
        yield made


@pytest.fixture(autouse=True)
def no_pods_stay(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "world" in request.fixturenames:
        request.getfixturevalue("world").clear()


def inner(to: str, mac: str, source: str, target: str, name: str) -> bytes:
    """A datagram for the tunnel of node `to`, with a packet from `source` to a pod. mac: the sender's in the tunnel."""
    ip = (IPv6 if ":" in source else IP)(src=source, dst=target)
    packet: Packet = ip / UDP(sport=5, dport=6) / Raw(f"<{name}>".encode())
    return bytes(VXLAN(vni=VNI, flags="Instance") / Ether(src=mac, dst=tunnel_mac(to)) / packet)


class Victim:
    """Listens in a pod for packets of `inner`, in both families."""

    def __init__(self, ns: NetNS) -> None:
        def work() -> list[socket.socket]:
            made = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
            made[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for sock, address in zip(made, ("0.0.0.0", "::"), strict=True):
                sock.bind((address, 6))
                sock.setblocking(False)
            return made

        self.socks = ns.call(work)
        self.seen: set[str] = set()

    def heard(self) -> set[str]:
        for sock in self.socks:
            while True:
                try:
                    self.seen.add(sock.recv(200).decode().strip("<>"))
                except BlockingIOError:
                    break
        return self.seen

    def close(self) -> None:
        for sock in self.socks:
            sock.close()


def send(ns: NetNS, address: str, datagrams: Mapping[str, bytes], port: int = PORT, source: str = "") -> None:
    """Send the datagrams as any process can, without a capability."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ns.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        if source:
            sock.bind((source, 0))
        for data in datagrams.values():
            sock.sendto(data, (address, port))


def forged(to: str, target: str) -> dict[str, bytes]:
    """Name -> a datagram with a packet to the pod `target` on node `to`, from every address and MAC that an attacker on
    n1 would choose."""
    six = ":" in target
    sources = {
        "anybody": ANYBODY6 if six else ANYBODY,
        "node n1": "fd0a::1" if six else "192.0.2.1",
        "node n3": "fd0a::3" if six else "192.0.2.3",
        "a pod of n1": "fd00:1::77" if six else "10.244.1.77",
        "a pod of n3": "fd00:3::77" if six else "10.244.3.77",
    }
    return {
        f"{name} {target} by {node}": inner(to, tunnel_mac(node), source, target, f"{name} {target} by {node}")
        for name, source in sources.items()
        for node in ("n1", "n2", "n3")
    }


def addresses(world: Routed, node: str) -> list[str]:
    """The addresses at which a node's tunnel could be reached, in both families; those on podwire0 too."""
    machine = world.machines[node]
    return [machine.address, machine.address6, machine.cidr.replace("0/24", "1"), machine.cidr6.replace("/64", "1")]


def test_no_pod_writes_into_a_tunnel(world: Routed) -> None:
    """Not into another node's, behind a router or on the link, not into its own node's, and not through a hole that
    translates its address into its node's."""
    a, _ = world.pod("n1", "a")
    beside, (own, own6) = world.pod("n1", "own")
    b, (b_ip, b_ip6) = world.pod("n2", "b")
    router = world.router
    # The far node has an address that no Node names, so a pod's packet to it gets the address of the pod's node.
    router.netlink(lambda ipr: ipr.route("add", dst="198.51.100.200/32", gateway="198.51.100.2"))
    far = world.machines["n2"].node.ns
    far.netlink(
        lambda ipr: ipr.addr("add", index=ipr.link_lookup(ifname="eth0")[0], address="198.51.100.200", prefixlen=32)
    )
    victims = [Victim(b), Victim(beside)]
    for to, targets in (("n2", (b_ip, b_ip6)), ("n1", (own, own6))):
        lies = {name: data for target in targets for name, data in forged(to, target).items()}
        for address in (*addresses(world, to), *(["198.51.100.200"] if to == "n2" else [])):
            send(a, address, lies)
    # machines that are no nodes: beside n1, and n2's router
    send(router, "192.0.2.1", forged("n1", own))
    send(router, "198.51.100.2", forged("n2", b_ip))
    with peer_server(b, b_ip) as port, peer_server(b, b_ip6) as port6:
        assert ask(a, b_ip, port) and ask(a, b_ip6, port6), "the tunnel is open to the pods that it is for"
    send(a, b_ip, {"": b"<honest>"}, port=6)
    wait_until(lambda: "honest" in victims[0].heard(), "an honest datagram arrives behind all of them")
    send(a, own, {"": b"<honest>"}, port=6)
    wait_until(lambda: "honest" in victims[1].heard(), "and on the same node")
    assert [victim.heard() for victim in victims] == [{"honest"}, {"honest"}]
    for victim in victims:
        victim.close()


def test_what_leaves_a_tunnel_belongs_to_the_node_that_sent_it(world: Routed) -> None:
    """A process of node n2's network writes frames: only those with n2's MAC, and a pod or an address of n2 as source,
    reach a pod of n1. Those are what n2 may send anyway."""
    a, targets = world.pod("n1", "a")
    n2, victim = world.machines["n2"].node.ns, Victim(a)
    true = {
        source: inner("n1", tunnel_mac("n2"), source, target, source)
        for target in targets
        for source in (("10.244.2.9", "198.51.100.2") if ":" not in target else ("fd00:2::9", "fd0b::2"))
    }
    lies = {name: data for target in targets for name, data in forged("n1", target).items()}
    for target in targets:
        for source in ("10.244.2.9", "198.51.100.2") if ":" not in target else ("fd00:2::9", "fd0b::2"):
            for node in ("n1", "n3", "nobody"):
                lies[f"{source} by {node}"] = inner("n1", tunnel_mac(node), source, target, f"{source} by {node}")
    for address in ("192.0.2.1", "fd0a::1"):  # the outer packet's family is that of the nodes
        send(n2, address, {**lies, **true})
    wait_until(lambda: set(true) <= victim.heard(), "what n2 may send arrives")
    assert victim.heard() == set(true)
    victim.close()


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
def test_nodes_and_pods_reach_each_other(world: Routed, six: bool) -> None:
    """Pods, host-network pods and nodes, with the tunnel (n2) and without it (n3), both ways."""
    pods = {name: world.pod(name, f"{name}-pod") for name in ("n1", "n2", "n3")}

    def place(name: str, host: bool) -> tuple[NetNS, str]:
        machine = world.machines[name]
        ns, ips = (
            (machine.node.ns, [machine.address, machine.address6]) if host else (pods[name][0], list(pods[name][1]))
        )
        return ns, ips[six]

    for one, other in (("n1", "n2"), ("n1", "n3"), ("n2", "n3")):
        for host_one, host_other in ((False, False), (False, True), (True, False), (True, True)):
            (here, here_ip), (there, there_ip) = place(one, host_one), place(other, host_other)
            with peer_server(here, here_ip) as here_port, peer_server(there, there_ip) as there_port:
                assert ask(here, there_ip, there_port), f"{one} {host_one} -> {other} {host_other}"
                assert ask(there, here_ip, here_port), f"{other} {host_other} -> {one} {host_one}"


def test_a_node_that_moved_is_known_by_its_new_address_alone(world: Routed) -> None:
    a, (a_ip, _) = world.pod("n1", "a")
    machine, victim = world.machines["n2"], Victim(a)
    frame = functools.partial(inner, "n1", tunnel_mac("n2"), "10.244.2.9", a_ip)
    n1, far = world.machines["n1"].node, machine.node.ns
    far.netlink(
        lambda ipr: ipr.addr("add", index=ipr.link_lookup(ifname="eth0")[0], address="198.51.100.78", prefixlen=24)
    )
    try:
        machine.address = "198.51.100.78"
        world.tell("n2")
        wait_until(lambda: "is at 198.51.100.78" in n1.log(), "n1 follows the Node")
        send(far, "192.0.2.1", {"": frame("from the old address")}, source="198.51.100.2")
        send(far, "192.0.2.1", {"": frame("from the new address")}, source="198.51.100.78")
        wait_until(lambda: "from the new address" in victim.heard(), "its new address is known")
        assert victim.heard() == {"from the new address"}
    finally:
        machine.address = "198.51.100.2"
        world.tell("n2")
        wait_until(lambda: n1.log().rstrip().rpartition("is at ")[2].startswith("198.51.100.2"), "back again")
        victim.close()


def test_on_one_link_and_where_settings_keep_other_sources(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tunnels between neighbours: a pod's packet to another node's address goes plainly, and the answer by the tunnel,
    from the node's address. With tunnel_sources any, only the MAC of a node is asked for, and status says so."""
    with routed_nodes(tmp_path_factory.mktemp, "--encapsulation", "always") as world:
        a, (a_ip,) = world.pod("n1", "a")
        n1, n3 = (world.machines[name].node for name in ("n1", "n3"))
        with peer_server(n3.ns, "192.0.2.3") as port:
            assert ask(a, "192.0.2.3", port) == a_ip
        assert "tunnel_sources" not in n1.status()["message"]
        n1.stop()
        n1.flags = (*n1.flags, "--tunnel-sources", "any")
        n1.start()
        wait_until(lambda: "tunnel_sources: any" in n1.status().get("message", ""), "status names it")
        victim = Victim(a)
        for node in ("n1", "n2", "nobody", "n3"):
            send(n3.ns, "192.0.2.1", {"": inner("n1", tunnel_mac(node), ANYBODY, a_ip, node)})
        wait_until(lambda: "n3" in victim.heard(), "any source of the node n3")
        assert victim.heard() == {"n3"}
        victim.close()
        world.clear()

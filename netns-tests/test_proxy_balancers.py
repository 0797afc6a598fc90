"""Load balancer addresses on the link: which node answers ARP and Neighbor Discovery, and how fast another one takes
over."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import ICMPv6ND_NA
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from lab.capture import Capture
from lab.l2world import SERVER, TARGET, L2World, Node, v6
from lab.netns import Lab
from lab.proxyrole import until
from lab.serviceworld import SILENCE, Answer, ask
from podwire_base.kube.meta import Object
from podwire_proxy.l2.election import BEAT, DEAD, FRESH, STEADY, decode
from podwire_proxy.l2.frames import beat_body
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

VIP, VIP6 = "172.30.0.192", "fd00:30::c0"
LOCAL = "172.30.0.193"
TAKEOVER, TRY, PAUSE = 2.0, 0.17, 0.02  # seconds
BEATS = 0x88B5  # EtherType
DROP = "add table inet cut; add chain inet cut out { type filter hook output priority 0; };"
POOLS = "/api/v1/namespaces/kube-system/configmaps"


def objects(world: L2World) -> list[Object]:
    both = service(
        "both", ["10.96.0.5", "fd00:96::5"], [port(80)], type="LoadBalancer", ingress=[{"ip": VIP}, {"ip": VIP6}]
    )
    local = service(
        "local", "10.96.0.6", [port(80)], type="LoadBalancer", ingress=[{"ip": LOCAL}], externalTrafficPolicy="Local"
    )
    other = service("other", "10.96.0.7", [port(80)], type="LoadBalancer", ingress=[{"ip": "172.30.0.230"}])
    return [
        both,
        local,
        other,
        local_slice(world.nodes[1]),
        endpoint_slice("both", [endpoint(SERVER)], [("", "TCP", TARGET)], name="four"),
        endpoint_slice("both", [endpoint(v6(SERVER))], [("", "TCP", TARGET)], name="six", family="IPv6"),
    ]


def local_slice(node: Node) -> Object:
    return endpoint_slice("local", [endpoint(node.pod, node.name)], [("", "TCP", TARGET)], name="local-1")


def pools(world: L2World) -> None:
    world.api.put(
        POOLS,
        {
            "metadata": {"name": "podwire-load-balancer", "namespace": "kube-system"},
            "data": {"addresses": "172.30.0.192/28, fd00:30::c0/124"},
        },
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[L2World]:
    with Lab() as lab:
        made = L2World(lab, tmp_path_factory.mktemp("l2"))
        made.api.apply(*objects(made), *({"kind": "Node", "metadata": {"name": node.name}} for node in made.nodes))
        pools(made)
        wire_up(made)
        yield made
        made.close()


def wire_up(made: L2World) -> None:
    for node in made.nodes:
        node.plug()
        node.program(objects(made))


@pytest.fixture
def world(site: L2World) -> Iterator[L2World]:
    """All three nodes up, and each address on its node."""
    for node in site.nodes:
        if node.process is None:
            node.start()
    site.settle(VIP, VIP6)
    until(lambda: LOCAL in site.nodes[1].mine(), "the one node with an endpoint")
    yield site
    for ns in (site.switch, *(node.ns for node in site.nodes)):
        ns.run(["nft", "delete table inet cut"], check=False)
    for node in site.nodes:
        node.plug()
    if "podwire-load-balancer" not in {name for _, name in site.api.objects[POOLS]}:
        pools(site)
    original = local_slice(site.nodes[1])
    site.api.apply(original)
    for node in site.nodes:
        node.program([original])


class Poll:
    """Connects to the address again and again, every TRY seconds while there is no answer."""

    def __init__(self, world: L2World, ip: str) -> None:
        self.results: list[str] = []
        self._stop = threading.Event()

        def loop() -> None:
            while not self._stop.is_set():
                self.results.append(ask(world.client, ip, 80, timeout=TRY - PAUSE).result)
                time.sleep(PAUSE)

        self._thread = threading.Thread(target=loop)

    def __enter__(self) -> Poll:
        self._thread.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int = 10) -> None:
        seen = len(self.results)
        until(lambda: len(self.results) >= seen + count, "the client polls")


def announcements(packets: list[Packet], ip: str) -> list[Packet]:
    if ":" in ip:
        return [p for p in packets if ICMPv6ND_NA in p and p[ICMPv6ND_NA].tgt == ip]
    return [p for p in packets if ARP in p and p[ARP].psrc == p[ARP].pdst == ip]


def reaches(world: L2World, ip: str) -> Answer:
    return ask(world.client, ip, 80)


def test_one_node_answers_for_each_address_and_only_for_those_of_the_pools(world: L2World) -> None:
    owners = {ip: world.owner(ip) for ip in (VIP, VIP6, LOCAL)}
    world.client.run(["ip", "neigh", "flush", "all"])
    assert owners[LOCAL].name == "n2", "only it has an endpoint"
    with Capture(world.client, "eth0") as seen:
        for ip in (VIP, VIP6, LOCAL):
            assert reaches(world, ip).result == "ok", ip
        assert ask(world.client, "172.30.0.230", 80, timeout=SILENCE).result != "ok", "in no pool"
        packets = seen.packets()
    for ip in (VIP, LOCAL):
        answers = {p[ARP].hwsrc for p in packets if ARP in p and p[ARP].op == 2 and p[ARP].psrc == ip}
        mac = owners[ip].ns.netlink(lambda ipr: ipr.get_links(ifname="eth0")[0].get_attr("IFLA_ADDRESS"))
        assert answers == {mac}, "exactly the owner"
    advertised = {p[Ether].src for p in packets if ICMPv6ND_NA in p and p[ICMPv6ND_NA].tgt == VIP6}
    assert advertised == {owners[VIP6].ns.netlink(lambda ipr: ipr.get_links(ifname="eth0")[0].get_attr("IFLA_ADDRESS"))}
    for node in world.nodes:
        assert VIP not in node.ns.run(["ip", "addr"]).stdout, "it is on no interface"
    assert reaches(world, LOCAL).peer == "172.30.0.2", "externalTrafficPolicy Local: the client's own address"


def kill(world: L2World, node: Node) -> None:
    node.stop(signal.SIGKILL)


def cut_off(world: L2World, node: Node) -> None:
    """Cut the node off from the API server, but not from the link."""
    node.ns.run(["nft", DROP + "add rule inet cut out ip daddr 172.30.0.1 drop"])


def unplug(world: L2World, node: Node) -> None:
    node.ns.run(["ip", "link", "set", "eth0", "down"])


def took(packets: list[Packet], ip: str, old: str, *, cut: bool) -> float | None:
    """Seconds from the owner's end to the first connection through another node, as the client's link saw them; None:
    not yet.

    The time is not read from a clock, which continues while a busy machine gives the nodes no CPU time. It is the
    number of beats that the slowest other node sent meanwhile, plus the client's failed attempts. cut: only the
    contact with the API server ended; the nodes that decide must have contact.
    """
    beats = [
        (at, p.src, beat)
        for at, p in enumerate(packets)
        if p.type == BEATS and (beat := decode(beat_body(bytes(p)))) is not None
    ]
    end = max(at for at, mac, beat in beats if mac == old and (not cut or 0 <= beat.age <= FRESH))
    said = next(
        ((at, p.src) for at, p in enumerate(packets) if at > end and p.src != old and announcements([p], ip)), None
    )
    if said is None:
        return None
    known, new = said
    works = next(
        (at for at, p in enumerate(packets) if at > known and p.src == new and TCP in p and p[TCP].flags == "SA"), None
    )
    if works is None:
        return None
    waited = [
        mac
        for at, mac, beat in beats
        if end < at < known and (not cut or (0 <= beat.age <= FRESH and beat.steady >= STEADY))
    ]
    answered = {p[TCP].dport for p in packets if TCP in p and p[TCP].flags == "SA"}
    failed = {p[TCP].sport for p in packets[known:works] if TCP in p and p[TCP].flags == "S"} - answered
    return min(waited.count(mac) for mac in {mac for _, mac, _ in beats} - {old}) * BEAT + len(failed) * TRY


@pytest.mark.parametrize("end", [kill, cut_off, unplug], ids=lambda end: end.__name__)
@pytest.mark.parametrize("ip", [VIP, VIP6], ids=["IPv4", "IPv6"])
def test_another_node_takes_over_within_two_seconds(
    world: L2World, ip: str, end: Callable[[L2World, Node], None]
) -> None:
    owner = world.owner(ip)
    old = owner.ns.netlink(lambda ipr: ipr.get_links(ifname="eth0")[0].get_attr("IFLA_ADDRESS"))
    time.sleep(1.2)  # contact with the API server is steady
    with Poll(world, ip), Capture(world.client, "eth0") as seen:
        until(lambda: any(p.type == BEATS and p.src == old for p in seen.packets()), "a beat of the owner")
        end(world, owner)
        until(lambda: took(seen.packets(), ip, old, cut=end is cut_off) is not None, "another node takes over")
    seconds = took(seen.seen, ip, old, cut=end is cut_off)
    assert seconds is not None and seconds <= TAKEOVER
    if end is not unplug:
        until(lambda: ip not in owner.mine(), "the old owner knows")
    assert [reaches(world, ip).result for _ in range(10)] == ["ok"] * 10


def test_a_node_that_stops_hands_over_at_once_and_gets_its_addresses_back(world: L2World) -> None:
    owner = world.owner(VIP)
    with Capture(world.client, "eth0") as seen, Poll(world, VIP) as poll:
        owner.stop()
        until(lambda: any(VIP in node.mine() for node in world.nodes), "another node")
        owner.start()
        world.settle(VIP)
        assert world.owner(VIP) is owner
        poll.more()
        packets = [p[TCP] for p in seen.packets() if TCP in p]
    asked = {p.sport for p in packets if p.flags == "S"}
    unanswered = asked - {p.dport for p in packets if p.flags == "SA"}
    assert len(asked) > 10
    assert len(unanswered) <= 2, "the goodbye arrives; no node has to wait for missing beats"


def test_an_api_server_that_is_away_for_everyone_moves_nothing(world: L2World) -> None:
    """The check is repeated if a node got no CPU time for so long that the others had to consider it dead."""
    for _ in range(5):
        world.settle(VIP, VIP6)
        owners = {ip: world.owner(ip).name for ip in (VIP, VIP6, LOCAL)}
        with Capture(world.client, "eth0") as seen:
            time.sleep(1.2)
            before = len(seen.packets())
            world.switch.run(["nft", f"{DROP} add rule inet cut out tcp sport {world.api.port} drop"])
            time.sleep(3)
            meanwhile = {ip: [node.name for node in world.nodes if ip in node.mine()] for ip in owners}
            reached = reaches(world, VIP).result
            world.switch.run(["nft", "delete table inet cut"])
            time.sleep(2)
            after = {ip: [node.name for node in world.nodes if ip in node.mine()] for ip in owners}
            packets = seen.packets()
        if evenly(packets):
            break
    else:
        pytest.fail("this machine gives no node its time")
    assert meanwhile == after == {ip: [name] for ip, name in owners.items()}
    assert reached == "ok"
    assert not [p for ip in owners for p in announcements(packets[before:], ip)]


def evenly(packets: list[Packet]) -> bool:
    """Whether every node's beats arrived in time at the others."""
    beats = [p.src for p in packets if p.type == BEATS]
    for mac in set(beats):
        heard = [at for at, one in enumerate(beats) if one == mac]
        for start, end in pairwise(heard):
            if any(beats[start:end].count(other) > DEAD / BEAT / 2 for other in set(beats) - {mac}):
                return False
    return True


def test_with_a_local_policy_the_address_follows_the_endpoint(world: L2World) -> None:
    assert world.owner(LOCAL).name == "n2"
    moved = local_slice(world.nodes[2])
    for node in world.nodes:
        node.program([moved])
    world.api.apply(moved)
    until(lambda: LOCAL in world.nodes[2].mine(), "the node that has the endpoint now")
    until(lambda: reaches(world, LOCAL).server[0] == world.nodes[2].pod, "its endpoint")
    world.api.apply(endpoint_slice("local", [], [("", "TCP", TARGET)], name="local-1"))
    until(lambda: not any(LOCAL in node.mine() for node in world.nodes), "no node answers if no node can serve")
    world.api.delete(POOLS, "podwire-load-balancer", "kube-system")
    until(lambda: not any(node.mine() for node in world.nodes), "no pools, no addresses")


def test_a_contested_address_is_announced_again_and_told(world: L2World) -> None:
    owner = world.owner(VIP)
    with Capture(world.client, "eth0") as seen:
        world.client.call(lambda: claim("eth0", VIP))
        until(lambda: announcements(seen.packets(), VIP), "the owner speaks up")
    until(lambda: "another host claims an address of ours" in owner.log(), "and says so")


def claim(link: str, ip: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((link, 0x0806))
        mac = sock.getsockname()[4].hex(":")
        sock.send(bytes(Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=mac, psrc=ip, pdst=ip)))


def test_a_link_that_vanishes_and_comes_back(world: L2World) -> None:
    """The role keeps running, reports the missing link, and answers again when the link is back."""
    owner = world.owner(VIP)
    process = owner.process
    owner.ns.run(["ip", "link", "set", "eth0", "down"])
    owner.ns.run(["ip", "link", "set", "eth0", "name", "gone0"])
    until(lambda: any(VIP in node.mine() for node in world.nodes if node is not owner), "another node")
    until(lambda: not owner.ready(), "its status says so")
    owner.ns.run(["ip", "link", "set", "gone0", "name", "eth0"])
    owner.plug()
    world.settle(VIP, VIP6)
    assert owner.process is process
    until(owner.ready, "its status says that too")
    assert reaches(world, VIP).result == "ok"


def test_an_address_that_a_node_gets_is_answered_by_nobody(world: L2World) -> None:
    """A Node joins with an address that a Service holds: its own machine answers for it, and no other node."""
    joined: Object = {
        "kind": "Node",
        "metadata": {"name": "late"},
        "status": {"addresses": [{"type": "InternalIP", "address": VIP}]},
    }
    began = time.monotonic()
    world.api.apply(joined)
    until(lambda: not any(VIP in node.mine() for node in world.nodes), "the Node has the address")
    assert time.monotonic() - began < TAKEOVER
    world.client.run(["ip", "neigh", "flush", "all"])
    with Capture(world.client, "eth0") as seen:
        assert ask(world.client, VIP, 80, timeout=SILENCE).result != "ok"
        packets = seen.packets()
    assert [p for p in packets if ARP in p and p[ARP].op == 1 and p[ARP].pdst == VIP], "the client asked"
    assert not [p for p in packets if ARP in p and p[ARP].op == 2 and p[ARP].psrc == VIP]
    assert reaches(world, VIP6).result == "ok", "the Service's other address stays"
    world.api.remove(joined)
    until(lambda: any(VIP in node.mine() for node in world.nodes), "the Node left")

"""Pods of nodes that do not share a link: VXLAN only if it is needed, tested with packets over a real router."""

from __future__ import annotations

import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from lab.capture import Capture
from lab.cninode import ask, peer_server, wait_until
from lab.cnirouted import Routed, by_way_of, figure, give, no_checksum_offload, routed_nodes
from lab.netns import NetNS
from lab.patience import patient
from lab.probe import ping

IP_MTU_DISCOVER, IP_PMTUDISC_DO = 10, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    with routed_nodes(tmp_path_factory.mktemp) as made:
        yield made


@pytest.fixture(autouse=True)
def no_pods_stay(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "world" in request.fixturenames:
        request.getfixturevalue("world").clear()


def mtu(ns: NetNS, link: str = "eth0") -> int:
    return ns.netlink(lambda ipr: int(ipr.get_links(ifname=link)[0].get("IFLA_MTU")))


def echo(ns: NetNS, address: str) -> tuple[int, Callable[[], None]]:
    """A UDP server that returns the digest of each datagram; yields its port and a function that ends it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = ns.call(lambda: socket.socket(family, socket.SOCK_DGRAM))
    server.bind((address, 0))

    def loop() -> None:
        while True:
            data, peer = server.recvfrom(65536)
            if data == b"end":
                return
            server.sendto(hashlib.sha256(data).digest(), peer)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()

    def end() -> None:
        with ns.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
            sock.sendto(b"end", server.getsockname())
        thread.join()
        server.close()

    return int(server.getsockname()[1]), end


def say(ns: NetNS, address: str, port: int, data: bytes, *, fragments: bool = True) -> bytes:
    """The answer of `echo`. Raises OSError (EMSGSIZE) if the packet is too large and must not be fragmented."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ns.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(patient(5))
        if not fragments:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        sock.sendto(data, (address, port))
        return sock.recv(100)


def transfer(source: NetNS, target: NetNS, address: str, size: int = 2 << 20) -> None:
    """A TCP stream of this many bytes arrives whole."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = target.call(lambda: socket.create_server((address, 0), family=family))
    data, got = bytes(range(256)) * (size // 256), hashlib.sha256()

    def receive() -> None:
        connection, _ = listener.accept()
        with connection:
            while part := connection.recv(1 << 16):
                got.update(part)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    with listener, source.call(lambda: socket.create_connection(listener.getsockname()[:2], 5)) as sock:
        sock.settimeout(patient(20))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        thread.join(patient(20))
    assert got.digest() == hashlib.sha256(data).digest()


def test_each_peer_gets_what_it_needs(world: Routed) -> None:
    a, (a_ip,) = world.pod("n1", "a")
    b, (b_ip,) = world.pod("n2", "b")
    c, (c_ip,) = world.pod("n3", "c")
    n1 = world.machines["n1"].node.ns
    with Capture(n1, "eth0") as wire, Capture(world.router, "far") as far:
        for source, ip, target, address in (
            (a, a_ip, b, b_ip),
            (b, b_ip, a, a_ip),
            (a, a_ip, c, c_ip),
            (c, c_ip, b, b_ip),
        ):
            with peer_server(target, address) as port:
                assert ask(source, address, port) == ip, "a pod is seen with its own address"
        tunnelled = [p for p in wire.packets() if VXLAN in p]
        assert {(p[IP].src, p[IP].dst) for p in tunnelled} == {
            ("192.0.2.1", "198.51.100.2"),
            ("198.51.100.2", "192.0.2.1"),
        }
        assert {(p[VXLAN][IP].src, p[VXLAN][IP].dst) for p in tunnelled} == {(a_ip, b_ip), (b_ip, a_ip)}
        plain = {(p[IP].src, p[IP].dst) for p in wire.packets() if TCP in p and VXLAN not in p}
        assert {(a_ip, c_ip), (c_ip, a_ip)} <= plain, "n3 is on the link: no tunnel"
        assert not [p for p in far.packets() if IP in p and p[IP].src.startswith("10.244.")], (
            "no pod's address on the fabric"
        )
    status = world.machines["n1"].node.status()
    assert (status["figures"]["vxlan"], status["figures"]["routes"]) == (1, 2) and "1 of them by VXLAN" in status[
        "message"
    ]


def test_a_node_itself_and_the_pods_behind_a_tunnel(world: Routed) -> None:
    _, (a_ip,) = world.pod("n1", "a")
    b, (b_ip,) = world.pod("n2", "b")
    n1, n2 = (world.machines[n].node.ns for n in ("n1", "n2"))
    with peer_server(b, b_ip) as port:
        assert ask(n1, b_ip, port) == "10.244.1.1", "answers find the way back into the tunnel"
    with peer_server(n2, "198.51.100.2") as port:
        assert ask(b, "198.51.100.2", port) == b_ip
    assert a_ip != b_ip


def test_large_packets(world: Routed) -> None:
    a, _ = world.pod("n1", "a")
    b, (b_ip,) = world.pod("n2", "b")
    assert mtu(a) == mtu(b) == 1450 == mtu(world.machines["n1"].node.ns, "podwire-vxlan")
    port, end = echo(b, b_ip)
    for size, fragments in ((8192, True), (60000, True), (1450 - 28, False)):
        data = bytes(size)
        assert say(a, b_ip, port, data, fragments=fragments) == hashlib.sha256(data).digest()
    with pytest.raises(OSError, match="Message too long"):
        say(a, b_ip, port, bytes(1450 - 27), fragments=False)
    end()
    assert ping(a, b_ip, size=8192).result == ping(a, b_ip, size=1450 - 28, df=True).result == "ok"
    told = ping(a, b_ip, size=1450 - 27, df=True)
    assert (told.result, told.mtu) == ("too big", 1450)
    transfer(a, b, b_ip)


def test_a_pod_with_a_larger_mtu_learns_the_path_s(world: Routed) -> None:
    """Pods from before the first node behind a router keep their MTU; their node reports the path's MTU to them."""
    a, (a_ip,) = world.pod("n1", "a", mtu=1500)
    b, (b_ip,) = world.pod("n2", "b", mtu=1500)
    port, end = echo(b, b_ip)
    with Capture(a, "eth0") as seen:
        sizes = []
        for _ in range(3):
            try:
                sizes.append(say(a, b_ip, port, bytes(1472), fragments=False))
            except OSError:
                break
        told = [p for p in seen.packets() if ICMP in p and (p[ICMP].type, p[ICMP].code) == (3, 4)]
    assert not sizes and told and told[0][ICMP].nexthopmtu == 1450
    end()
    transfer(a, b, b_ip)
    transfer(b, a, a_ip)


def checksum_is_right(packet: Packet) -> bool:
    """Whether the checksum equals the one that scapy computes."""
    inner = packet[VXLAN][IP].copy()
    layer = TCP if TCP in inner else UDP
    given = (inner.chksum, inner[layer].chksum)
    del inner.chksum, inner[layer].chksum
    fresh = IP(bytes(inner))
    return given == (fresh.chksum, fresh[layer].chksum)


def test_inner_checksums_without_offload(world: Routed) -> None:
    """A known fault of VXLAN with NAT: a packet that is translated on its way into the tunnel, and a card without
    offload.
    """
    b, (b_ip,) = world.pod("n2", "b")
    a, _ = world.pod("n1", "a")
    n1, n2 = (world.machines[n].node.ns for n in ("n1", "n2"))
    for ns in (n1, n2):
        no_checksum_offload(ns, "eth0")
    rules = "\n".join(
        f"""table ip nodeport {{
 chain pre {{ type nat hook prerouting priority -100; {proto} dport 30080 dnat to {b_ip}:8080; }}
 chain post {{ type nat hook postrouting priority 100; ip daddr {b_ip} {proto} dport 8080 masquerade; }}
}}"""
        for proto in ("udp", "tcp")
    )
    n1.run(["nft", "-f", "-"], input=rules)
    outside = world.machines["n3"].node.ns
    server = b.call(lambda: socket.create_server(("0.0.0.0", 8080)))
    datagrams = b.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    datagrams.bind(("0.0.0.0", 8080))
    datagrams.settimeout(patient(5))
    try:
        with Capture(world.router, "far") as far:
            with outside.call(lambda: socket.create_connection(("192.0.2.1", 30080), 5)) as sock:
                connection, peer = server.accept()
                sock.sendall(b"x" * 3000)
                assert connection.recv(10) and peer[0] == "10.244.1.1"
                connection.close()
            with outside.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
                sock.sendto(b"y" * 300, ("192.0.2.1", 30080))
                assert datagrams.recvfrom(400)[0] == b"y" * 300
            with a.call(lambda: socket.create_connection((b_ip, 8080), 5)) as sock:
                server.accept()[0].close()
            tunnelled = [p for p in far.packets() if VXLAN in p and (TCP in p[VXLAN] or UDP in p[VXLAN])]
        assert {layer for p in tunnelled for layer in (TCP, UDP) if layer in p[VXLAN][IP]} == {TCP, UDP}
        assert [p for p in tunnelled if not checksum_is_right(p)] == []
    finally:
        server.close()
        datagrams.close()
        n1.run(["nft", "delete", "table", "ip", "nodeport"])


def test_a_node_comes_back_with_another_address(world: Routed) -> None:
    a, _ = world.pod("n1", "a")
    b, (b_ip,) = world.pod("n2", "b")
    machine = world.machines["n2"]
    n1, n2 = world.machines["n1"].node, machine.node
    with peer_server(b, b_ip) as port:
        ask(a, b_ip, port)
        n2.stop(kill=True)
        n2.ns.netlink(lambda ipr: ipr.flush_addr(index=ipr.link_lookup(ifname="eth0")[0]))
        give(n2.ns, "eth0", "198.51.100.77/24")
        by_way_of(n2.ns, "198.51.100.254")
        machine.address = "198.51.100.77"
        world.tell("n2")
        n2.start()
        wait_until(lambda: "is at 198.51.100.77" in n1.log(), "n1 follows the Node")
        with Capture(n1.ns, "eth0") as wire:
            assert ask(a, b_ip, port)
            assert {p[IP].dst for p in wire.packets() if VXLAN in p} == {"198.51.100.77", "192.0.2.1"}
    assert "this node's address changed" in n2.log()


def entries(ns: NetNS) -> int:
    """Routes to other nodes' pods, and all entries of the tunnels."""

    def count(ipr: object) -> int:
        get = ipr.get_neighbours  # type: ignore[attr-defined]  # pyroute2 ships no types
        tunnels = ipr.link_lookup(ifname="podwire-vxlan")  # type: ignore[attr-defined]  # as above
        routes = [
            r
            for r in ipr.get_routes(table=254)  # type: ignore[attr-defined]  # as above
            if r["proto"] == 143 and r.get("RTA_GATEWAY")
        ]
        return len(routes) + sum(
            e["ifindex"] in tunnels for f in (socket.AF_INET, socket.AF_BRIDGE) for e in get(family=f)
        )

    return ns.netlink(count)


def test_nodes_that_go_take_everything_along_and_pods_get_the_whole_mtu_again(world: Routed) -> None:
    n1 = world.machines["n1"].node
    n1.ns.netlink(
        lambda ipr: ipr.fdb(
            "add", ifindex=ipr.link_lookup(ifname="podwire-vxlan")[0], lladdr="02:00:00:00:00:99", dst="203.0.113.9"
        )
    )  # as left by another program
    world.api.delete("/api/v1/nodes", "n2")
    wait_until(lambda: entries(n1.ns) == 1 and "podwire-vxlan" not in n1.links(), "only the route to n3 stays")
    wait_until(lambda: figure(n1, "mtu") == 1500, "the tunnel's header costs nothing any more")
    a, _ = world.pod("n1", "a")
    assert mtu(a) == 1500
    world.tell("n2")
    wait_until(lambda: entries(n1.ns) == 4 and figure(n1, "mtu") == 1450, "route, neighbour, forwarding entry; and n3")
    b, (b_ip,) = world.pod("n2", "b")
    with peer_server(b, b_ip) as port:
        assert ask(a, b_ip, port)


def test_what_others_break_is_mended(world: Routed) -> None:
    a, _ = world.pod("n1", "a")
    b, (b_ip,) = world.pod("n2", "b")
    n1 = world.machines["n1"].node
    n1.ns.netlink(lambda ipr: ipr.link("del", index=ipr.link_lookup(ifname="podwire-vxlan")[0]))
    wait_until(lambda: entries(n1.ns) == 4, "the tunnel is there again")
    with peer_server(b, b_ip) as port:
        assert ask(a, b_ip, port)


def test_a_restart_changes_nothing(world: Routed) -> None:
    n1 = world.machines["n1"].node
    before, log = entries(n1.ns), len(n1.log())
    tunnel = n1.ns.netlink(lambda ipr: ipr.link_lookup(ifname="podwire-vxlan")[0])
    with n1.ns.call(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)) as watch:
        watch.bind((0, 1 | 4 | 0x40))  # links, neighbours, IPv4 routes
        watch.setblocking(False)
        n1.stop()
        n1.start()
        wait_until(lambda: figure(n1, "routes") == 2, "it knows the others")
        changed = []
        while True:
            try:
                data = watch.recv(1 << 16)
                kind, index = struct.unpack_from("=H", data, 4)[0], struct.unpack_from("=i", data, 20)[0]
                changed += [kind] if kind in (24, 25) or (kind in (16, 17, 28, 29) and index == tunnel) else []
            except BlockingIOError:
                break
    assert entries(n1.ns) == before and changed == []
    assert "change=" not in n1.log()[log:]


def test_both_families(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pods of both families in tunnels over IPv4."""
    with routed_nodes(tmp_path_factory.mktemp, ipv6=True) as dual:
        a, a_ips = dual.pod("n1", "a")
        b, b_ips = dual.pod("n2", "b")
        assert mtu(a) == 1450
        for mine, theirs in zip(a_ips, b_ips, strict=True):
            with peer_server(b, theirs) as port, Capture(dual.router, "far") as far:
                assert ask(a, theirs, port) == mine
                assert {p[IP].dst for p in far.packets() if VXLAN in p} == {"192.0.2.1", "198.51.100.2"}
            port, end = echo(b, theirs)
            assert say(a, theirs, port, bytes(8192)) == hashlib.sha256(bytes(8192)).digest()
            end()
            assert ping(a, theirs, size=8192).result == "ok"
            transfer(a, b, theirs)
        dual.clear()


def test_ipv6_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nodes and pods have only IPv6."""
    with routed_nodes(tmp_path_factory.mktemp, ipv4=False, ipv6=True) as six:
        a, (mine,) = six.pod("n1", "a")
        b, (theirs,) = six.pod("n2", "b")
        assert mtu(a) == mtu(b) == 1430
        with peer_server(b, theirs) as port:
            assert ask(a, theirs, port) == mine
        port, end = echo(b, theirs)
        assert say(a, theirs, port, bytes(8192)) == hashlib.sha256(bytes(8192)).digest()
        end()
        transfer(a, b, theirs)
        six.clear()


def test_encapsulation_by_choice(tmp_path_factory: pytest.TempPathFactory) -> None:
    with routed_nodes(tmp_path_factory.mktemp, "--encapsulation", "always") as world:
        a, (a_ip,) = world.pod("n1", "a")
        c, (c_ip,) = world.pod("n3", "c")
        with peer_server(c, c_ip) as port, Capture(world.machines["n1"].node.ns, "eth0") as wire:
            assert ask(a, c_ip, port) == a_ip
            assert not [p for p in wire.packets() if IP in p and p[IP].src == a_ip], "also on a shared link"
        world.clear()

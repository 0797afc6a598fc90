"""Services and packets that no ordinary client sends: fragments, stray segments, ICMP errors, asymmetric routes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPerror6, IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet as Scapy

from lab.capture import Capture
from lab.dataplane import Dataplane, Hooks
from lab.netns import Lab, NetNS, usable
from lab.patience import patient
from lab.serviceworld import V6, World, ask
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

CLOSED = s.TARGET + 7  # a port of the pods on which nothing listens
OTHER = (
    "172.31.0.1",
    "fd00:31::1",
)  # an address of the outside host whose packets arrive by another link than answers leave
REFUSED = {errno.ECONNREFUSED, errno.ECONNRESET}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        lab.wire(made.node, "eth1", made.outside, "eth1", "172.30.1.11/24", "172.30.1.1/24")
        yield made
        made.close()


@dataclass(frozen=True)
class Way:
    """The addresses of one IP family."""

    family: str

    def ip(self, v4: str) -> str:
        return v4 if self.family == "IPv4" else s._v6(v4)

    @property
    def af(self) -> socket.AddressFamily:
        return socket.AF_INET if self.family == "IPv4" else socket.AF_INET6

    def header(self, src: str, dst: str) -> Scapy:
        return IP(src=src, dst=dst) if self.family == "IPv4" else IPv6(src=src, dst=dst)


@pytest.fixture(autouse=True)
def on_the_wire(request: pytest.FixtureRequest) -> None:
    """These tests look at translated packets on the wire. Behind socket hooks there are none (test_ebpf_hooks.py), so
    the sockets here do not meet them: what is tested is the nftables beneath.
    """
    if "dataplane" in request.fixturenames and isinstance(made := request.getfixturevalue("dataplane"), Hooks):
        made.admits = False


@pytest.fixture(params=["IPv4", "IPv6"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def way(family: str) -> Way:
    return Way(family)


def scenario(way: Way, target: int = s.TARGET, **spec: Any) -> s.Scenario:
    """TCP and UDP on every kind of frontend, with POD_B as the only endpoint."""
    ports = [port(s.PORT, "TCP", "t", node_port=s.NODE_PORT), port(s.PORT, "UDP", "u", node_port=s.NODE_PORT)]
    made = s.Scenario(
        "packets",
        (
            service(
                "my-service",
                s.VIP,
                ports,
                type="LoadBalancer",
                externalIPs=[s.EXTERNAL],
                ingress=[{"ip": s.BALANCER}],
                **spec,
            ),
            endpoint_slice("my-service", [endpoint(s.POD_B, s.NODE)], [("t", "TCP", target), ("u", "UDP", target)]),
        ),
        {},
    )
    return made if way.family == "IPv4" else made.v6()


FRONTENDS = ((s.VIP, s.PORT), (s.EXTERNAL, s.PORT), (s.BALANCER, s.PORT), (s.NODE_IP, s.NODE_PORT))


@dataclass
class Echo:
    """One TCP connection at a time, and datagrams: each is answered with its size and digest, `big` datagrams with
    their own content.
    """

    ns: NetNS
    address: str
    number: int
    socks: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Echo:
        def listen() -> None:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, kind)
                self.socks.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((self.address, self.number))
            self.socks[0].listen()

        self.ns.call(listen)
        self.threads += [threading.Thread(target=work, daemon=True) for work in (self._stream, self._datagrams)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """A thread that still waits for a closed descriptor might later read from another socket with that number."""
        for sock in self.socks:
            with contextlib.suppress(OSError):  # UDP fails with ENOTCONN, but the reader wakes all the same
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for sock in self.socks:
            sock.close()

    def _stream(self) -> None:
        try:
            while True:
                conn, _ = self.socks[0].accept()
                with conn:
                    while data := _exactly(conn):
                        conn.sendall(hashlib.sha256(data).digest())
        except OSError:
            return

    def _datagrams(self) -> None:
        try:
            while True:
                data, peer = self.socks[1].recvfrom(65536)
                if peer is None:  # shut down
                    return
                self.socks[1].sendto(data[::-1], peer)
        except OSError:
            return


def _exactly(conn: socket.socket) -> bytes:
    """One message: its size in four bytes, then itself; b"" at the end."""
    head = conn.recv(4, socket.MSG_WAITALL)
    return conn.recv(struct.unpack("!I", head)[0], socket.MSG_WAITALL) if len(head) == 4 else b""


def exchange(conn: socket.socket, data: bytes) -> bool:
    conn.sendall(struct.pack("!I", len(data)) + data)
    return conn.recv(32, socket.MSG_WAITALL) == hashlib.sha256(data).digest()


def dial(ns: NetNS, way: Way, dst: str, number: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    def work() -> socket.socket:
        sock = socket.socket(way.af, kind)
        sock.settimeout(patient(10))
        sock.connect((dst, number))
        return sock

    return ns.call(work)


def inject(ns: NetNS, way: Way, packet: Scapy) -> None:
    """A packet with the headers as given, from inside `ns`."""

    def work() -> None:
        with socket.socket(way.af, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            sock.sendto(bytes(packet), (packet.dst, 0))

    ns.call(work)


def of(way: Way, packets: list[Scapy]) -> list[Scapy]:
    """The IP packets among frames."""
    kind = IP if way.family == "IPv4" else IPv6
    return [p[kind] for p in packets if kind in p]


def fragment(packet: Scapy) -> bool:
    return bool(IP in packet and (packet[IP].frag or packet[IP].flags.MF)) or IPv6ExtHdrFragment in packet


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_hairpin_on_every_frontend(world: World, dataplane: Dataplane, way: Way, protocol: str) -> None:
    """A pod that reaches itself through a Service must not see its own address as the client's."""
    dataplane.program(world, scenario(way))
    pod = world.client(s.POD_B)
    for ip, number in FRONTENDS:
        answer = ask(pod, way.ip(ip), number, protocol, src=way.ip(s.POD_B))
        assert (answer.result, answer.server) == ("ok", (way.ip(s.POD_B), s.TARGET)), ip
        assert answer.peer not in ("", way.ip(s.POD_B)), ip


def test_a_datagram_in_fragments_reaches_a_service_and_returns(world: World, dataplane: Dataplane, way: Way) -> None:
    dataplane.program(world, scenario(way, CLOSED + 1))
    data = bytes(range(256)) * 32
    with Echo(world.client(s.POD_B), way.ip(s.POD_B), CLOSED + 1):
        for source, (ip, number) in ((s.POD_A, FRONTENDS[0]), (s.OUTSIDE, FRONTENDS[1]), (s.OUTSIDE, FRONTENDS[3])):
            with (
                Capture(world.client(source), "eth0") as seen,
                dial(world.client(source), way, way.ip(ip), number, socket.SOCK_DGRAM) as sock,
            ):
                sock.send(data)
                assert sock.recv(65536) == data[::-1], (source, ip)
                # 8 KB at an MTU of 1500, there and back. Addresses are not checked: over veth a capture shares the
                # frames' memory with the node, which rewrites them when it translates the datagram.
                assert len([p for p in seen.packets() if fragment(p)]) == 12


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_icmp_errors_are_translated_back(world: World, dataplane: Dataplane, way: Way, policy: str) -> None:
    """Nothing listens on the pod's port: the ICMP error must contain the address that the client dialled."""
    dataplane.program(world, scenario(way, CLOSED, externalTrafficPolicy=policy))
    for source, (ip, number) in ((s.POD_A, FRONTENDS[0]), (s.OUTSIDE, FRONTENDS[1]), (s.OUTSIDE, FRONTENDS[3])):
        with Capture(world.client(source), "eth0") as seen:
            sock = dial(world.client(source), way, way.ip(ip), number, socket.SOCK_DGRAM)
            with sock, pytest.raises(OSError) as told:
                sock.send(b"?")
                sock.recv(100)
            assert told.value.errno in REFUSED, (source, ip)
            if way.family == "IPv4":
                errors = [p for p in of(way, seen.packets()) if ICMP in p and p[ICMP].type == 3]
                assert [(p[IPerror].dst, p[UDPerror].dport) for p in errors] == [(way.ip(ip), number)]
            else:
                errors = [p for p in of(way, seen.packets()) if ICMPv6DestUnreach in p]
                assert [(p[IPerror6].dst, p[UDPerror].dport) for p in errors] == [(way.ip(ip), number)]


def test_a_reset_of_the_endpoint_comes_from_the_service(world: World, dataplane: Dataplane, way: Way) -> None:
    dataplane.program(world, scenario(way, CLOSED))
    with Capture(world.client(s.POD_A), "eth0") as seen:
        answer = ask(world.client(s.POD_A), way.ip(s.VIP), s.PORT)
        assert answer.result == "refused"
        resets = [p for p in of(way, seen.packets()) if TCP in p and p[TCP].flags & 4]
        assert [(p.src, p[TCP].sport) for p in resets] == [(way.ip(s.VIP), s.PORT)]


def test_a_smaller_mtu_behind_a_service_is_found(world: World, dataplane: Dataplane, way: Way) -> None:
    """The link to the pod has a smaller MTU than the client's: "too big" must refer to the Service, and the data must
    arrive.
    """
    dataplane.program(world, scenario(way, CLOSED + 2))
    index = world.node.netlink(lambda ipr: ipr.link_lookup(ifname="veth1")[0])
    world.node.netlink(lambda ipr: ipr.link("set", index=index, mtu=1300))
    try:
        data = bytes(range(256)) * 400
        with (
            Echo(world.client(s.POD_B), way.ip(s.POD_B), CLOSED + 2),
            Capture(world.client(s.POD_A), "eth0") as seen,
            dial(world.client(s.POD_A), way, way.ip(s.VIP), s.PORT) as conn,
        ):
            assert exchange(conn, data)
            if way.family == "IPv4":
                told = [p for p in of(way, seen.packets()) if ICMP in p and (p[ICMP].type, p[ICMP].code) == (3, 4)]
                inner = {(p[IPerror].dst, p[TCPerror].dport) for p in told}
            else:
                told = [p for p in of(way, seen.packets()) if ICMPv6PacketTooBig in p]
                inner = {(p[IPerror6].dst, p[TCPerror].dport) for p in told}
            assert inner == {(way.ip(s.VIP), s.PORT)}
    finally:
        world.node.netlink(lambda ipr: ipr.link("set", index=index, mtu=1500))
        for client in (s.POD_A, s.POD_B):  # forget the learned MTU
            world.client(client).run(["ip", "-4" if way.family == "IPv4" else "-6", "route", "flush", "cache"])


def established(world: World, way: Way, work: Callable[[socket.socket, int], None]) -> list[Scapy]:
    """Keep a connection through the ClusterIP open during `work`; returns the packets that the client's pod saw."""
    with (
        Echo(world.client(s.POD_B), way.ip(s.POD_B), CLOSED + 3),
        Capture(world.client(s.POD_A), "eth0") as seen,
        dial(world.client(s.POD_A), way, way.ip(s.VIP), s.PORT) as conn,
    ):
        assert exchange(conn, b"before")
        work(conn, conn.getsockname()[1])
        for number in range(3):
            assert exchange(conn, b"after %d" % number)
        return of(way, seen.packets())


def test_stray_segments_of_the_endpoint_do_not_end_a_connection(world: World, dataplane: Dataplane, way: Way) -> None:
    """They are out of every window, so conntrack considers them INVALID and does not translate them. The client, which
    never dialled the pod's own address, would answer with a reset that kills the real connection
    (kubernetes/kubernetes#74839).
    """
    dataplane.program(world, scenario(way, CLOSED + 3))
    pod_a, pod_b = way.ip(s.POD_A), way.ip(s.POD_B)

    def stale_attempts(_: socket.socket, number: int) -> None:
        for flags in ("A", "PA", "R", "FA"):
            inject(
                world.client(s.POD_B),
                way,
                way.header(pod_b, pod_a)
                / TCP(sport=CLOSED + 3, dport=number, flags=flags, seq=0x7FFF0000, ack=0x7FFF0000)
                / b"stray",
            )

    seen = established(world, way, stale_attempts)
    assert not [p for p in seen if TCP in p and p.src == pod_b], "a segment came through without translation"


def test_stray_segments_of_a_client_do_not_end_a_connection(world: World, dataplane: Dataplane, way: Way) -> None:
    """A reset out of the window must neither reach the endpoint's socket nor make conntrack forget the flow."""
    dataplane.program(world, scenario(way, CLOSED + 3))

    def stale_attempts(_: socket.socket, number: int) -> None:
        for flags in ("R", "RA", "SA"):
            inject(
                world.client(s.POD_A),
                way,
                way.header(way.ip(s.POD_A), way.ip(s.VIP))
                / TCP(sport=number, dport=s.PORT, flags=flags, seq=0x7FFF0000, ack=0x7FFF0000),
            )

    established(world, way, stale_attempts)


def test_a_segment_of_no_connection_is_answered_by_the_service(world: World, dataplane: Dataplane, way: Way) -> None:
    """An acknowledgement without a connection may be refused or ignored, but no answer may come from another
    address.
    """
    dataplane.program(world, scenario(way))
    with Capture(world.client(s.POD_A), "eth0") as seen:
        inject(
            world.client(s.POD_A),
            way,
            way.header(way.ip(s.POD_A), way.ip(s.VIP)) / TCP(sport=40001, dport=s.PORT, flags="A", seq=1, ack=1),
        )
        assert ask(world.client(s.POD_A), way.ip(s.VIP), s.PORT).result == "ok"
        answers = {p.src for p in of(way, seen.packets()) if TCP in p and p[TCP].dport == 40001}
    assert answers <= {way.ip(s.VIP)}


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_answers_that_leave_by_another_link_are_translated(
    world: World, dataplane: Dataplane, way: Way, policy: str
) -> None:
    """Asymmetric return: requests enter by eth1, the route back to the client is eth0."""
    dataplane.program(world, scenario(way, externalTrafficPolicy=policy))
    other, dst = (OTHER[0], "198.51.100.7/32") if way.family == "IPv4" else (OTHER[1], f"{way.ip(s.EXTERNAL)}/128")

    def outside(ipr: IPRoute) -> None:
        ipr.addr("replace", index=1, address=other, prefixlen=32 if way.family == "IPv4" else 128)
        link = ipr.link_lookup(ifname="eth1")[0]
        if way.family == "IPv4":
            ipr.route("replace", dst=dst, gateway="172.30.1.11")
        else:
            ipr.addr("replace", index=link, address="fd00:30:1::1", prefixlen=64)
            ipr.route("replace", dst=dst, gateway="fd00:30:1::11", family=socket.AF_INET6)

    if way.family == "IPv6":
        world.node.netlink(
            lambda ipr: ipr.addr(
                "replace", index=ipr.link_lookup(ifname="eth1")[0], address="fd00:30:1::11", prefixlen=64
            )
        )
    world.node.sysctl("net/ipv4/conf/eth1/rp_filter", "0")
    world.outside.netlink(outside)
    usable(world.node, world.outside)
    try:
        with Capture(world.outside, "eth1") as there, Capture(world.outside, "eth0") as back:
            for protocol in ("TCP", "UDP"):
                answer = ask(world.outside, way.ip(s.EXTERNAL), s.PORT, protocol, src=other)
                assert (answer.result, answer.server) == ("ok", (way.ip(s.POD_B), s.TARGET)), protocol
                assert (answer.peer == other) == (policy == "Local")
            assert {p.dst for p in of(way, there.packets()) if TCP in p or UDP in p} == {way.ip(s.EXTERNAL)}
            assert {p.src for p in of(way, back.packets()) if TCP in p or UDP in p} == {way.ip(s.EXTERNAL)}
    finally:
        world.outside.run(["ip", "-4" if way.family == "IPv4" else "-6", "route", "del", dst])


def test_v6_addresses_of_this_world_are_known() -> None:
    """`Way.ip` translates with the table's own list."""
    assert [Way("IPv6").ip(ip) for ip in V6] == list(V6.values())

"""Two nodes with pods, in which the tables `podwire-policy` judge real packets: many probes at once, both families.

    outside -- n1 -- n2        each node: the bridge podwire0 with half of the pods

A probe is a first packet: a TCP handshake, a datagram, an SCTP INIT or an ICMP echo. All probes of a round are sent by
one thread on one CPU. A packet passes veth devices in the order in which it was sent, so packets that follow it and
that no policy judges (of the node to its own pods) tell that what has not arrived by then was dropped.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pyroute2 import IPRoute

from podwire_base.kernel.frames import checksum
from podwire_base.kernel.netns import in_thread, setns
from podwire_policy.apply import Tables
from podwire_policy.testing import table, worlds
from podwire_policy.testing.judge import NodeJudge
from podwire_policy.testing.oracle import World

from .netns import Lab, NetNS, usable
from .patience import wait_until

SLOTS = range(1, 17)  # pods: the numbers that worlds.addresses gives; those of the table are FIRST and more
FIRST = 6
PORTS = tuple(sorted({*worlds.PORTS, *table.PORTS}))
OUTSIDE = (*worlds.OUTSIDE, *table.OUTSIDE)
GATEWAY = ("169.254.1.1", "fe80::1:1")
LINKS = {"n1": ("198.18.0.1", "fd00:18::1"), "n2": ("198.18.0.2", "fd00:18::2")}
BETWEEN = ("198.18.1.1/24 fd00:19::1/64", "198.18.1.2/24 fd00:19::2/64")
LINK = 253  # the scope of a route without a gateway
SENTINELS, SENTINEL_PORT = 12, 7007  # a handshake over two nodes passes nine devices
_ESTABLISHED, _CLOSE_WAIT = 1, 8  # TCP_*
_TCP_INFO, _LINGER = 11, struct.pack("ii", 1, 0)
_RCVBUFFORCE = 33
_SCTP, _ECHO = 132, {socket.AF_INET: (socket.IPPROTO_ICMP, 8), socket.AF_INET6: (socket.IPPROTO_ICMPV6, 128)}


class Probe(NamedTuple):
    """The first packet of a flow between two addresses. protocol: TCP, UDP, SCTP or ICMP."""

    src: str
    dst: str
    protocol: str
    port: int


def addresses(slot: int) -> tuple[str, ...]:
    found = [*worlds.addresses(slot)]
    if 0 <= slot - FIRST < len(table.PODS):
        found += [table.address(table.PODS[slot - FIRST], family) for family in ("ip", "ip6")]
    return tuple(dict.fromkeys(found))


def node_of(slot: int) -> str:
    return worlds.NODES[slot % 2]


def _family(ip: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


@dataclass
class Host:
    """A pod, or the machine outside. Its sockets are in its namespace."""

    ns: NetNS
    node: str
    ips: tuple[str, ...]
    listeners: list[socket.socket] = field(default_factory=list)  # TCP
    receivers: list[tuple[socket.socket, int]] = field(default_factory=list)  # with the bytes before the payload
    sentinel: socket.socket | None = None

    def listen(self) -> None:
        for family in (socket.AF_INET, socket.AF_INET6):
            for port in PORTS:
                tcp, udp = socket.socket(family, socket.SOCK_STREAM), socket.socket(family, socket.SOCK_DGRAM)
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                for sock in (tcp, udp):
                    if family == socket.AF_INET6:
                        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    sock.setblocking(False)
                    sock.bind(("", port))
                tcp.listen(512)
                self.listeners.append(tcp)
                self.receivers.append((udp, 0))
            header = 20 if family == socket.AF_INET else 0
            for protocol, more in ((_SCTP, 12), (_ECHO[family][0], 8)):
                raw = socket.socket(family, socket.SOCK_RAW, protocol)
                raw.setblocking(False)
                self.receivers.append((raw, header + more))
        for sock, _ in self.receivers:
            sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 22)
        self.sentinel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sentinel.bind(("", SENTINEL_PORT))
        self.sentinel.settimeout(10)

    def arrived(self) -> set[int]:
        """Takes what came. Returns the numbers of the probes."""
        found = set[int]()
        for sock, before in self.receivers:
            with contextlib.suppress(BlockingIOError):
                while True:
                    data = sock.recv(256)[before:]
                    if len(data) == 8 and data[:4] == b"PWPR":
                        found.add(int.from_bytes(data[4:], "big"))
        for sock in self.listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.accept()[0].close()
        return found

    def close(self) -> None:
        for sock in (*self.listeners, *(sock for sock, _ in self.receivers), self.sentinel):
            if sock is not None:
                sock.close()


class RealNode(NodeJudge):
    """A node whose plans are committed to the kernel of its namespace."""

    tables: Tables

    def whole(self) -> int:
        self.compiler.flush()
        return self.tables.full(self.compiler.compiled)

    def change(self) -> int:
        return self.tables.change(self.compiler.compiled, self.compiler.flush())


class PolicyWorld:
    """The nodes and pods. They stay; `load` puts another cluster's objects on them."""

    def __init__(self, lab: Lab) -> None:
        self.nodes = {name: lab.router(name) for name in worlds.NODES}
        for node in self.nodes.values():
            node.netlink(lambda ipr: ipr.link("add", ifname="podwire0", kind="bridge"))
        first, second = self.nodes.values()
        lab.wire(first, "n2", second, "n1", *(f"{v4}/24 {v6}/64" for v4, v6 in LINKS.values()))
        self.hosts = [Host(lab.netns(f"p{slot}"), node_of(slot), addresses(slot)) for slot in SLOTS]
        self.outside = Host(lab.netns("outside"), "", OUTSIDE)
        lab.wire(first, "world", self.outside.ns, "eth0", *BETWEEN)
        for slot, host in zip(SLOTS, self.hosts, strict=True):
            self._attach(slot, host)
        for name, node in self.nodes.items():
            node.netlink(lambda ipr, name=name: self._route(ipr, name))  # type: ignore[misc]  # bound now
        self.outside.ns.netlink(self._route_outside)
        self.by_address = {ip: host for host in (*self.hosts, self.outside) for ip in host.ips}
        usable(*self.nodes.values(), *(host.ns for host in (*self.hosts, self.outside)))
        for host in (*self.hosts, self.outside):
            host.ns.call(host.listen)
            host.ns.on_close(host.close)
        self.tables = {name: Tables(node.fd) for name, node in self.nodes.items()}
        for name, node in self.nodes.items():
            node.on_close(self.tables[name].close)
        self.judges: list[RealNode] = []
        self._numbers = itertools.count(1)
        self._warm()

    def _attach(self, slot: int, host: Host) -> None:
        """Wires a pod as the CNI plugin does: addresses of full length, and everything by way of the node."""
        node, name = self.nodes[host.node], f"pod{slot}"
        node.netlink(
            lambda ipr: ipr.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": host.ns.fd})
        )
        host.ns.sysctl("net/ipv6/conf/eth0/accept_dad", "0")
        host.ns.sysctl("net/ipv6/conf/eth0/accept_redirects", "0")  # the wiring keeps redirects from pods

        def up(ipr: IPRoute) -> None:
            bridge, port = ipr.link_lookup(ifname="podwire0")[0], ipr.link_lookup(ifname=name)[0]
            ipr.link("set", index=port, master=bridge, state="up")

        def inside(ipr: IPRoute) -> None:
            index = ipr.link_lookup(ifname="eth0")[0]
            ipr.link("set", index=index, state="up")
            for ip in host.ips:
                ipr.addr("add", index=index, address=ip, prefixlen=128 if ":" in ip else 32)
            for gateway in GATEWAY:
                family = _family(gateway)
                near = {} if ":" in gateway else {"scope": LINK}
                ipr.route("add", dst=f"{gateway}/{128 if ':' in gateway else 32}", oif=index, family=family, **near)
                ipr.route("add", dst="default", gateway=gateway, oif=index, family=family)

        node.netlink(up)
        host.ns.netlink(inside)

    def _route(self, ipr: IPRoute, name: str) -> None:
        bridge = ipr.link_lookup(ifname="podwire0")[0]
        ipr.link("set", index=bridge, state="up")
        for gateway in GATEWAY:
            ipr.addr("add", index=bridge, address=gateway, prefixlen=128 if ":" in gateway else 32)
        other = LINKS["n2" if name == "n1" else "n1"]
        for host in self.hosts:
            for ip in host.ips:
                dst = f"{ip}/{128 if ':' in ip else 32}"
                how: dict[str, object] = {"oif": bridge} if host.node == name else {"gateway": other[":" in ip]}
                ipr.route("add", dst=dst, family=_family(ip), **how)
        world = ("198.18.1.2", "fd00:19::2")
        for ip in OUTSIDE:
            how = {"gateway": (world if name == "n1" else other)[":" in ip]}
            ipr.route("add", dst=f"{ip}/{128 if ':' in ip else 32}", family=_family(ip), **how)

    def _route_outside(self, ipr: IPRoute) -> None:
        index = ipr.link_lookup(ifname="eth0")[0]
        for ip in OUTSIDE:
            ipr.addr("add", index=index, address=ip, prefixlen=128 if ":" in ip else 32)
        for gateway in ("198.18.1.1", "fd00:19::1"):
            ipr.route("add", dst="default", gateway=gateway, family=_family(gateway))

    def _warm(self) -> None:
        """Makes every neighbour known, so that no probe waits for one."""

        def known() -> bool:
            probes = [
                Probe(OUTSIDE[0] if ":" not in ip else OUTSIDE[2], ip, "UDP", 80) for h in self.hosts for ip in h.ips
            ]
            probes += [Probe(one.dst, one.src, "UDP", 80) for one in probes]
            return all(self.passed(probes, [False] * len(probes)))

        wait_until(known, "every pod and the machine outside reach each other")

    # Judging

    def load(self, world: World) -> None:
        """Puts the objects of a cluster on both nodes, as a role that starts does."""
        self.judges = []
        for name, tables in self.tables.items():
            judge = RealNode(name)
            judge.tables = tables
            judge.take_all(world)
            judge.whole()
            self.judges.append(judge)

    def passed(self, probes: Sequence[Probe], expected: Sequence[bool]) -> list[bool]:
        """Sends the probes. Returns which arrived. For those that are expected it waits for a while."""
        return in_thread(lambda: self._round(probes, expected))

    def _round(self, probes: Sequence[Probe], expected: Sequence[bool]) -> list[bool]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        numbers = [next(self._numbers) for _ in probes]
        tcp: dict[int, socket.socket] = {}
        by_source: dict[str, list[int]] = {}
        for at, probe in enumerate(probes):
            by_source.setdefault(probe.src, []).append(at)
        with contextlib.ExitStack() as stack:
            for src, those in by_source.items():
                setns(self.by_address[src].ns.fd)
                for at in those:
                    sock = _send(probes[at], numbers[at])
                    stack.callback(sock.close)
                    if probes[at].protocol == "TCP":
                        tcp[at] = sock
            found = set[int]()

            def seen(at: int) -> bool:
                return _connected(tcp[at]) if at in tcp else numbers[at] in found

            def all_there() -> bool:
                for host in (*self.hosts, self.outside):
                    found.update(host.arrived())
                return all(seen(at) for at, wanted in enumerate(expected) if wanted)

            with contextlib.suppress(AssertionError):  # the answer says which did not come
                wait_until(all_there, "the probes arrive", 15)
            self._sentinels()
            all_there()
            return [seen(at) for at in range(len(probes))]

    def _sentinels(self) -> None:
        for _ in range(SENTINELS):
            for name, node in self.nodes.items():
                setns(node.fd)
                host = next(host for host in self.hosts if host.node == name)
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"x", (host.ips[0], SENTINEL_PORT))
                assert host.sentinel is not None
                host.sentinel.recv(16)


def _send(probe: Probe, number: int) -> socket.socket:
    """Sends from the namespace of the thread. Returns the socket."""
    family, payload = _family(probe.dst), b"PWPR" + number.to_bytes(4, "big")
    if probe.protocol == "TCP":
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        sock.setblocking(False)
        sock.bind((probe.src, 0))
        sock.connect_ex((probe.dst, probe.port))
        return sock
    if probe.protocol == "UDP":
        sock, body, port = socket.socket(family, socket.SOCK_DGRAM), payload, probe.port
    elif probe.protocol == "SCTP":
        sock, port = socket.socket(family, socket.SOCK_RAW, _SCTP), 0
        body = struct.pack("!HHII", 20000 + number % 40000, probe.port, 0, 0) + payload
    else:
        protocol, kind = _ECHO[family]
        sock, port = socket.socket(family, socket.SOCK_RAW, protocol), 0
        body = struct.pack("!BBHHH", kind, 0, 0, number & 0xFFFF, 1) + payload
        body = body[:2] + checksum(body) + body[4:]  # the kernel replaces it in ICMPv6
    sock.bind((probe.src, 0))
    sock.sendto(body, (probe.dst, port))
    return sock


def _connected(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] in (_ESTABLISHED, _CLOSE_WAIT)

"""Queries as resolver libraries send them: pairs from one socket, pipelined TCP, and garbage, over real sockets."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest

from lab.dnsnode import DNS_ADDRESS, NAMESPACES, SERVICES, DnsNode, eventually
from lab.dnsupstream import Upstream
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient
from podwire_dns.testing.fuzz import mutate, seeds

NAME = "web.default.svc.cluster.local."
MISSING = "web.default.svc.cluster.local.default.svc.cluster.local."
LARGEST_UDP = 1232


@pytest.fixture
def pod(lab: Lab, tmp_path: Path) -> Iterator[tuple[NetNS, DnsNode, Upstream]]:
    """(a pod's namespace, its node's DNS, the upstream)."""
    node, made, outside = lab.netns("node"), lab.netns("pod"), lab.netns("upstream")
    lab.wire(node, "pod0", made, "eth0", "10.244.0.1/24", "10.244.0.2/24")
    lab.wire(node, "eth0", outside, "eth0", "192.0.2.1/24", "192.0.2.53/24")
    made.run(["ip", "route", "add", "default", "via", "10.244.0.1"])
    with FakeApi(node) as api, Upstream(outside, "192.0.2.53") as upstream:
        api.put(NAMESPACES, {"metadata": {"name": "default"}})
        api.put(
            SERVICES,
            {
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {
                    "clusterIP": "10.96.3.7",
                    "clusterIPs": ["10.96.3.7"],
                    "ports": [{"name": "http", "port": 80}],
                },
            },
        )
        with DnsNode(node, api, tmp_path, [upstream], []) as world:
            world.start("server")
            world.start("feeder")
            eventually(world.is_ready, "the server has the zone")
            yield made, world, upstream


def pairs(count: int, *, connected: bool) -> int:
    """A and AAAA of one name at once from a fresh socket, as glibc (connected) and musl (not) do; returns the number of
    pairs with both answers.

    No query is repeated: an answer that is missing, or later than a resolver's time-out, counts as lost.
    """
    good = 0
    for turn in range(count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patient(5))
            name = (NAME, MISSING)[turn % 2]
            first, second = (
                dns.message.make_query(name, rtype, id=turn * 2 + at & 0xFFFF).to_wire()
                for at, rtype in enumerate(("A", "AAAA"))
            )
            if connected:
                sock.connect((DNS_ADDRESS, 53))
            for data in (first, second):
                sock.send(data) if connected else sock.sendto(data, (DNS_ADDRESS, 53))
            try:
                got = {sock.recv(4096)[:2] for _ in range(2)}
            except TimeoutError:
                continue
            good += got == {first[:2], second[:2]}
    return good


@pytest.mark.parametrize("connected", [True, False], ids=["glibc", "musl"])
def test_pairs_from_one_socket(pod: tuple[NetNS, DnsNode, Upstream], connected: bool) -> None:
    assert pod[0].call(lambda: pairs(1000, connected=connected)) == 1000
    entries = pod[1].node.run(["conntrack", "-L", "-p", "udp", "--dport", "53"], check=False).stdout
    assert DNS_ADDRESS not in entries, "a query has a conntrack entry, for which another can race"


@pytest.mark.long
@pytest.mark.parametrize("connected", [True, False], ids=["glibc", "musl"])
def test_pairs_from_one_socket_whole(pod: tuple[NetNS, DnsNode, Upstream], connected: bool) -> None:
    assert pod[0].call(lambda: pairs(10_000, connected=connected)) == 10_000


def framed(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def test_tcp_answers_come_as_they_are_ready(pod: tuple[NetNS, DnsNode, Upstream]) -> None:
    """A query whose upstream is silent does not delay the next one on the same connection (RFC 7766 6.2.1.1)."""
    pod[2].mode = "silent"
    slow, quick = dns.message.make_query("n1.example.com.", "A"), dns.message.make_query(NAME, "A")

    def ask() -> list[int]:
        with socket.create_connection((DNS_ADDRESS, 53), timeout=patient(10)) as sock, sock.makefile("rb") as stream:
            sock.sendall(framed(slow.to_wire()) + framed(quick.to_wire()))
            first = dns.message.from_wire(stream.read(int.from_bytes(stream.read(2))))
            pod[2].mode = "good"
            second = dns.message.from_wire(stream.read(int.from_bytes(stream.read(2))))
        return [first.id, second.id]

    assert pod[0].call(ask) == [quick.id, slow.id]


def garbage(count: int, seed: int) -> None:
    """Corrupted queries over UDP and TCP: no answer to an answer, none larger than a UDP answer may be."""
    rand, start = random.Random(seed), seeds()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((DNS_ADDRESS, 53))
        sock.setblocking(False)
        for turn in range(count):
            data = mutate(rand.choice(start), rand)
            if data:
                sock.send(data)
            if turn % 50 == 0:
                tcp(data, rand)
            try:
                while True:
                    answer = sock.recv(65535)
                    assert len(answer) <= LARGEST_UDP
                    assert answer[2] & 0x80
            except BlockingIOError:
                pass  # all read that has come


def tcp(data: bytes, rand: random.Random) -> None:
    with socket.create_connection((DNS_ADDRESS, 53), timeout=patient(5)) as sock:
        sock.sendall(rand.choice((framed(data), data[:40], framed(data)[:-1], b"\xff\xff" + data)))
        if rand.random() < 0.5:
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65535):
                pass


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.long)])
def test_garbage_over_udp_and_tcp(pod: tuple[NetNS, DnsNode, Upstream], count: int) -> None:
    made, world, _ = pod
    process = world.processes["server"]
    made.call(lambda: garbage(count, count))
    assert process.poll() is None, "the server ended"
    assert "query failed" not in world.logs()
    eventually(
        lambda: made.call(lambda: pairs(1, connected=True)) == 1, "what was sent is read: the queue has room again"
    )
    assert made.call(lambda: pairs(10, connected=True)) == 10


def test_an_upstream_that_sends_queries_back_is_found_out(lab: Lab, tmp_path: Path) -> None:
    node = lab.netns("node")
    with FakeApi(node) as api:
        api.put(NAMESPACES, {"metadata": {"name": "default"}})
        flags = ["--listen", DNS_ADDRESS, "--listen", "10.96.0.11", "--upstream", "127.0.0.1"]
        node.run(["ip", "link", "set", "lo", "up"])
        # The effect of an upstream that points back at us: its queries arrive at our own address.
        script = "add table ip back; add chain ip back out { type nat hook output priority -100; }; "
        node.run(["nft", script + "add rule ip back out ip daddr 127.0.0.1 udp dport 53 dnat to 10.96.0.11"])
        with DnsNode(node, api, tmp_path, [], [*flags, "--no-notrack"]) as world:
            world.start("server")
            world.start("feeder")
            eventually(lambda: world.status("dns").get("reason") == "ForwardingLoop", "the loop is found out")
            eventually(lambda: "sends queries back to this DNS" in world.logs(), "and said once")

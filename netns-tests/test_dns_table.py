"""The whole conformance table over real UDP and TCP sockets, with dnspython and dig as clients; also garbage and
faults."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from lab.dnsnode import DNS_ADDRESS, NAMESPACES, SERVICES, SLICES, DnsNode, eventually
from lab.dnsupstream import Upstream
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.patience import patient
from podwire_dns import forward
from podwire_dns.testing import cases, judge
from podwire_dns.testing.cases import SVC
from podwire_dns.testing.fuzz import mutate, seeds

WEB = f"svc1.{SVC}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsNode]:
    with Lab() as lab:
        node, outside, other = lab.netns("node"), lab.netns("upstream"), lab.netns("upstream 2")
        lab.wire(node, "eth0", outside, "eth0", "192.0.2.1/24", "192.0.2.53/24")
        lab.wire(node, "eth1", other, "eth0", "198.18.0.1/24", "198.18.0.53/24")
        with FakeApi(node) as api, Upstream(outside, "192.0.2.53") as first, Upstream(other, "198.18.0.53") as second:
            for path, objects in ((NAMESPACES, cases.NAMESPACES), (SERVICES, cases.SERVICES), (SLICES, cases.SLICES)):
                for obj in objects:
                    api.put(path, obj)
            with DnsNode(
                node,
                api,
                tmp_path_factory.mktemp("run"),
                [first, second],
                ["--service-cidr", "10.96.0.0/16", "--service-cidr", "fd00:96::/112"],
            ) as made:
                made.start("server")
                made.start("feeder")
                eventually(made.is_ready, "the server has the zone")
                yield made


@pytest.fixture(autouse=True)
def good_upstreams(world: DnsNode) -> None:
    for upstream in world.upstreams:
        upstream.mode = "good"


def answered(world: DnsNode) -> bool:
    query = dns.message.make_query(WEB, "A")
    try:
        return bool(world.node.call(lambda: dns.query.udp(query, DNS_ADDRESS, timeout=1)).answer)
    except dns.exception.Timeout:
        return False


def exchange(world: DnsNode, data: bytes, *, tcp: bool) -> bytes:
    """One message there and back, as raw bytes."""

    def work() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
            sock.settimeout(patient(15))  # an answer that no upstream gives comes after 4
            sock.connect((DNS_ADDRESS, 53))
            sock.sendall((struct.pack("!H", len(data)) if tcp else b"") + data)
            if not tcp:
                return sock.recv(65535)
            stream = sock.makefile("rb")
            return stream.read(int.from_bytes(stream.read(2)))

    return world.node.call(work)


# On the running server these go on to an upstream; test_forward and test_dns_serving test them with one.
LOCAL = [case for case in cases.CASES if not (case.name == f"ext.{SVC}" and case.rtype in ("A", "AAAA"))]


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_the_table_with_dnspython(world: DnsNode, tcp: bool) -> None:
    for case in LOCAL:
        data = exchange(
            world, dns.message.make_query(case.name, case.rtype, use_edns=0, payload=1232).to_wire(), tcp=tcp
        )
        try:
            judge.check(case, data)
        except AssertionError as err:
            raise AssertionError(f"{case}: {err}") from err


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_the_table_with_dig(world: DnsNode, tcp: bool) -> None:
    questions = [word for case in LOCAL for word in (case.name, case.rtype)]
    out = world.node.run(
        ["dig", f"@{DNS_ADDRESS}", "+tcp" if tcp else "+notcp", "+nocmd", "+nostats", "+tries=1", *questions],
        timeout=60,
    ).stdout
    blocks = out.split(";; Got answer:")[1:]
    assert len(blocks) == len(LOCAL)
    assert ";; Warning" not in out
    for case, block in zip(LOCAL, blocks, strict=True):
        assert f"status: {case.rcode}," in block, f"{case}\n{block}"
        answer = block.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0].splitlines() if case.answer else []
        told = {" ".join(line.split()).replace(" IN ", " ", 1) for line in answer}
        assert told == set(case.answer), f"{case}\n{block}"
        assert ("SOA" in block) == (not case.answer or case.rtype == "SOA"), f"{case}\n{block}"


def test_several_queries_on_one_connection_slow_ones_do_not_hold_up_the_rest(world: DnsNode) -> None:
    world.upstreams[0].mode = "silent"  # the second one answers after the first one's time-out
    slow, fast = dns.message.make_query("n1.example.com.", "A", id=1), dns.message.make_query(WEB, "A", id=2)
    both = slow.to_wire(prepend_length=True) + fast.to_wire(prepend_length=True)

    def work() -> list[bytes]:
        with socket.create_connection((DNS_ADDRESS, 53), patient(15)) as sock:
            sock.sendall(both)  # at once: the fast query is to wait behind the slow one
            sock.shutdown(socket.SHUT_WR)
            stream = sock.makefile("rb")
            return [stream.read(int.from_bytes(stream.read(2))) for _ in range(2)]

    answers = [dns.message.from_wire(data) for data in world.node.call(work)]
    assert [a.id for a in answers] == [2, 1]
    assert all(a.answer for a in answers)


def test_a_query_in_single_bytes_and_a_connection_that_says_nothing(world: DnsNode) -> None:
    query = dns.message.make_query(WEB, "A")

    def work() -> bytes:
        server = (DNS_ADDRESS, 53)
        with socket.create_connection(server, patient(15)), socket.create_connection(server, patient(15)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in query.to_wire(prepend_length=True):
                sock.sendall(bytes((byte,)))
            stream = sock.makefile("rb")
            return stream.read(int.from_bytes(stream.read(2)))

    assert dns.message.from_wire(world.node.call(work)).answer


def test_garbage_over_udp_and_tcp_and_it_serves_on(world: DnsNode) -> None:
    rand, start = random.Random(5), seeds()
    packets = [mutate(rand.choice(start), rand) for _ in range(2000)]

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((DNS_ADDRESS, 53))
            for number, packet in enumerate(packets):
                sock.send(packet)
                if number % 50 == 49:
                    time.sleep(0.005)  # leave room in the receive buffer: this test is about content, not about load
        for packet in packets[:200]:
            with socket.create_connection((DNS_ADDRESS, 53), patient(15)) as tcp:
                tcp.sendall(struct.pack("!H", rand.choice((len(packet), 65535, 1))) + packet)

    world.node.call(work)
    eventually(lambda: answered(world), "what was sent is read: the queue has room again")
    for tcp in (False, True):
        data = exchange(world, dns.message.make_query(WEB, "A").to_wire(), tcp=tcp)
        assert dns.message.from_wire(data).answer
    assert "query failed" not in world.logs()
    assert world.processes["server"].poll() is None


def test_an_answer_gets_no_answer(world: DnsNode) -> None:
    def work() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patient(15))
            sock.connect((DNS_ADDRESS, 53))
            reply = dns.message.make_response(dns.message.make_query(WEB, "A", id=1))
            sock.send(reply.to_wire())
            sock.send(dns.message.make_query(WEB, "A", id=2).to_wire())
            return sock.recv(4096)

    assert dns.message.from_wire(world.node.call(work)).id == 2


def _ask(world: DnsNode, name: str, rtype: str = "A") -> dns.message.Message:
    return dns.message.from_wire(exchange(world, dns.message.make_query(name, rtype).to_wire(), tcp=False))


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("silent", "n11.example.com."),
        ("servfail", "n12.example.com."),
        ("truncate", "n13.example.com."),
        ("lie", "n14.example.com."),
    ],
)
def test_an_upstream_that_misbehaves(world: DnsNode, mode: str, name: str) -> None:
    world.upstreams[0].mode = mode
    answer = _ask(world, name)
    assert [r.address for rrset in answer.answer for r in rrset] == [f"198.51.100.{name[1:3]}"]


def test_no_upstream_answers(world: DnsNode) -> None:
    for upstream in world.upstreams:
        upstream.mode = "silent"
    assert _ask(world, "n21.example.com.").rcode() == dns.rcode.SERVFAIL
    assert _ask(world, WEB).rcode() == dns.rcode.NOERROR
    for upstream in world.upstreams:
        upstream.mode = "good"
    assert _ask(world, "n21.example.com.").rcode() == dns.rcode.SERVFAIL, "a failure is kept for 5 s"
    assert _ask(world, "n22.example.com.").answer


def test_one_flight_for_many_questions_and_then_the_cache(world: DnsNode) -> None:
    name, query = "n31.example.com.", dns.message.make_query("n31.example.com.", "A")
    asked: Callable[[], int] = lambda: sum(u.asked.count(name) for u in world.upstreams)  # noqa: E731 - one line of test

    def work() -> set[Any]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patient(15))
            sock.connect((DNS_ADDRESS, 53))
            for _ in range(50):
                sock.send(query.to_wire())
            return {sock.recv(4096) for _ in range(50)}

    assert all(dns.message.from_wire(data).answer for data in world.node.call(work))
    # One query to the upstream. An upstream that was down may get a probe with the same question, and one that gets no
    # CPU time to answer gets the query again.
    assert 1 <= asked() <= forward.ROUNDS * len(world.upstreams)


def test_pairs_of_a_and_aaaa_from_one_socket(world: DnsNode) -> None:
    """glibc and musl send such pairs; no query may be lost or delayed."""
    pairs = 2000

    def work() -> int:
        good = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patient(5))
            sock.connect((DNS_ADDRESS, 53))
            for number in range(pairs):
                for offset, rtype in ((0, "A"), (1, "AAAA")):
                    sock.send(struct.pack("!H", number * 2 + offset) + PLAIN[rtype])
                got = {int.from_bytes(sock.recv(1232)[:2]) for _ in range(2)}
                good += got == {number * 2, number * 2 + 1}
        return good

    assert world.node.call(work) == pairs


PLAIN = {rtype: dns.message.make_query(WEB, rtype).to_wire()[2:] for rtype in ("A", "AAAA")}


def test_dns_leaves_no_trace_in_conntrack(world: DnsNode, lab: Lab) -> None:
    """From a pod's side of the node: with connection tracking active, queries and answers make no entry."""
    pod = lab.netns("pod")
    lab.wire(world.node, "pod0", pod, "eth0", "10.244.9.1/24", "10.244.9.2/24")
    pod.netlink(lambda ipr: ipr.route("add", dst="default", gateway="10.244.9.1"))
    rules = "table ip watch { chain in { type filter hook input priority 0; ct state new counter; }; }"
    world.node.run(["nft", f"add {rules}"])
    for tcp in (False, True):
        send = dns.query.tcp if tcp else dns.query.udp
        query = dns.message.make_query(WEB, "A")
        assert pod.call(partial(send, query, DNS_ADDRESS, timeout=patient(15))).answer
    entries = world.node.run(["conntrack", "-L"]).stdout
    assert f"dst={DNS_ADDRESS}" not in entries

    def other_port() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (DNS_ADDRESS, 5353))

    pod.call(other_port)
    assert "dport=5353" in world.node.run(["conntrack", "-L"]).stdout, (
        "conntrack is not active: the test proves nothing"
    )


def test_cleanup_takes_address_and_rules_away(lab: Lab, tmp_path: Path) -> None:
    node = lab.netns("node")
    with FakeApi(node) as api, DnsNode(node, api, tmp_path, [], []) as made:
        made.start("server")
        eventually(lambda: made.status("dns") != {}, "the server runs")
        assert DNS_ADDRESS in node.run(["ip", "addr", "show", "dev", "lo"]).stdout
        assert "podwire-dns" in node.run(["nft", "list", "tables"]).stdout
        made.kill("server")
        done = made.run("cleanup")
        assert DNS_ADDRESS in done.stdout
        assert DNS_ADDRESS not in node.run(["ip", "addr", "show", "dev", "lo"]).stdout
        assert node.run(["nft", "list", "tables"]).stdout == ""
        assert "nothing" in made.run("cleanup").stdout


def test_query_tells_where_an_answer_comes_from_and_why_there_is_none(world: DnsNode) -> None:
    def told(*words: str) -> str:
        return world.run("query", *words).stdout

    assert told(WEB) == f"{WEB} A: NOERROR\n  {WEB} 5 A 10.96.0.1\n  the A record comes from Service testns/svc1\n"
    assert "NXDOMAIN\n  because Service testns/asleep is headless and none of its 1 endpoints is ready" in told(
        f"asleep.{SVC}"
    )
    assert told("n41.example.com", "--no-explain").splitlines()[1].split() == [
        "n41.example.com.",
        "60",
        "A",
        "198.51.100.41",
    ]

"""Packets that the kernel drops, as `podwire drops` sees them: reason, addresses, namespace, the rule that decided, and
losses counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from lab.dataplane import Ours
from lab.netns import Lab
from lab.patience import patient
from lab.serviceworld import V6, World, ask
from podwire.drops.fold import Names, as_json
from podwire.drops.watch import watch
from podwire.explain.onnode import Place
from podwire_base.kernel.dropped import UDP, Dropped
from podwire_base.role import podspaces
from podwire_base.role.features import BPF_DROP_REASONS
from podwire_base.role.podspaces import PodSpace
from podwire_base.testing import features
from podwire_proxy.dataplane import Key
from podwire_proxy.ebpf import native, places
from podwire_proxy.ebpf.dropping import Tracer
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint_slice, port, service

CLOSED = 9  # a port where nobody listens
pytestmark = pytest.mark.skipif(native.code("drops") is None, reason="no clang at the build")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(autouse=True)
def clean(world: World) -> Iterator[None]:
    yield
    Ours("nftables").clean(world)


@contextlib.contextmanager
def tracing(*spaces: int) -> Iterator[Tracer]:
    with features.needed(BPF_DROP_REASONS):
        tracer = Tracer(spaces)
    with contextlib.closing(tracer):
        yield tracer


def until(tracer: Tracer, enough: Callable[[list[Dropped]], bool]) -> list[Dropped]:
    found, end = list[Dropped](), time.monotonic() + patient(10)
    poll = select.poll()
    poll.register(tracer.fileno(), select.POLLIN)
    while not enough(found):
        assert time.monotonic() < end, found[:5]
        poll.poll(100)
        found += tracer.read(10_000)
    return found


def send(world: World, source: str, ip: str, number: int = 1) -> None:
    def work() -> None:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(number):
                with contextlib.suppress(ConnectionRefusedError):
                    sock.sendto(b"?", (ip, CLOSED))

    world.client(source).call(work)


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
def test_a_datagram_to_a_closed_port_is_seen_where_it_is_dropped(world: World, v6: bool) -> None:
    source, to = ((V6[ip] if v6 else ip) for ip in (s.POD_A, s.POD_B))
    space = places.cookie(world.pods[s.POD_B].fd)
    with tracing(space) as tracer:
        send(world, s.POD_A, to)
        (one,) = until(tracer, bool)
        assert (one.reason, one.space) == ("NO_SOCKET", space)
        assert (one.packet.src, one.packet.dst, one.packet.protocol, one.packet.dport) == (source, to, UDP, CLOSED)
        assert abs(one.at - time.time()) < patient(10)
        names = world.client(s.POD_B).call(lambda: dict(socket.if_nameindex()))
        assert names[one.ifindex] == "eth0"


def test_other_namespaces_are_not_seen(world: World) -> None:
    with tracing(places.cookie(world.pods[s.POD_C].fd)) as tracer:
        send(world, s.POD_A, s.POD_B, 5)
        send(world, s.POD_A, s.POD_C)
        found = until(tracer, bool)
        assert [one.packet.dst for one in found] == [s.POD_C] and tracer.lost() == 0


def test_packets_for_which_the_ring_has_no_room_are_counted(world: World) -> None:
    """A datagram may be dropped on its way too, where a queue is full; each one is shown, or told as lost."""
    many = 12_000
    with tracing(*(places.cookie(ns.fd) for ns in (world.node, world.pods[s.POD_A], world.pods[s.POD_B]))) as tracer:
        send(world, s.POD_A, s.POD_B, many)
        lost = 0

        def all_told(found: list[Dropped]) -> bool:
            nonlocal lost
            lost += tracer.lost()
            return sum(one.packet.dport == CLOSED for one in found) + lost >= many

        until(tracer, all_told)
        assert lost > 0


def nowhere(v6: bool) -> s.Scenario:
    """A Service without endpoints."""
    objects = service("my-service", s.VIP, [port(s.PORT, "TCP", "t")]), endpoint_slice("my-service", [], [])
    one = s.Scenario("nowhere", objects, {})
    return one.v6() if v6 else one


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
def test_the_row_names_pod_service_and_the_rule_that_decided(
    world: World, v6: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    pod = world.pods[s.POD_A]
    at = os.fstat(pod.fd)
    space = PodSpace(at.st_dev, at.st_ino, f"/proc/self/fd/{pod.fd}", (s.POD_A,))
    podspaces.path(run_dir).write_text(podspaces.encode([space]))
    Ours("nftables").program(world, nowhere(v6))
    vip, source = (V6.get(ip, s._v6(ip)) if v6 else ip for ip in (s.VIP, s.POD_A))
    names = Names({source: "default/client"}, {Key(vip, "TCP", s.PORT): "default/my-service"})
    with features.needed(BPF_DROP_REASONS):
        found = watch([Place(f"/proc/self/fd/{world.node.fd}", "node1", run_dir)], names, patient(20), 0.1)
        with contextlib.closing(found):
            next(found)
            assert ask(world.client(s.POD_A), vip, s.PORT).result == "refused"
            rows = next(rows for rows, _, _ in found if any(row.first.packet.dst == vip for row in rows))
    told = json.loads(as_json(next(row for row in rows if row.first.packet.dst == vip), names))
    assert (told["reason"], told["kernelReason"]) == ("no-endpoints", "NETFILTER_DROP")
    assert (told["sourcePod"], told["service"], told["node"]) == ("default/client", "default/my-service", "node1")
    assert told["destinationPort"] == s.PORT and told["why"]

"""The socket hooks of the backend ebpf with real sockets, each trap of the design as a test.

Where a test flushes nftables' rules, only the hooks are left, so an answer proves that they serve. Session affinity,
refusals and all other rows are in test_proxy_conformance.py, where this backend is a column.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab import hookworld
from lab.dataplane import Hooks, Ours
from lab.netns import Lab, NetNS
from lab.patience import patient
from lab.serviceworld import SILENCE, V6, World, ask
from podwire_base.kernel.bpf import elf
from podwire_base.kube import meta
from podwire_base.role import files, podspaces
from podwire_base.role.podspaces import PodSpace
from podwire_proxy import backends
from podwire_proxy.backend import Live, families
from podwire_proxy.convert import RESET_ANNOTATION
from podwire_proxy.dataplane import Key
from podwire_proxy.decide import Packet
from podwire_proxy.ebpf import kernel, maps, native, places
from podwire_proxy.ebpf.backend import Ebpf
from podwire_proxy.model import Destination
from podwire_proxy.proxier import Engine, Proxier
from podwire_proxy.tally import Tallies
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

FAMILIES = ["IPv4", "IPv6", "mapped"]
each_family = pytest.mark.parametrize("family", FAMILIES)
each_kind = pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])


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
    Hooks().clean(world)


def scenario(*ips: Any, target: int = s.TARGET, reset: str = "", **spec: Any) -> s.Scenario:
    """Services at VIP, TCP and UDP. ips: addresses, or endpoints of a slice. reset: the Service's annotation."""
    ports = [port(s.PORT, "TCP", "t"), port(s.PORT, "UDP", "u")]
    slices = endpoint_slice(
        "my-service",
        [endpoint(ip, s.NODE) if isinstance(ip, str) else ip for ip in ips],
        [("t", "TCP", target), ("u", "UDP", target)],
    )
    made = service("my-service", s.VIP, ports, **spec)
    made["metadata"]["annotations"] = {RESET_ANNOTATION: reset} if reset else {}
    return s.Scenario("hooks", (made, slices), {})


def programmed(world: World, family: str, *ips: str, alone: bool = True, **spec: Any) -> s.Scenario:
    """alone: without nftables."""
    one = scenario(*ips, **spec)
    one = one.v6() if family == "IPv6" else one
    Hooks().program(world, one)
    if alone:
        world.node.run(["nft", "flush", "ruleset"])
    return one


def at(family: str, ip: str) -> str:
    return {"IPv4": ip, "IPv6": s._v6(ip), "mapped": f"::ffff:{ip}"}[family]


def made(family: str, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET if family == "IPv4" else socket.AF_INET6, kind)
    sock.settimeout(patient(3))
    return sock


@each_family
@each_kind
def test_a_connected_socket_reaches_an_endpoint_and_shows_the_service(
    world: World, family: str, kind: socket.SocketKind
) -> None:
    programmed(world, family, s.POD_B)
    dialled = (at(family, s.VIP), s.PORT)

    def work() -> tuple[str, tuple[str, int]]:
        with made(family, kind) as sock:
            sock.connect(dialled)
            if kind == socket.SOCK_DGRAM:
                sock.send(b"?")
                told, sender = sock.recvfrom(200)
                assert sender[:2] == dialled
            else:
                told = sock.recv(200)
            return told.decode(), sock.getpeername()[:2]

    told, peer = world.client(s.POD_A).call(work)
    v4 = family != "IPv6"
    assert told.split()[:3] == [s.POD_B if v4 else V6[s.POD_B], str(s.TARGET), s.POD_A if v4 else V6[s.POD_A]]
    assert peer == dialled


@each_family
def test_datagrams_without_connect_keep_their_endpoint_and_show_the_service(world: World, family: str) -> None:
    programmed(world, family, s.POD_B, s.POD_C)
    dialled = (at(family, s.VIP), s.PORT)

    def work() -> set[str]:
        found = set[str]()
        with made(family, socket.SOCK_DGRAM) as sock:
            for _ in range(10):
                sock.sendto(b"?", dialled)
                told, sender = sock.recvfrom(200)
                assert sender[:2] == dialled
                found.add(told.decode().split()[0])
        return found

    seen = [world.client(s.POD_A).call(work) for _ in range(12)]
    assert all(len(found) == 1 for found in seen), "a socket's datagrams go to one endpoint"
    assert len(set().union(*seen)) == 2, "and those of many sockets to all"


def test_a_socket_that_talks_to_the_endpoint_itself_is_shown_the_endpoint(world: World) -> None:
    programmed(world, "IPv4", s.POD_B)

    def work() -> tuple[str, int]:
        with made("IPv4", socket.SOCK_DGRAM) as sock:
            sock.sendto(b"?", (s.POD_B, s.TARGET))
            return tuple(sock.recvfrom(200)[1])

    assert world.client(s.POD_A).call(work) == (s.POD_B, s.TARGET)


def test_a_socket_that_is_connected_again_forgets_the_service(world: World) -> None:
    programmed(world, "IPv4", s.POD_B)

    def work() -> list[tuple[str, int]]:
        with made("IPv4", socket.SOCK_DGRAM) as sock:
            peers = []
            for where in ((s.VIP, s.PORT), (s.POD_B, s.TARGET), (s.VIP, s.PORT)):
                sock.connect(where)
                peers.append(sock.getpeername())
            return peers

    assert world.client(s.POD_A).call(work) == [(s.VIP, s.PORT), (s.POD_B, s.TARGET), (s.VIP, s.PORT)]


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_a_namespace_that_is_no_client_is_left_alone(world: World, family: str) -> None:
    """POD_C's sockets are in the same cgroup, as a container's of another network (Docker) would be."""
    one = programmed(world, family, s.POD_B, alone=False)
    vip = at(family, s.VIP)
    assert ask(world.client(s.POD_C), vip, s.PORT).result == "ok", "nftables serves it"
    world.node.run(["nft", "flush", "ruleset"])
    assert ask(world.client(s.POD_A), vip, s.PORT).result == "ok"
    assert ask(world.client(s.POD_C), vip, s.PORT, timeout=SILENCE).result != "ok"
    assert one.node.name


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@each_kind
def test_the_node_dials_with_the_source_that_masquerade_would_give(
    world: World, family: str, kind: socket.SocketKind
) -> None:
    protocol = "TCP" if kind == socket.SOCK_STREAM else "UDP"
    programmed(world, family, s.POD_B, alone=False)
    vip = at(family, s.VIP)
    own = s.NODE_IP if family == "IPv4" else V6[s.NODE_IP]
    bound = ask(world.node, vip, s.PORT, protocol, src=own)  # a source of its own: nftables masquerades
    world.node.run(["nft", "flush", "ruleset"])
    free = ask(world.node, vip, s.PORT, protocol)
    assert (free.result, free.server, free.peer) == ("ok", bound.server, bound.peer)
    assert ask(world.node, vip, s.PORT, protocol, src=own, timeout=SILENCE).result != "ok", "not by the hooks"


def test_a_pod_that_binds_another_address_is_left_to_nftables(world: World) -> None:
    programmed(world, "IPv4", s.POD_B, alone=False)
    pod = world.client(s.POD_A)
    pod.run(["ip", "addr", "add", "203.0.113.9/32", "dev", "lo"])
    try:
        assert ask(pod, s.VIP, s.PORT, src=s.POD_A).result == "ok"
        world.node.run(["nft", "flush", "ruleset"])
        assert ask(pod, s.VIP, s.PORT, src=s.POD_A).result == "ok", "its own address"
        assert ask(pod, s.VIP, s.PORT, src="203.0.113.9", timeout=SILENCE).result != "ok"
    finally:
        pod.run(["ip", "addr", "del", "203.0.113.9/32", "dev", "lo"])


def test_a_hairpin_connection_stays_in_the_pod(world: World) -> None:
    """The declared difference: the pod sees its own address, with nftables the node's."""
    programmed(world, "IPv4", s.POD_A)
    answer = ask(world.client(s.POD_A), s.VIP, s.PORT)
    assert (answer.result, answer.server, answer.peer) == ("ok", (s.POD_A, s.TARGET), s.POD_A)


def test_many_destinations_of_one_pod_cost_no_other_pod_its_answers(world: World) -> None:
    """100,000 datagrams of one pod through 200 Services: a socket of another pod still learns who answered."""
    objects: list[meta.Object] = []
    for n in range(200):
        objects.append(service(f"s{n}", f"10.96.7.{n}", [port(s.PORT, "UDP", "u")]))
        number = s.TARGET if n == 0 else 9  # nobody listens there
        objects.append(endpoint_slice(f"s{n}", [endpoint(s.POD_B, s.NODE)], [("u", "UDP", number)]))
    Hooks().program(world, s.Scenario("many", tuple(objects), {}))
    world.node.run(["nft", "flush", "ruleset"])

    def flood() -> None:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(made("IPv4", socket.SOCK_DGRAM)) for _ in range(20)]
            for n in range(100_000):
                socks[n % 20].sendto(b"", (f"10.96.7.{1 + n % 199}", s.PORT))

    with contextlib.closing(world.client(s.POD_B).call(lambda: made("IPv4", socket.SOCK_DGRAM))) as quiet:
        quiet.sendto(b"?", ("10.96.7.0", s.PORT))
        world.client(s.POD_A).call(flood)
        assert quiet.recvfrom(200)[1] == ("10.96.7.0", s.PORT)


def test_a_socket_with_more_destinations_than_it_remembers_is_served_by_nftables(world: World) -> None:
    """Each answer comes from the Service that was asked: from the hooks' memory, or translated back by conntrack."""
    vips = [f"10.96.7.{n}" for n in range(60)]
    objects: list[meta.Object] = []
    for n, vip in enumerate(vips):
        objects.append(service(f"s{n}", vip, [port(s.PORT, "UDP", "u")]))
        objects.append(endpoint_slice(f"s{n}", [endpoint(s.POD_B, s.NODE)], [("u", "UDP", s.TARGET)]))
    Hooks().program(world, s.Scenario("many", tuple(objects), {}))

    def work() -> None:
        with made("IPv4", socket.SOCK_DGRAM) as sock:
            for vip in vips:
                sock.sendto(b"?", (vip, s.PORT))
                assert sock.recvfrom(200)[1] == (vip, s.PORT)

    world.client(s.POD_A).call(work)


# ---- agents come and go


def connection(ns: NetNS, vip: str) -> socket.socket:
    def work() -> socket.socket:
        sock = made("IPv4", socket.SOCK_DGRAM)
        sock.connect((vip, s.PORT))
        return sock

    return ns.call(work)


def test_the_next_agent_takes_over_and_sockets_keep_what_they_dialled(world: World) -> None:
    programmed(world, "IPv4", s.POD_B)
    with contextlib.closing(connection(world.client(s.POD_A), s.VIP)) as sock:
        for _ in range(3):
            Hooks().program(world, scenario(s.POD_B))
            sock.send(b"?")
            assert sock.recvfrom(200)[1] == (s.VIP, s.PORT)
            assert sock.getpeername() == (s.VIP, s.PORT)


def test_no_connection_is_lost_while_agents_take_over(world: World) -> None:
    """nftables is flushed each time, so a moment without hooks would be a refused or lost connection."""
    backend, pod = hookworld.backend(world), world.client(s.POD_A)
    programmed(world, "IPv4", s.POD_B)
    read, write = os.pipe()

    def dial() -> None:
        bad = 0
        for _ in range(400):
            with made("IPv4", socket.SOCK_STREAM) as sock:
                try:
                    sock.connect((s.VIP, s.PORT))
                    bad += sock.getpeername() != (s.VIP, s.PORT)
                except OSError:
                    bad += 1
        os.write(write, b"%d" % bad)

    thread = threading.Thread(target=lambda: pod.call(dial))
    thread.start()
    while thread.is_alive():
        proxier = Proxier(backend, s.INFO, world.node.fd)
        proxier.close()
    thread.join()
    assert os.read(read, 10) == b"0"
    os.close(read)
    os.close(write)


def test_a_restart_writes_nothing_and_keeps_the_clients(world: World) -> None:
    one = scenario(s.POD_B, s.POD_C)
    Hooks().program(world, one)
    tracker = one.tracker()
    tracker.flush()
    proxier = Proxier(hookworld.backend(world), one.node, world.node.fd)
    with contextlib.closing(proxier):
        assert proxier.sync(tracker.dataplane, None).operations == 0
        known = proxier.kernel.hooks.clients()  # type: ignore[attr-defined]  # of this backend's kernel
        assert known >= set(hookworld.clients(world))


def test_a_pod_that_comes_is_served_when_pod_wiring_has_named_it(world: World, tmp_path: Path) -> None:
    """No timer takes part: the proxy hears of the file. A pod that went is no client any more."""

    def tell(*ips: str) -> None:
        at = [(world.pods[ip].fd, os.fstat(world.pods[ip].fd), ip) for ip in ips]
        found = [PodSpace(seen.st_dev, seen.st_ino, f"/proc/self/fd/{fd}", (ip, V6[ip])) for fd, seen, ip in at]
        files.write(podspaces.path(tmp_path), podspaces.encode(found))

    tell()
    one = scenario(s.POD_B)
    tracker = one.tracker()
    tracker.flush()
    proxier = Proxier(replace(hookworld.backend(world), run_dir=str(tmp_path)), one.node, world.node.fd)
    with contextlib.closing(proxier):
        proxier.sync(tracker.dataplane, None)
        proxier.sweep()
        (heard,) = [one for one in proxier.watch() if isinstance(one, kernel.Arrivals)]
        for number, ips in enumerate([(s.POD_A, s.POD_B), (s.POD_B,), (s.POD_A,)]):
            tell(*ips)
            assert select.select([heard.fileno()], [], [], 0)[0], "at once"
            assert heard.changed() is False
            before = to(counted(world)).get(s.POD_B, 0)
            assert ask(world.client(s.POD_A), s.VIP, s.PORT).result == "ok"
            assert to(counted(world))[s.POD_B] == before + (s.POD_A in ips), number


def test_pins_are_roots_alone_and_cleanup_removes_hooks(world: World) -> None:
    programmed(world, "IPv4", s.POD_B, alone=False)
    ((layout, folder),) = places.folders(world.node.fd)
    assert layout == maps.LAYOUT
    for path in (folder, folder.parent, folder.parent.parent):
        assert path.stat().st_mode & 0o777 == 0o700
    assert backends.existing(world.node.fd) == ["table ip podwire", f"socket hooks {folder}"]
    assert Ebpf().cleanup(world.node.fd) == [f"socket hooks {folder}"]
    assert not folder.parent.exists()
    assert Ebpf().existing(world.node.fd) == []
    world.node.run(["nft", "flush", "ruleset"])
    assert ask(world.client(s.POD_A), s.VIP, s.PORT, timeout=SILENCE).result != "ok", "no hook is left"


def test_a_later_layout_is_refused_by_name(world: World) -> None:
    programmed(world, "IPv4", s.POD_B)
    ((_, folder),) = places.folders(world.node.fd)
    later = folder.parent / str(maps.LAYOUT + 1)
    later.mkdir()
    assert f"layout {maps.LAYOUT + 1}" in Ebpf().newer(world.node.fd)
    places.remove(later)
    assert Ebpf().newer(world.node.fd) == ""


def test_a_switch_between_backends_loses_no_connection(world: World) -> None:
    one, pod = scenario(s.POD_B), world.client(s.POD_A)
    Hooks().program(world, one)
    for make in (Ours("nftables"), Hooks(), Ours("nftables")):
        with contextlib.closing(connection(pod, s.VIP)) as sock:
            sock.send(b"?")
            assert sock.recv(200)
            make.program(world, one)
            sock.send(b"?")
            assert sock.recv(200), make.name
            for _ in range(5):
                assert ask(pod, s.VIP, s.PORT).result == "ok", make.name
    assert places.folders(world.node.fd) == [], "nftables alone: the hooks are retired"


# ---- endpoints that are gone


@pytest.mark.parametrize("family", FAMILIES)
def test_a_udp_socket_of_an_endpoint_that_is_gone_ends_and_can_connect_again(world: World, family: str) -> None:
    """Beside it stay a socket that dialled the endpoint's own address, and one of another Service."""
    programmed(world, family, s.POD_B)
    pod, dialled = world.client(s.POD_A), (at(family, s.VIP), s.PORT)

    def sock(where: tuple[str, int]) -> socket.socket:
        one = made(family, socket.SOCK_DGRAM)
        one.connect(where)
        return one

    with contextlib.ExitStack() as stack:
        stale, direct = (
            stack.enter_context(pod.call(partial(sock, where))) for where in (dialled, (at(family, s.POD_B), s.TARGET))
        )
        stale.send(b"?")
        assert stale.recv(200)
        program_with_spaces(world, family, s.POD_C)
        with pytest.raises(OSError) as ended:
            stale.recv(200)
        assert ended.value.errno == errno.ECONNABORTED
        direct.send(b"?")
        assert direct.recv(200)
        pod.call(lambda: stale.connect(dialled))
        stale.send(b"?")
        told = stale.recv(200).decode().split()[0]
        assert told == (V6[s.POD_C] if family == "IPv6" else s.POD_C)


def test_a_socket_keeps_an_endpoint_that_stays_or_still_serves(world: World) -> None:
    programmed(world, "IPv4", s.POD_B)
    with contextlib.closing(connection(world.client(s.POD_A), s.VIP)) as sock:
        program_with_spaces(world, "IPv4", s.POD_B, s.POD_C)
        ending = endpoint(s.POD_B, s.NODE, ready=False, serving=True, terminating=True)
        program_with_spaces(world, "IPv4", ending, s.POD_C)
        sock.send(b"?")
        assert sock.recv(200).decode().split()[0] == s.POD_B


@pytest.mark.parametrize("asked", [False, True], ids=["by default", "with the annotation"])
def test_a_tcp_connection_ends_only_if_its_service_asks(world: World, asked: bool) -> None:
    spec: dict[str, Any] = {"reset": "true"} if asked else {}
    listener = world.client(s.POD_B).call(lambda: socket.create_server((s.POD_B, s.TARGET + 7)))
    with contextlib.closing(listener), contextlib.ExitStack() as stack:
        listener.settimeout(patient(3))
        program_with_spaces(world, "IPv4", s.POD_B, target=s.TARGET + 7, **spec)

        def dial() -> socket.socket:
            sock = made("IPv4", socket.SOCK_STREAM)
            sock.connect((s.VIP, s.PORT))
            return sock

        sock = stack.enter_context(world.client(s.POD_A).call(dial))
        conn = stack.enter_context(listener.accept()[0])
        program_with_spaces(world, "IPv4", s.POD_C, target=s.TARGET + 7, **spec)
        conn.sendall(b"after") if not asked else None
        if asked:
            with pytest.raises(ConnectionAbortedError):
                sock.recv(5)
        else:
            assert sock.recv(5) == b"after"


def program_with_spaces(world: World, family: str, *ips: Any, target: int = s.TARGET, **spec: Any) -> None:
    """Change the Services as the next agent, older sockets being there, and sweep."""
    one = scenario(*ips, target=target, **spec)
    one = one.v6() if family == "IPv6" else one
    tracker = one.tracker()
    tracker.flush()
    with contextlib.closing(Hooks().proxier(world, one)) as proxier:
        proxier.kernel.spaces = lambda: [world.pods[ip].fd for ip in hookworld.CLIENTS]  # type: ignore[attr-defined]  # of this backend's kernel
        proxier.sync(tracker.dataplane, None)
        proxier.sweep()


# ---- counters


def counted(world: World) -> Tallies:
    found = kernel.observed_tallies(world.node.fd)
    assert found is not None
    return found


def to(found: Tallies) -> dict[str, int]:
    """Return the connections by endpoint, "" for those that are gone, or by reason."""
    return {row.to.ip if row.to else row.why: row.number for row in found.rows}


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_every_connection_counts_once_under_load(world: World, family: str) -> None:
    """Programs of both protocols dial at once from two processes; a datagram to the same endpoint is no connection."""
    dials, vip = 500, at(family, s.VIP)
    programmed(world, family, s.POD_B, s.POD_C)

    def dial() -> None:
        for _ in range(dials):
            with made(family, socket.SOCK_DGRAM) as sock:
                sock.connect((vip, s.PORT))
        with made(family, socket.SOCK_DGRAM) as sock:
            for _ in range(dials):
                sock.sendto(b"", (vip, s.PORT))

    threads = [threading.Thread(target=partial(world.client(s.POD_A).call, dial)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = counted(world)
    assert found.served == sum(to(found).values()) == 4 * (dials + 1)
    assert set(to(found)) == {at(family, s.POD_B), at(family, s.POD_C)} and found.uncounted == 0
    assert {row.key for row in found.rows} == {Key(vip, "UDP", s.PORT)}


def test_what_is_left_to_nftables_counts_by_reason(world: World) -> None:
    programmed(world, "IPv4", s.POD_B, alone=False, sessionAffinity="ClientIP")
    assert ask(world.client(s.POD_A), s.VIP, s.PORT).result == "ok"
    programmed(world, "IPv4", s.POD_B, alone=False)
    assert ask(world.client(s.POD_C), s.VIP, s.PORT).result == "ok"
    assert ask(world.node, s.VIP, s.PORT, src=s.NODE_IP).result == "ok"
    assert ask(world.client(s.POD_A), s.POD_B, s.TARGET).result == "ok"  # no Service: not counted
    found = counted(world)
    left = {"unserved": 1, "unknown-namespace": 1, "bound-socket": 1}
    assert to(found) == left and {why: n for why, n in (found.left or {}).items() if n} == left


def test_counts_of_endpoints_that_are_gone_stay_with_their_service(world: World) -> None:
    """A Service's sum never falls, whoever is the agent; a Service that is gone loses its rows."""
    programmed(world, "IPv4", s.POD_B, alone=False)
    assert [ask(world.client(s.POD_A), s.VIP, s.PORT).result for _ in range(3)] == ["ok"] * 3
    program_with_spaces(world, "IPv4", s.POD_B, s.POD_C)
    assert to(counted(world)) == {s.POD_B: 3}
    program_with_spaces(world, "IPv4", s.POD_C)
    assert to(counted(world)) == {"": 3}
    assert [ask(world.client(s.POD_A), s.VIP, s.PORT).result for _ in range(2)] == ["ok"] * 2
    program_with_spaces(world, "IPv4", s.POD_B)
    assert to(counted(world)) == {"": 5}
    Hooks().program(world, s.Scenario("none", (), {}))
    assert counted(world).rows == () and counted(world).served == 5


def test_the_page_of_metrics_has_the_services_connections(world: World) -> None:
    one = scenario(s.POD_B)
    Hooks().program(world, one)
    assert ask(world.client(s.POD_A), s.VIP, s.PORT).result == "ok"
    tracker = one.tracker()
    tracker.flush()
    with contextlib.closing(Hooks().proxier(world, one)) as proxier:
        proxier.sync(tracker.dataplane, None)
        found = {name: list(rows) for name, _, rows in proxier.figures()}
    labels = {"namespace": "default", "service": "my-service", "protocol": "TCP"}
    assert found["podwire_proxy_socket_hook_connections_total"] == [({**labels, "port": str(s.PORT)}, 1)]
    assert found["podwire_proxy_socket_hook_endpoint_connections_total"] == [
        ({**labels, "endpoint": f"{s.POD_B}:{s.TARGET}"}, 1)
    ]
    assert ({"reason": "bound-socket"}, 0) in found["podwire_proxy_socket_hook_left_to_nftables_total"]


# ---- `ask`: the very program on the very maps


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
def test_the_program_answers_as_the_trace_says(world: World, v6: bool) -> None:
    rows = [row.v6() if v6 else row for row in s.SCENARIOS]
    backend, chosen = hookworld.backend(world), 0
    with contextlib.closing(Hooks().proxier(world, rows[0])) as proxier:
        for one in rows:
            tracker = one.tracker()
            tracker.flush()
            planners = [backend.planner(family, one.node) for family in families(one.node)]
            Engine(planners, proxier.kernel).sync(tracker.dataplane, None)
            live = kernel.observed(world.node.fd)
            assert live is not None
            assert live.ask is not None
            for packet in one.expect:
                if packet.protocol not in maps.SERVED:
                    continue
                pod, node = at("IPv6" if v6 else "IPv4", s.POD_A), one.node.addresses[0]
                for who, src in ((maps.POD, pod), (maps.NODE, node)):
                    asked = replace(packet, src=src, node=who == maps.NODE)
                    found = answers(proxier, asked, who)
                    assert found == hooked(live, one, asked), (one.name, asked)
                    assert found == hooked(replace(live, ask=None), one, asked), (one.name, asked)
                    chosen += bool(found)
    assert chosen > 50, "the hooks serve a good part of the table"


def answers(proxier: Proxier, packet: Packet, who: int) -> set[Destination]:
    key = Key(packet.dst, packet.protocol, packet.port)  # type: ignore[arg-type]  # TCP or UDP
    hooks = proxier.kernel.hooks  # type: ignore[attr-defined]  # of this backend's kernel
    found = [hooks.ask(key, who, number) for number in range(8)]
    return {to for _, to in found if to is not None}


def hooked(live: Live, one: s.Scenario, packet: Packet) -> set[Destination]:
    traces = list(live.traces(packet, one.node))
    through = [trace for trace in traces if any("socket hook" in step for step in trace.steps)]
    return {to for trace in through for to, _ in trace.verdict.to}


def test_structures_have_the_size_that_the_programs_give_them(world: World) -> None:
    code = native.code("sock")
    assert code is not None
    found = elf.parse(code).maps
    assert (found["services"].key_size, found["services"].value_size) == (maps.SIZES["place"], maps.SIZES["service"])
    assert found["endpoints"].value_size == maps.SIZES["endpoint"]
    assert (found["services"].max_entries, found["endpoints"].max_entries) == (maps.SERVICES, maps.ENDPOINTS)
    assert found["clients"].value_size == maps.SIZES["client"]

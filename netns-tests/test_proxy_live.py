"""The running proxy: changes under traffic, restarts, foreign changes, stale UDP flows."""

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient
from lab.proxyrole import Running, argv, until
from lab.serviceworld import SILENCE, Answer, World, ask
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kube.meta import Object
from podwire_proxy import backends, main
from podwire_proxy.changes import Tracker
from podwire_proxy.proxier import Proxier
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

TABLE = nft.Table("ip", "podwire")
NODE: Object = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": s.NODE},
    "status": {"addresses": [{"type": "InternalIP", "address": s.NODE_IP}]},
}
SURE = 2.0  # seconds of silence after which no answer is expected; a slow answer must not be mistaken for that
BOTH = (endpoint(s.POD_B, s.NODE), endpoint(s.POD_C, "n2"))


def my_service(protocol: str = "TCP") -> Object:
    return service("my-service", s.VIP, [port(s.PORT, protocol, node_port=s.NODE_PORT)], type="NodePort")


def my_slice(*endpoints: Object, protocol: str = "TCP") -> Object:
    return endpoint_slice("my-service", endpoints, [("", protocol, s.TARGET)])


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    yield made
    made.close()


class Client:
    """Connects again and again from a pod until stopped; `answers` is everything that it got."""

    def __init__(self, ns: NetNS, dst: str, protocol: str = "TCP") -> None:
        self.answers: list[Answer] = []
        self._stop = threading.Event()

        # Each port once. A datagram of a reused port may be under way in the very flow that a sweep deletes because its
        # endpoint is gone; its answer would be lost. A real client retries; this one must not.
        ports = iter(range(10000, 32768)) if protocol == "UDP" else itertools.repeat(0)

        def loop() -> None:
            while not self._stop.is_set():
                # Longer than a TCP retransmission: only a packet that was lost for good counts as a failure.
                self.answers.append(ask(ns, dst, s.PORT, protocol, sport=next(ports)))

        self._thread = threading.Thread(target=loop)
        self._thread.start()

    def more(self, count: int = 20) -> None:
        seen = len(self.answers)
        until(lambda: len(self.answers) >= seen + count, "the client goes on")

    def stop(self) -> list[Answer]:
        self._stop.set()
        self._thread.join()
        return self.answers


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_growing_and_shrinking_lose_no_connection(world: World, protocol: str) -> None:
    grow_and_shrink(world, backends.proxier(s.INFO, world.node.fd), protocol, rounds=60)


def grow_and_shrink(world: World, proxier: Proxier, protocol: str, rounds: int) -> None:
    """Endpoints are added and removed while a client keeps connecting; one is always there."""
    tracker = Tracker(s.INFO)
    tracker.service("default/my-service", my_service(protocol))
    shapes = [(BOTH[0],), BOTH, (BOTH[1], BOTH[0]), (BOTH[1],)]
    tracker.slice("x", my_slice(*shapes[0], protocol=protocol))
    tracker.flush()
    proxier.sync(tracker.dataplane, None)
    client = Client(world.client(s.POD_A), s.VIP, protocol)
    for round_ in range(rounds):
        tracker.slice("x", my_slice(*shapes[round_ % len(shapes)], protocol=protocol))
        proxier.sync(tracker.dataplane, tracker.flush())
        client.more(3)
        proxier.sweep()
    answers = client.stop()
    proxier.close()
    assert {a.result for a in answers} == {"ok"}
    assert {a.server[0] for a in answers} == {s.POD_B, s.POD_C}


def test_the_role_follows_the_api_and_survives_restarts(world: World, tmp_path: Path) -> None:
    with FakeApi(world.node) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        api.apply(NODE, my_service(), my_slice(*BOTH))
        proxy = Running(world.node, kubeconfig, tmp_path)
        until(proxy.ready, "the first sync")
        client = Client(world.client(s.POD_A), s.VIP)
        client.more()
        dump = table(world)
        assert "stopped" in proxy.stop()
        client.more()
        with watched(world) as heard:
            proxy = Running(world.node, kubeconfig, tmp_path)
            until(proxy.ready, "the second start")
            client.more()
            assert not heard.changed(), "a restart without news writes nothing"
        proxy.stop(signal.SIGKILL)
        client.more()
        assert table(world) == dump
        assert {a.result for a in client.stop()} == {"ok"}
        api.apply(my_slice(BOTH[1]))  # a change while no proxy watches
        proxy = Running(world.node, kubeconfig, tmp_path)
        until(proxy.ready, "the third start")
        assert ask(world.client(s.POD_A), s.VIP, s.PORT).server[0] == s.POD_C
        check_changes(world, api)
        proxy.stop()
    assert main.cleanup(world.node.fd) == ["table ip podwire"]
    assert main.cleanup(world.node.fd) == []


def test_a_dry_run_prints_the_plan_and_writes_nothing(world: World, tmp_path: Path) -> None:
    with FakeApi(world.node) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        api.apply(NODE, my_service(), my_slice(*BOTH))
        done = world.node.run(argv(kubeconfig, tmp_path, "--dry-run"))
    assert f"{s.VIP} . tcp . {s.PORT} : goto lb2" in done.stdout
    assert f"{s.NODE_IP} . tcp . {s.NODE_PORT}" in done.stdout
    assert f"{s.VIP} . tcp . {s.PORT} . 1 : {s.POD_C} . {s.TARGET}" in done.stdout
    assert world.node.run(["nft", "list", "ruleset"]).stdout == ""


def test_ranges_of_pods_and_services_are_followed_live(world: World, tmp_path: Path) -> None:
    """ServiceCIDR objects and, with the detector NodeCIDR, the Node's podCIDRs: sets and rules change while the proxy
    runs.
    """
    path = "/apis/networking.k8s.io/v1/servicecidrs"

    def cidrs(name: str, *found: str) -> Object:
        return {"metadata": {"name": name}, "spec": {"cidrs": list(found)}}

    def pods(*found: str) -> Object:
        return {**NODE, "spec": {"podCIDRs": list(found)}}

    def seen_by_the_server() -> str:
        return ask(world.client(s.POD_A), s.VIP, s.PORT).peer

    def unused() -> str:
        return ask(world.client(s.POD_A), s.UNUSED, s.PORT, timeout=SURE).result

    world.outside.netlink(lambda ipr: ipr.addr("add", index=1, address=s.UNUSED, prefixlen=32))
    world.servers.listen(world.outside, s.UNUSED, s.PORT)
    with FakeApi(world.node) as api:
        api.apply(pods("10.244.0.0/16"), my_service(), my_slice(BOTH[0]))
        proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path, "--detect-local", "NodeCIDR")
        until(proxy.ready, "the first sync")
        assert seen_by_the_server() == s.POD_A
        assert unused() == "timeout"
        api.apply(pods("10.1.0.0/24"))
        until(lambda: seen_by_the_server() != s.POD_A, "the pod is none of this node any more: masqueraded")
        api.apply(pods("10.244.0.0/16"))
        until(lambda: seen_by_the_server() == s.POD_A, "a pod again")
        api.put(path, cidrs("kubernetes", "10.96.0.0/26"))
        until(lambda: unused() == "ok", "an address outside the range is routed on")
        api.put(path, cidrs("more", "10.96.0.64/26", "garbage"))
        until(lambda: unused() == "timeout", "inside the second range")
        log = proxy.stop()
    assert "cidr=garbage" in log


def test_a_start_before_the_server_and_a_server_without_servicecidrs(world: World, tmp_path: Path) -> None:
    api = FakeApi(world.node)
    api.unknown.add("/apis/networking.k8s.io/v1/servicecidrs")
    kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
    api.server.server_close()
    soon = "from podwire_base.kube.client import informer; informer.BACKOFF_LAST = 0.5"
    proxy = Running(world.node, kubeconfig, tmp_path, first=soon)
    until(proxy.status_file.exists, "the proxy is there")
    time.sleep(0.5)
    assert not proxy.ready()
    with api.restart(world.node) as back:
        back.unknown = api.unknown
        back.apply(NODE, my_service(), my_slice(*BOTH))
        until(proxy.ready, "the first sync, once the server is there", 20)
        assert ask(world.client(s.POD_A), s.VIP, s.PORT).result == "ok"
        proxy.stop()


def check_changes(world: World, api: FakeApi) -> None:
    pod, outside = world.client(s.POD_A), world.client(s.OUTSIDE)
    api.apply(my_slice(BOTH[0]))
    until(lambda: ask(pod, s.VIP, s.PORT).server[0] == s.POD_B, "the changed endpoint")
    assert ask(outside, s.NODE_IP, s.NODE_PORT).result == "ok"
    api.apply(my_slice())
    until(lambda: ask(pod, s.VIP, s.PORT, timeout=SILENCE).result == "refused", "no endpoints: refused")
    labelled = my_service()
    labelled["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "other"
    api.apply(my_slice(*BOTH), labelled)
    until(
        lambda: ask(pod, s.VIP, s.PORT, timeout=SURE).result == "timeout", "given to another proxy: unallocated for us"
    )
    api.apply(
        my_service(),
        {
            "kind": "Service",
            "metadata": {"name": "bad", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.300", "ports": [{"port": "eighty"}]},
        },
    )
    until(
        lambda: ask(pod, s.VIP, s.PORT, timeout=SILENCE).result == "ok",
        "taken back, beside a Service that cannot be read",
    )
    api.remove(my_service())
    until(lambda: ask(pod, s.VIP, s.PORT, timeout=SURE).result == "timeout", "deleted")
    assert ask(outside, s.NODE_IP, s.NODE_PORT).result == "refused"  # by the node itself: nothing listens


def table(world: World) -> dict[str, dict[bytes, nft.Value]]:
    with nft_socket.Connection(world.node.fd) as conn:
        dump = conn.dump(TABLE)
    assert dump is not None
    return dump.elements


@contextlib.contextmanager
def watched(world: World) -> Iterator[nft_socket.Watcher]:
    watcher = nft_socket.Watcher(TABLE, 0, world.node.fd)
    try:
        yield watcher
    finally:
        watcher.close()


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete table ip podwire",
        "flush chain ip podwire service-frontends",
        "flush map ip podwire endpoints",
        "add rule ip podwire prerouting drop",
    ],
)
def test_foreign_changes_are_repaired_and_told(world: World, tmp_path: Path, damage: str) -> None:
    with FakeApi(world.node) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        api.apply(NODE, my_service(), my_slice(*BOTH))
        proxy = Running(world.node, kubeconfig, tmp_path)
        until(proxy.ready, "the first sync")
        until(lambda: ask(world.client(s.POD_A), s.VIP, s.PORT, timeout=SILENCE).result == "ok", "service")
        before = world.node.run(["nft", "-s", "list", "ruleset"]).stdout
        world.node.run(["nft", *damage.split()])
        until(lambda: world.node.run(["nft", "-s", "list", "ruleset"]).stdout.split() == before.split(), "the repair")
        assert ask(world.client(s.POD_A), s.VIP, s.PORT).result == "ok"
        log = proxy.stop()
    assert "another program changed what this role keeps in the kernel" in log


DAMAGE_FIRST = """
import subprocess
from podwire_proxy.proxier import Proxier

watch = Proxier.watch

def late(self):
    subprocess.run(["nft", "flush", "chain", "ip", "podwire", "service-frontends"], check=True)
    return watch(self)

Proxier.watch = late
"""


def test_what_others_change_before_anybody_watches_is_repaired_and_told(world: World, tmp_path: Path) -> None:
    """Between the first sync and the start of the watch."""
    with FakeApi(world.node) as api:
        api.apply(NODE, my_service(), my_slice(*BOTH))
        proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path, first=DAMAGE_FIRST)
        until(proxy.ready, "the first sync")
        until(lambda: ask(world.client(s.POD_A), s.VIP, s.PORT, timeout=SILENCE).result == "ok", "the repair")
        until(lambda: proxy.repairs() == 1, "it is counted")
        log = proxy.stop()
    assert "another program changed what this role keeps in the kernel" in log


def test_the_commits_of_others_are_told_from_our_own(world: World) -> None:
    tracker, proxier = Tracker(s.INFO), backends.proxier(s.INFO, world.node.fd)
    tracker.service("default/my-service", my_service())
    tracker.flush()
    before = proxier.foreign_commits()
    proxier.sync(tracker.dataplane, None)
    proxier.sync(tracker.dataplane, None)
    proxier.sweep()
    assert proxier.foreign_commits() == before
    world.node.run(["nft", "add", "table", "ip", "other"])
    assert proxier.foreign_commits() > before
    proxier.close()


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("frontend", [(s.VIP, s.PORT), (s.NODE_IP, s.NODE_PORT)])
def test_udp_flows_move_when_their_endpoint_goes(world: World, frontend: tuple[str, int], v6: bool) -> None:
    """One client socket keeps sending; without the conntrack clean-up its flow would stay with the removed endpoint."""
    node = s.Scenario("", (), {}).v6().node if v6 else s.INFO
    tracker, proxier = Tracker(node), backends.proxier(node, world.node.fd)
    pod = world.client(s.POD_A)

    def at(ip: str) -> str:
        return s._v6(ip) if v6 else ip

    def sync(*endpoints: Object) -> int:
        for row in (
            s.Scenario("", (my_service("UDP"), my_slice(*endpoints, protocol="UDP")), {}).v6().objects
            if v6
            else (my_service("UDP"), my_slice(*endpoints, protocol="UDP"))
        ):
            (tracker.service if row["kind"] == "Service" else tracker.slice)("default/my-service", row)
        proxier.sync(tracker.dataplane, tracker.flush())
        return proxier.sweep().udp

    def send() -> Answer:
        return ask(pod, at(frontend[0]), frontend[1], "UDP", src=at(s.POD_A), sport=40000)

    tracker.flush()
    proxier.sync(tracker.dataplane, None)
    sync(BOTH[0])
    other = ask(world.client(s.OUTSIDE), at(s.NODE_IP), s.NODE_PORT, "UDP", src=at(s.OUTSIDE), sport=40001)
    assert other.server[0] == at(s.POD_B)
    assert send().server[0] == at(s.POD_B)
    assert sync(*BOTH) == 0, "nothing is stale when an endpoint comes"
    assert send().server[0] == at(s.POD_B)
    assert sync(BOTH[1]) == 2
    assert send().server[0] == at(s.POD_C)
    proxier.close()


def test_udp_flows_from_before_the_service_are_let_go(world: World) -> None:
    """A NodePort's flow that began while no Service had the port has no translation; it must get one."""
    tracker, proxier = Tracker(s.INFO), backends.proxier(s.INFO, world.node.fd)
    outside = world.client(s.OUTSIDE)
    tracker.flush()
    proxier.sync(tracker.dataplane, None)
    world.servers.listen(
        world.node, s.NODE_IP, s.NODE_PORT
    )  # a server on the node itself answers, so the flow is confirmed

    def send() -> Answer:
        return ask(outside, s.NODE_IP, s.NODE_PORT, "UDP", src=s.OUTSIDE, sport=40000)

    assert send().server == (s.NODE_IP, s.NODE_PORT)
    tracker.service("default/my-service", my_service("UDP"))
    tracker.slice("x", my_slice(BOTH[0], protocol="UDP"))
    proxier.sync(tracker.dataplane, tracker.flush())
    assert proxier.sweep().udp == 1
    assert send().server == (s.POD_B, s.TARGET)
    proxier.close()


def test_established_connections_outlive_their_endpoint(world: World) -> None:
    """A graceful end is the endpoint's own business: TCP flows are not cut when it leaves the Service."""
    tracker, proxier = Tracker(s.INFO), backends.proxier(s.INFO, world.node.fd)
    tracker.service("default/my-service", my_service())
    tracker.slice("x", endpoint_slice("my-service", [BOTH[0]], [("", "TCP", 9999)]))
    tracker.flush()
    proxier.sync(tracker.dataplane, None)
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(world.client(s.POD_B).call(lambda: socket.create_server((s.POD_B, 9999))))
        client = open_sockets.enter_context(
            world.client(s.POD_A).call(lambda: socket.create_connection((s.VIP, s.PORT), patient(10)))
        )
        server = open_sockets.enter_context(listener.accept()[0])
        for gone in (my_slice(), None):
            tracker.slice("x", gone)
            proxier.sync(tracker.dataplane, tracker.flush())
            proxier.sweep()
            client.send(b"still there?")
            server.settimeout(patient(10))
            assert server.recv(100) == b"still there?"
            server.send(b"yes")
            assert client.recv(100) == b"yes"
    proxier.close()

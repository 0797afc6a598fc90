"""The proxy under faults: killed in the middle of a sync, an API server that is away or sends nonsense, absurd
objects."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.counts import STRIDE
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.proxyrole import Running, until
from lab.serviceworld import SILENCE, Answer, World, ask
from podwire_base.kernel.conntrack.socket import Conntrack
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kube.meta import Object, key
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

NODE: Object = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": s.NODE},
    "status": {"addresses": [{"type": "InternalIP", "address": s.NODE_IP}]},
}
B, C = endpoint(s.POD_B, s.NODE), endpoint(s.POD_C, "n2")
CALM = service("calm", s.VIP2, [port(s.PORT)])
CALM_SLICE = endpoint_slice("calm", [B, C], [("", "TCP", s.TARGET)])
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    yield made
    made.close()


class Client:
    """`with Client(world, address) as client`: connects again and again; every answer is kept."""

    def __init__(self, world: World, ip: str) -> None:
        self.answers: list[Answer] = []
        self._stop = threading.Event()

        def loop() -> None:
            while not self._stop.is_set():
                self.answers.append(ask(world.client(s.POD_A), ip, s.PORT))

        self._thread = threading.Thread(target=loop)

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def from_outside(world: World) -> str:
    """The endpoint behind the load balancer's address of `busy`."""
    return ask(world.client(s.OUTSIDE), s.BALANCER, s.PORT, src=s.OUTSIDE, timeout=SILENCE).server[0]


# ---- killed in the middle


def busy(step: int) -> list[Object]:
    """Services that are added, changed and removed, with everything that takes more than one commit: affinity, UDP,
    shrinking.
    """
    sticky = service(
        "sticky",
        s.VIP,
        [port(s.PORT), port(53, "UDP", "u")],
        type="LoadBalancer",
        ingress=[{"ip": s.BALANCER}],
        sessionAffinity="ClientIP",
        loadBalancerSourceRanges=[f"{s.OUTSIDE}/32"] if step % 2 else [],
    )
    found = [(B, C), (C,), (), (B,)][step % 4]
    return [sticky, endpoint_slice("sticky", found, [("", "TCP", s.TARGET), ("u", "UDP", s.TARGET)])]


def crash(after: int, work: Callable[[], None]) -> bool:
    """Run `work` in a child that dies, as by SIGKILL, right before its `after`-th message to the kernel, or right after
    it (odd and even numbers). Returns False if it ended before.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    turns = itertools.count()

    def deadly(name: str, owner: type) -> None:
        original = getattr(owner, name)

        def call(*args: object) -> object:
            if next(turns) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            done = original(*args)
            if next(turns) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        setattr(owner, name, call)

    try:
        deadly("commit", nft_socket.Connection)
        deadly("delete", Conntrack)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_any_moment_of_a_sync_the_next_start_converges(world: World) -> None:
    """The next start changes little, and no connection to an unchanged Service is lost."""

    def tracker(*objects: Object) -> Tracker:
        made = Tracker(s.INFO)
        for obj in objects:
            (made.service if obj["kind"] == "Service" else made.slice)(key(obj), obj)
        made.flush()
        return made

    first = backends.proxier(s.INFO, world.node.fd)
    first.sync(tracker(CALM, CALM_SLICE).dataplane, None)
    whole = first.sync(tracker(CALM, CALM_SLICE, *busy(0)).dataplane, None).elements + 40
    first.sweep()
    first.close()
    crashes = 0
    with Client(world, s.VIP2) as client:
        for step in range(1, 6):
            for after in itertools.count(0, STRIDE):

                def work(step: int = step) -> None:
                    live = tracker(CALM, CALM_SLICE, *busy(step - 1))
                    proxier = backends.proxier(s.INFO, world.node.fd)
                    proxier.sync(live.dataplane, None)
                    for obj in busy(step):
                        (live.service if obj["kind"] == "Service" else live.slice)(key(obj), obj)
                    proxier.sync(live.dataplane, live.flush())
                    proxier.sweep()

                ask(world.client(s.POD_A), s.VIP, 53, "UDP", timeout=0.05)  # a flow that the change may leave behind
                died = crash(after, work)
                crashes += died
                again = backends.proxier(s.INFO, world.node.fd)
                plane = tracker(CALM, CALM_SLICE, *busy(step)).dataplane
                repaired = again.sync(plane, None)
                again.sweep()
                assert repaired.elements <= whole, "only what the change touched"
                assert again.sync(plane, None).operations == 0
                again.close()
                if not died:
                    break
                back = backends.proxier(s.INFO, world.node.fd)  # as before the change, for the next moment to die at
                back.sync(tracker(CALM, CALM_SLICE, *busy(step - 1)).dataplane, None)
                back.sweep()
                back.close()
        until(lambda: len(client.answers) > 50, "the client goes on")
    assert crashes > 20 / STRIDE
    assert {answer.result for answer in client.answers} == {"ok"}


def test_the_role_killed_again_and_again_under_changes(world: World, tmp_path: Path) -> None:
    with FakeApi(world.node) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        api.apply(NODE, CALM, CALM_SLICE, *busy(0))
        proxy = Running(world.node, kubeconfig, tmp_path)
        until(proxy.ready, "the first sync")
        with Client(world, s.VIP2) as client:
            for step in range(1, 6):
                api.apply(*busy(step))
                time.sleep(0.003 * step)
                proxy.stop(signal.SIGKILL)
                proxy = Running(world.node, kubeconfig, tmp_path)
                until(proxy.ready, "in step again")
            api.apply(*busy(7))
            until(lambda: from_outside(world) == s.POD_B, "the last change")
        proxy.stop()
    assert {answer.result for answer in client.answers} == {"ok"}


# ---- the API server


def test_an_api_server_that_repeats_reorders_and_sends_garbage(world: World, tmp_path: Path) -> None:
    with FakeApi(world.node) as api:
        api.apply(NODE, CALM, CALM_SLICE)
        proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path)
        until(proxy.ready, "the first sync")
        services = "/api/v1/services"
        old = {**CALM_SLICE, "endpoints": [], "metadata": {**CALM_SLICE["metadata"], "resourceVersion": "1"}}
        nonsense: list[bytes] = [
            json.dumps({"type": "MODIFIED", "object": old}).encode(),  # older than the object that it replaces
            json.dumps({"type": "ADDED", "object": old}).encode(),
            json.dumps({"type": "WEIRD", "object": {}}).encode(),
            b'{"type": "MODIFIED", "object": {}}',
            b'{"type": "MODIFIED"}',
            b"[]",
            b'{"type": "BOOKMARK", "object": {}}',
            json.dumps(
                {
                    "type": "ADDED",
                    "object": {
                        "kind": "Service",
                        "metadata": {"name": "x", "namespace": "default", "resourceVersion": "9999999"},
                        "spec": "none",
                    },
                }
            ).encode(),
        ]
        with Client(world, s.VIP2) as client:
            for path in (services, SLICES):
                for line in nonsense:
                    api.noise(path, line + b"\n")
            for step in range(1, 4):
                api.apply(*busy(step))
                api.noise(SLICES, json.dumps({"type": "MODIFIED", "object": old}).encode() + b"\n")
            # the stream ends: the new list has the true state
            api.noise(SLICES, b'{"type": "MODIFIED", "obj\x00\xff\n')
            api.noise(services, b'{"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}\n')
            api.apply(*busy(7))
            until(lambda: from_outside(world) == s.POD_B, "the last change")
            assert ask(world.client(s.POD_A), s.BALANCER, s.PORT, timeout=SILENCE).result == "timeout", (
                "with its source ranges"
            )
        log = proxy.stop()
    assert {answer.result for answer in client.answers} == {"ok"}, "the old slices were not believed"
    assert "Traceback" not in log
    assert "a frame of the watch cannot be used" in log


@pytest.mark.parametrize("seconds", [2, pytest.param(180, marks=pytest.mark.long)])
def test_the_rules_stay_while_the_api_server_is_away(world: World, tmp_path: Path, seconds: float) -> None:
    """Traffic continues, damage is repaired, and changes made meanwhile are written when the server is back."""
    api = FakeApi(world.node)
    with api:
        api.apply(NODE, CALM, CALM_SLICE)
        proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path)
        until(proxy.ready, "the first sync")
    with Client(world, s.VIP2) as client:
        time.sleep(seconds)
        until(lambda: len(client.answers) > 20, "the client goes on")
    assert {(answer.result, answer.server[0]) for answer in client.answers} == {("ok", s.POD_B), ("ok", s.POD_C)}
    with Client(world, s.VIP2) as client:
        world.node.run(["nft", "flush", "chain", "ip", "podwire", "service-frontends"])
        until(lambda: len(client.answers) > 3 and client.answers[-1].result == "ok", "repaired without the API server")
        with api.restart(world.node) as back:
            back.apply(NODE, CALM, endpoint_slice("calm", [C], [("", "TCP", s.TARGET)]), *busy(3))
            until(lambda: from_outside(world) == s.POD_B, "what came meanwhile", 60)
            until(lambda: ask(world.client(s.POD_A), s.VIP2, s.PORT).server[0] == s.POD_C, "an endpoint left meanwhile")
            assert all(ask(world.client(s.POD_A), s.VIP2, s.PORT).server[0] == s.POD_C for _ in range(20))
            log = proxy.stop()
    assert proxy.process.returncode == 0
    assert "API server does not answer, the last known state stays" in log


def test_thousands_of_slices_of_one_service(world: World) -> None:
    """Ten thousand endpoints in two thousand slices, all but one of them unreachable: the cost of a change follows its
    size.
    """
    tracker, proxier = Tracker(s.INFO), backends.proxier(s.INFO, world.node.fd)
    tracker.service("default/huge", service("huge", s.VIP, [port(s.PORT)]))

    def some(number: int, size: int = 5) -> Object:
        found = [endpoint(f"10.244.{100 + number // 50}.{number % 50 * 5 + n}", "n2") for n in range(size)]
        return endpoint_slice("huge", found, [("", "TCP", 80)], name=f"huge-{number}")

    for number in range(2000):
        tracker.slice(f"default/huge-{number}", some(number))
    tracker.flush()
    proxier.sync(tracker.dataplane, None)
    assert tracker.endpoints == 10_000
    tracker.slice("default/huge-7", some(7, 4))
    done = proxier.sync(tracker.dataplane, tracker.flush())
    assert (done.elements, done.verdicts) == (4, 2), "the last slot into the hole, and one verdict"
    proxier.sweep()
    for number in range(2000):
        tracker.slice(f"default/huge-{number}", None)
    tracker.slice("default/real", endpoint_slice("huge", [B], [("", "TCP", s.TARGET)], name="real"))
    proxier.sync(tracker.dataplane, tracker.flush())
    proxier.sweep()
    proxier.close()
    assert ask(world.client(s.POD_A), s.VIP, s.PORT).server[0] == s.POD_B

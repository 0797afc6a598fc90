"""Session affinity over time: endpoints change, the memory expires, the proxy restarts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from lab.netns import Lab
from lab.proxyrole import until
from lab.serviceworld import World, ask
from podwire_base.kube.meta import Object
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.nftables import layout
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

PODS = {s.POD_A: endpoint(s.POD_A, s.NODE), s.POD_B: endpoint(s.POD_B, s.NODE), s.POD_C: endpoint(s.POD_C, "n2")}
CLIENTS = [f"192.0.2.{n}" for n in range(100, 170)]  # one of three endpoints gets none with a probability of 1e-12


def sticky(seconds: int) -> Object:
    return service(
        "my-service",
        s.VIP,
        [port(s.PORT, node_port=s.NODE_PORT)],
        type="NodePort",
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}},
    )


class Stage:
    """The proxy's engine on the node, without the API; and clients outside."""

    def __init__(self, world: World, seconds: int = 600) -> None:
        self.world, self.tracker = world, Tracker(s.INFO)
        self.proxier = backends.proxier(s.INFO, world.node.fd)
        self.tracker.service("default/my-service", sticky(seconds))
        self.put(*PODS)
        self.tracker.flush()
        self.proxier.sync(self.tracker.dataplane, None)

        def addresses(ipr: object) -> None:
            for client in CLIENTS:
                ipr.addr("add", index=1, address=client, prefixlen=32)  # type: ignore[attr-defined]  # untyped pyroute2

        world.outside.netlink(addresses)

    def put(self, *ips: str) -> None:
        self.tracker.slice("x", endpoint_slice("my-service", [PODS[ip] for ip in ips], [("", "TCP", s.TARGET)]))

    def sync(self, *ips: str) -> None:
        self.put(*ips)
        self.proxier.sync(self.tracker.dataplane, self.tracker.flush())

    def homes(self) -> dict[str, str]:
        """The endpoint of each client."""
        return {client: ask(self.world.outside, s.VIP, s.PORT, src=client).server[0] for client in CLIENTS}

    def remembered(self) -> int:
        return len(self.left())

    def left(self) -> list[float]:
        """Seconds until each client is forgotten."""
        listed = self.world.node.run(["nft", "list", "map", "ip", "podwire", "affinity"]).stdout
        units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
        return [
            sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|h|m|s)", one))
            for one in re.findall(r"expires (\w+)", listed)
        ]

    def chains(self) -> list[str]:
        listed = self.world.node.run(["nft", "list", "chains", "ip"]).stdout
        return [line for line in listed.splitlines() if "sticky-" in line or "remember-" in line]


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    yield made
    made.close()


def test_only_the_clients_of_an_endpoint_that_goes_are_moved(world: World) -> None:
    stage = Stage(world)
    before = stage.homes()
    assert set(before.values()) == set(PODS)
    assert stage.homes() == before
    for gone in (s.POD_A, s.POD_C):  # the first slot, the last slot: compaction moves another endpoint's slot each time
        stage.sync(*(ip for ip in PODS if ip != gone))
        after = stage.homes()
        assert gone not in after.values()
        assert {c: home for c, home in after.items() if before[c] != gone} == {
            c: home for c, home in before.items() if home != gone
        }
        stage.proxier.sweep()
        assert stage.homes() == after
        stage.sync(*PODS)
        before = after
        assert stage.homes() == before, "an endpoint that comes takes no client away"
    stage.proxier.close()


def test_a_restart_forgets_nobody_and_cleans_what_went_meanwhile(world: World) -> None:
    stage = Stage(world)
    before = stage.homes()
    stage.proxier.close()
    stage.proxier = backends.proxier(s.INFO, world.node.fd)
    assert stage.proxier.sync(stage.tracker.dataplane, None).operations == 0
    assert stage.homes() == before
    stage.proxier.close()
    stage.put(s.POD_B, s.POD_C)
    stage.tracker.flush()
    stage.proxier = backends.proxier(s.INFO, world.node.fd)
    stage.proxier.sync(stage.tracker.dataplane, None)
    after = stage.homes()
    assert s.POD_A not in after.values()
    assert all(after[c] == home for c, home in before.items() if home != s.POD_A)
    stage.proxier.close()


def test_the_timeout_counts_from_the_last_connection(world: World) -> None:
    stage = Stage(world)
    client = CLIENTS[0]
    home = ask(world.outside, s.VIP, s.PORT, src=client).server[0]

    def later() -> bool:
        """Whether the end is later than before. Each is bounded so that a slow machine causes a false no, never a false
        yes.
        """
        latest = stage.left()[0] + time.monotonic()
        time.sleep(0.1)
        assert ask(world.outside, s.VIP, s.PORT, src=client).server[0] == home
        now = time.monotonic()
        return now + stage.left()[0] > latest + 0.05

    for _ in range(3):
        until(later, "a connection restarts the timeout")
    assert stage.remembered() == 1
    stage.proxier.close()


def test_a_client_is_forgotten_after_the_timeout(world: World) -> None:
    stage = Stage(world, seconds=5)
    ask(world.outside, s.VIP, s.PORT, src=CLIENTS[0])
    assert stage.remembered() == 1
    until(lambda: not stage.remembered(), "it is forgotten", 20)
    stage.proxier.close()


def test_a_service_that_goes_leaves_neither_chains_nor_clients(world: World) -> None:
    """A later Service with the same address must not inherit them."""
    stage = Stage(world)
    stage.homes()
    assert len(stage.chains()) == 2
    stage.tracker.service("default/my-service", None)
    stage.proxier.sync(stage.tracker.dataplane, stage.tracker.flush())
    stage.proxier.sweep()
    assert (stage.remembered(), stage.chains()) == (0, [])
    stage.proxier.close()


def test_a_full_memory_still_balances(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_CLIENTS", 5)
    stage = Stage(world)
    assert set(stage.homes().values()) == set(PODS), "every client is served"
    assert 0 < stage.remembered() < len(CLIENTS)
    stage.proxier.close()

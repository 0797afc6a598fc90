"""UDP flows while endpoints end and policies change: a client keeps its endpoint as long as that serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lab.dataplane import CHOICES
from lab.netns import Lab
from lab.serviceworld import SILENCE, Answer, World, ask
from podwire_base.kernel.conntrack.codec import UDP, matching
from podwire_base.kernel.conntrack.socket import Conntrack
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint

ENDING: dict[str, Any] = {"ready": False, "serving": True, "terminating": True}
ENDED: dict[str, Any] = {"ready": False, "serving": False, "terminating": True}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        yield made
        made.close()


class Site:
    """A UDP Service on every kind of frontend, in one IP family, kept by one backend."""

    def __init__(self, world: World, choice: str, *, v6: bool) -> None:
        self.world, self.v6 = world, v6
        self.node = s.Scenario("", (), {}).v6().node if v6 else s.INFO
        self.tracker = Tracker(self.node)
        self.proxier = backends.proxier(self.node, world.node.fd, choice)
        self.proxier.sync(self.tracker.dataplane, None)
        self.proxier.sweep()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.proxier.close()
        self.proxier.backend.cleanup(self.world.node.fd)

    def at(self, ip: str) -> str:
        return s._v6(ip) if self.v6 else ip

    def serve(self, b: dict[str, Any] | None, c: dict[str, Any] | None, **spec: Any) -> int:
        """b, c: the conditions of POD_B and POD_C; None: no such endpoint. Returns the number of flows that went."""
        places = ((s.POD_B, s.NODE, b), (s.POD_C, "n2", c))
        found = [endpoint(ip, node, **flags) for ip, node, flags in places if flags is not None]
        row = s.Scenario("", (s.everything(protocol="UDP", **spec), s.some_slice(*found, protocol="UDP")), {})
        for obj in (row.v6() if self.v6 else row).objects:
            (self.tracker.service if obj["kind"] == "Service" else self.tracker.slice)("default/my-service", obj)
        self.proxier.sync(self.tracker.dataplane, self.tracker.flush())
        return self.proxier.sweep().udp

    def send(self, source: str, frontend: tuple[str, int], timeout: float = 5.0) -> Answer:
        """One datagram of the client's only flow to this frontend."""
        ip, number = frontend
        ns, src = self.world.client(source), self.at(source)
        return ask(ns, self.at(ip), number, "UDP", src=src, sport=40000, timeout=timeout)

    def begun(self, *ips: str) -> int:
        """The number of UDP flows to these addresses."""
        with Conntrack(self.world.node.fd) as conntrack:
            found = list(conntrack.flows("ip6" if self.v6 else "ip", matching(UDP)))
        return sum(flow.original.destination in {self.at(ip) for ip in ips} for flow in found)

    def servers(self, flows: list[tuple[str, tuple[str, int]]]) -> set[str]:
        return {self.send(*flow).server[0] for flow in flows}


CASES = [*((choice, False) for choice in CHOICES), ("nftables", True)]  # one code makes the rules of both families
FLOWS = [(s.POD, (s.VIP, s.PORT)), (s.OUT, (s.NODE_IP, s.NODE_PORT)), (s.OUT, (s.EXTERNAL, s.PORT))]


@pytest.mark.parametrize(("choice", "v6"), CASES)
def test_a_flow_stays_with_an_endpoint_that_ends_until_it_serves_no_more(world: World, choice: str, v6: bool) -> None:
    world.forget()
    with Site(world, choice, v6=v6) as site:
        site.serve({}, None)
        assert site.servers(FLOWS) == {site.at(s.POD_B)}
        assert site.serve(ENDING, {}) == 0, "B serves"
        assert site.servers(FLOWS) == {site.at(s.POD_B)}
        assert site.send(s.POD, (s.BALANCER, s.PORT)).server[0] == site.at(s.POD_C), "a new flow goes to C"
        assert site.serve(ENDING, {}, externalTrafficPolicy="Local", internalTrafficPolicy="Local") == 0
        assert site.servers(FLOWS) == {site.at(s.POD_B)}
        assert site.serve(ENDED, {}) == len(FLOWS)
        assert site.servers(FLOWS) == {site.at(s.POD_C)}


@pytest.mark.parametrize(("choice", "v6"), CASES)
def test_a_socket_that_sent_before_its_address_had_rules_meets_them(world: World, choice: str, v6: bool) -> None:
    """Its flow was never translated, and no chain of nat sees its later packets."""
    refused = [(s.VIP, s.PORT), (s.VIP, 81), (s.EXTERNAL, s.PORT)]
    world.forget()

    def send(frontend: tuple[str, int], timeout: float) -> str:
        ip, src = (s._v6(one) if v6 else one for one in (frontend[0], s.POD))
        return ask(world.client(s.POD), ip, frontend[1], "UDP", src=src, sport=40000, timeout=timeout).result

    for place in (*refused, (s.UNUSED, s.PORT)):
        send(place, 0.05)  # to wherever routes lead
    with Site(world, choice, v6=v6) as site:
        assert site.begun(s.VIP, s.UNUSED) == 0
        site.serve(None, None)
        assert [send(place, 5) for place in refused] == ["refused"] * len(refused)
        assert send((s.UNUSED, s.PORT), SILENCE) == "timeout"
        assert site.begun(s.VIP, s.EXTERNAL, s.UNUSED) == 0
        site.serve({}, None)
        assert site.send(s.POD, (s.VIP, s.PORT)).server[0] == site.at(s.POD_B)

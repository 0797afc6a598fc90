"""podwire.io/reset-on-endpoint-removal: connections of a removed endpoint are reset at both ends; all others
live on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest

from lab.netns import Lab
from lab.patience import patient
from lab.serviceworld import World
from podwire_base.kube.meta import Object
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.convert import RESET_ANNOTATION
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

LISTEN = 9999
PLAIN = "10.96.0.30"
PATIENCE = patient(10)  # seconds


class Pair(NamedTuple):
    client: socket.socket
    server: socket.socket


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        yield made
        made.close()


def my_service(name: str, address: str, reset: str) -> Object:
    made = service(
        name,
        address,
        [port(s.PORT, node_port=s.NODE_PORT if name == "resetting" else 0)],
        type="NodePort" if name == "resetting" else "ClusterIP",
    )
    made["metadata"]["annotations"] = {RESET_ANNOTATION: reset} if reset else {}
    return made


class Site:
    """Two Services over the same endpoints, one of which requests resets; it makes and checks connections."""

    def __init__(self, world: World, v6: bool) -> None:
        self.world = world
        world.node.run(["conntrack", "-F"])
        scenario = s.Scenario("", (), {}, s.INFO)
        self.node = scenario.v6().node if v6 else s.INFO
        self.v6, self.fresh = v6, True
        self.tracker = Tracker(self.node)
        self.tracker.service("default/resetting", my_service("resetting", self.at(s.VIP), "true"))
        self.tracker.service("default/plain", my_service("plain", self.at(PLAIN), ""))
        self.proxier = backends.proxier(self.node, world.node.fd)
        self.endpoints(endpoint(self.at(s.POD_B), s.NODE))
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.proxier.close)
        self.listeners = {
            ip: self.stack.enter_context(
                world.client(ip).call(
                    partial(
                        socket.create_server, (self.at(ip), LISTEN), family=socket.AF_INET6 if v6 else socket.AF_INET
                    )
                )
            )
            for ip in (s.POD_B, s.POD_C)
        }

    def at(self, ip: str) -> str:
        return s._v6(ip) if self.v6 else ip

    def endpoints(self, *found: Object) -> int:
        """Make these the endpoints of both Services, and sweep; returns the number of connections reset."""
        for name in ("resetting", "plain"):
            made = endpoint_slice(name, found, [("", "TCP", LISTEN)], family="IPv6" if self.v6 else "IPv4")
            self.tracker.slice(f"default/{name}-1", made)
        delta = self.tracker.flush()
        self.proxier.sync(self.tracker.dataplane, None if self.fresh else delta)
        self.fresh = False
        return self.proxier.sweep().tcp

    def connect(self, client: str, ip: str, number: int, server: str = s.POD_B) -> Pair:
        made = self.stack.enter_context(
            self.world.client(client).call(
                lambda: socket.create_connection((self.at(ip), number), PATIENCE, source_address=(self.at(client), 0))
            )
        )
        self.listeners[server].settimeout(PATIENCE)
        other = self.stack.enter_context(self.listeners[server].accept()[0])
        for sock in (made, other):
            sock.settimeout(PATIENCE)
        return Pair(made, other)


def lives(pair: Pair) -> bool:
    pair.client.send(b"there?")
    if pair.server.recv(100) != b"there?":
        return False
    pair.server.send(b"yes")
    return pair.client.recv(100) == b"yes"


@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
def test_flows_of_an_endpoint_that_is_gone_are_reset(world: World, v6: bool) -> None:
    site = Site(world, v6)
    with site.stack:
        b, c = endpoint(site.at(s.POD_B), s.NODE), endpoint(site.at(s.POD_C), "n2")
        doomed = [
            site.connect(s.POD_A, s.VIP, s.PORT),
            site.connect(s.NODE_IP, s.VIP, s.PORT),
            site.connect(s.OUTSIDE, s.NODE_IP, s.NODE_PORT),
            site.connect(s.POD_B, s.VIP, s.PORT),
        ]
        other_service = site.connect(s.POD_A, PLAIN, s.PORT)
        assert site.endpoints(c, endpoint(site.at(s.POD_B), s.NODE, ready=False, serving=True, terminating=True)) == 0
        staying = site.connect(s.POD_A, s.VIP, s.PORT, s.POD_C)
        assert all(map(lives, [*doomed, other_service, staying])), "an endpoint that terminates keeps its connections"
        assert site.endpoints(c) == len(doomed)
        for pair in doomed:  # no data is sent: both ends learn of it all the same
            for end in pair:
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
        assert lives(other_service), "its Service did not ask"
        assert lives(staying), "its endpoint is there"
        assert site.endpoints(c) == 0
        assert site.endpoints() == 1
        with pytest.raises(ConnectionResetError):
            staying.client.recv(1)
        assert lives(other_service)
        assert site.endpoints(b) == 0
        assert lives(site.connect(s.POD_A, s.VIP, s.PORT))


def test_what_vanished_while_no_proxy_ran_is_reset_by_the_next(world: World) -> None:
    site = Site(world, v6=False)
    with site.stack:
        doomed = site.connect(s.POD_A, s.VIP, s.PORT)
        site.proxier.close()
        site.proxier, site.fresh = backends.proxier(site.node, world.node.fd), True
        assert site.endpoints(endpoint(s.POD_C, "n2")) == 1
        with pytest.raises(ConnectionResetError):
            doomed.client.recv(1)


def test_a_client_that_no_probe_reaches_is_reset_by_its_next_packet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules guarantee the reset; the probe to both ends only makes it faster."""
    site = Site(world, v6=False)
    monkeypatch.setattr("podwire_proxy.flows.Look._probe_both_ends", lambda *_: None)
    with site.stack:
        doomed = site.connect(s.POD_A, s.VIP, s.PORT)
        assert site.endpoints(endpoint(s.POD_C, "n2")) == 1
        doomed.client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            doomed.client.recv(1)
        doomed.client.send(b"?")
        doomed.client.settimeout(PATIENCE)
        with pytest.raises(ConnectionResetError):
            doomed.client.recv(1)

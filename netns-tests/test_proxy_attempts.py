"""A connection attempt whose endpoint no longer answers reaches another one, by the client's own retransmission.

Otherwise the SYN's conntrack entry would lead each retransmission to the endpoint that is gone, until the client gives
up.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Iterator
from functools import partial

import pytest

from lab.dataplane import CHOICES
from lab.netns import Lab, NetNS
from lab.patience import patient
from lab.serviceworld import World, ask
from podwire_base.kube.meta import Object
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.flows import Swept
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

PATIENCE = 10  # seconds: the first retransmission comes after one second
NOBODY = "198.51.100.9"  # a load balancer's address; without a Service no host has it
SILENT = """table inet silent
delete table inet silent
table inet silent {
    chain input {
        type filter hook input priority 0
        meta l4proto tcp drop
    }
}
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        made.client(s.POD_B).run(["nft", "-f", "-"], input=SILENT)
        yield made
        made.close()


class Site:
    """A Service over POD_B, which does not answer, and POD_C, which does."""

    def __init__(self, world: World, choice: str = "nftables", *, v6: bool = False) -> None:
        world.node.run(["conntrack", "-F"])
        self.world, self.v6 = world, v6
        self.node = s.Scenario("", (), {}, s.INFO).v6().node if v6 else s.INFO
        self.tracker = Tracker(self.node)
        self.choice = choice
        self.proxier = backends.proxier(self.node, world.node.fd, choice)
        self.stack = contextlib.ExitStack()
        self.stack.callback(self.clean)
        self.tracker.flush()
        self.proxier.sync(self.tracker.dataplane, None)
        self.proxier.sweep()
        self.serve()

    def clean(self) -> None:
        self.proxier.close()
        self.proxier.backend.cleanup(self.world.node.fd)

    def at(self, ip: str) -> str:
        return s._v6(ip) if self.v6 else ip

    def serve(self, *ingress: str) -> None:
        made = service("web", self.at(s.VIP), [port(s.PORT, node_port=s.NODE_PORT)], type="LoadBalancer")
        made["status"] = {"loadBalancer": {"ingress": [{"ip": ip} for ip in ingress]}}
        self.tracker.service("default/web", made)

    def endpoints(self, *ips: str, full: bool = False) -> Swept:
        found: list[Object] = [endpoint(self.at(ip), s.NODE if ip == s.POD_B else "n2") for ip in ips]
        self.tracker.slice(
            "web-1", endpoint_slice("web", found, [("", "TCP", s.TARGET)], family="IPv6" if self.v6 else "IPv4")
        )
        delta = self.tracker.flush()
        self.proxier.sync(self.tracker.dataplane, None if full else delta)
        return self.proxier.sweep()

    def dial(self, client: str, ip: str, number: int) -> socket.socket:
        """A connection attempt in progress; its SYN is sent."""
        return self.stack.enter_context(dial(self.world.client(client), self.at(ip), number))


def dial(ns: NetNS, ip: str, number: int) -> socket.socket:
    def work() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
        made.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            made.connect((ip, number))
        return made

    return ns.call(work)


def servers(socks: list[socket.socket]) -> list[str]:
    """The server that answered each attempt; "" for no answer."""
    found = dict.fromkeys(socks, "")
    with selectors.DefaultSelector() as waiting:
        for sock in socks:
            waiting.register(sock, selectors.EVENT_READ, sock)
        while waiting.get_map() and (ready := waiting.select(PATIENCE)):
            for key, _ in ready:
                sock = key.data
                found[sock] = sock.recv(200).decode().split()[0]
                waiting.unregister(sock)
    return list(found.values())


def opening(world: World, server: str = "") -> int:
    """server: send to that one alone; another server's answer may be on its way."""
    listed = world.node.run(["conntrack", "-L", "-p", "tcp", "--state", "SYN_SENT"]).stdout.splitlines()
    return len([line for line in listed if "UNREPLIED" in line and (not server or f"src={server} " in line)])


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
def test_an_attempt_moves_on_when_its_endpoint_goes(world: World, choice: str, v6: bool) -> None:
    site = Site(world, choice, v6=v6)
    with site.stack:
        assert site.endpoints(s.POD_B).opening == 0
        attempts = [
            site.dial(s.POD_A, s.VIP, s.PORT),
            site.dial(s.NODE_IP, s.VIP, s.PORT),
            site.dial(s.OUTSIDE, s.NODE_IP, s.NODE_PORT),
        ]
        assert site.endpoints(s.POD_B, s.POD_C).opening == 0, "its endpoint may still answer"
        assert site.endpoints(s.POD_C).opening == len(attempts)
        assert servers(attempts) == [site.at(s.POD_C)] * len(attempts)


def test_an_attempt_moves_on_also_when_no_proxy_saw_its_endpoint_go(world: World) -> None:
    site = Site(world)
    with site.stack:
        site.endpoints(s.POD_B)
        attempt = site.dial(s.POD_A, s.VIP, s.PORT)
        site.proxier.close()
        site.proxier = backends.proxier(site.node, world.node.fd, site.choice)
        assert site.endpoints(s.POD_C, full=True).opening == 1
        assert servers([attempt]) == [s.POD_C]


def test_an_attempt_waits_where_no_endpoint_is_left_and_goes_to_the_first_that_comes(world: World) -> None:
    site = Site(world)
    with site.stack:
        site.endpoints(s.POD_B)
        attempt = site.dial(s.POD_A, s.VIP, s.PORT)
        assert site.endpoints().opening == 0, "a refusal would be worse than to wait"
        assert opening(world) == 1
        assert site.endpoints(s.POD_C).opening == 1
        assert servers([attempt]) == [s.POD_C]


def test_an_attempt_from_before_its_load_balancers_address_was_known(world: World) -> None:
    """Until then routes decided where its SYN went."""
    world.outside.run(["ip", "route", "replace", "blackhole", f"{NOBODY}/32"])
    site = Site(world)
    with site.stack:
        site.endpoints(s.POD_C)
        attempt = site.dial(s.POD_A, NOBODY, s.PORT)
        assert opening(world) == 1
        site.serve(NOBODY)
        assert site.endpoints(s.POD_C).opening == 1
        assert servers([attempt]) == [s.POD_C]


def test_the_work_is_that_of_the_attempts_and_none_where_no_endpoint_left(world: World) -> None:
    """The dumps requested from conntrack and their entries: neither established flows nor those of other Services."""
    site = Site(world)
    with site.stack:
        site.endpoints(s.POD_C)
        for _ in range(40):
            assert ask(world.client(s.POD_A), s.VIP, s.PORT).result == "ok"
        listener = site.stack.enter_context(world.client(s.POD_C).call(partial(socket.create_server, (s.POD_C, 9999))))
        open_ = site.stack.enter_context(
            world.client(s.POD_A).call(lambda: socket.create_connection((s.POD_C, 9999), patient(10)))
        )
        assert site.endpoints(s.POD_C, s.POD_B).dumps == 0, "an endpoint came: nothing to look for"
        attempts = []
        while opening(world, s.POD_B) < 2:  # by chance half of them go to POD_B
            attempts.append(site.dial(s.POD_A, s.VIP, s.PORT))
        swept = site.endpoints(s.POD_C)
        assert (swept.dumps, swept.entries, swept.opening) == (1, 2, 2)
        assert servers(attempts) == [s.POD_C] * len(attempts)
        listener.settimeout(patient(10))
        with listener.accept()[0] as other:
            open_.send(b"?")
            assert other.recv(1) == b"?"

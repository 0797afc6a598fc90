"""podwire_base.kernel on a real kernel: conntrack's entries and events, addresses, and which link leads out."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest

from lab.netns import Lab, NetNS
from podwire_base.kernel import addresses
from podwire_base.kernel.conntrack.codec import UDP, Event, matching
from podwire_base.kernel.conntrack.socket import Conntrack, Events
from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket


@pytest.fixture
def ns() -> Iterator[NetNS]:
    """A namespace that tracks what it sends to itself."""
    with contextlib.closing(NetNS("tracked")) as made:
        for family in FAMILIES:
            table = nft.Table(family, "tracking")
            chain = nft.Chain(table, "output", hook="output", priority=0)
            rule = nft.Rule(chain, (nft.Ct("state"), nft.Counter()))
            nft_socket.apply(nft.Transaction().remake(table).add(chain, rule), made.fd)
        yield made


def say(ns: NetNS, ports: list[int], host: str = "127.0.0.1") -> None:
    def work() -> None:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for port in ports:
                sock.sendto(b"x", (host, port))

    ns.call(work)


def heard(events: Events, count: int) -> list[Event]:
    found: list[Event] = []
    while len(found) < count:
        assert select.select([events], [], [], 5)[0], f"only {found}"
        new, overruns = events.read()
        assert overruns == 0
        found += new
    return found


@pytest.mark.parametrize(("family", "host"), [("ip", "127.0.0.1"), ("ip6", "::1")])
def test_entries_are_found_by_port_and_exactly_they_are_deleted(ns: NetNS, family: Family, host: str) -> None:
    say(ns, [5300, 5301, *range(6000, 6250)], host)
    with Conntrack(ns.fd) as conntrack:
        (flow,) = conntrack.flows(family, matching(UDP, host, 5300))
        assert (flow.protocol, flow.original.destination, flow.original.destination_port) == (UDP, host, 5300)
        assert conntrack.delete([flow]) == [flow]
        assert conntrack.delete([flow]) == [], "it is gone, and that is no error"
        everything = list(conntrack.flows(family, matching(UDP)))
        assert len(everything) == 251
        assert conntrack.delete([flow, *everything, flow]) == everything, "many messages, those that were there"
        assert list(conntrack.flows(family)) == []
        assert (conntrack.dumps, conntrack.entries) == (3, 252)


def test_events_tell_of_an_entry_from_its_first_packet_to_its_end(ns: NetNS) -> None:
    with Events(ns.fd) as events:
        say(ns, [5300])
        (new,) = heard(events, 1)
        with Conntrack(ns.fd) as conntrack:
            assert conntrack.delete(list(conntrack.flows("ip"))) == [new.flow]
        (end,) = heard(events, 1)
    assert (new.kind, end.kind) == ("new", "destroy")
    assert new.flow.original.destination_port == end.flow.original.destination_port == 5300
    assert new.flow.ident == end.flow.ident


def test_an_answer_is_an_update(ns: NetNS) -> None:
    def talk() -> None:
        with contextlib.ExitStack() as stack:
            one, other = (stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
            one.bind(("127.0.0.1", 0))
            other.sendto(b"x", one.getsockname())
            one.sendto(b"y", one.recvfrom(9)[1])

    with Events(ns.fd, kinds=["update"]) as events:
        ns.call(talk)
        assert {event.kind for event in heard(events, 1)} == {"update"}


def test_events_that_the_kernel_dropped_are_said(ns: NetNS) -> None:
    with Events(ns.fd, room=4096) as events:
        say(ns, list(range(7000, 7400)))
        found, overruns = events.read()
        assert overruns >= 1
        assert len(found) < 400
        say(ns, [7999])
        assert heard(events, 1)[0].flow.original.destination_port == 7999, "and it goes on"


def place(lab: Lab) -> NetNS:
    inside = lab.netns("inside")
    lab.wire(inside, "eth0", lab.netns("outside"), "eth0", "192.0.2.2/24 2001:db8::2/64", "192.0.2.1/24 2001:db8::1/64")
    return inside


def route(ns: NetNS, link: str, **more: object) -> None:
    ns.netlink(lambda ipr: ipr.route("add", oif=ipr.link_lookup(ifname=link)[0], **more))


def test_addresses_of_a_namespace(lab: Lab) -> None:
    told = [str(address) for address in place(lab).call(addresses.local_addresses)]
    assert told[0] == "127.0.0.1"
    assert {"192.0.2.2", "2001:db8::2", "::1"} <= set(told)
    assert len(set(told)) == len(told)


def test_the_uplink_has_the_address_or_the_best_default_route(lab: Lab) -> None:
    ns = place(lab)

    def uplink(address: str = "") -> str:
        return ns.call(lambda: addresses.uplink(address))

    assert uplink() == uplink("192.0.2.9") == ""
    assert (uplink("2001:db8::2"), uplink("192.0.2.2"), uplink("127.0.0.1")) == ("eth0", "eth0", "lo")
    route(ns, "eth0", dst="default", gateway="2001:db8::1", family=socket.AF_INET6)
    assert uplink() == "eth0", "IPv6 where there is no other"
    ns.netlink(lambda ipr: ipr.link("add", ifname="spare", kind="bridge", state="up"))
    route(ns, "spare", dst="0.0.0.0/0", scope=253, priority=10)
    assert uplink() == "spare", "IPv4 first"
    route(ns, "eth0", dst="0.0.0.0/0", gateway="192.0.2.1", priority=20)
    route(ns, "eth0", dst="0.0.0.0/0", gateway="192.0.2.1", priority=1, table=100)
    assert uplink() == "spare", "neither a higher metric nor another table counts"
    route(ns, "eth0", dst="0.0.0.0/0", gateway="192.0.2.1", priority=5)
    assert uplink("192.0.2.9") == "eth0", "the lowest metric"


def test_the_uplink_of_a_route_with_several_next_hops(lab: Lab) -> None:
    ns = place(lab)
    ns.run(["ip", "route", "add", "default", "nexthop", "via", "192.0.2.1", "nexthop", "via", "192.0.2.9"])
    assert ns.call(addresses.uplink) == "eth0"

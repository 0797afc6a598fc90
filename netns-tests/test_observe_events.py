"""conntrack's events by the kernel: what the queue had no room for is counted exactly."""

from __future__ import annotations

import socket

import pytest

from lab.netns import Lab, NetNS
from podwire_base.kernel.netns import within
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_observe import sources

CLIENTS, PORTS = 300, 3


@pytest.fixture
def ns(lab: Lab) -> NetNS:
    """A namespace with conntrack, which is there only for rules that ask for it."""
    made = lab.netns("events")
    made.run(["ip", "link", "set", "lo", "up"])
    table = nft.Table("ip", "tracked")
    chain = nft.Chain(table, "out", "output", "filter", 0)
    with nft_socket.Connection(made.fd) as conn:
        conn.commit(nft.Transaction().add(table, chain, nft.Rule(chain, (nft.Ct("state"), nft.Counter()), "tracks")))
    return made


def test_events_that_were_lost_are_counted_one_by_one(ns: NetNS) -> None:

    def send() -> None:
        sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(CLIENTS)]
        try:
            for sock in sockets:
                for port in range(PORTS):
                    sock.sendto(b"x", ("127.0.0.1", 10000 + port))
        finally:
            for sock in sockets:
                sock.close()

    events = within(ns.fd, lambda: sources.Events(60_000))
    try:
        within(ns.fd, send)
        got = lost = 0
        more = True
        while more:
            found = events.read()
            got, lost, more = got + len(found.events), lost + found.lost, found.more
    finally:
        events.close()
    assert lost > 0
    assert got + lost == CLIENTS * PORTS


def test_with_room_nothing_is_lost(ns: NetNS) -> None:
    events = within(ns.fd, lambda: sources.Events(4 << 20))

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for port in range(500):
                sock.sendto(b"x", ("127.0.0.1", 10000 + port))

    try:
        within(ns.fd, send)
        found = events.read()
        entries = within(ns.fd, lambda: list(sources.entries()))
    finally:
        events.close()
    assert (len(found.events), found.lost) == (500, 0)
    assert {one.what for one in found.events} == {"new"}
    assert len({(one.source_port, one.port) for one in entries}) == 500, "the poll has those without an answer"

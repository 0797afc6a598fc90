"""The proxy under many changes: a shrinking Service loses no packet, and work and memory follow the changes alone."""

from __future__ import annotations

import gc
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lab.churn import churn
from lab.netns import Lab
from lab.serviceworld import World
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kube.meta import Object
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.model import NodeInfo
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

pytestmark = pytest.mark.alone  # flows and packets by the ten thousand, as fast as the machine goes
SINK = 9500
SENDER = """
import socket, sys, time
for number in range(int(sys.argv[3])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((sys.argv[1], int(sys.argv[2])))
        sock.send(number.to_bytes(4, "big"))
    if number % 5 == 0:
        time.sleep(0.001)  # the rules are to change often meanwhile
print(number + 1)
"""
SIZES = [pytest.param(count, marks=pytest.mark.long if count == 100_000 else ()) for count in (10_000, 100_000)]


class Sinks:
    """UDP sockets that count received packets, on several ports of each pod: each port is an endpoint."""

    def __init__(self, world: World, ports: int) -> None:
        self.places = [(ip, SINK + n) for ip in (s.POD_B, s.POD_C) for n in range(ports)]
        # bound now
        self.sockets = [world.client(ip).call(lambda ip=ip, n=n: self._open(ip, n)) for ip, n in self.places]  # type: ignore[misc]

    @staticmethod
    def _open(ip: str, number: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        sock.bind((ip, number))
        sock.setblocking(False)
        return sock

    def drain(self) -> set[bytes]:
        found = set()
        for sock in self.sockets:
            try:
                while True:
                    found.add(sock.recv(16))
            except BlockingIOError:
                pass
        return found

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@pytest.mark.parametrize("count", SIZES)
def test_a_shrink_under_load_misses_no_packet(lab: Lab, count: int) -> None:
    """Every packet is a flow of its own and draws a slot, while the Service shrinks to one endpoint and grows again."""
    world = World(lab)
    world.node.sysctl("net/netfilter/nf_conntrack_udp_timeout", "1")
    sinks = Sinks(world, 4)
    tracker, proxier = Tracker(s.INFO), backends.proxier(s.INFO, world.node.fd)
    tracker.service("default/udp", service("udp", s.VIP, [port(s.PORT, "UDP")]))

    def shape(size: int) -> None:
        """One slice per port, as for endpoints with their own ports."""
        for ip, number in sinks.places:
            there = sinks.places.index((ip, number)) < size
            tracker.slice(
                f"{ip}-{number}", endpoint_slice("udp", [endpoint(ip)] if there else [], [("", "UDP", number)])
            )

    shape(len(sinks.places))
    tracker.flush()
    proxier.sync(tracker.dataplane, None)
    got: set[bytes] = set()
    shrinks = 0
    sender = world.client(s.POD_A).popen(
        [sys.executable, "-c", SENDER, s.VIP, str(s.PORT), str(count)], stdout=subprocess.PIPE
    )
    for size in itertools.cycle((8, 5, 2, 1, 4, 7)):
        shape(size)
        proxier.sync(tracker.dataplane, tracker.flush())
        shrinks += 1
        got |= sinks.drain()
        proxier.sweep()
        if sender.poll() is not None:
            break
        time.sleep(0.01)
    sent = int(sender.communicate()[0])
    got |= sinks.drain()
    listed = world.node.run(["nft", "list", "table", "ip", "podwire"]).stdout.splitlines()
    misses = [line for line in listed if "slot missing" in line and "packets 0 " not in line]
    proxier.close()
    sinks.close()
    world.close()
    assert shrinks > 20
    assert sent == count
    assert len(got) == count, f"{count - len(got)} of {count} packets are missing"
    assert not misses


CHANGES = [pytest.param(count, marks=pytest.mark.long if count == 60_000 else ()) for count in (3_000, 60_000)]


@pytest.mark.parametrize("count", CHANGES)
def test_a_thousand_changes_a_second_cost_what_they_are_and_leave_nothing(lab: Lab, count: int) -> None:
    """Counts: elements written, verdict elements among them, slots and Python objects left."""
    services, size = 1_000, 5
    info = NodeInfo("n1", (s.NODE_IP,), "", ("10.128.0.0/9",), ("10.64.0.0/12",))
    fd = lab.netns("node").fd
    tracker, proxier = Tracker(info), backends.proxier(info, fd)

    def found(i: int, less: int, moved: int) -> Object:
        ips = [f"10.128.{i >> 4}.{(i & 15) * 16 + j}" for j in range(size - less)]
        ips[0] = f"10.129.{moved >> 8 & 255}.{moved & 255}" if moved else ips[0]
        return endpoint_slice(f"s{i}", [endpoint(ip, "n2") for ip in ips], [("", "TCP", 80)])

    for i in range(services):
        tracker.service(f"default/s{i}", service(f"s{i}", f"10.64.{i >> 8}.{i & 255}", [port(80)]))
        tracker.slice(f"default/s{i}-1", found(i, 0, 0))
    tracker.flush()
    proxier.sync(tracker.dataplane, None)

    def changes(moves: bool) -> Iterator[tuple[str, Object]]:
        for n in itertools.count():
            i, again = n * 37 % services, n // services
            yield f"default/s{i}-1", found(i, 0 if moves else again % 2 + 1, n + 1 if moves else 0)

    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    replaced = churn(tracker, proxier, changes(moves=True), count, 0)
    # One full round, so that the final state equals the initial state of every Service.
    churn(tracker, proxier, ((f"default/s{i}-1", found(i, 0, 0)) for i in itertools.count()), services, 0)
    before = objects()
    counted = churn(tracker, proxier, changes(moves=False), count, 0)
    churn(tracker, proxier, ((f"default/s{i}-1", found(i, 0, 0)) for i in itertools.count()), services, 0)
    after = objects()
    assert replaced.verdicts == 0, "an endpoint in another's place touches no verdict map"
    assert replaced.elements <= 2 * 2 * count, "its slot deleted and written, perhaps its hairpin"
    assert counted.verdicts <= 2 * count
    assert counted.elements <= 4 * count
    assert after <= before * 1.01, "nothing piles up"
    with nft_socket.Connection(fd) as conn:
        dump = conn.dump(nft.Table("ip", "podwire"))
    assert dump is not None
    assert len(dump.elements["endpoints"]) == services * size
    assert backends.proxier(info, fd).sync(tracker.dataplane, None).operations == 0, (
        "the kernel is what it would be afresh"
    )
    proxier.close()

"""A minute in which the roles of a cluster are killed and stopped at random, one after the other, while clients use the
network. Eleven minutes with PODWIRE_LONG.

What a dead role may cost is written down here: a killed DNS server costs the queries that it had read, at most one of
each client, and an API server costs its own connections. Everything else costs nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from dnslib import DNSRecord

from lab.cluster import EXAMPLES, cluster
from lab.patience import patient
from podwire.demo.lab import DemoLab, wait_for
from podwire_base.kernel.netns import call_in

SECONDS = 660 if os.environ.get("PODWIRE_LONG") else 60
STOPPED_SECONDS = 1.0  # less than the beat's patience: a stopped role goes on
NODE_ROLES = ("wiring", "node", "dns-feeder", "dns", "dns-spare", "proxy")
CLUSTER_ROLES = ("apiserver", "controllers", "publisher", "node1", "node2")  # a node's name: the parent of its roles
PUBLISHED = "18080"
REQUEST = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n"
STEADY = 15.0  # seconds of one connection
SOON = 0.05  # a client's query that follows a lost one is answered within these seconds


@dataclass
class Client:
    """One client's work, again and again. worst: the longest time of a success, in seconds. next: the time of the first
    success after each failure."""

    name: str
    once: Callable[[], None]
    done: int = 0
    failed: list[str] = field(default_factory=list)
    next: list[float] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        lost = False
        while not stop.is_set():
            began = time.monotonic()
            try:
                self.once()
                self.done += 1
                if lost:
                    self.next.append(time.monotonic() - began)
                lost = False
            except (OSError, EOFError, AssertionError) as err:
                self.failed.append(f"{time.monotonic():.3f} {err!r} after {time.monotonic() - began:.3f} s")
                lost = True
            stop.wait(0.01)


def connect(address: str, port: int) -> Callable[[], None]:
    """A new connection that is answered."""

    def once() -> None:
        with socket.socket() as sock:
            sock.settimeout(patient(3))
            sock.connect((address, port))
            sock.sendall(REQUEST)
            assert answered(sock)

    return once


def answered(sock: socket.socket) -> bool:
    """Reads to the end, and returns whether that was a server's whole answer."""
    with sock.makefile("rb") as stream:
        return bool(json.loads(stream.read().split(b"\r\n\r\n")[1])["host"])


def slowly(address: str, port: int) -> Callable[[], None]:
    """One connection through the Service for STEADY seconds: a header a letter at a time, and the answer to it."""

    def once() -> None:
        with socket.socket() as sock:
            sock.settimeout(patient(3))
            sock.connect((address, port))
            sock.sendall(REQUEST[:-2] + b"Long: ")
            end = time.monotonic() + STEADY
            while time.monotonic() < end:
                sock.sendall(b"x")
                time.sleep(0.1)
            sock.sendall(b"\r\n\r\n")
            assert answered(sock)

    return once


def works(once: Callable[[], None]) -> bool:
    """the client is served"""
    with contextlib.suppress(OSError, EOFError, AssertionError):
        once()
        return True
    return False


def question(server: str, name: str, address: str) -> Callable[[], None]:
    query = bytes(DNSRecord.question(name).pack())

    def once() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patient(2))
            sock.connect((server, 53))
            sock.send(query)
            assert [str(rr.rdata) for rr in DNSRecord.parse(sock.recv(4096)).rr] == [address]

    return once


@contextlib.contextmanager
def working(places: list[tuple[str, Client]]) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=call_in, args=(netns, lambda c=each: c.run(stop))) for netns, each in places]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(2, outside=True, watched=True, publish=(f"{PUBLISHED}:my-service:80",)) as made:
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.wait_pods("MyApp", 4)
        made.wait_pods("client", 3)
        yield made


def pid_of(lab: DemoLab, node: str | None, role: str) -> int:
    """Returns the pid of the role's process, 0 while there is none."""
    if role != "dns-spare":
        return lab.supervised(node, role)
    assert node
    with contextlib.suppress(OSError, ValueError, KeyError):
        told = json.loads((lab.config.node_dir(node) / "status" / "dns.json").read_text())
        if told["pid"] == lab.supervised(node, "dns"):
            return int(told["figures"]["spare"])
    return 0


def strike(lab: DemoLab, draw: random.Random) -> str:
    """Kills or stops one role, and returns when a role of that name runs. Returns what it did."""
    roles = [*((node, role) for node in ("node1", "node2") for role in NODE_ROLES), *((None, r) for r in CLUSTER_ROLES)]
    node, role = draw.choice(roles)

    def running() -> int:
        """the role runs: what the agent wrote may be older than the agent's own end"""
        pid = pid_of(lab, node, role)
        return pid if pid and Path(f"/proc/{pid}").exists() else 0

    before = wait_for(running, 30)
    if draw.random() < 0.3:
        with contextlib.suppress(ProcessLookupError):  # its agent ended it meanwhile
            os.kill(before, signal.SIGSTOP)
            try:
                time.sleep(draw.uniform(0.1, STOPPED_SECONDS))
            finally:
                os.kill(before, signal.SIGCONT)
        return f"stopped {node or 'cluster'}/{role}"
    with contextlib.suppress(ProcessLookupError):  # its agent ended meanwhile
        os.kill(before, signal.SIGKILL)

    def back() -> bool:
        return pid_of(lab, node, role) not in (0, before)

    back.__doc__ = f"{node or 'cluster'}/{role} is started again"
    wait_for(back, 60)
    return f"killed {node or 'cluster'}/{role}"


def test_killed_and_stopped_roles_cost_no_traffic(lab: DemoLab) -> None:
    pods, address, dns = lab.pods("client"), lab.cluster_ip("my-service"), "10.96.0.10"
    name = "my-service.default.svc.cluster.local"
    outside = lab.outside("client")
    services = [(pod.netns, Client(f"Service from {pod.node}", connect(address, 80))) for pod in pods]
    services.append((outside, Client("node port", connect(lab.config.node_address("node1"), 30080))))
    names = [(pod.netns, Client(f"names on {pod.node}", question(dns, name, address))) for pod in pods for _ in "ab"]
    long = [(pod.netns, Client(f"long connection from {pod.node}", slowly(address, 80))) for pod in pods]
    seed = random.SystemRandom().randrange(1 << 32) if os.environ.get("PODWIRE_LONG") else 36
    draw, strikes = random.Random(seed), list[str]()
    for netns, client in [*services, *names]:
        wait_for(partial(call_in, netns, partial(works, client.once)), 30)  # its node may not have the Service yet
    with working([*services, *long, *names]):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            strikes.append(f"{time.monotonic():.3f} {strike(lab, draw)}")
            time.sleep(draw.uniform(0.05, 0.5))
        wait_for(lambda: all(pid_of(lab, node, "dns-spare") for node in ("node1", "node2")), 30)
    told = f"seed {seed}\n" + "\n".join(strikes)
    assert len(strikes) >= SECONDS / 6, told
    for _, client in [*services, *names]:
        assert client.done > 20 * SECONDS / 10, (client.name, client.done)
    assert not [(client.name, client.failed) for _, client in (*services, *long) if client.failed], told
    assert all(client.done >= SECONDS // STEADY - 1 for _, client in long)
    killed = sum("/dns" in each and "killed" in each and "feeder" not in each for each in strikes)
    for _, client in names:
        assert len(client.failed) <= killed, (client.name, client.failed, told)
        assert all(seconds <= patient(SOON) for seconds in client.next), (client.name, client.next)

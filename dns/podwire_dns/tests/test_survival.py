"""A node's DNS survives its server: two processes read the same sockets. One dies, or stops, and nobody notices.

The servers are processes on loopback; their feeder runs in the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode
import dns.rrset
import pytest

from podwire_base.kube.client.reflector import Event
from podwire_base.patience import patient
from podwire_base.testing.counts import examples
from podwire_base.testing.ports import free_port
from podwire_dns.config import DnsConfig
from podwire_dns.feeder import Feeder
from podwire_dns.heritage import end_spares
from podwire_dns.testing import builders, cases
from podwire_dns.testing.cases import HTTP, SVC, service
from podwire_dns.tests.test_observed import get, samples
from podwire_dns.tests.test_server import feed

SECONDS = examples(5, 660)
SOON = 0.05  # a query that follows a lost one is answered within this time
BATCH = 64  # queries that a killed process may have read


def eventually(check: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + patient(seconds)
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Node:
    """Server processes, and a feeder in a thread."""

    def __init__(self, folder: Path, first: str = "", *flags: str) -> None:
        """first: Python that each server runs before anything else."""
        self.config = replace(builders.CONFIG, run_dir=folder, listen=("127.0.0.1",), port=free_port())
        self.first, self.flags = first, flags if "--upstream" in flags else ("--upstream", "none", *flags)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.feeder: Feeder | None = None
        self.listener: asyncio.Server | None = None
        self.process = self.start()
        self.feed()

    def words(self) -> list[str]:
        return [
            *("--run-dir", str(self.config.run_dir), "--listen", "127.0.0.1", "--port", str(self.config.port)),
            *("--no-notrack", *self.flags),
        ]

    def start(self) -> subprocess.Popen[bytes]:
        script = f"{self.first}\nfrom podwire_dns.main import command; command()"
        with (self.config.run_dir / "server.log").open("a") as out:
            return subprocess.Popen([sys.executable, "-c", script, "server", *self.words()], stderr=out, stdout=out)

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(patient(20))

    def feed(self) -> None:
        async def begin() -> None:
            self.feeder, self.listener = await feed(self.config)
            self.feeder.start_feeding()

        self.run(begin())

    def starve(self) -> None:
        async def end() -> None:
            assert self.listener is not None
            assert self.feeder is not None
            self.listener.close()
            self.feeder.part()

        self.run(end())

    def change(self, obj: dict[str, Any]) -> None:
        assert self.feeder is not None
        self.loop.call_soon_threadsafe(self.feeder.handler("Service"), Event("MODIFIED", "", obj))

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.config.run_dir / "status" / "dns.json").read_text())
        return found

    def spare(self) -> int:
        told = self.status()
        pid, first = int(told.get("figures", {}).get("spare", 0)), int(told.get("pid", 0))
        mine = first in (self.process.pid, *children(self.process.pid))
        return pid if mine and pid and b"dns-spare" in command(pid) else 0

    def both(self, but: int = 0) -> bool:
        return self.spare() not in (0, but)

    def kill(self, who: str) -> None:
        if who == "spare":
            os.kill(self.spare(), signal.SIGKILL)
        else:
            self.process.kill()
            self.process.wait()
            self.process = self.start()

    def log(self) -> str:
        return (self.config.run_dir / "server.log").read_text()

    def close(self) -> None:
        spare = self.spare()
        self.process.terminate()
        try:
            self.process.wait(patient(10))
        except subprocess.TimeoutExpired:
            self.process.kill()
        for pid in {spare, *(int(found) for found in re.findall(r'"spare server started" pid=(\d+)', self.log()))}:
            if pid and b"dns-spare" in command(pid):
                os.kill(pid, signal.SIGKILL)
        if self.listener is not None:
            self.starve()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


def halt(pid: int) -> None:
    """Stops a process. Until all its threads stand still, it may read queries that it does not answer."""

    def still() -> bool:
        states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return set(states) == {"T"}

    os.kill(pid, signal.SIGSTOP)
    eventually(still, "it stands still")


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    try:
        eventually(made.both, "there are two servers")
        yield made
    except BaseException:
        print(made.log())
        raise
    finally:
        made.close()


class Clients:
    """`with Clients(config) as clients`: clients send one query after the other. A query without an answer within a
    second is lost; `slow` has the times of the answers to the queries that followed a lost one.
    """

    def __init__(self, config: DnsConfig, count: int = 3) -> None:
        self.port = config.port
        self.sent, self.lost, self.wrong = 0, 0, set[str]()
        self.slow: list[float] = []
        self.stop, self._lock = threading.Event(), threading.Lock()
        self.threads = [threading.Thread(target=self._work) for _ in range(count)]

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _work(self) -> None:
        query, lost = dns.message.make_query(f"svc1.{SVC}", "A").to_wire(), False
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", self.port))
            sock.settimeout(1)
            while not self.stop.is_set():
                ident, began, answer = random.randbytes(2), time.monotonic(), b""
                with contextlib.suppress(OSError):
                    sock.send(ident + query[2:])
                    while answer[:2] != ident:
                        answer = sock.recv(4096)
                with self._lock:
                    self.sent += 1
                    self.lost += not answer
                    if lost and answer:
                        self.slow.append(time.monotonic() - began)
                    if answer and (answer[3] & 15 or not answer[7]):
                        self.wrong.add(answer[2:12].hex())
                lost = not answer
                time.sleep(0.001)

    def check(self, kills: int) -> None:
        assert self.sent > 100
        assert self.lost <= kills * BATCH, (self.lost, kills)
        assert not self.wrong
        assert all(took < patient(SOON) for took in self.slow), self.slow


@pytest.mark.parametrize("who", ["spare", "server"])
def test_a_killed_server_is_not_missed(node: Node, who: str) -> None:
    before = node.spare()
    with Clients(node.config) as clients:
        time.sleep(0.2)
        node.kill(who)
        eventually(lambda: node.both(before), "there are two servers again")
        time.sleep(0.2)
    clients.check(1)
    if who == "spare":
        eventually(lambda: node.status()["figures"].get("spares_ended") == 1, "the status counts it")
        assert node.status()["figures"]["queries_lost"] <= BATCH
    else:
        assert "took the sockets over from a predecessor" in node.log()
        eventually(lambda: b"dns-spare" not in command(before), "the spare of the killed server left")


@pytest.mark.parametrize("who", ["spare", "server"])
def test_a_stopped_server_is_not_missed(node: Node, who: str) -> None:
    pid = node.spare() if who == "spare" else node.process.pid
    with Clients(node.config) as clients:
        time.sleep(0.1)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
    clients.check(1)


def test_changes_reach_both(node: Node) -> None:
    query = dns.message.make_query(f"fresh.{SVC}", "A").to_wire()

    def address() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.5)
            sock.sendto(query, ("127.0.0.1", node.config.port))
            try:
                return sock.recv(4096)[-4:]
            except TimeoutError:  # the process that was stopped had read the query
                return b""

    node.change(service("fresh", ip="10.96.99.1", ports=[HTTP]))
    for stopped in (node.spare(), node.process.pid):  # the other one answers alone
        time.sleep(0.2)
        os.kill(stopped, signal.SIGSTOP)
        try:
            eventually(lambda: address() == bytes((10, 96, 99, 1)), "the new Service is known", 5)
        finally:
            os.kill(stopped, signal.SIGCONT)


def test_the_server_dies_while_the_feeder_is_away(node: Node) -> None:
    """The spare serves the last zone until a server has one of its own, however long that takes."""
    spare = node.spare()
    node.starve()
    with Clients(node.config) as clients:
        node.kill("server")
        time.sleep(1)
        assert b"dns-spare" in command(spare)
        node.feed()
        eventually(lambda: node.both(spare), "there are two servers again")
        time.sleep(0.2)
    clients.check(1)


def test_sigterm_ends_both(node: Node) -> None:
    spare = node.spare()
    node.process.terminate()
    assert node.process.wait(patient(10)) == 0
    assert b"dns-spare" not in command(spare)
    assert node.status()["reason"] == "Stopped"


def test_a_spare_lingers_until_the_next_server_takes_over(started: Callable[..., Node]) -> None:
    """As an agent's server does, since another version of the agent may follow."""
    node = started("", "--linger", "30")
    before = node.spare()
    with Clients(node.config) as clients:
        node.process.terminate()
        assert node.process.wait(patient(10)) == 0
        time.sleep(1)
        assert b"dns-spare" in command(before)
        node.process = node.start()
        eventually(lambda: node.both(before), "there are two servers again")
        eventually(lambda: b"dns-spare" not in command(before), "the old spare left")
    clients.check(0)
    assert clients.lost == 0


def test_a_spare_lingers_for_a_while_only(started: Callable[..., Node]) -> None:
    node = started("", "--linger", "3")
    before = node.spare()
    node.process.terminate()
    assert node.process.wait(patient(10)) == 0
    assert b"dns-spare" in command(before)
    eventually(lambda: b"dns-spare" not in command(before), "it ended")
    node.process = node.start()
    eventually(node.both, "there are two servers")
    before = node.spare()
    node.process.terminate()
    assert node.process.wait(patient(10)) == 0
    end_spares(node.config.run_dir)
    eventually(lambda: b"dns-spare" not in command(before), "`cleanup` ends it at once", 2.5)


def test_another_zone_reaches_both(node: Node) -> None:
    before = node.spare()
    with Clients(node.config) as clients:
        node.starve()
        node.feed()
        eventually(lambda: node.both(before), "the spare has the new zone")
        eventually(lambda: b"dns-spare" not in command(before), "the old one left")
    clients.check(0)


def test_killing_and_stopping_for_a_while(node: Node) -> None:
    rand, kills = random.Random(36), 0
    end = time.monotonic() + SECONDS
    with Clients(node.config) as clients:
        while time.monotonic() < end:
            what, before = rand.choice(("kill spare", "kill server", "stop spare", "stop server")), node.spare()
            if what.startswith("kill"):
                kills += 1
                node.kill(what.split()[1])
                eventually(lambda before=before: node.both(before), "there are two servers again")  # type: ignore[misc]
            else:
                pid = before if what.endswith("spare") else node.process.pid
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.3)
                os.kill(pid, signal.SIGCONT)
    clients.check(kills)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Starts nodes with other settings."""
    with contextlib.ExitStack() as stack:

        def start(first: str = "", *flags: str) -> Node:
            made = Node(tmp_path, first, *flags)
            stack.callback(made.close)
            eventually(made.both, "there are two servers")
            return made

        yield start


def test_a_spare_that_falls_behind_is_replaced(started: Callable[..., Node]) -> None:
    """The tables of the two never differ for longer than LAG_SECONDS."""
    node = started("from podwire_dns import spares; spares.LAG_SECONDS = 0.5")
    before = node.spare()
    os.kill(before, signal.SIGSTOP)
    time.sleep(1)
    assert node.both(), "a spare without changes has nothing to fall behind of"
    node.change(service("fresh", ip="10.96.99.1", ports=[HTTP]))
    eventually(lambda: node.both(before), "another spare has the change")
    assert b"dns-spare" not in command(before)
    assert "a spare server does not follow, killing it" in node.log()


def test_a_spare_that_nobody_succeeds_ends(started: Callable[..., Node]) -> None:
    node = started("from podwire_dns import spareprocess; spareprocess.ORPHAN_SECONDS = 0.5")
    spare = node.spare()
    node.process.kill()
    node.process.wait()
    eventually(lambda: b"dns-spare" not in command(spare), "the spare ended")


def test_a_spare_that_stands_still_does_not_keep_queries(started: Callable[..., Node]) -> None:
    """Its sockets would get a part of the datagrams for ever."""
    node = started("from podwire_dns import heritage; heritage.ASK_SECONDS = 0.3")
    spare = node.spare()
    os.kill(spare, signal.SIGSTOP)
    node.kill("server")
    eventually(lambda: node.both(spare), "there are two servers again")
    assert b"dns-spare" not in command(spare)
    with Clients(node.config) as clients:
        time.sleep(0.3)
    clients.check(0)


class Upstream:
    """Answers every name with an address, and those below fail.test with SERVFAIL. asked: the names of all queries."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1#{self.sock.getsockname()[1]}"
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        while True:
            data, peer = self.sock.recvfrom(4096)
            if not data:
                return
            query = dns.message.from_wire(data)
            name = query.question[0].name.to_text().lower()
            self.asked.append(name)
            reply = dns.message.make_response(query)
            if name.endswith("fail.test."):
                reply.set_rcode(dns.rcode.SERVFAIL)
            else:
                reply.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "198.51.100.7"))
            self.sock.sendto(reply.to_wire(), peer)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self.sock.getsockname())
        self.thread.join()
        self.sock.close()


def test_answers_of_upstreams_are_those_of_both(started: Callable[..., Node]) -> None:
    """A name is asked for once, whichever process gets the next query; failures too (RFC 9520). A new spare has the
    cache as well.
    """
    with contextlib.closing(Upstream()) as upstream:
        node = started("", "--upstream", upstream.address)

        def ask(name: str) -> dns.message.Message:
            query = dns.message.make_query(name, "A")
            return dns.query.udp(query, "127.0.0.1", patient(5), node.config.port)

        def alone(stopped: int) -> None:
            """asks one process alone"""
            halt(stopped)
            try:
                for number in range(20):
                    assert ask(f"n{number}.test.").answer[0][0].to_text() == "198.51.100.7"
                assert ask("a.fail.test.").rcode() == dns.rcode.SERVFAIL
            finally:
                os.kill(stopped, signal.SIGCONT)
                time.sleep(0.1)

        spare = node.spare()
        alone(spare)
        assert len(upstream.asked) >= 21
        asked = len(upstream.asked)
        alone(node.process.pid)
        assert len(upstream.asked) == asked
        node.kill("spare")
        eventually(lambda: node.both(spare), "there are two servers again")
        alone(node.process.pid)
        assert len(upstream.asked) == asked, upstream.asked


SUPERVISOR = """
from functools import partial
from podwire_base.role.supervisor import Role, Supervisor
from podwire_dns import role
def run(config):
    Supervisor([Role("dns", partial(role_run, config))], None).run()
role_run, role.run = role.run, run
"""


def test_a_killed_supervisor_is_not_missed(started: Callable[..., Node]) -> None:
    """Both servers go on until the next supervisor's server takes the sockets over."""
    node = started(SUPERVISOR)
    old = {node.spare(), int(node.status()["pid"])}
    with Clients(node.config) as clients:
        node.process.kill()
        node.process.wait()
        eventually(lambda: "the supervisor is gone" in node.log(), "the server knows")
        node.starve()
        node.feed()  # the feeder of the next supervisor, which may be there before the next server
        time.sleep(1.5)
        assert all(command(pid).startswith(b"podwire") for pid in old), "both go on"
        node.process = node.start()
        eventually(lambda: node.spare() not in (0, *old), "there are two servers again")
        eventually(lambda: not any(command(pid) for pid in old), "the old ones left")
        time.sleep(0.2)
    clients.check(0)
    assert clients.lost == 0


def test_metrics_are_those_of_both(started: Callable[..., Node]) -> None:
    pages = f"127.0.0.1:{free_port()}"
    node = started("", "--metrics-address", pages)

    def figure(name: str) -> float:
        page = samples(asyncio.run(get(pages, "/metrics"))[1])
        return sum(value for key, value in page.items() if key.partition("{")[0] == name)

    with Clients(node.config) as clients:
        eventually(lambda: clients.sent > 400, "queries were answered")
    # without the native module, Python reports each second
    eventually(lambda: figure("coredns_dns_requests_total") == clients.sent, "every query is counted")
    assert figure("coredns_dns_responses_total") == clients.sent
    assert (figure("podwire_dns_servers"), figure("podwire_dns_spares_ended_total")) == (2, 0)
    for number in range(60):  # these names are Python's business, which reports each second
        query = dns.message.make_query(f"n{number}.example.com.", "A")
        assert dns.query.udp(query, "127.0.0.1", patient(5), node.config.port).rcode() == dns.rcode.REFUSED
    eventually(lambda: figure("coredns_dns_requests_total") == clients.sent + 60, "every query is counted once")
    node.kill("spare")
    eventually(lambda: figure("podwire_dns_spares_ended_total") == 1, "the end is counted")
    assert figure("coredns_dns_requests_total") >= clients.sent + 60 - BATCH, "the counts of the spare stay"


def test_the_spare_shares_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PSS of both beside that of one, with 10,000 Services: at most 10 MB more."""
    many = [service(f"s{n}", ip=f"10.96.{10 + (n >> 8)}.{n & 255}", ports=[HTTP]) for n in range(10_000)]
    monkeypatch.setattr(cases, "SERVICES", [*cases.SERVICES, *many])
    node = Node(tmp_path)
    try:
        eventually(node.both, "there are two servers", 60)
        time.sleep(0.5)

        def pss(pid: int) -> int:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            return int(re.findall(r"^Pss:\s+(\d+)", text, re.M)[0])

        def ended(pid: int) -> bool:
            threads = list(Path(f"/proc/{pid}/task").iterdir())
            return len(threads) == 1 and b") Z " in Path(f"/proc/{pid}/stat").read_bytes()

        spare = node.spare()
        together = pss(node.process.pid) + pss(spare)
        os.kill(node.process.pid, signal.SIGSTOP)  # it starts no other spare
        os.kill(spare, signal.SIGKILL)
        # its last thread holds the pages, also when the first one is a zombie without maps
        eventually(lambda: ended(spare), "the spare's memory is free")
        alone = pss(node.process.pid)
        os.kill(node.process.pid, signal.SIGCONT)
        assert together - alone <= 10_000, (together, alone)
    finally:
        node.close()

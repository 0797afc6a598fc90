"""Measures what the role `observe` costs a connection and a node, and writes bench/results/observe.json. Run `make
bench-observe` as root.

A client and a server in network namespaces of their own, and between them a node that translates a Service by nft and
runs the role, beside an API of 10,000 Services with 10 endpoints each. The order is A/B/A/B, and the medians of paired
ratios count. "CRR" is connect, request, answer and close, one after the other. CPU times are those that the kernel
counted for the process.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-tests"))

from bench_dns import row
from ending import WITH_ME, undone_by_signals

from lab.dnsnode import SERVICES, SLICES
from lab.fakeapi import FakeApi
from lab.netns import Lab
from podwire.tests.page_world import World
from podwire_base.role import podspaces
from podwire_dns.testing import big
from podwire_observe import sources
from podwire_observe.config import SOCKET
from podwire_observe.query import Query

RESULTS = Path(__file__).parent / "results" / "observe.json"
CLIENT, SERVER, SERVICE = "10.244.0.2", "10.245.0.2", "10.96.200.200"
PORT, CLOSED = 80, 81
RULES = f"""
table ip bench {{
    chain pre {{ type nat hook prerouting priority dstnat; ip daddr {SERVICE} dnat to {SERVER}; }}
    chain seen {{ type filter hook forward priority 0; ct state new counter; }}
}}
"""
ROLE = """
import sys
from pathlib import Path
from podwire_observe.config import ObserveConfig
from podwire_observe.main import run
run(ObserveConfig("n1", sys.argv[1], Path(sys.argv[2]), ("10.244.0.0/15",), ("10.96.0.0/12",), sys.argv[3]))
"""
Mode = Literal["off", "always", "on-demand", "conntrack -E"]
READY = 120.0


class Node:
    """The three namespaces, and the server in one of them."""

    def __init__(self, lab: Lab) -> None:
        self.client, self.ns, self.server = lab.netns("client"), lab.router("node"), lab.netns("server")
        lab.wire(self.client, "eth0", self.ns, "c0", f"{CLIENT}/24", "10.244.0.1/24")
        lab.wire(self.server, "eth0", self.ns, "s0", f"{SERVER}/24", "10.245.0.1/24")
        lab.route(self.client, "default", "10.244.0.1")
        lab.route(self.server, "default", "10.245.0.1")
        self.ns.run(["ip", "link", "set", "lo", "up"])
        self.ns.run(["nft", "-f", "-"], input=RULES)
        for name in ("tcp_timeout_time_wait", "udp_timeout"):
            self.ns.sysctl(f"net/netfilter/nf_conntrack_{name}", "600")  # nothing expires while it is measured
        self.listening = self.server.call(lambda: socket.create_server((SERVER, PORT), backlog=1024))
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listening.accept()
                with sock:
                    sock.sendall(sock.recv(64))

    def crr(self, number: int) -> float:
        """Returns the seconds for so many connections through the Service."""

        def work() -> float:
            began = time.perf_counter()
            for _ in range(number):
                with socket.create_connection((SERVICE, PORT)) as sock:
                    sock.sendall(b"x")
                    sock.recv(64)
            return time.perf_counter() - began

        return self.client.call(work)

    def refused(self, number: int) -> None:
        """Makes connections that are refused: each gives two events at once."""

        def work() -> None:
            for _ in range(number):
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection((SERVICE, CLOSED)):
                    pass

        self.client.call(work)

    def datagrams(self, number: int) -> float:
        """Begins so many connections, as fast as this machine can. Returns the seconds."""

        def work() -> float:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                began = time.perf_counter()
                for port in range(1024, 1024 + number):
                    sock.sendto(b"x", (SERVER, port))
                return time.perf_counter() - began

        return self.client.call(work)

    def flush(self) -> None:
        self.ns.run(["conntrack", "-F"])


class Pages(FakeApi):
    """An API server that gives lists in pages, as real ones do."""

    def list(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        first, most = (int(query.get(name, ["0"])[0]) for name in ("continue", "limit"))
        with self.changed:
            items = list(self.objects.get(path, {}).values())
        last = first + most if most else len(items)
        metadata = {"resourceVersion": str(self.version), "continue": str(last) if last < len(items) else ""}
        body = json.dumps({"kind": "List", "metadata": metadata, "items": items[first:last]}).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


class Role:
    """The role in the node's namespace, or a peer."""

    def __init__(self, node: Node, api: FakeApi, folder: Path, mode: Mode) -> None:
        self.path = folder / SOCKET
        (folder / "status").mkdir(exist_ok=True)
        spaces = [podspaces.PodSpace(1, 1, "/nowhere", (CLIENT,), "bench/client")]
        podspaces.path(folder).write_text(podspaces.encode(spaces))
        if mode == "conntrack -E":
            command = ["conntrack", "-E", "-e", "NEW,DESTROY", "-b", str(16 << 20)]
        else:
            kubeconfig = str(api.kubeconfig(folder / "kubeconfig"))
            command = [sys.executable, "-c", ROLE, kubeconfig, str(folder), mode]
        self.status = folder / "status" / "observe.json"
        self.status.unlink(missing_ok=True)
        self.process = node.ns.popen([*WITH_ME, *command], stdout=subprocess.DEVNULL, stderr=(folder / "log").open("w"))
        until = time.monotonic() + READY
        while mode != "conntrack -E" and not self._ready():
            if time.monotonic() > until or self.process.poll() is not None:
                raise TimeoutError(f"the role does not begin: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        time.sleep(0.5)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return bool(json.loads(self.status.read_text())["ready"])
        return False

    def cpu(self) -> float:
        """Returns the CPU seconds, which /proc/PID/stat would give in steps of 10 ms."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def settled(self) -> float:
        """Returns the CPU seconds when the process has nothing left to do."""
        before = -1.0
        while (now := self.cpu()) > before + 0.002:  # its beat goes on
            before = now
            time.sleep(0.4)
        return now

    def ask(self, query: Query) -> list[dict[str, Any]]:
        with self.following(query) as file:
            return [json.loads(line) for line in file]

    @contextlib.contextmanager
    def following(self, query: Query) -> Iterator[Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.path))
            sock.sendall(json.dumps(query.to_json()).encode() + b"\n")
            with sock.makefile("rb") as file:
                yield file

    def peak(self) -> float:
        """MiB"""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def running(node: Node, api: FakeApi, folder: Path, mode: Mode) -> Iterator[Role | None]:
    role = None if mode == "off" else Role(node, api, folder, mode)
    try:
        yield role
    finally:
        if role is not None:
            role.stop()


def connections(node: Node, api: FakeApi, folder: Path, rounds: int, number: int) -> list[dict[str, Any]]:
    """Measures connect, request and close without the role, with it, and on demand while nobody looks."""
    modes: tuple[Mode, ...] = ("off", "always", "on-demand", "conntrack -E")
    found: dict[Mode, list[float]] = {mode: [] for mode in modes}
    for turn in range(rounds):
        for mode in modes if turn % 2 else reversed(modes):
            with running(node, api, folder, mode):
                node.crr(200)
                parts = [node.crr(number // 10) for _ in range(10)]
                found[mode].append(statistics.median(parts) / (number // 10) * 1e6)
            node.flush()
    return [
        row("CRR flows on", "µs", found["always"], found["off"], "flows off"),
        row("CRR on-demand", "µs", found["on-demand"], found["off"], "flows off"),
        row("CRR, conntrack -E", "µs", found["conntrack -E"], found["off"], "flows off"),
    ]


def events(node: Node, api: FakeApi, folder: Path, rounds: int, number: int) -> dict[str, Any]:
    """Measures the CPU time of an event, read, named and folded, beside that of `conntrack -E`, which prints it."""
    found: dict[Mode, list[float]] = {"always": [], "conntrack -E": []}
    for _ in range(rounds):
        for mode, values in found.items():
            with running(node, api, folder, mode) as role:
                assert role is not None
                before = role.settled()
                node.refused(number)
                values.append((role.settled() - before) / (2 * number) * 1e6)
            node.flush()
    return row("event CPU", "µs", found["always"], found["conntrack -E"], "conntrack -E")


def sizes(node: Node, api: FakeApi, folder: Path, burst: int) -> list[dict[str, Any]]:
    """Measures one role: idle, a burst, the first sight of a connection, an answer, a poll, its memory."""
    with running(node, api, folder, "always") as role:
        assert role is not None
        role.settled()
        began, before = time.monotonic(), role.cpu()
        time.sleep(15)
        idle = (role.cpu() - before) / (time.monotonic() - began) * 100
        rows = [row("idle", "% of a core", [idle], [], "")]
        rows.append(row("first sight", "ms, p99", [_first_sight(node, role)], [], ""))
        seconds = node.datagrams(burst)
        role.settled()
        head, *sums = role.ask(Query("sums"))
        opened = sum(line["row"]["opened"] for line in sums if "row" in line and line["row"]["protocol"] == "udp")
        kept = opened if not head["head"]["lost"] else opened - head["head"]["lost"]
        rows.append(row("burst", f"of {burst:,} kept, in {seconds:.2f} s", [kept], [], ""))
        began = time.perf_counter()
        flows = len(role.ask(Query("flows"))) - 2
        rows.append(row("query 15 min", f"s for {flows:,} connections", [time.perf_counter() - began], [], ""))

        def dump() -> tuple[int, float]:
            before = time.thread_time()
            return sum(1 for _ in sources.entries()), time.thread_time() - before

        entries, spent = node.ns.call(dump)
        rows.append(row("poll", f"ms for {entries:,} entries", [spent * 1000], [], ""))
        rows.append(row("RSS 10k Services", "MiB, peak", [role.peak()], [], ""))
        return rows


def _first_sight(node: Node, role: Role, number: int = 200) -> float:
    """Returns the milliseconds from connect() to the line about it that a follower reads, the 99th percentile."""
    found = []
    with role.following(Query("flows", last=0, follow=True)) as file:
        file.readline()
        for _ in range(number):
            began = time.perf_counter()
            node.crr(1)
            while b'"flow"' not in file.readline():
                pass
            found.append((time.perf_counter() - began) * 1000)
    return statistics.quantiles(found, n=100)[98]


def snapshot() -> dict[str, Any]:
    """Measures what the page of `podwire ui` gets every two seconds for 30 Services."""
    text = json.dumps(World(5, 6).snapshot(), separators=(",", ":")).encode()
    return row("stream bytes", "KB, compressed", [len(gzip.compress(text, 6)) / 1000], [], "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--burst", type=int, default=20_000)
    options = parser.parse_args()
    rows = [snapshot()]
    with Lab() as lab, tempfile.TemporaryDirectory() as tmp:
        node, folder = Node(lab), Path(tmp)
        with Pages(node.ns) as api:
            for path, objects in ((SERVICES, big.services()), (SLICES, big.slices(headless_each=1, endpoints=10))):
                for obj in objects:
                    api.put(path, obj)
            rows += sizes(node, api, folder, options.burst)
            node.flush()
            rows.append(events(node, api, folder, options.rounds, options.connections))
        with Pages(node.ns) as api:  # a role begins sooner with few Services, and an event costs the same
            rows += connections(node, api, folder, options.rounds, options.connections)
        node.listening.close()
    machine = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "note": "a shared machine: trust ratios, not absolute figures",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    with undone_by_signals():
        main()

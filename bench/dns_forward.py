"""Measures forwarded names: cached names in comparison with unbound, uncached names in comparison with a plain asyncio
forwarder. bench_dns.py calls this module.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_dns
from ending import undone_by_signals

from lab.netns import Lab, NetNS

ADDRESS, UPSTREAM = "10.96.0.10", "192.0.2.53"
HITS, MISSES = 1000, 400_000
KINDS = (("forward hits", "unbound"), ("forward misses", "asyncio"), ("forward misses, unbound", "unbound"))
RECORD = b"\xc0\x0c\0\1\0\1\0\0\x0e\x10\0\4\xc6\x33\x64\x07"  # A 198.51.100.7, TTL 3600


def answer_all() -> None:
    """Run an upstream server that answers every query with the same address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((UPSTREAM, 53))
        while True:
            data, peer = sock.recvfrom(4096)
            at = 12
            while data[at]:
                at += 1 + data[at]
            sock.sendto(data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + data[12 : at + 5] + RECORD, peer)


@dataclass
class Forwarders:
    """Starts the servers by name, in the form that bench_dns.dnsperf needs."""

    node: NetNS
    folder: Path

    def start(self, name: str, port: int) -> Any:
        command = getattr(self, f"_{name}")(port)
        with (self.folder / f"{name}.forward.log").open("w") as log:
            process = self.node.popen(["taskset", "-c", bench_dns.SERVER_CPU, *command], stdout=log, stderr=log)
        return SimpleNamespace(name=name, process=process, node=self.node, port=port)

    def _podwire(self, port: int) -> list[str]:
        run_dir = self.folder / "forwarding"
        run_dir.mkdir(exist_ok=True)
        return [
            sys.executable,
            "-m",
            "podwire_dns.main",
            "server",
            "--run-dir",
            str(run_dir),
            "--port",
            str(port),
            "--listen",
            ADDRESS,
            "--upstream",
            UPSTREAM,
        ]

    def _asyncio(self, port: int) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("plain_forwarder.py")), ADDRESS, str(port), UPSTREAM]

    def _unbound(self, port: int) -> list[str]:
        conf = self.folder / "forward.conf"
        conf.write_text(
            f"server:\n  interface: {ADDRESS}\n  port: {port}\n  num-threads: 1\n  do-daemonize: no\n"
            f"  username: ''\n  chroot: ''\n  directory: {self.folder}\n  pidfile: ''\n  use-syslog: no\n"
            "  access-control: 0.0.0.0/0 allow\n  module-config: iterator\n  do-not-query-localhost: no\n"
            "  outgoing-range: 8192\n  num-queries-per-thread: 4096\n"
            f"remote-control:\n  control-enable: no\nforward-zone:\n  name: .\n  forward-addr: {UPSTREAM}\n"
        )
        return ["/usr/sbin/unbound", "-c", str(conf)]


@contextmanager
def running(forwarders: Forwarders, names: list[str]) -> Iterator[dict[str, Any]]:
    upstream = forwarders.node.popen(
        ["taskset", "-c", bench_dns.CLIENT_CPU, sys.executable, "-c", "import dns_forward; dns_forward.answer_all()"],
        cwd=Path(__file__).parent,
    )
    servers = {name: forwarders.start(name, port) for port, name in enumerate(names, 5400)}
    time.sleep(3)
    try:
        yield servers
    finally:
        for process in (upstream, *(server.process for server in servers.values())):
            bench_dns.end(process)


def rows(folder: Path, rounds: int, seconds: float, *, unbound: bool) -> list[dict[str, Any]]:
    """ "forward hits" and "forward misses". Each server gets its own uncached names in each round."""
    found = []
    with Lab() as lab:
        node = lab.netns("bench-forward")
        for address in (ADDRESS, UPSTREAM):
            node.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"])
        hits = folder / "forward-hits.txt"
        hits.write_text("".join(f"h{i}.example.com A\n" for i in range(HITS)))
        names = ["podwire", "asyncio", *(["unbound"] if unbound else [])]
        with running(Forwarders(node, folder), names) as servers:
            for kind, peer in KINDS:
                if peer not in servers:
                    continue
                runs: dict[str, list[float]] = {"podwire": [], peer: []}
                for turn in range(rounds + (kind == "forward hits")):
                    file = hits
                    if kind != "forward hits":
                        file = folder / "forward-misses.txt"
                        file.write_text("".join(f"{peer[0]}{turn}-{i}.example.com A\n" for i in range(MISSES)))
                    for name, values in runs.items():
                        if servers[name].process.poll() is not None:
                            raise SystemExit(f"{name} ended:\n" + (folder / f"{name}.forward.log").read_text()[-2000:])
                        values.append(bench_dns.dnsperf(servers[name], file, seconds)["qps/core"])
                if kind == "forward hits":  # the first run fills the caches
                    runs = {name: values[1:] for name, values in runs.items()}
                found.append(bench_dns.row(kind, "queries/CPU s", runs["podwire"], runs[peer], peer))
    return found


if __name__ == "__main__":
    import tempfile

    with undone_by_signals(), tempfile.TemporaryDirectory() as made:
        rows(Path(made), 3, 2, unbound=Path("/usr/sbin/unbound").exists())

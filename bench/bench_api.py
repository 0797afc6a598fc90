"""Measures the API server and writes bench/results/api.json. Run `make bench-api`.

    .venv/bin/python bench/bench_api.py [--runs 5]

CPU is that of the server's process, with all its threads, from /proc. Durability is on: each commit of the store is
synced to this disk.

    create Service, create ConfigMap   one client, one request after the other: CPU of the server for a create
    writes 64                          64 connections create ConfigMaps: creates a second
    watch delivery                     200 watches, 20 changes a second: CPU of the server for each event delivered
    list 10k                           one list of 10,000 Services: CPU of the server
    start 10k                          CPU from the start to /readyz with 10,000 Services and 100,000 endpoints
    RSS 10k                            memory of that server

The peer is kube-apiserver, where it and etcd are on the PATH; CPU and memory of both count. `beside` in a row has what
belongs to its figure: CPU and the disk's sync time for "writes 64", latencies for "watch delivery".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import ipaddress
import json
import os
import platform
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from api_load import Link, Watchers, context, many, request
from ending import WITH_ME, undone_by_signals

from podwire_controlplane.server import auth, pki

RESULT = Path(__file__).parent / "results" / "api.json"
PODWIRE = str(Path(sys.executable).parent / "podwire")
SPACE = "/api/v1/namespaces/default"
WRITERS, WATCHERS, RATE, SECONDS = 64, 200, 20, 5.0
SERVICES, SLICES, PER_SLICE = 10_000, 10_000, 10
MARK = b'"sent":"'
# An installed podwire is compiled once, and not at each start: what Python compiles is kept for the runs that follow.
KEPT = Path(sys.executable).parents[1] / "pycache"
COMPILED = {**os.environ, "PYTHONPYCACHEPREFIX": str(KEPT), "PYTHONDONTWRITEBYTECODE": ""}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpu(pids: list[int]) -> float:
    """Returns the seconds of CPU that processes have used, with all their threads, living and ended."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def rss(pids: list[int]) -> float:
    """Returns MiB."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
    return sum(int(text.split("VmRSS:")[1].split()[0]) for text in texts) / 1024


def sync_ms(folder: Path) -> float:
    """Returns the median time of a small write that is synced, in ms."""
    times = []
    with open(folder / "probe", "wb") as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


class Server:
    """One running server. pids: the processes whose work counts."""

    name = "podwire"

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.pids = folder, free_port(), list[int]()
        self.processes = list[subprocess.Popen[bytes]]()
        self.started = 0.0
        self.tls: ssl.SSLContext

    def prepare(self) -> None:
        authority = pki.Authority()
        served = authority.server(["localhost"], ["127.0.0.1"])
        for file, text in (("ca", authority.certificate), ("server", served.certificate)):
            (self.folder / f"{file}.pem").write_text(text)
        pki.write_private(self.folder / "server-key.pem", served.key)
        pair = authority.client("bench", [auth.ADMINS])
        pki.write_private(self.folder / "bench.pem", pair.certificate + pair.key)

    def commands(self) -> list[list[str]]:
        return [[PODWIRE, "apiserver", "--data", str(self.folder), "--listen", f"127.0.0.1:{self.port}",
                 "--advertise", "192.0.2.1:6443"]]  # fmt: skip

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.processes = []
            for words in self.commands():
                self.processes.append(
                    subprocess.Popen([*WITH_ME, *words], stdout=log, stderr=log, env=COMPILED, start_new_session=True)
                )
        self.pids = [process.pid for process in self.processes]
        self.tls = context(str(self.folder / "ca.pem"), str(self.folder / "bench.pem"))
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException):
                link = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=self.tls)
                link.request("GET", "/readyz")
                if link.getresponse().status == 200:
                    link.close()
                    self.started = cpu(self.pids)
                    return
            time.sleep(0.02)
        raise SystemExit(f"{self.name} did not become ready; see {self.folder / 'log'}")

    def stop(self) -> None:
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def link(self) -> Link:
        return Link(("127.0.0.1", self.port), self.tls)

    def fill(self) -> None:
        """Fill the store before the start: the same objects as through the API, without the time of their syncs."""
        words = [sys.executable, __file__, "--fill", str(self.folder)]
        subprocess.run(words, check=True)


class Peer(Server):
    """kube-apiserver over etcd, both from the PATH."""

    name = "kube-apiserver"

    def commands(self) -> list[list[str]]:
        data, store = self.folder, free_port()
        etcd = f"http://127.0.0.1:{store}"
        return [
            ["etcd", "--data-dir", str(data / "etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
             "--listen-peer-urls", f"http://127.0.0.1:{free_port()}"],
            ["kube-apiserver", f"--etcd-servers={etcd}", f"--secure-port={self.port}", "--bind-address=127.0.0.1",
             f"--client-ca-file={data}/ca.pem", f"--tls-cert-file={data}/server.pem",
             f"--tls-private-key-file={data}/server-key.pem", "--authorization-mode=RBAC",
             "--service-account-issuer=https://bench", f"--service-account-key-file={data}/server-key.pem",
             f"--service-account-signing-key-file={data}/server-key.pem", "--service-cluster-ip-range=10.96.0.0/16"],
        ]  # fmt: skip

    def fill(self) -> None:
        try:
            self.start()
            links = [self.link() for _ in range(WRITERS)]
            for path, bodies in filling():
                many(links, (request("POST", path, json.dumps(body).encode()) for body in bodies))
        finally:
            self.stop()


# ---- what is measured


def filling() -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Yields (path of the collection, its objects): 10,000 Services with 100,000 endpoints."""
    yield f"{SPACE}/services", (_service(n) for n in range(SERVICES))
    yield "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", (_slice(n) for n in range(SLICES))


def _service(number: int) -> dict[str, Any]:
    spec = {"selector": {"app": f"s{number}"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    return {"metadata": {"name": f"s{number}", "labels": {"app": f"s{number}"}}, "spec": spec}


def _slice(number: int) -> dict[str, Any]:
    first = number * PER_SLICE
    addresses = [str(ipaddress.IPv4Address((10 << 24) + (128 << 16) + first + n)) for n in range(PER_SLICE)]
    return {
        "metadata": {"name": f"s{number}-x", "labels": {"kubernetes.io/service-name": f"s{number}"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [one], "conditions": {"ready": True}} for one in addresses],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def config_map(name: str) -> bytes:
    return json.dumps({"metadata": {"name": name}, "data": {"a": "1", "b": "x" * 100}}).encode()


def one_writer(server: Server, path: str, bodies: list[bytes]) -> float:
    """Returns ms of CPU for a create."""
    link = server.link()
    for body in bodies[:50]:  # the first ones are warm-up
        link.ask(request("POST", path, body))
    before = cpu(server.pids)
    for body in bodies[50:]:
        link.ask(request("POST", path, body))
    used = cpu(server.pids) - before
    link.close()
    return used * 1000 / (len(bodies) - 50)


def writes(server: Server, run: int) -> tuple[float, float]:
    """Returns (creates a second, ms of CPU for a create)."""
    links = [server.link() for _ in range(WRITERS)]
    path, count = f"{SPACE}/configmaps", 3000
    sent = [request("POST", path, config_map(f"w{run}-{n}")) for n in range(count)]
    before, began = cpu(server.pids), time.perf_counter()
    assert many(links, sent) == count
    seconds, used = time.perf_counter() - began, cpu(server.pids) - before
    for link in links:
        link.close()
    return count / seconds, used * 1000 / count


def deliveries(server: Server, run: int) -> tuple[float, float, float]:
    """Returns (microseconds of CPU for a delivery, median and 99th percentile of the delay in ms)."""
    writer = server.link()
    writer.ask(request("POST", f"{SPACE}/configmaps", config_map(f"watched{run}")))
    path = f"{SPACE}/configmaps?watch=1&fieldSelector=metadata.name%3Dwatched{run}&resourceVersion=0"
    watchers = Watchers(("127.0.0.1", server.port), server.tls, path, WATCHERS, MARK)
    stop = threading.Event()
    wanted = int(RATE * SECONDS) * WATCHERS

    def change() -> None:
        try:
            patches()
        finally:
            stop.set()

    def patches() -> None:
        due = time.monotonic()
        for _ in range(int(RATE * SECONDS)):
            body = b'{"data":{"sent":"%020d"}}' % time.monotonic_ns()
            writer.ask(request("PATCH", f"{SPACE}/configmaps/watched{run}", body, "application/merge-patch+json"))
            due += 1 / RATE
            time.sleep(max(0.0, due - time.monotonic()))
        end = time.monotonic() + 10
        while watchers.events < wanted and time.monotonic() < end:
            time.sleep(0.05)

    sender = threading.Thread(target=change)
    before = cpu(server.pids)
    sender.start()
    watchers.follow(stop.is_set)
    sender.join()
    used = cpu(server.pids) - before
    watchers.close()
    writer.close()
    if watchers.events != wanted:
        raise SystemExit(f"{watchers.events} of {wanted} events came")
    delays = sorted(watchers.delays)
    return used * 1e6 / wanted, delays[len(delays) // 2] * 1000, delays[int(len(delays) * 0.99)] * 1000


def small(server: Server, runs: int, found: dict[str, Any]) -> None:
    """Measures a server that begins empty."""
    try:
        server.start()
        for run in range(runs):
            services = [
                json.dumps({"metadata": {"name": f"r{run}-{n}"}, "spec": {"ports": [{"port": 80}]}}).encode()
                for n in range(550)
            ]
            maps = [config_map(f"r{run}-{n}") for n in range(550)]
            found["create Service"].append(one_writer(server, f"{SPACE}/services", services))
            say(f"run {run + 1}: one writer")
            found["create ConfigMap"].append(one_writer(server, f"{SPACE}/configmaps", maps))
            say(f"run {run + 1}: {WRITERS} writers")
            rate, used = writes(server, run)
            found["writes 64"].append(rate)
            found["writes CPU ms"].append(used)
            found["sync ms"].append(sync_ms(server.folder))
            say(f"run {run + 1}: {WATCHERS} watches")
            micros, middle, last = deliveries(server, run)
            found["watch delivery"].append(micros)
            found["delay p50 ms"].append(middle)
            found["delay p99 ms"].append(last)
    finally:
        server.stop()


def large(server: Server, runs: int, found: dict[str, Any]) -> None:
    say(f"{SERVICES} Services and {SLICES * PER_SLICE} endpoints are stored")
    server.fill()
    for run in range(runs):
        say(f"run {run + 1}: start")
        try:
            server.start()
            found["start 10k"].append(server.started)
            found["RSS 10k"].append(rss(server.pids))
            link = server.link()
            asked = request("GET", f"{SPACE}/services")
            assert link.ask(asked).count(b'"clusterIP"') == SERVICES + 1  # and `kubernetes`
            before = cpu(server.pids)
            for _ in range(10):  # the clock of /proc ticks every 10 ms
                link.ask(asked)
            found["list 10k"].append((cpu(server.pids) - before) * 100)
            link.close()
        finally:
            server.stop()


def measure(make: Callable[[Path], Server], runs: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {
        name: []
        for name in ("create Service", "create ConfigMap", "writes 64", "writes CPU ms", "sync ms", "watch delivery",
                     "delay p50 ms", "delay p99 ms", "list 10k", "start 10k", "RSS 10k")
    }  # fmt: skip
    for part, work in (("small", small), ("large", large)):
        with tempfile.TemporaryDirectory(prefix="podwire-bench-api-") as folder:
            server = make(Path(folder) / part)
            server.folder.mkdir()
            server.prepare()
            work(server, runs, found)
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _fill(folder: Path) -> None:
    from podwire_base.kube.registry import BY_PATH
    from podwire_controlplane.allocators import ServiceAllocator
    from podwire_controlplane.server.main import ServerConfig, bootstrap
    from podwire_controlplane.server.objects import Objects
    from podwire_controlplane.server.writes import Scope, WriteOptions
    from podwire_controlplane.store.sqlite import SqliteStore

    store = SqliteStore(folder / "store.db")
    objects = Objects(store, ServiceAllocator(ipaddress.ip_network("10.96.0.0/16")))
    await objects.start()
    await bootstrap(objects, ServerConfig(folder, (), ("192.0.2.1", 6443)))
    for path, bodies in filling():
        parts = path.split("/")
        target = ("", parts[2], parts[5]) if parts[1] == "api" else (parts[2], parts[3], parts[6])
        scope = Scope(BY_PATH[target], "default")
        rows = list(bodies)
        for at in range(0, len(rows), 500):  # writes of one moment share a commit
            await asyncio.gather(*(objects.create(scope, row, WriteOptions()) for row in rows[at : at + 500]))
    await store.close()


UNITS = {"create Service": "ms CPU", "create ConfigMap": "ms CPU", "writes 64": "1/s", "watch delivery": "us CPU",
         "list 10k": "ms CPU", "start 10k": "s CPU", "RSS 10k": "MiB"}  # fmt: skip
BESIDE = {"writes 64": ("writes CPU ms", "sync ms"), "watch delivery": ("delay p50 ms", "delay p99 ms")}


def rows(mine: dict[str, list[float]], peer: dict[str, list[float]]) -> list[dict[str, Any]]:
    out = []
    for name, unit in UNITS.items():
        value, other = statistics.median(mine[name]), statistics.median(peer[name]) if peer else None
        row = {
            "name": name,
            "unit": unit,
            "podwire": round(value, 3),
            "peer": "absent" if other is None else round(other, 3),
            "peer_name": "absent" if other is None else "kube-apiserver",
            "ratio": None if not other else round(value / other, 3),
            "runs": {"podwire": mine[name], "peer": peer.get(name, [])},
        }
        for what in BESIDE.get(name, ()):
            row.setdefault("beside", {})[what] = round(statistics.median(mine[what]), 3)
        out.append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        asyncio.run(_fill(options.fill))
        return
    mine = measure(Server, options.runs)
    there = all(shutil.which(program) for program in ("kube-apiserver", "etcd"))
    made = rows(mine, measure(Peer, options.runs) if there else {})
    machine = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    RESULT.write_text(json.dumps({"machine": machine, "rows": made}, indent=1) + "\n")
    for row in made:
        beside = "".join(f"; {what} {value:g}" for what, value in row.get("beside", {}).items())
        print(f"{row['name']}: {row['podwire']:g} {row['unit']} (peer: {row['peer']}){beside}")
    print(f"wrote {RESULT}")


if __name__ == "__main__":
    with undone_by_signals():
        main()

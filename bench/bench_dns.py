"""Measures the DNS server: queries per CPU second and latency in comparison with knot and unbound, rendering, memory,
and the time until a new name is answered.

    .venv/bin/python bench/bench_dns.py [--rounds 5] [--seconds 3]

The benchmark runs in its own network namespace. The servers are pinned to one CPU. All clients are pinned to another,
with what plays the API server and the client that floods.
The order is A/B/A/B, and the medians of paired ratios count. dns_paced.c measures latencies without its own pauses. The
figures are written to bench/results/dns.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-tests"))

from compiled import compiled
from dnslib import DNSRecord
from ending import undone_by_signals

from lab.dnsnode import NAMESPACES, SERVICES, SLICES
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from podwire_dns import names, wire
from podwire_dns.build import Builder
from podwire_dns.config import DnsConfig
from podwire_dns.rtypes import SRV, TXT, TYPE_NAMES, A
from podwire_dns.testing import big

RESULTS = Path(__file__).parent / "results" / "dns.json"
ADDRESS = "10.96.0.10"
SERVER_CPU, CLIENT_CPU = "0", "1"
POD_CIDR = "10.244.0.0/15"
ZONE = "cluster.local."
PEERS = ("knot", "unbound")
TICK = os.sysconf("SC_CLK_TCK")
RATE = 15_000
FLOOD_RATE, FLOOD_CLIENT = 2000, "127.0.0.2"
SILENT = "127.0.0.53#5353"  # podwire's upstream: nobody listens until `flooded` does
CONFIG = DnsConfig("bench", None, Path("unused"), pod_cidrs=(POD_CIDR,))


def family(pid: int) -> list[int]:
    """Returns a process and its children: podwire's server has a spare, which reads the same sockets."""
    found = [pid]
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
            if entry.name.isdecimal() and int(_stat(int(entry.name))[1]) == pid:
                found.append(int(entry.name))
    return found


def end(process: subprocess.Popen[Any]) -> None:
    """Kills a process and its children."""
    every = family(process.pid)
    process.kill()
    process.wait()
    for pid in every[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    return sum(int(_stat(each)[11]) + int(_stat(each)[12]) for each in family(pid)) / TICK


def pss(pid: int) -> float:
    """MiB, with the children."""
    texts = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in family(pid)]
    return sum(int(re.findall(r"^Pss:\s+(\d+)", text, re.M)[0]) for text in texts) / 1024


def text_records() -> Iterator[str]:
    """Yields the whole zone as lines of a zone file, for the peers."""
    for key, value in zone().answers.items():
        owner = names.from_wire(key[:-4])
        for record in wire.records(value, 6, int.from_bytes(value[:2])):
            yield f"{owner} {record.ttl} IN {_text(record.rtype, value[record.data_at : record.end])}"


def _text(rtype: int, data: bytes) -> str:
    if rtype == A:
        return f"A {'.'.join(map(str, data))}"
    if rtype == SRV:
        priority, weight, port = (int.from_bytes(data[at : at + 2]) for at in (0, 2, 4))
        return f"SRV {priority} {weight} {port} {names.from_wire(data[6:])}"
    return f'TXT "{data[1:].decode()}"' if rtype == TXT else f"{TYPE_NAMES[rtype]} {names.from_wire(data)}"


def zone() -> Builder:
    made = Builder(CONFIG.schema())
    for obj in big.namespaces():
        made.namespace(obj)
    for obj in big.services():
        made.service(obj)
    for obj in big.slices():
        made.slice(obj)
    made.flush(1)
    return made


def query_files(folder: Path) -> dict[str, Path]:
    """Write dnsperf's query files. Returns kind -> file; each file has 20,000 different queries."""
    import random

    rand = random.Random(7)
    clusters = [i for i in range(10_000) if i % 10]
    base = [f"svc-{i}.{big.namespace_of(i)}.svc.{ZONE}" for i in rand.choices(clusters, k=20_000)]
    kinds = {
        "A hits": [f"{name} A" for name in base],
        "NXDOMAIN": [
            f"svc-{i}.{big.namespace_of(i)}.svc.{big.namespace_of(i + 1)}.svc.{ZONE} A"
            for i in rand.choices(clusters, k=20_000)
        ],
        "SRV": [f"_http._tcp.{name} SRV" for name in base],
        "NODATA": [f"{name} AAAA" for name in base],
    }
    found = {}
    for kind, lines in kinds.items():
        found[kind] = folder / f"{kind.replace(' ', '-')}.txt"
        found[kind].write_text("\n".join(lines) + "\n")
    return found


class Peer:
    """One server process, pinned to its CPU. It is ready when it answers."""

    def __init__(self, name: str, node: NetNS, port: int, folder: Path, api: FakeApi) -> None:
        self.name, self.node, self.port, self.folder, self.api = name, node, port, folder, api
        self.feeder: subprocess.Popen[str] | None = None
        self.process = {"podwire": self._podwire, "knot": self._knot, "unbound": self._unbound}[name]()

    def _start(self, *command: str, cpu: str = SERVER_CPU) -> subprocess.Popen[str]:
        with (self.folder / f"{self.name}.log").open("a") as log:
            return self.node.popen(["taskset", "-c", cpu, *command], stderr=log, stdout=log)

    def _podwire(self) -> subprocess.Popen[str]:
        run_dir = self.folder / "podwire"
        run_dir.mkdir()
        config = self.api.kubeconfig(run_dir / "kubeconfig")
        common = [
            "--node-name",
            "b",
            "--run-dir",
            str(run_dir),
            "--port",
            str(self.port),
            "--pod-cidr",
            POD_CIDR,
            "--upstream",
            SILENT,
            "--listen",
            ADDRESS,
            "--kubeconfig",
            str(config),
        ]
        self.feeder = self._start(
            sys.executable, "-m", "podwire_dns.main", "feeder", *common, cpu=f"{SERVER_CPU},{CLIENT_CPU}"
        )
        return self._start(sys.executable, "-m", "podwire_dns.main", "server", *common)

    def _zone_file(self) -> Path:
        path = self.folder / "zone"
        if not path.exists():
            soa = f"{ZONE} 5 IN SOA ns.dns.{ZONE} hostmaster.{ZONE} 1 7200 1800 86400 5"
            lines = [line for line in text_records() if line.split()[0].endswith(ZONE)]
            path.write_text("\n".join([soa, *lines]) + "\n")
        return path

    def _knot(self) -> subprocess.Popen[str]:
        folder = self.folder / "knot"
        folder.mkdir()
        conf = folder / "knot.conf"
        conf.write_text(
            f"server:\n  rundir: {folder}\n  listen: {ADDRESS}@{self.port}\n  udp-workers: 1\n  tcp-workers: 1\n"
            f"  background-workers: 1\ndatabase:\n  storage: {folder}\n"
            f"zone:\n  - domain: cluster.local\n    file: {self._zone_file()}\n    semantic-checks: off\n"
            "    zonefile-sync: -1\n    journal-content: none\n"
        )
        return self._start("/usr/sbin/knotd", "-c", str(conf))

    def _unbound(self) -> subprocess.Popen[str]:
        folder = self.folder / "unbound"
        folder.mkdir()
        lines = "\n".join(f"  local-data: '{line}'" for line in self._zone_file().read_text().splitlines())
        conf = folder / "unbound.conf"
        conf.write_text(
            f"server:\n  interface: {ADDRESS}\n  port: {self.port}\n  num-threads: 1\n  do-daemonize: no\n"
            f"  username: ''\n  chroot: ''\n  directory: {folder}\n  pidfile: ''\n  use-syslog: no\n"
            f"  access-control: 0.0.0.0/0 allow\n  local-zone: {ZONE} static\n{lines}\n"
            "remote-control:\n  control-enable: no\n"
        )
        return self._start("/usr/sbin/unbound", "-c", str(conf))

    def wait(self) -> None:
        end = time.monotonic() + 120
        while True:
            done = self.node.run(
                ["dig", "+short", "+time=1", "+tries=1", f"@{ADDRESS}", "-p", str(self.port), f"svc-1.ns1.svc.{ZONE}"],
                check=False,
            )
            if done.stdout.strip() == "10.96.0.1":
                return
            if time.monotonic() > end or self.process.poll() is not None:
                raise SystemExit(
                    f"{self.name} does not answer:\n" + (self.folder / f"{self.name}.log").read_text()[-2000:]
                )
            time.sleep(0.2)

    def stop(self) -> None:
        for process in filter(None, (self.process, self.feeder)):
            end(process)


def dnsperf(peer: Peer, file: Path, seconds: float) -> dict[str, float]:
    """Run dnsperf. Returns the queries per second, and the queries per CPU second of the server."""
    command = [
        "taskset",
        "-c",
        CLIENT_CPU,
        "dnsperf",
        "-s",
        ADDRESS,
        "-p",
        str(peer.port),
        "-d",
        str(file),
        "-l",
        str(seconds),
        "-c",
        "8",
        "-T",
        "1",
        "-q",
        "64",
    ]
    before = cpu_seconds(peer.process.pid)
    out = peer.node.run(command).stdout
    spent = cpu_seconds(peer.process.pid) - before
    completed = float(re.findall(r"Queries completed:\s+(\d+)", out)[0])
    return {
        "qps": float(re.findall(r"Queries per second:\s+([\d.]+)", out)[0]),
        "qps/core": completed / max(spent, 1e-3),
        "lost": float(re.findall(r"Queries lost:\s+(\d+)", out)[0]),
    }


def paced(program: Path, peer: Peer, file: Path, seconds: float) -> float:
    """Returns the 99th percentile of the latency in ms, at RATE queries per second."""
    where = (ADDRESS, str(peer.port), str(file), str(seconds), str(RATE))
    told = json.loads(peer.node.run(["taskset", "-c", CLIENT_CPU, str(program), *where]).stdout)
    print(f"  {peer.name}: {told}", flush=True)
    return float(told["p99"])


def row(name: str, unit: str, podwire: list[float], peer: list[float], peer_name: str) -> dict[str, Any]:
    """Returns a row of the results: the medians, and the median of the paired ratios."""
    ratio = statistics.median(a / b for a, b in zip(podwire, peer, strict=True)) if peer else None
    found = {
        "name": name,
        "unit": unit,
        "podwire": round(statistics.median(podwire), 3),
        "peer": round(statistics.median(peer), 3) if peer else None,
        "peer_name": peer_name,
        "ratio": round(ratio, 3) if ratio is not None else None,
        "runs": {"podwire": [round(v, 3) for v in podwire], "peer": [round(v, 3) for v in peer]},
    }
    print(
        f"{name:28} {found['podwire']:>12} {unit:16} {peer_name or '-':24} {found['peer'] or '-'!s:>12}",
        f"ratio {found['ratio']}" if ratio else "",
        flush=True,
    )
    return found


def throughput(peers: dict[str, Peer], files: dict[str, Path], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Measure the queries per CPU second of each server in turn."""
    rows = []
    for kind, file in files.items():
        runs: dict[str, list[float]] = {name: [] for name in peers}
        for _ in range(rounds):
            for name, peer in peers.items():
                runs[name].append(dnsperf(peer, file, seconds)["qps/core"])
        for name in peers:
            if name != "podwire":
                kind_name = kind if name == "knot" else f"{kind}, {name}"
                rows.append(row(kind_name, "queries/CPU s", runs["podwire"], runs[name], name))
    return rows


def latency(peers: dict[str, Peer], file: Path, rounds: int, seconds: float, api: FakeApi) -> list[dict[str, Any]]:
    """Measure the 99th percentile of the latency at 15,000 queries per second, the same while 1,000 endpoints per
    second change, and the same while another client floods the server. The function doubles the number of rounds,
    because pauses of a virtual machine make a single run unreliable.
    """
    calm: dict[str, list[float]] = {name: [] for name in ("podwire", "knot") if name in peers}
    busy: list[float] = []
    flood: list[float] = []
    program = compiled("dns_paced", file.parent)
    for _ in range(2 * rounds):
        for name, found in calm.items():
            found.append(paced(program, peers[name], file, seconds))
        with churning(api):
            busy.append(paced(program, peers["podwire"], file, seconds))
        with flooded(peers["podwire"]):
            flood.append(paced(program, peers["podwire"], file, seconds))
    rows = [row("p99 15k", "ms", calm["podwire"], calm["knot"], "knot")] if "knot" in calm else []
    return [
        *rows,
        row("p99 15k, 1,000 endpoints/s", "ms", busy, calm["podwire"], "podwire, nothing changes"),
        row("p99 15k, a client's flood", "ms", flood, calm["podwire"], "podwire, no flood"),
    ]


@contextlib.contextmanager
def flooded(peer: Peer) -> Iterator[None]:
    """A context manager in which another client sends FLOOD_RATE queries per second for names that nobody answers."""
    stop = threading.Event()
    # The queries are encoded before: the flood shall cost its client little, since the two share the machine's CPUs.
    queries = [bytes(DNSRecord.question(f"slow-{n}.example.com.").pack()) for n in range(20 * FLOOD_RATE)]

    def work() -> None:
        host, _, port = SILENT.partition("#")
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            silent.bind((host, int(port)))
            sock.bind((FLOOD_CLIENT, 0))
            waiting = itertools.cycle(queries)
            while not stop.wait(0.005):
                for query in itertools.islice(waiting, FLOOD_RATE // 200):
                    sock.sendto(query, (ADDRESS, peer.port))

    thread = threading.Thread(target=peer.node.call, args=(work,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def churning(api: FakeApi) -> Iterator[None]:
    """A context manager that makes 100 writes per second. Each write replaces ten endpoints of one EndpointSlice."""
    stop = threading.Event()

    def work() -> None:
        turn = 0
        while not stop.wait(0.01):
            number, shift = turn % 1000, 10 * (1 + turn // 1000)
            addresses = [f"10.245.{200 + (i >> 8) % 50}.{i & 255}" for i in range(shift)][-10:]
            kept = [f"10.{244 + (i >> 16)}.{i >> 8 & 255}.{i & 255}" for i in range(number * 100, number * 100 + 90)]
            api.put(SLICES, big.slice_of(number * 10, 0, kept + addresses))
            turn += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def new_names(peer: Peer, api: FakeApi, count: int) -> list[float]:
    """Returns the ms from the API's acceptance of a Service to the first DNS answer with the Service's address. The
    name is also queried before the Service exists.
    """

    def ask(sock: socket.socket, query: bytes) -> bool:
        sock.send(query)
        return b"\x0a\x61" in sock.recv(4096)[12:]

    def measure() -> list[float]:
        took = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((ADDRESS, peer.port))
            sock.settimeout(5)
            for index in range(count):
                query = bytes(DNSRecord.question(f"fresh-{index}.ns0.svc.{ZONE}").pack())
                assert not ask(sock, query)
                address = f"10.97.0.{index + 1}"
                api.put(
                    SERVICES,
                    {
                        "metadata": {"name": f"fresh-{index}", "namespace": "ns0"},
                        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": []},
                    },
                )
                begin = time.monotonic()
                while not ask(sock, query):
                    time.sleep(0.0005)
                took.append((time.monotonic() - begin) * 1000)
        return took

    return peer.node.call(measure)


def rendering(rounds: int) -> list[float]:
    """Returns the CPU seconds for rendering 257,000 answers from packed objects."""
    took = []
    for _ in range(rounds):
        made = Builder(CONFIG.schema())
        gc.collect()
        gc.disable()
        for obj in big.services():
            made.service(obj)
        for obj in big.slices():
            made.slice(obj)
        begin = time.process_time()
        made.fill()
        took.append(time.process_time() - begin)
        gc.enable()
        assert len(made.answers) > 256_900
    return took


def with_dnslib(rounds: int) -> list[float]:
    """Returns the CPU seconds that dnslib would take to pack the same number of answers, computed from a sample of the
    same mixture.
    """
    made = zone()
    keys = list(made.answers)[:: len(made.answers) // 5000]
    messages = []
    for key in keys:
        value = made.answers[key]
        answers, _, extra = wire.COUNTS.unpack_from(value)
        messages.append(DNSRecord.parse(wire.HEADER.pack(0, wire.QR, 1, answers, 0, extra) + key + value[6:]))
    took = []
    for _ in range(rounds):
        begin = time.process_time()
        for message in messages:
            message.pack()
        took.append((time.process_time() - begin) * len(made.answers) / len(keys))
    return took


def versions() -> dict[str, str]:
    """Returns the versions of the peers. A missing peer is reported as "absent"."""
    found = {}
    commands = (("knot", ["knotd", "--version"]), ("unbound", ["unbound", "-V"]), ("coredns", ["coredns", "-version"]))
    for name, command in commands:
        path = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
        found[name] = "absent"
        if path:
            said = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False).stdout
            found[name] = said.splitlines()[0]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    import dns_forward  # dns_forward imports this module

    os.sched_setaffinity(0, {int(CLIENT_CPU)})  # threads inherit it; each server is started with a CPU of its own
    present = versions()
    names_of_peers = ["podwire", *(name for name in PEERS if present[name] != "absent")]
    rows = [row("render", "CPU s", rendering(3), with_dnslib(3), "dnslib, 5,000 answers scaled up")]
    with Lab() as lab, tempfile.TemporaryDirectory() as tmp:
        node = lab.netns("bench-dns")
        files = query_files(Path(tmp))
        with FakeApi(node) as api:
            for path, objects in ((NAMESPACES, big.namespaces()), (SERVICES, big.services()), (SLICES, big.slices())):
                for obj in objects:
                    api.put(path, obj)
            peers: dict[str, Peer] = {}
            try:
                for port, name in enumerate(names_of_peers, 5300):
                    peers[name] = Peer(name, node, port, Path(tmp), api)
                    peers[name].wait()
                first = peers["podwire"]
                assert first.feeder is not None
                time.sleep(1)
                memory = pss(first.process.pid) + pss(first.feeder.pid)
                knot = [pss(peers["knot"].process.pid)] if "knot" in peers else []
                rows.append(row("memory", "MiB PSS", [memory], knot, "knot" if knot else ""))
                rows += throughput(peers, files, options.rounds, options.seconds)
                rows.append(row("new name", "ms", new_names(first, api, 20), [], ""))
                rows += latency(peers, files["A hits"], options.rounds, options.seconds, api)
                memory = pss(first.process.pid) + pss(first.feeder.pid)
                rows.append(row("memory after changes", "MiB PSS", [memory], [], ""))
            finally:
                for peer in peers.values():
                    peer.stop()
        rows += dns_forward.rows(Path(tmp), options.rounds, options.seconds, unbound=present["unbound"] != "absent")
    machine = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processor": re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[:1],
        "peers": present,
        "note": "a shared machine: trust ratios, not absolute figures",
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    with undone_by_signals():
        main()

"""Measures the Service proxy and writes bench/results/proxy.json. Run `make bench-proxy` as root.

Each measurement has its own process and network namespace. The rounds are interleaved. The median counts, and the file
contains all runs. The rows:

"full": from Kubernetes objects to the kernel, planning included. Its peer is kube-proxy in nftables mode, from its
start to the first answer of the last Service ("absent" where its binary is not on PATH).

"change": one endpoint is replaced by another, from the object to the kernel. "scale": one endpoint is added or removed,
which also writes a verdict element. "verdicts": elements written into verdict maps.

"churn": 1,000 changes a second for a minute. Three of four replace an endpoint, one changes the number of endpoints.
The value is the longest lag of any change; RSS is the mean of the first and of the last quarter.

"first packet": its peer is the same path straight to the endpoint, conntrack on. Rows of iptables are the same
measurements with that backend; a change is the median of 10.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ending import undone_by_signals

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "netns-tests"))
RESULT = HERE / "results" / "proxy.json"
# name, measurement, Services, endpoints each, rounds
ROWS = [
    ("full 10k", "full", 10_000, 10, 2),
    ("full 44k", "full", 44_000, 5, 2),
    ("restart 10k", "restart", 10_000, 10, 2),
    ("change 1k", "change", 1_000, 10, 2),
    ("change 10k", "change", 10_000, 10, 2),
    ("change 44k", "change", 44_000, 5, 2),
    ("scale 1k", "scale", 1_000, 10, 1),
    ("scale 10k", "scale", 10_000, 10, 1),
    ("scale 44k", "scale", 44_000, 5, 1),
    ("churn 10k", "churn", 10_000, 10, 1),
    ("RSS 10k", "rss", 10_000, 10, 2),
    ("first packet 44k", "packet", 44_000, 5, 2),
    *(
        (f"{row} 10k {backend}", f"{what}:{backend}", 10_000, 10, 1)
        for backend in ("iptables-nft", "iptables-legacy")
        for row, what in (("full", "full"), ("change", "change"), ("first packet", "packet"))
    ),
]
SERVICES, ENDPOINTS = 10 << 24 | 64 << 16, 10 << 24 | 128 << 16  # 10.64.0.0/12 and 10.128.0.0/9


def ip(number: int) -> str:
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


class Cluster:
    """`count` Services with `size` endpoints each as API objects, and the proxy's engine in a network namespace."""

    def __init__(self, fd: int | None, count: int, size: int, backend: str = "") -> None:
        from podwire_proxy import backends
        from podwire_proxy.changes import Tracker
        from podwire_proxy.memory import frugal
        from podwire_proxy.model import NodeInfo

        frugal()
        self.count, self.size, self.fd = count, size, fd
        self.info = NodeInfo(
            "n1", ("172.30.0.11",), "", ("10.128.0.0/9", "10.244.0.0/16"), ("10.64.0.0/12", "10.96.0.0/16")
        )
        self.tracker = Tracker(self.info)
        self.proxier = backends.proxier(self.info, fd, backend)
        self.objects = [(self.service(i), self.slice(i)) for i in range(count)]
        self.verdicts = 0

    def service(self, i: int) -> dict[str, Any]:
        from podwire_proxy.testing.builders import port, service

        return service(f"s{i}", ip(SERVICES + i + 1), [port(80)])

    def slice(self, i: int, moved: int = 0, less: int = 0) -> dict[str, Any]:
        from podwire_proxy.testing.builders import endpoint, endpoint_slice

        first = ENDPOINTS + i * self.size
        found = [endpoint(ip(first + j + (moved if not j else 0)), f"n{(i + j) % 50}") for j in range(self.size - less)]
        return endpoint_slice(f"s{i}", found, [("", "TCP", 9376)])

    def load(self) -> float:
        started = time.perf_counter()
        for service, found in self.objects:
            self.tracker.service(f"default/{service['metadata']['name']}", service)
            self.tracker.slice(f"default/{found['metadata']['name']}", found)
        self.tracker.flush()
        self.proxier.sync(self.tracker.dataplane, None)
        return (time.perf_counter() - started) * 1000

    def change(self, i: int, obj: dict[str, Any]) -> float:
        started = time.perf_counter()
        self.tracker.slice(f"default/s{i}-1", obj)
        self.verdicts += self.proxier.sync(self.tracker.dataplane, self.tracker.flush()).verdicts
        return (time.perf_counter() - started) * 1000


def measure(what: str, count: int, size: int) -> dict[str, float]:
    from lab.netns import Lab

    what, _, backend = what.partition(":")
    with Lab() as lab:
        if what == "packet":
            return first_packet(lab, count, size, backend)
        cluster = Cluster(lab.netns("bench").fd, count, size, backend)
        if what == "rss":
            base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            objects, cluster.objects = cluster.objects, []
            for number in range(0, count, 500):  # like a list in pages, so the objects do not accumulate
                cluster.objects = objects[number : number + 500]
                for service, found in cluster.objects:
                    cluster.tracker.service(f"default/{service['metadata']['name']}", service)
                    cluster.tracker.slice(f"default/{found['metadata']['name']}", found)
            cluster.tracker.flush()
            cluster.proxier.sync(cluster.tracker.dataplane, None)
            return {"value": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "before": base / 1024}
        cpu = time.process_time()
        took = cluster.load()
        cpu = (time.process_time() - cpu) * 1000
        if what == "full":
            return {"value": took, "cpu": cpu}
        gc.freeze()
        if what == "restart":
            from podwire_proxy import backends

            started = time.perf_counter()
            done = backends.proxier(cluster.info, cluster.fd).sync(cluster.tracker.dataplane, None)
            assert done.operations == 0, "a restart writes nothing"
            return {"value": (time.perf_counter() - started) * 1000}
        if what == "churn":
            return churned(cluster)
        keyedlock = 10 if backend else 200  # iptables hands whole tables to the kernel
        times = sorted(
            cluster.change(
                n * 37 % count,
                cluster.slice(n * 37 % count, 1_000_000 + n if what == "change" else 0, int(what == "scale")),
            )
            for n in range(keyedlock)
        )
        return {
            "value": times[keyedlock // 2],
            "p99": times[int(keyedlock * 0.985)],
            "verdicts": cluster.verdicts / keyedlock,
        }


def churned(cluster: Cluster) -> dict[str, float]:
    from lab.churn import churn

    def changes() -> Iterator[tuple[str, dict[str, Any]]]:
        for n in itertools.count():
            i = n * 37 % cluster.count
            moved = 1_000_000 + n % 8192  # addresses are reused, like pod addresses
            yield f"default/s{i}-1", cluster.slice(i, moved, n // cluster.count % 2 + 1 if n % 4 == 0 else 0)

    return churn(cluster.tracker, cluster.proxier, changes(), 60_000, 1000).figures()


def kube_proxy(count: int, size: int) -> float:
    """Start the kube-proxy on PATH. Returns the ms from its start to the first connection through the last Service."""
    from lab.fakeapi import FakeApi
    from lab.netns import Lab
    from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

    node = "172.30.0.11"
    with Lab() as lab, tempfile.TemporaryDirectory() as text:
        ns, directory = lab.netns("peer"), Path(text)
        ns.netlink(lambda ipr: ipr.addr("add", index=1, address=node, prefixlen=32))
        ns.run(
            ["ip", "route", "add", "default", "dev", "lo"]
        )  # a Service's address needs a route before it is translated
        cluster = Cluster(ns.fd, count, size)
        with FakeApi(ns) as api, ns.call(lambda: socket.create_server((node, 9376))):
            api.apply(
                {
                    "kind": "Node",
                    "metadata": {"name": "n1"},
                    "status": {"addresses": [{"type": "InternalIP", "address": node}]},
                },
                *(obj for pair in cluster.objects for obj in pair),
            )
            api.apply(
                service("zz-last", ip(SERVICES), [port(80)]),
                endpoint_slice("zz-last", [endpoint(node, "n1")], [("", "TCP", 9376)]),
            )
            (directory / "config.json").write_text(
                json.dumps(
                    {
                        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                        "kind": "KubeProxyConfiguration",
                        "mode": "nftables",
                        "clientConnection": {"kubeconfig": str(api.kubeconfig(directory / "kubeconfig"))},
                        "hostnameOverride": "n1",
                        "clusterCIDR": "10.128.0.0/9",
                        "conntrack": {"maxPerCore": 0},
                        "bindAddress": node,
                    }
                )
            )
            started = time.perf_counter()
            process = ns.popen(
                ["kube-proxy", f"--config={directory / 'config.json'}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                while time.perf_counter() < started + 1800:
                    if process.poll() is not None:
                        raise RuntimeError(f"kube-proxy ended with {process.returncode}")
                    try:
                        ns.call(lambda: socket.create_connection((ip(SERVICES), 80), 0.5).close())
                        return (time.perf_counter() - started) * 1000
                    except OSError:
                        time.sleep(0.02)
                raise RuntimeError("kube-proxy did not serve the last Service within 30 minutes")
            finally:
                process.kill()
                process.wait()


def first_packet(lab: Any, count: int, size: int, backend: str) -> dict[str, float]:
    from lab.serviceworld import World
    from podwire_proxy.testing import scenarios as s
    from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

    world = World(lab)
    cluster = Cluster(world.node.fd, count, size, backend)
    cluster.objects.append(
        (
            service("last", s.VIP, [port(80, "UDP")]),
            endpoint_slice("last", [endpoint(s.POD_B, "n1")], [("", "UDP", s.TARGET)]),
        )
    )
    cluster.load()

    def once(target: tuple[str, int]) -> float:
        started = time.perf_counter()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(2)
            sock.connect(target)
            sock.send(b"?")
            sock.recv(100)
        return (time.perf_counter() - started) * 1e6

    def work() -> dict[str, float]:
        os.sched_setaffinity(0, {0})
        service_times, direct_times = [], []
        for _ in range(3000):
            direct_times.append(once((s.POD_B, s.TARGET)))
            service_times.append(once((s.VIP, 80)))
        return {"value": statistics.median(service_times), "peer": statistics.median(direct_times)}

    try:
        return world.client(s.POD_A).call(work)
    finally:
        world.close()


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "kube-proxy": shutil.which("kube-proxy") or "absent",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "SERVICES", "ENDPOINTS"), help="one measurement, as JSON")
    parser.add_argument("--only", default="", help="rows whose name contains this; the others stay")
    options = parser.parse_args()
    if options.one and options.one[0] == "kube-proxy":
        print(json.dumps({"value": kube_proxy(int(options.one[1]), int(options.one[2]))}))
        return
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), int(options.one[2]))))
        return
    wanted = [row for row in ROWS if options.only in row[0]]
    runs: dict[str, list[dict[str, float]]] = {row[0]: [] for row in wanted}
    load = machine()
    for turn in range(max(row[4] for row in wanted)):
        for name, what, count, size, rounds in wanted:
            if turn < rounds:
                done = subprocess.run(
                    [sys.executable, __file__, "--one", what, str(count), str(size)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
                runs[name].append(json.loads(done.stdout))
                if what == "full" and not turn and shutil.which("kube-proxy"):
                    peer = subprocess.run(
                        [sys.executable, __file__, "--one", "kube-proxy", str(count), str(size)],
                        check=True,
                        capture_output=True,
                        text=True,
                    )
                    runs[name][-1]["peer"] = json.loads(peer.stdout)["value"]
                print(f"{name:<18} {runs[name][-1]}", flush=True)
    rows = []
    for name, what, *_ in wanted:
        values = [run["value"] for run in runs[name]]
        peers = [run["peer"] for run in runs[name] if "peer" in run]
        ours, peer = statistics.median(values), statistics.median(peers) if peers else None
        kind = what.partition(":")[0]
        rows.append(
            {
                "name": name,
                "unit": {"rss": "MiB", "packet": "us"}.get(kind, "ms"),
                "podwire": round(ours, 3),
                "peer": round(peer, 3) if peer else "absent",
                "peer_name": "direct" if kind == "packet" else "kube-proxy",
                "ratio": round(ours / peer, 3) if peer else None,
                "runs": runs[name],
            }
        )
    RESULT.parent.mkdir(exist_ok=True)
    measured = {row["name"] for row in rows}
    if options.only and RESULT.exists():  # rows that are not selected keep their values
        rows += [row for row in json.loads(RESULT.read_text())["rows"] if row["name"] not in measured]
    order = [row[0] for row in ROWS]
    rows.sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
    RESULT.write_text(
        json.dumps({"machine": {**load, "load_after": os.getloadavg()[0]}, "rows": rows}, indent=1) + "\n"
    )
    for row in (row for row in rows if row["name"] in measured):
        ratio = f"{row['ratio']} x {row['peer_name']}" if row["ratio"] else f"{row['peer_name']}: absent"
        print(f"{row['name']:<18} {row['podwire']:>10} {row['unit']:<4} {ratio}")


if __name__ == "__main__":
    with undone_by_signals():
        main()

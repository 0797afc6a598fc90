"""Measures the whole cluster and writes bench/results/up.json. Run `make bench-up` as root.

"up 3 nodes" and "down" measure the commands, from start to return (every role of every node ready; nothing left).
"apply to answer" is the time from sending a Service to the API until a client pod's TCP connection to its ClusterIP is
accepted, and "apply to name" the time until the client pod's DNS answers its name. The client tries every millisecond;
without a pause it would take CPU time from the work that it waits for. The value is the median of all manifests, and
the 99th percentile is a row of its own. No peer does the same on one machine without a container engine, so the peer's
column says "absent".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "netns-tests"))
from dnslib import DNSRecord  # noqa: E402 - the lab's folder must be on the path first
from ending import undone_by_signals  # noqa: E402

from podwire.cluster.config import ClusterConfig  # noqa: E402
from podwire.commands.cluster import free_port  # noqa: E402
from podwire.demo.lab import DemoLab  # noqa: E402
from podwire.demo.run import find_tool  # noqa: E402
from podwire_base.kernel.netns import call_in  # noqa: E402
from podwire_base.kube.client import config as client_config  # noqa: E402
from podwire_base.kube.client.http import ApiClient  # noqa: E402

RESULT = HERE / "results" / "up.json"
PODWIRE = str(Path(sys.executable).parent / "podwire")
DNS_ADDRESS = "10.96.0.10"
GIVE_UP = 5.0
PAUSE = 0.001


def command(*words: str) -> float:
    began = time.perf_counter()
    subprocess.run([PODWIRE, *words], check=True, capture_output=True)
    return time.perf_counter() - began


def answers(address: str) -> float:
    """Returns the perf_counter of the first connection that the Service accepts. Earlier attempts may be refused or get
    no answer.
    """
    end = time.perf_counter() + GIVE_UP
    while time.perf_counter() < end:
        with socket.socket() as sock:
            sock.settimeout(0.003)
            try:
                sock.connect((address, 80))
            except OSError:
                time.sleep(PAUSE)
                continue
            return time.perf_counter()
    raise SystemExit(f"{address} did not answer within {GIVE_UP} s")


def named(name: str) -> float:
    query = bytes(DNSRecord.question(f"{name}.default.svc.cluster.local").pack())
    end = time.perf_counter() + GIVE_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((DNS_ADDRESS, 53))
        sock.settimeout(0.2)
        while time.perf_counter() < end:
            sock.send(query)
            with contextlib.suppress(TimeoutError):  # query again, like any resolver
                if DNSRecord.parse(sock.recv(4096)).rr:
                    return time.perf_counter()
            time.sleep(PAUSE)
    raise SystemExit(f"{name} had no address within {GIVE_UP} s")


def manifest(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": "MyApp"}, "ports": [{"port": 80, "targetPort": 9376}]},
    }


async def services(lab: DemoLab, netns: str, count: int, turn: int) -> tuple[list[float], list[float]]:
    """Returns (ms until the Service answers, ms until the Service's name resolves) for each Service."""
    reached: list[float] = []
    found: list[float] = []
    async with ApiClient(client_config.load(lab.config.kubeconfig)) as api:
        for number in range(count):
            name = f"bench-{turn}-{number}"
            began = time.perf_counter()
            made = await api.create("/api/v1/namespaces/default/services", manifest(name))
            work = answers if number % 2 else named  # one probe at a time, because two would compete for the two cores
            at = await asyncio.to_thread(
                call_in,
                netns,
                lambda made=made, name=name, work=work: work(made["spec"]["clusterIP"] if work is answers else name),
            )
            (reached if work is answers else found).append((at - began) * 1000)
            await asyncio.sleep(0.05)
    return reached, found


def one(turn: int, count: int) -> dict[str, Any]:
    name = f"bench{os.getpid()}"
    config = ClusterConfig(name=name, nodes=3, api_port=free_port(0))
    try:
        up = command("up", "--name", name, "--nodes", "3", "--api-port", str(config.api_port))
        lab = DemoLab(config, *find_tool())
        lab.run_tool("apply", "-f", str(HERE.parent / "examples"))
        lab.wait_pods("MyApp", 4)
        (client, *_) = lab.wait_pods("client", 3)
        reached, found = asyncio.run(services(lab, client.netns, count, turn))
    finally:
        down = command("down", "--name", name)
    return {"up": up, "down": down, "answer": reached, "name": found}


def row(name: str, unit: str, runs: list[float], value: float | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "unit": unit,
        "podwire": round(statistics.median(runs) if value is None else value, 3),
        "peer": "absent",
        "peer_name": "absent",
        "ratio": None,
        "runs": {"podwire": runs, "peer": []},
    }


def p99(runs: list[float]) -> float:
    return sorted(runs)[min(len(runs) - 1, int(len(runs) * 0.99))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--services", type=int, default=60)
    options = parser.parse_args()
    machine = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    rounds = []
    for turn in range(options.rounds):
        rounds.append(one(turn, options.services))
        print({k: v if isinstance(v, float) else statistics.median(v) for k, v in rounds[-1].items()}, flush=True)
    reached, found = ([x for one in rounds for x in one[key]] for key in ("answer", "name"))
    rows = [
        row("up 3 nodes", "s", [r["up"] for r in rounds]),
        row("down", "s", [r["down"] for r in rounds]),
        row("apply to answer", "ms", reached),
        row("apply to answer, p99", "ms", reached, p99(reached)),
        row("apply to name", "ms", found),
        row("apply to name, p99", "ms", found, p99(found)),
    ]
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    for made in rows:
        print(f"{made['name']:<24} {made['podwire']:>10} {made['unit']}")


if __name__ == "__main__":
    with undone_by_signals():
        main()

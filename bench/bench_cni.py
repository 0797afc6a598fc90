"""Measures the wall time of ADD and DEL, the ADDs per second and the agent's memory, in comparison with Debian's
reference plugins (Go).

    .venv/bin/python bench/bench_cni.py [--rounds 15] [--pairs 10000]

Each side has its own node: a network namespace with an uplink. The benchmark runs plugins as libcni does: one process
for each plugin, with the result of the previous plugin as input. The order is A/B/A/B, and the medians count. A
measured time is the time from the start of a plugin's process to its end, without the preparation of the input. Both
sides store leases on a tmpfs, as podwire does by default (/run). All single figures are written to
bench/results/cni.json.

In each of three configurations both sides give the pod the same *end result*: `bridge` (address, routes), `ipMasq` (and
masquerading to the outside), `portmap` (and a hostPort). podwire masquerades and stops spoofing in all three; the
reference plugins do so only where asked. RunPodSandbox is a call of containerd's CRI with a hostPort.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-tests"))

from compiled import compiled
from ending import undone_by_signals

from lab import containerd, cri, debian
from lab.cninode import CniNode, put_node
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from podwire_base.kernel.netns import setns

RESULTS = Path(__file__).parent / "results" / "cni.json"
PORT = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
PARALLEL = 32
TMPFS = Path("/dev/shm")


Chain = list[tuple[str, dict[str, Any]]]


class Side:
    """One node, and the calls of its plugins. chain: yields (program, configuration) of each plugin in order."""

    def __init__(self, ns: NetNS, env: dict[str, str], chain: Callable[[str, int], Chain]) -> None:
        self.ns, self.env, self.chain = ns, env, chain
        self.workers = ThreadPoolExecutor(PARALLEL, initializer=lambda: setns(ns.fd))

    def _environment(self, verb: str, program: str, name: str, pod: NetNS) -> dict[str, str]:
        return {
            **self.env,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": pod.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(Path(program).parent),
            "CNI_ARGS": "IgnoreUnknown=1",
        }

    def _run(
        self, verb: str, program: str, conf: dict[str, Any], name: str, pod: NetNS
    ) -> tuple[float, dict[str, Any] | None]:
        """(seconds, result)."""
        env = self._environment(verb, program, name, pod)
        # posix_spawn with two files in memory as stdin and stdout: the benchmark's own part of a call is far below a
        # millisecond.
        stdin, stdout = os.memfd_create("in"), os.memfd_create("out")
        try:
            os.pwrite(stdin, json.dumps(conf).encode(), 0)
            files = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, stdout, 1)]
            began = time.perf_counter()
            pid = os.posix_spawn(program, [program], env, file_actions=files)
            _, status = os.waitpid(pid, 0)
            seconds = time.perf_counter() - began
            text = os.pread(stdout, 1 << 20, 0).decode()
        finally:
            os.close(stdin)
            os.close(stdout)
        if status:
            raise SystemExit(f"{program} {verb}: {text}")
        return seconds, json.loads(text) if text.strip() else None

    def add(self, kind: str, name: str, pod: NetNS, port: int = 8080) -> tuple[float, dict[str, Any]]:
        """Run one ADD of the whole chain. Returns (seconds, result)."""
        total, result = 0.0, None
        for program, conf in self.chain(kind, port):
            seconds, result = self._run(
                "ADD", program, {**conf, **({"prevResult": result} if result else {})}, name, pod
            )
            total += seconds
        assert result is not None
        return total, result

    def delete(self, kind: str, name: str, pod: NetNS, result: dict[str, Any], port: int = 8080) -> float:
        return sum(
            self._run("DEL", program, {**conf, "prevResult": result}, name, pod)[0]
            for program, conf in reversed(self.chain(kind, port))
        )

    def once(self, kind: str, pod: NetNS) -> tuple[float, float]:
        def work() -> tuple[float, float]:
            added, result = self.add(kind, "one", pod)
            return added, self.delete(kind, "one", pod, result)

        return self.workers.submit(work).result()

    def rate(self, kind: str, pods: list[NetNS], storm: Path) -> float:
        """Returns the ADDs per second with PARALLEL callers, one ADD for each pod. The method checks that all addresses
        differ, and then detaches all pods.
        """
        words = list[str]()
        for i, pod in enumerate(pods):
            chain = self.chain(kind, 10000 + i)
            env = [f"{key}={value}" for key, value in self._environment("ADD", chain[0][0], f"p{i}", pod).items()]
            plugins = [part for program, conf in chain for part in (program, json.dumps(conf))]
            words += [str(len(env)), *env, str(len(chain)), *plugins]
        took, *texts = self.ns.run(
            [str(storm), str(PARALLEL)], input="".join(word + "\0" for word in words)
        ).stdout.split("\0")
        results, seconds = [json.loads(text) for text in texts if text], int(took) / 1e9
        assert len({r["ips"][0]["address"] for r in results}) == len(pods)
        gone = [
            self.workers.submit(self.delete, kind, f"p{i}", pod, results[i], 10000 + i) for i, pod in enumerate(pods)
        ]
        for job in gone:
            job.result()
        return len(pods) / seconds


def podwire_side(ns: NetNS, node: CniNode) -> Side:
    conf = node.conf()  # a runtime also reads a conflist once
    conf.pop("capabilities")

    def chain(kind: str, port: int) -> Chain:
        return [(str(node.client), {**conf, "runtimeConfig": mapping(port)} if kind == "portmap" else conf)]

    return Side(ns, {}, chain)


def mapping(port: int) -> dict[str, Any]:
    return {"portMappings": [{**PORT["portMappings"][0], "hostPort": port}]}


def reference_side(ns: NetNS, root: Path, state: Path) -> Side:
    plugins = root / "usr/lib/cni"

    def chain(kind: str, port: int) -> Chain:
        common = {"cniVersion": "1.0.0", "name": "bench"}
        bridge = {
            **common,
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "hairpinMode": True,
            "ipMasq": kind != "bridge",
            "ipam": {
                "type": "host-local",
                "dataDir": str(state),
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
        links = [(str(plugins / "bridge"), bridge)]
        if kind == "portmap":
            links.append((str(plugins / "portmap"), {**common, "type": "portmap", "runtimeConfig": mapping(port)}))
        return links

    return Side(ns, debian.environment(root), chain)


def rss(pid: int) -> float:
    """MiB."""
    return int(re.findall(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[0]) / 1024


def row(name: str, unit: str, podwire: list[float], peer: list[float], peer_name: str) -> dict[str, Any]:
    mine, theirs = statistics.median(podwire), statistics.median(peer) if peer else None
    made = {
        "name": name,
        "unit": unit,
        "podwire": round(mine, 2),
        "peer": None if theirs is None else round(theirs, 2),
        "peer_name": peer_name,
        "ratio": None if theirs is None else round(mine / theirs, 3),
        "runs": {"podwire": [round(x, 3) for x in podwire], "peer": [round(x, 3) for x in peer]},
    }
    against = "" if theirs is None else f"   {theirs:9.2f} {peer_name}   ratio {made['ratio']}"
    print(f"{name:14} {mine:9.2f} {unit}{against}", flush=True)
    return made


def reference_conflist(state: Path) -> str:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(state),
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": "bench", "plugins": [bridge, portmap]})


def sandboxes(node: CniNode, theirs: NetNS, root: Path, folder: Path, leases: Path, rounds: int) -> list[list[float]]:
    """Returns the seconds of RunPodSandbox with a hostPort, [podwire, reference plugins] for each round. Both sides use
    the same containerd version with the same pause image. Each side has its own loopback plugin.
    """
    runtimes = [containerd.start(node, folder / "c1")]
    try:
        conf = folder / "net.d"
        conf.mkdir()
        (conf / "10-bench.conflist").write_text(reference_conflist(leases))
        (folder / "c2").mkdir()
        runtimes.append(containerd.Containerd(theirs, folder / "c2", root / "usr/lib/cni", conf))
        runtimes[1].import_pause()
        times = []
        for n in range(rounds + 2):
            took = []
            for runtime in runtimes:
                began = time.perf_counter()
                ident = cri.run_sandbox(runtime.socket, cri.sandbox_config(f"s{n}", [(cri.TCP, 80, 8080)]))
                took.append(time.perf_counter() - began)
                cri.stop_sandbox(runtime.socket, ident)
            times.append(took)
        return times[2:]
    finally:
        for runtime in runtimes:
            runtime.close()


def main() -> None:
    options = argparse.ArgumentParser(description="CNI plugin beside Debian's reference plugins")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--pairs", type=int, default=10_000, help="ADD/DEL pairs before the agent's memory is read")
    asked = options.parse_args()
    try:
        root: Path | None = debian.unpack(*debian.TOOLS["reference plugins"])
        peer_name = f"containernetworking-plugins {debian.version('containernetworking-plugins')} with iptables-nft"
    except (debian.Absent, debian.Unreachable) as err:
        print(f"the peer is absent: {err}")
        root, peer_name = None, "absent"
    rows, load = [], round(os.getloadavg()[0], 1)
    with contextlib.ExitStack() as stack:
        lab = stack.enter_context(Lab())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        state = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=TMPFS if TMPFS.is_dir() else None)))
        mine, theirs, outside = lab.netns("mine"), lab.netns("theirs"), lab.netns("outside")
        lab.wire(mine, "eth0", outside, "a", "192.0.2.1/24")
        lab.wire(theirs, "eth0", outside, "b", "192.0.2.2/24")
        api = stack.enter_context(FakeApi(mine))
        put_node(api, "n1", "10.244.0.0/16", "192.0.2.1")
        node = CniNode(mine, state / "run", "n1", api)
        stack.callback(node.close)
        node.start()
        sides = [podwire_side(mine, node)] + ([reference_side(theirs, root, state / "leases")] if root else [])
        storm = compiled("cni_storm", folder)
        pod, many = lab.netns("pod"), [lab.netns(f"p{i}") for i in range(2 * PARALLEL)]
        for kind in ("bridge", "ipMasq", "portmap"):
            times = [[side.once(kind, pod) for side in sides] for _ in range(asked.rounds + 2)][2:]
            for n, verb in enumerate(("ADD", "DEL")):
                rows.append(
                    row(
                        f"{kind} {verb}",
                        "ms",
                        [1000 * t[0][n] for t in times],
                        [1000 * t[1][n] for t in times] if root else [],
                        peer_name,
                    )
                )
            rates = [[side.rate(kind, many, storm) for side in sides] for _ in range(5)]
            rows.append(
                row(
                    f"{kind} ADD x{PARALLEL}",
                    "1/s",
                    [r[0] for r in rates],
                    [r[1] for r in rates] if root else [],
                    peer_name,
                )
            )
        if root:
            took = sandboxes(node, theirs, root, folder, state / "cri-leases", asked.rounds)
            rows.append(
                row(
                    "RunPodSandbox",
                    "ms",
                    [1000 * t[0] for t in took],
                    [1000 * t[1] for t in took],
                    f"containerd {debian.version('containerd')} with {peer_name}",
                )
            )
        assert node.agent is not None

        def pairs(lane: int, count: int) -> None:
            for n in range(lane, count, 8):
                _, result = sides[0].add("portmap", f"m{n}", many[lane], 20000 + lane)
                sides[0].delete("portmap", f"m{n}", many[lane], result, 20000 + lane)

        def run_pairs(count: int) -> None:
            for job in [sides[0].workers.submit(pairs, lane, count) for lane in range(8)]:
                job.result()

        run_pairs(asked.pairs // 5)  # let caches and heaps reach their size first, then measure the growth
        before = rss(node.agent.pid)
        run_pairs(asked.pairs)
        after = rss(node.agent.pid)
        rows.append({**row("agent RSS", "MiB", [after], [], "none"), "before": round(before, 2), "pairs": asked.pairs})
    machine = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": load,
        "load_after": round(os.getloadavg()[0], 1),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    with undone_by_signals():
        main()

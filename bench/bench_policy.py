"""Measures network policies: what the first packet of a flow costs, and what programming and changing costs.

    .venv/bin/python bench/bench_policy.py [--pods 10000] [--policies 1000] [--rounds 3000]

The cluster is random but the same each time: 100 namespaces, ten policies for each of their pods, and one pod of each
namespace on the node that is measured, so that every policy matters there. Three nodes are measured in turn, each a
network namespace between a client and a server, which are two of these pods: one with conntrack alone, one with
podwire's tables, and one with a chain for each policy and a set for each of its peers (Calico's shape, written with
nft for the same policies). Client and server share one thread, so every packet is carried inline. "program" is CPU time
from facts to a committed ruleset ("read": from objects of the API to facts); the peer's is that of `nft -f` for its
rules, without a plan. "RSS 10k" is the peak of a process that reads the pods in pages of 500, as the role does. Figures
go to bench/results/policy.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "netns-tests"))

from ending import undone_by_signals
from policy_world import APPS, EACH, NODE, PORT, SPACES, World

from lab.netns import Lab, NetNS
from podwire_base.kernel.netns import setns
from podwire_policy import convert
from podwire_policy.apply import Tables
from podwire_policy.compiler import Compiler
from podwire_policy.decide import decide
from podwire_policy.model import Packet, Pods

RESULTS = Path(__file__).parent / "results" / "policy.json"
CLIENT, SERVER = 1, 0  # numbers of the two pods that send; they are the pods of ns0 and ns1 on the node


def chains(compiler: Compiler) -> str:
    """Returns the same policies as a ruleset for nft(8): a chain for each pod and way, which jumps to a chain for each
    policy, which looks the other end up in a set for each peer.
    """
    lines, sets = list[str](), dict[Pods, str]()
    for policy in compiler.policies.values():
        for way, end in (("ingress", "saddr"), ("egress", "daddr")):
            lines.append(f"chain {way}-{policy.key.replace('/', '-')} {{")
            for rule in policy.rules("ingress" if way == "ingress" else "egress") or ():
                for peer in rule.peers or ():
                    assert isinstance(peer, Pods)
                    name = sets.setdefault(peer, f"s{len(sets)}")
                    lines += [
                        f"tcp dport {port.first} ip {end} @{name} meta mark set 1 return" for port in rule.ports or ()
                    ]  # type: ignore[union-attr]  # numbers here
            lines.append("}")
    maps: dict[str, list[str]] = {"ingress": [], "egress": []}
    for ip, judged in compiler.compiled.addresses.items():
        pod = compiler.members.pods[judged.pod]
        for way, elements in maps.items():
            lines.append(f"chain {way}-pod-{pod.key.replace('/', '-')} {{")
            for policy in compiler.selecting(pod):
                lines.append(f"jump {way}-{policy.key.replace('/', '-')}; meta mark 1 meta mark set 0 return")
            lines += ["drop", "}"]
            elements.append(f"{ip} : jump {way}-pod-{pod.key.replace('/', '-')}")
    held = []
    for peer, name in sets.items():
        compiler.members.use(peer)
        some = ", ".join(sorted(compiler.members.selected[peer]))
        held.append(f"set {name} {{ type ipv4_addr; {f'elements = {{ {some} }}' if some else ''} }}")
        compiler.members.drop(peer)
    tables = [
        f"map {way} {{ type ipv4_addr : verdict; elements = {{ {', '.join(some)} }} }}" for way, some in maps.items()
    ]
    base = ["chain forward { type filter hook forward priority 0;", "ct state established,related accept",
            "ip saddr vmap @egress", "ip daddr vmap @ingress", "}"]  # fmt: skip
    return "\n".join(["table ip peer {", *held, *lines, *tables, *base, "}"])


class Line:
    """Client, node and server. The server listens; `request` is a connection with one byte each way."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.node = lab.router(f"{name}n")
        self.ends: list[NetNS] = []
        for number in (CLIENT, SERVER):
            end, ip = lab.netns(f"{name}e{number}"), World.ip(number)
            gateway = f"198.18.{number}.1"
            lab.wire(self.node, f"e{number}", end, "eth0", f"{gateway}/24", f"198.18.{number}.2/24")
            end.run(["ip", "addr", "add", f"{ip}/32", "dev", "eth0"])
            end.run(["ip", "route", "add", "default", "via", gateway, "src", ip])
            self.node.run(["ip", "route", "add", f"{ip}/32", "via", f"198.18.{number}.2"])
            self.ends.append(end)
        self.server = self.ends[1].call(lambda: socket.create_server((World.ip(SERVER), PORT), backlog=64))

    def rounds(self, count: int) -> tuple[list[float], list[float]]:
        """Returns (microseconds of connect, request and answer; of a round trip on an open connection)."""
        setns(self.ends[0].fd)
        new, old = [], []
        for number in range(count):
            began = time.perf_counter_ns()
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.connect((World.ip(SERVER), PORT))
            accepted, _ = self.server.accept()
            client.send(b"x")
            accepted.recv(1)
            accepted.send(b"y")
            client.recv(1)
            new.append((time.perf_counter_ns() - began) / 1000)
            if number % 8 == 0:
                began = time.perf_counter_ns()
                client.send(b"x")
                accepted.recv(1)
                accepted.send(b"y")
                client.recv(1)
                old.append((time.perf_counter_ns() - began) / 1000)
            client.close()
            accepted.close()
        return new, old


def row(
    name: str, unit: str, podwire: list[float], peer: list[float] | None = None, peer_name: str = ""
) -> dict[str, Any]:
    mine, theirs = statistics.median(podwire), statistics.median(peer) if peer else "absent"
    return {
        "name": name, "unit": unit, "podwire": mine, "peer": theirs, "peer_name": peer_name or "absent",
        "ratio": mine / theirs if isinstance(theirs, float) and theirs else None,
        "runs": {"podwire": podwire, "peer": peer or []},
    }  # fmt: skip


def program(world: World, node: NetNS) -> tuple[Compiler, Tables, float, float]:
    """Returns CPU milliseconds of the conversion of the API's objects, and from facts to a committed ruleset."""
    objects = [(f"ns{n % SPACES}/p{n}", world.pod(n)) for n in range(world.count)]
    gc.collect()
    began = time.process_time()
    pods = [(key, convert.pod(obj)) for key, obj in objects]
    policies = [convert.policy(one) for one in world.policies]
    converted = time.process_time()
    made = Compiler(NODE)
    for name, labels in world.spaces.items():
        made.namespace(name, convert.labels_of(labels))
    for key, pod in pods:
        made.pod(key, pod)
    for policy in policies:
        made.policy(policy.key, policy)
    made.flush()
    tables = Tables(node.fd)
    tables.full(made.compiled)
    return made, tables, (converted - began) * 1000, (time.process_time() - converted) * 1000


def changes(world: World, compiler: Compiler, tables: Tables) -> tuple[list[float], list[float]]:
    """Returns (CPU milliseconds, elements for each selector that the pod enters or leaves) of changes of labels."""
    took, elements = [], []
    for number in range(SPACES * 3, SPACES * 3 + 100):
        key, pod = f"ns{number % SPACES}/p{number}", world.pod(number, app=(number // SPACES + 1) % APPS)
        began = time.process_time()
        compiler.pod(key, convert.pod(pod))
        delta = compiler.flush()
        tables.change(compiler.compiled, delta)
        took.append((time.process_time() - began) * 1000)
        moved = sum(len(change) for change in delta.members.values())
        elements.append(moved / len(delta.members) if delta.members else 0.0)
    return took, elements


def resident(world: World) -> float:
    """Returns MiB at the peak of a process that reads the cluster in pages."""
    code = "import policy_world; print(policy_world.read_pages())"
    words = [sys.executable, "-c", code, str(world.count), str(len(world.policies))]
    done = subprocess.run(words, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@contextlib.contextmanager
def peer_rules(node: NetNS, text: str) -> Iterator[float]:
    """Yields CPU milliseconds of nft."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = node.run(["nft", "-f", "-"], input=text)
    assert done.returncode == 0, done.stderr[-500:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def measure(pods: int, policies: int, count: int) -> list[dict[str, Any]]:
    world = World(pods, policies)
    with Lab() as lab:
        plain, mine, theirs = (Line(lab, name) for name in ("plain", "mine", "theirs"))
        plain.node.run(["nft", "add", "table", "ip", "t"])
        plain.node.run(["nft", "add", "chain", "ip", "t", "f", "{ type filter hook forward priority 0; }"])
        plain.node.run(["nft", "add", "rule", "ip", "t", "f", "ct", "state", "established,related", "accept"])
        compiler, tables, converted, programmed = program(world, mine.node)
        assert decide(compiler.compiled, Packet(World.ip(CLIENT), World.ip(SERVER), 6, PORT)).allowed
        isolating = len(compiler.selecting(compiler.members.pods[compiler.members.owners[World.ip(SERVER)]]))
        assert isolating == EACH, isolating
        again = Tables(mine.node.fd)
        rewritten = again.full(compiler.compiled)
        again.close()
        with peer_rules(theirs.node, chains(compiler)) as loaded:
            new: dict[str, list[float]] = {}
            old: dict[str, list[float]] = {}
            for _ in range(10):
                for name, line in (("plain", plain), ("mine", mine), ("theirs", theirs)):
                    some, open_ = line.rounds(count // 10)
                    new.setdefault(name, []).append(statistics.median(some))
                    old.setdefault(name, []).append(statistics.median(open_))
            took, elements = changes(world, compiler, tables)
        tables.close()
    alone, shape = "conntrack alone", "a chain for each policy (nft)"
    return [
        row("first packet", "µs", new["mine"], new["plain"], alone),
        row("first packet, over conntrack alone", "µs", [a - b for a, b in zip(new["mine"], new["plain"], strict=True)],
            [a - b for a, b in zip(new["theirs"], new["plain"], strict=True)], shape),
        row("established", "µs", old["mine"], old["plain"], alone),
        row(f"program {policies}x{pods}", "ms of CPU", [programmed], [loaded], f"{shape}, loading alone"),
        row(f"read {policies}x{pods}", "ms of CPU", [converted]),
        row("restart", "operations", [float(rewritten)]),
        row("pod change", "ms of CPU", took),
        row("pod change, for each selector", "elements", [max(elements)]),
        row("RSS 10k", "MiB", [resident(world)]),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3_000)
    given = parser.parse_args()
    with undone_by_signals():
        rows = measure(given.pods, given.policies, given.rounds)
    machine = {
        "cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
        "load_after": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    for one in rows:
        print(f"{one['name']:40} {one['podwire']:10.3f} {one['unit']:10} {one['peer']} {one['peer_name']}")
    RESULTS.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

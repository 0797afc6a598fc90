"""The cluster of bench_policy.py, and the peak memory of a process that reads it as the policy role does."""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

from podwire_base.kernel.netns import CLONE_NEWNET, unshare
from podwire_policy import convert
from podwire_policy.apply import Tables
from podwire_policy.compiler import Compiler

SPACES, APPS, TEAMS, PORTS = 100, 20, 10, (80, 443, 5432, 6379, 8080)
FIRST = int(ip_address("10.128.0.0"))
NODE, PORT, EACH = "n1", 80, 10  # EACH: policies of a pod


class World:
    """Objects as the API has them."""

    def __init__(self, pods: int, policies: int) -> None:
        self.rng = Random(1)
        self.spaces = {f"ns{n}": {"team": f"t{n % TEAMS}"} for n in range(SPACES)}
        self.count, self.policies = pods, [self.policy(number) for number in range(policies)]

    def pod(self, number: int, app: int | None = None) -> dict[str, Any]:
        app = number // SPACES % APPS if app is None else app
        labels = {"app": f"a{app}", "version": "1"}
        env = [{"name": f"E{n}", "value": "v" * 40} for n in range(8)]
        return {
            "metadata": {
                "name": f"p{number}", "namespace": f"ns{number % SPACES}", "labels": labels, "uid": f"u{number}",
                "resourceVersion": str(number), "annotations": {"note": "x" * 300}, "managedFields": [{"f": "y" * 900}],
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "nodeName": NODE if number < SPACES else f"m{number % 97}",
                "containers": [{"name": "c", "image": "i" * 60, "env": env,
                                "ports": [{"name": "http", "containerPort": 80}]}],
            },
            "status": {"phase": "Running", "podIP": self.ip(number), "podIPs": [{"ip": self.ip(number)}],
                       "conditions": [{"type": t, "status": "True"} for t in ("Ready", "Initialized", "PodScheduled")]},
        }  # fmt: skip

    @staticmethod
    def ip(number: int) -> str:
        return str(ip_address(FIRST + 2 + number))

    def policy(self, number: int) -> dict[str, Any]:
        """Each selects all pods of its namespace; the last of a namespace lets team t1 (the client's) to PORT."""
        space, last = number % SPACES, number // SPACES == EACH - 1
        team, app = (1, None) if last else (self.rng.randrange(2, TEAMS), self.rng.randrange(APPS))
        peer: dict[str, Any] = {"namespaceSelector": {"matchLabels": {"team": f"t{team}"}}}
        if app is not None:
            peer["podSelector"] = {"matchLabels": {"app": f"a{app}"}}
        ways: dict[str, Any] = {
            "ingress": [{"from": [peer], "ports": [{"port": PORT if last else self.rng.choice(PORTS)}]}]
        }
        if last:  # the client's egress is judged too
            ways["egress"] = [{"to": [{"namespaceSelector": {}}], "ports": [{"port": PORT}]}]
        spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], **ways}
        return {"metadata": {"name": f"q{number}", "namespace": f"ns{space}"}, "spec": spec}

    def compiler(self) -> Compiler:
        made = Compiler(NODE)
        for name, labels in self.spaces.items():
            made.namespace(name, convert.labels_of(labels))
        for number in range(self.count):
            made.pod(f"ns{number % SPACES}/p{number}", convert.pod(self.pod(number)))
        for one in self.policies:
            made.policy(f"{one['metadata']['namespace']}/{one['metadata']['name']}", convert.policy(one))
        return made


def read_pages() -> float:
    """Returns MiB. The arguments of the program are the numbers of pods and policies. The process leaves its network
    namespace.
    """
    import podwire_policy.main  # the role as it runs

    assert podwire_policy.main
    world = World(int(sys.argv[1]), int(sys.argv[2]))
    made, kept = Compiler(NODE), dict[str, Any]()
    for name, labels in world.spaces.items():
        made.namespace(name, convert.labels_of(labels))
    for first in range(0, world.count, 500):
        page = json.loads(json.dumps({"items": [world.pod(n) for n in range(first, min(first + 500, world.count))]}))
        for obj in page["items"]:
            key = f"{obj['metadata']['namespace']}/{obj['metadata']['name']}"
            kept[key] = convert.trimmed(obj)
            made.pod(key, convert.pod(kept[key]))
    for one in world.policies:
        made.policy(f"{one['metadata']['namespace']}/{one['metadata']['name']}", convert.policy(one))
    made.flush()
    unshare(CLONE_NEWNET)
    Tables().full(made.compiled)
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]  # ru_maxrss has the parent's in it
    return int(peak) / 1024

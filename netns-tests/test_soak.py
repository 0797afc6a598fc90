"""Churn that no client notices, for PODWIRE_SOAK seconds (`make soak`: ten minutes; `make test`: one)."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter

import pytest

from lab.cluster import EXAMPLES, cluster, keep_logs, machine
from lab.soak import CONTROL, ROLES, Soak, manifests, open_files, resident
from podwire.demo.lab import DemoLab, wait_for
from podwire_base.kernel.netns import call_in

pytestmark = pytest.mark.alone  # it needs every CPU, and leaves the machine as it found it
SECONDS = float(os.environ.get("PODWIRE_SOAK", "60"))
MORE_FILES, MORE_MIB = 30, 25  # memory that a role may hold at the end beyond a fresh one: for its pods, and caches
HISTORY_MIB = 40  # the API server's changes that a watch may resume from: 10,000, each with the object before and after

Sizes = dict[tuple[str, str], tuple[int, int]]  # (node, role) -> (open files, MiB)


def roles(lab: DemoLab) -> list[tuple[str, str]]:
    return [(node, role) for node in lab.config.node_names() for role in ROLES] + [("", role) for role in CONTROL]


def sizes(lab: DemoLab) -> Sizes:
    """(open files, MiB) of each role."""
    pids = {(node, role): lab.supervised(node or None, role) for node, role in roles(lab)}
    return {who: (open_files(pid), resident(pid)) for who, pid in pids.items()}


def bigger(fresh: Sizes, last: Sizes) -> dict[tuple[str, str], tuple[tuple[int, int], tuple[int, int]]]:
    return {
        who: (was, last[who])
        for who, was in fresh.items()
        if last[who][0] > was[0] + MORE_FILES
        or last[who][1] > was[1] + MORE_MIB + HISTORY_MIB * (who[1] == "apiserver")
    }


def inside(lab: DemoLab, node: str, *command: str) -> str:
    def work() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return call_in(lab.node_netns(node), work)


def leaks(lab: DemoLab, gone: list[str]) -> list[str]:
    """Everything that a node still holds for deleted pods and Services."""
    found = []
    wanted = Counter(p["spec"]["nodeName"] for p in lab.items("Pod", "") if not p["spec"].get("hostNetwork"))
    for node in lab.config.node_names():
        leases = [f for f in (lab.config.node_dir(node) / "cni" / "leases").iterdir() if not f.name.startswith(".")]
        veths = inside(lab, node, "ip", "-o", "link", "show", "type", "veth").count("podwire0")
        if (len(leases), veths) != (wanted[node], wanted[node]):
            found.append(f"{node}: {wanted[node]} pods, {len(leases)} leases, {veths} veths")
        rules = inside(lab, node, "nft", "list", "table", "ip", "podwire")
        found += [
            f"{node}: rules for {address}, a Service that is gone"
            for address in gone
            if re.search(rf"(?<![\d.]){re.escape(address)}(?![\d.])", rules)
        ]
    return found


def test_churn_is_not_noticed(request: pytest.FixtureRequest) -> None:
    before = {what: found for what, found in machine().items() if what != "mounts"}
    with cluster(3, name="soak", outside=True) as lab:
        lab.run_tool("apply", "-f", "-", stdin=manifests(EXAMPLES))
        lab.wait_pods("MyApp", 4)
        lab.wait_pods("client", 3)
        fresh = sizes(lab)
        soak = Soak(lab, SECONDS, seed=int(os.environ.get("PODWIRE_SEED", "1")))
        began = f"{time.time() - time.monotonic():.1f}"
        try:
            clients = soak.run()
        finally:
            print("\n".join(f"{at:.1f} {words}" for at, words in soak.log))
            print(
                "logs:",
                keep_logs(lab.config, request.config.getoption("--evidence") / "soak"),
                "(0.0 is",
                began,
                "there)",
            )
        for client in clients:
            print(
                f"{client.name}: {dict(client.counts)}, {len(client.failures)} failures, all explained: "
                f"{not soak.unexplained([client])}"
            )
        lost = soak.unexplained(clients)
        assert not lost, soak.story(lost)
        assert all(client.counts[kind] > SECONDS for client in clients for kind in client.probes), clients
        assert soak.restarted == set(roles(lab))
        wait_for(lambda: not leaks(lab, soak.gone), 20)
        assert soak.gone, "no Service came and went"
        assert soak.policies, "no policy changed"
        rest = time.monotonic() + 60  # unused connections are closed over time
        while grown := bigger(fresh, sizes(lab)):
            assert time.monotonic() < rest, f"(open files, MiB) at the beginning and at the end: {grown}"
            time.sleep(1)
    assert not lab.config.run_dir.exists()
    after = machine()
    assert not [mount for mount in after.pop("mounts") if lab.config.name in mount], (
        "others may make namespaces meanwhile"
    )
    assert after == before

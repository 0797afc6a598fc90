"""`podwire check` on a cluster of this machine, and the same cluster through its API alone, as a stock cluster is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lab.cluster import cluster, machine
from lab.execproxy import ExecProxy
from lab.patience import patient, wait_until
from podwire.check.table import ON_ANY_CLUSTER
from podwire.demo.lab import DemoLab

ALL = {check.name for check in ON_ANY_CLUSTER}


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(2, name="chk") as made:
        yield made


def _interruptible() -> None:
    """A shell starts its background jobs with SIGINT ignored, and these tests may be in such a job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(lab: DemoLab, *words: str, kubeconfig: str = "") -> subprocess.Popen[str]:
    env = {**lab.environment, "COLUMNS": "80"}
    return subprocess.Popen(
        [sys.executable, "-m", "podwire.main", *words],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**env, "KUBECONFIG": kubeconfig} if kubeconfig else env,
        preexec_fn=_interruptible,  # noqa: PLW1509 -- it only sets a signal, and takes no lock
    )


def check(lab: DemoLab, *words: str, kubeconfig: str = "", status: int = 0) -> dict[str, dict[str, Any]]:
    child = start(lab, "check", "-o", "json", *words, kubeconfig=kubeconfig)
    said, errors = child.communicate(timeout=patient(180))
    assert child.returncode == status, said + errors
    return {row["name"]: row for row in json.loads(said)["tests"]}


def spaces(lab: DemoLab) -> list[str]:
    found = [obj["metadata"]["name"] for obj in lab.items("Namespace", "")]
    return [name for name in found if name.startswith("podwire-check-")]


def test_every_row_holds_and_nothing_is_left(lab: DemoLab) -> None:
    before = machine(lab.config.name)
    rows = check(lab)
    assert set(rows) == ALL
    assert {name for name, row in rows.items() if row["state"] == "left out"} <= {"sctp", "outside"}
    assert not [row for row in rows.values() if row["state"] == "failed"]
    assert spaces(lab) == [] and machine(lab.config.name) == before


@pytest.mark.parametrize(
    ("rule", "test", "detail", "reason"),
    [
        ("ip protocol udp drop", "other-node", "timeout", ""),
        ("tcp dport 8080 drop", "without-selector", "timeout", "foreign"),
        ("ip length > 1400 drop", "mtu", "packets of 1500 bytes vanish, 1400 pass", ""),
    ],
    ids=["datagrams", "service", "mtu"],
)
def test_a_fault_fails_its_row_and_the_reason_is_told(
    lab: DemoLab, rule: str, test: str, detail: str, reason: str
) -> None:
    """Somebody's rule on a node drops what the row sends."""
    node = lab.node_netns("node2")

    def nft(text: str) -> None:
        assert lab.in_netns(node, "nft", text) == ""

    nft("add table ip foreign; add chain ip foreign f { type filter hook forward priority 10; }")
    try:
        nft(f"add rule ip foreign f iifname eth0 {rule}")
        row = check(lab, "--test", test, status=1)[test]
    finally:
        nft("delete table ip foreign")
    assert row["state"] == "failed" and detail in row["detail"]
    assert any(reason in line for line in row["reasons"]) or not reason


def test_interrupted_it_removes_everything_and_killed_the_next_run_does(lab: DemoLab) -> None:
    child = start(lab, "check")  # all rows, so that it works when the signal arrives
    wait_until(lambda: spaces(lab), "its namespace")
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=patient(60))
    assert child.returncode == 130 and "everything is removed" in errors
    assert spaces(lab) == []
    child = start(lab, "check")
    (left,) = wait_until(lambda: spaces(lab), "its namespace")
    child.kill()
    child.communicate()
    child = start(lab, "check", "--test", "same-node", "-o", "junit")
    said, errors = child.communicate(timeout=patient(120))
    assert child.returncode == 0 and f"removing {left}, which an earlier run left" in " ".join(errors.split())
    suite = ElementTree.fromstring(said)
    assert (suite.get("tests"), suite.get("failures"), suite[0].get("name")) == ("1", "0", "same-node")
    assert spaces(lab) == []


def test_through_the_api_alone(lab: DemoLab, tmp_path: Path) -> None:
    """A server that runs commands over WebSocket and, like PodSecurity, refuses host networks and hostPorts."""
    with ExecProxy(lab, tmp_path) as proxy:
        names = ("same-node", "other-node", "cluster-ip", "names", "host-port", "node-to-service")
        words = [word for name in names for word in ("--test", name)]
        rows = check(lab, "--image", "podwire.io/host", *words, kubeconfig=str(proxy.kubeconfig))
    assert {name: row["state"] for name, row in rows.items()} == {
        "same-node": "ok",
        "other-node": "ok",
        "cluster-ip": "ok",
        "names": "ok",
        "host-port": "left out",
        "node-to-service": "left out",
    }
    assert "violates PodSecurity" in rows["host-port"]["detail"]
    assert proxy.ran > 3 and proxy.refused == 3
    assert spaces(lab) == []


def test_a_report_of_a_running_cluster(lab: DemoLab, tmp_path: Path) -> None:
    file = tmp_path / "r.tar.gz"
    child = start(lab, "report", "--file", str(file))
    said, errors = child.communicate(timeout=patient(60))
    assert child.returncode == 0, said + errors
    assert os.stat(file).st_mode & 0o777 == 0o600
    with tarfile.open(file) as tar:
        found = {e.name.partition("/")[2]: tar.extractfile(e).read().decode() for e in tar.getmembers()}  # type: ignore[union-attr]  # files only
    assert "table ip podwire" in found["nodes/node1/nft.txt"]
    assert "10.244." in found["nodes/node1/routes.json"]
    assert "nf_conntrack_count" in found["nodes/node2/sysctls.txt"]
    assert json.loads(found["nodes/node1/status/proxy.json"])
    assert "synced" in found["nodes/node1/log/proxy.log"] and "podwire" in found["processes.txt"]
    everything = "\n".join(found.values())
    token = next(iter(json.loads((lab.config.run_dir / "api" / "tokens.json").read_text())))
    assert token not in everything and "PRIVATE KEY" not in everything and "client-key-data" not in everything

"""Which nodes a cluster has after a change of its record."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from podwire.cluster import config, members, record
from podwire.cluster.config import BadConfig, ClusterConfig, parse
from podwire.cluster.members import CannotChange, added, change, with_nodes, with_stopped
from podwire.commands.common import Failed
from podwire.commands.nodes import _drain, rows
from podwire.main import cli
from podwire_base.kube.client.config import load
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.meta import Object
from podwire_cni.netnsid import known_netns
from podwire_controlplane.testing.servers import Server

TWO = ClusterConfig(nodes=2)


def test_numbers_of_new_nodes() -> None:
    assert added(TWO, 2).node_names() == ["node1", "node2", "node3", "node4"]
    gap = with_nodes(added(TWO, 1), ["node1", "node3"])
    assert added(gap, 1).node_names() == ["node1", "node3", "node4"], (
        "the number of a node that is gone is not at once another's"
    )
    full = with_nodes(TWO, [f"node{n}" for n in range(1, 51) if n != 7])
    assert "node7" in added(full, 1).node_names()
    with pytest.raises(CannotChange, match="at most 50 nodes; this one has 49"):
        added(full, 2)


def test_stopped_nodes_are_nodes() -> None:
    found = with_stopped(TWO, ["node2"], stopped=True)
    assert (found.node_names(), found.running_nodes()) == (["node1", "node2"], ["node1"])
    assert with_stopped(found, ["node2"], stopped=True) == found
    assert with_stopped(found, ["node2"], stopped=False) == TWO
    assert with_nodes(found, ["node1"]).stopped == ()
    assert parse(found.to_json()) == found


@pytest.mark.parametrize("name", ["node0", "node51", "node", "x1", "node1 ", "../node1"])
def test_names_of_nodes_are_checked(name: str) -> None:
    with pytest.raises(BadConfig, match=r"^names: "):
        ClusterConfig(names=(name,))


def test_a_change_needs_a_running_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BASE", tmp_path)
    with pytest.raises(CannotChange, match="no cluster 'podwire'"):
        change("podwire", lambda found: found)
    TWO.run_dir.mkdir()
    record.save(TWO)
    with pytest.raises(CannotChange, match="takes it up again"):
        change("podwire", lambda found: added(found, 1))
    assert record.load("podwire") == TWO
    assert not members.changed_file(TWO).exists()


def test_rows() -> None:
    node = {"metadata": {"name": "node1"}, "spec": {"podCIDRs": ["10.244.0.0/24"], "unschedulable": True}, "status": {}}
    pods: list[Object] = [{"spec": {"nodeName": "node1"}}, {"spec": {}}]
    found = rows(with_stopped(TWO, ["node1"], stopped=True), [node], pods)
    assert [(r["name"], r["status"], r["podCIDRs"], r["pods"]) for r in found] == [
        ("node1", "Stopped,SchedulingDisabled", ["10.244.0.0/24"], 1),
        ("node2", "Unregistered", [], 0),
    ]


def test_a_directory_stands_for_its_namespaces(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    found = set(known_netns([str(tmp_path), str(tmp_path / "none")]).values())
    assert found - {"/proc/1/ns/net"} == {str(tmp_path / "a"), str(tmp_path / "b")}


OBJECTS = """
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: one}, spec: {minAvailable: 1,
  selector: {matchLabels: {app: web}}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: u, controller: true}]
spec: {nodeName: n1, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: zoo
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: zoo, uid: u, controller: true}]
spec: {nodeName: n1, containers: [{name: c, image: i}]}
"""


def test_a_node_is_drained_when_the_budgets_allow_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`nodes rm` asks by eviction: a budget holds a pod, and what keeps it, and the node's state, are told."""

    async def drain(seconds: float) -> None:
        async with ApiClient(load(str(kubeconfig))) as api:
            await _drain(api, ("n1",), [], False, seconds)

    async def run_the_pod() -> None:  # a pod that is not ready counts for no budget
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        path = "/api/v1/namespaces/default/pods/web/status"
        async with ApiClient(load(str(kubeconfig))) as api:
            await api.patch(path, {"status": status}, "application/merge-patch+json")

    with Server() as server:
        kubeconfig = server.kubeconfig(tmp_path / "k")
        env = {"KUBECONFIG": str(kubeconfig)}
        assert CliRunner().invoke(cli, ["apply", "-f", "-"], input=OBJECTS, env=env).exit_code == 0
        asyncio.run(run_the_pod())
        with pytest.raises(Failed, match=r"pod default/web cannot be evicted: .*budget.*`podwire nodes uncordon n1`"):
            asyncio.run(drain(0.2))
        left = json.loads(CliRunner().invoke(cli, ["get", "pods", "-o", "json"], env=env).stdout)["items"]
        going = [pod["metadata"]["name"] for pod in left if "deletionTimestamp" in pod["metadata"]]
        assert going == ["zoo"], "the budget of one pod does not keep the other"
        assert "waiting for a PodDisruptionBudget that keeps default/web" in " ".join(capsys.readouterr().err.split())
        assert CliRunner().invoke(cli, ["delete", "poddisruptionbudget", "one"], env=env).exit_code == 0
        asyncio.run(drain(5))

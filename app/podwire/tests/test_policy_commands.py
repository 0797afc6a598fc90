"""`podwire policy` against an API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from podwire.main import cli
from podwire_controlplane.server import builtinkinds
from podwire_controlplane.testing.servers import Server
from podwire_policy.testing import table
from podwire_policy.testing.rows_cluster import ALL, X_A, cluster, rule

POLICIES = "/apis/networking.k8s.io/v1/namespaces/x/networkpolicies"
CLUSTERS = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    world = table.world()
    with Server() as server:
        for space in world.namespaces.values():
            server.good("POST", "/api/v1/namespaces", space)
        for pod in world.pods.values():
            path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods"
            spec = {**pod["spec"], "containers": [{**c, "image": "i"} for c in pod["spec"]["containers"]]}
            server.good("POST", path, {**pod, "spec": spec})
            server.good("PUT", f"{path}/{pod['metadata']['name']}/status", {**pod, "spec": spec})
        ends = [table.frm(table.pods(table.has(pod="b")), ports=[{"port": 80}]), {"ports": [{"port": "nowhere"}]}]
        server.good("POST", POLICIES, table.on(table.has(pod="a"), "x/p", ingress=ends))
        server.good("POST", POLICIES, table.on(table.has(pod="none"), "x/typo", policyTypes=["Egress"]))
        server.do(builtinkinds.keep(server.store, 0.0))
        guard = cluster("guard", "Admin", 7, X_A, ingress=[rule("Deny", "ingress", ALL)])
        guard["spec"]["ingress"][0]["protocols"] = [{"tcp": {"destinationPort": {"number": 81}}}]
        about = {"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy"}
        server.good("POST", CLUSTERS, {**about, **guard})
        yield server.kubeconfig(tmp_path_factory.mktemp("policy") / "kubeconfig")


def run(kubeconfig: Path, *words: str) -> Result:
    done = CliRunner().invoke(cli, ["policy", *words, "--kubeconfig", str(kubeconfig)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_list_says_whom_each_selects_and_what_is_probably_not_meant(kubeconfig: Path) -> None:
    rows = json.loads(run(kubeconfig, "list", "-o", "json").output)["policies"]
    assert [(row["policy"], row["tier"], row["pods"]) for row in rows] == [
        ("guard", "Admin 7", 1), ("x/p", "", 1), ("x/typo", "", 0),
    ]  # fmt: skip
    assert [row["notes"] for row in rows] == [
        [], ["ingress[1]: no pod that it is about has a port nowhere/TCP"], ["selects no pod"],
    ]  # fmt: skip
    lines = run(kubeconfig, "list").output.splitlines()
    assert lines[0].split() == ["POLICY", "TIER", "PODS", "INGRESS", "EGRESS", "NOTES"]
    assert lines[3].split() == ["x/typo", "0", "-", "denied", "selects", "no", "pod"]
    assert "guard" not in run(kubeconfig, "list", "-n", "x").output


def test_show_has_the_rules_of_a_pod(kubeconfig: Path) -> None:
    lines = [" ".join(line.split()) for line in run(kubeconfig, "show", "a", "-n", "x").output.splitlines()]
    assert lines[0].startswith("x/a on n1: ")
    assert "ingress: isolated by x/p" in lines
    assert "x/p 0 allow pods pod=b of namespace x 80/TCP" in lines
    assert "guard Admin 7 0 deny all pods of all namespaces 81/TCP" in lines
    assert "egress: not isolated: what no rule denies is allowed" in lines


TESTS = {
    "allowed": (("x/b", "x/a:80"), 0, "rule 0 of x/p allows it"),
    "denied": (("x/c", "x/a:80"), 2, "no rule of x/p allows it"),
    "the administrator": (("x/b", "a:81", "-n", "x"), 2, "rule 0 of guard denies it"),
    "another protocol": (("x/b", "x/a:80", "-p", "udp"), 2, "no rule of x/p allows it"),
    "nobody": (("x/b", "x/c:80"), 0, "no policy selects either end"),
    "ICMP": (("x/b", "x/a", "-p", "icmp"), 2, "no rule of x/p allows it"),
    "a table": (("*", "x/a:80"), 3, "rule 0 of x/p allows it"),
    "an address": (("192.0.2.7", "x/a:80"), 2, "no rule of x/p allows it"),
    "no port": (("x/b", "x/a"), 1, "is not DST:PORT"),
    "no family": (("192.0.2.7", "[fd00::1]:80"), 1, "no IP family in common"),
    "no pod": (("x/b", "x/zzz:80"), 1, "no pod x/zzz"),
}


@pytest.mark.parametrize(("words", "status", "part"), TESTS.values(), ids=TESTS)
def test_test(kubeconfig: Path, words: tuple[str, ...], status: int, part: str) -> None:
    done = run(kubeconfig, "test", *words)
    assert part in " ".join(done.output.split())
    assert done.exit_code == status


def test_a_table_has_every_pair_of_one_family(kubeconfig: Path) -> None:
    rows = json.loads(run(kubeconfig, "test", "*", "x/*:80", "-o", "json").output)
    pods = len(table.PODS)
    mine = sum(key.startswith("x/") for key in table.PODS)
    assert len(rows) == (pods - 1) * mine * 2
    assert {row["destination"].split(" ")[0] for row in rows if not row["allowed"]} == {"x/a"}

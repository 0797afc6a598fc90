"""What the certificate of a node may read and write: its own part, and no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.kube import nodeconditions
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object
from podwire_base.role.reporter import Reporter, ReporterConfig
from podwire_base.role.standing import Standing
from podwire_base.testing.builders import node, pod
from podwire_base.testing.counts import examples
from podwire_controlplane.rbac import nodes
from podwire_controlplane.rbac.references import of_pod
from podwire_controlplane.server import auth

from ..testing.servers import Server

NODES, PODS = "/api/v1/nodes", "/api/v1/namespaces/default/pods"
SPACE = "/api/v1/namespaces/default"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as own:
        for name, address in (("n1", "172.30.0.11"), ("n2", "172.30.0.12")):
            status = {"addresses": [{"type": "InternalIP", "address": address}]}
            own.good("POST", NODES, {**node(name), "status": status})
            own.good("POST", PODS, pod(f"p-{name}", nodeName=name))
        yield own


def ask(server: Server, method: str, path: str, body: Any = None) -> tuple[int, str]:
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    code, answer = server.ask(method, path, body, token="node-token", headers={"Content-Type": kind})
    return code, str(answer.get("message", ""))


# ---- writes


OWNER = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "1"}


def named(**labels: str) -> Object:
    return {"metadata": {"labels": labels}}


def at(kind: str) -> Object:
    return {"status": {"addresses": [{"type": kind, "address": "172.30.0.12"}]}}


REFUSED = {
    "pod labels": (f"{PODS}/p-n1/status", named(app="victim"), "cannot update labels through pod status"),
    "other pod": (f"{PODS}/p-n2/status", {"status": {"phase": "Failed"}}, "spec.nodeName set to itself"),
    "pod": (f"{PODS}/p-n1", named(app="victim"), "cannot patch"),
    "taints": (f"{NODES}/n1", {"spec": {"taints": None}}, "taints"),
    "podCIDR": (f"{NODES}/n1", {"spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]}}, "podCIDR"),
    "restricted": (f"{NODES}/n1", named(**{"node-restriction.kubernetes.io/team": "a"}), "modify labels"),
    "role": (f"{NODES}/n1/status", named(**{"node-role.kubernetes.io/x": ""}), "modify labels"),
    "owner": (f"{NODES}/n1", {"metadata": {"ownerReferences": [OWNER]}}, "ownerReferences"),
    "address": (f"{NODES}/n1/status", at("InternalIP"), 'address 172.30.0.12 of node "n2"'),
    "external": (f"{NODES}/n1/status", at("ExternalIP"), 'address 172.30.0.12 of node "n2"'),
    "other node": (f"{NODES}/n2", named(a="b"), "n2"),
    "other status": (f"{NODES}/n2/status", {"status": {"phase": "x"}}, "n2"),
}


@pytest.mark.parametrize(("path", "body", "word"), list(REFUSED.values()), ids=list(REFUSED))
def test_a_node_does_not_write(server: Server, path: str, body: Object, word: str) -> None:
    if "taints" in str(body):
        taint = {"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}
        server.good("PATCH", f"{NODES}/n1", taint, headers={"Content-Type": "application/merge-patch+json"})
    before = server.do(server.store.revision())
    code, message = ask(server, "PATCH", path, body)
    assert code == 403 and word in message, message
    assert server.do(server.store.revision()) == before


def test_a_node_writes_its_own_part(server: Server) -> None:
    assert ask(server, "PATCH", f"{PODS}/p-n1/status", {"status": {"phase": "Running"}})[0] == 200
    address = {"status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.13"}]}}
    assert ask(server, "PATCH", f"{NODES}/n1/status", address)[0] == 200
    labels = {"metadata": {"labels": {"topology.kubernetes.io/zone": "a", "team": "x", "node.kubernetes.io/a": "b"}}}
    assert ask(server, "PATCH", f"{NODES}/n1", labels)[0] == 200
    events = f"{SPACE}/events"
    event = {"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p-n1", "namespace": "default"}}
    assert ask(server, "POST", events, event)[0] == 201
    assert ask(server, "DELETE", f"{PODS}/p-n2", {"gracePeriodSeconds": 0})[0] == 403
    assert ask(server, "DELETE", f"{PODS}/p-n1", {"gracePeriodSeconds": 0})[0] == 200
    assert ask(server, "DELETE", f"{NODES}/n1")[0] == 403


def test_the_address_of_a_lost_node_is_free(server: Server) -> None:
    lost = {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}
    server.good("PATCH", f"{NODES}/n2/status", lost, headers={"Content-Type": "application/merge-patch+json"})
    taken = {"status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.12"}]}}
    assert ask(server, "PATCH", f"{NODES}/n1/status", taken)[0] == 200


def test_mirror_pods(server: Server) -> None:
    notes = {"annotations": {nodes.MIRROR: "x"}}

    def made(name: str, metadata: Object = notes, **spec: Any) -> tuple[int, str]:
        body = pod(name)
        body["spec"] |= {"nodeName": "n1", **spec}
        return ask(server, "POST", PODS, {**body, "metadata": {**body["metadata"], **metadata}})

    assert made("m")[0] == 201
    volume = {"name": "v", "secret": {"secretName": "s"}}
    for name, code_message in (
        ("account", made("account", serviceAccountName="default")),
        ("other", made("other", nodeName="n2")),
        ("secret", made("secret", volumes=[volume])),
    ):
        assert code_message[0] == 403 and f'"{name}"' in code_message[1]
    assert made("plain", {})[0] == 403
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": "1", "controller": True}
    assert made("owned", {**notes, "ownerReferences": [owner]})[0] == 403


# ---- reads


def test_a_node_reads_what_its_pods_refer_to(server: Server) -> None:
    for plural in ("secrets", "configmaps"):
        for name in ("mine", "theirs"):
            server.good("POST", f"{SPACE}/{plural}", {"metadata": {"name": name}})
        assert ask(server, "GET", f"{SPACE}/{plural}/mine")[0] == 403

    def uses(own: str, at: str, name: str) -> Object:
        volumes = [{"name": "s", "secret": {"secretName": name}}, {"name": "c", "configMap": {"name": name}}]
        return pod(own, nodeName=at, volumes=volumes)

    server.good("POST", PODS, uses("a", "n1", "mine"))
    server.good("POST", PODS, uses("b", "n2", "theirs"))
    for plural in ("secrets", "configmaps"):
        assert ask(server, "GET", f"{SPACE}/{plural}/mine")[0] == 200
        assert ask(server, "GET", f"{SPACE}/{plural}?fieldSelector=metadata.name%3Dmine")[0] == 200
        code, message = ask(server, "GET", f"{SPACE}/{plural}/theirs")
        assert code == 403 and "no relationship found between node 'n1' and this object" in message
        assert ask(server, "GET", f"{SPACE}/{plural}")[0] == 403
        assert ask(server, "GET", f"/api/v1/{plural}")[0] == 403
    server.good("DELETE", f"{PODS}/a", {"gracePeriodSeconds": 0})
    assert ask(server, "GET", f"{SPACE}/secrets/mine")[0] == 403


def test_the_agents_of_a_node_read_what_the_network_needs(server: Server) -> None:
    for path in (
        "/api/v1/services", NODES, "/api/v1/pods", "/api/v1/namespaces", "/apis/discovery.k8s.io/v1/endpointslices",
        "/apis/networking.k8s.io/v1/networkpolicies", "/apis/networking.k8s.io/v1/servicecidrs",
        "/api/v1/namespaces/kube-system/configmaps?fieldSelector=metadata.name%3Dpodwire-load-balancer",
    ):  # fmt: skip
        assert ask(server, "GET", path)[0] == 200, path


# ---- tokens of pods


def test_a_node_gets_the_tokens_of_its_pods(server: Server) -> None:
    server.good("POST", f"{SPACE}/serviceaccounts", {"metadata": {"name": "robot"}})
    volume = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]}}
    own = server.good("POST", PODS, pod("mine", nodeName="n1", serviceAccountName="robot", volumes=[volume]))
    other = server.good("POST", PODS, pod("other", nodeName="n2", serviceAccountName="robot"))

    def token(made: Object, **more: Any) -> tuple[int, str]:
        metadata = made["metadata"]
        ref = {"kind": "Pod", "apiVersion": "v1", "name": metadata["name"], "uid": metadata["uid"]}
        return ask(server, "POST", f"{SPACE}/serviceaccounts/robot/token", {"spec": {"boundObjectRef": ref, **more}})

    assert token(own)[0] == 201 and token(own, audiences=["vault"])[0] == 201
    assert "different node" in token(other)[1]
    assert "not bound to a pod" in token(own, boundObjectRef=None)[1]
    assert "without a uid" in token(own, boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "mine"})[1]
    assert 'audience "bank"' in token(own, audiences=["bank"])[1]
    assert ask(server, "POST", f"{SPACE}/serviceaccounts/other/token", {"spec": {}})[0] == 403


# ---- pure


def test_only_a_name_of_a_node_is_a_node() -> None:
    assert auth.User("system:node:n1", (auth.NODES,)).node == "n1"
    assert auth.User("n1", (auth.NODES,)).node == "" and auth.User("system:node:n1", ()).node == ""


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("team", False), ("example.com/a", False), ("kubernetes.io/hostname", False), ("kubernetes.io/x", True),
        ("k8s.io/x", True), ("a.k8s.io/x", True), ("notk8s.io/x", False), ("node.kubernetes.io/x", False),
        ("a.kubelet.kubernetes.io/x", False), ("a.node-restriction.kubernetes.io/x", True),
        ("node-role.kubernetes.io/control-plane", True), ("topology.kubernetes.io/region", False),
    ],
)  # fmt: skip
def test_labels_of_the_administrator(key: str, bad: bool) -> None:
    class Nothing:
        def refers(self, node: str, kind: str, namespace: str, own: str) -> bool:
            return False

        def node_of(self, namespace: str, pod: str) -> str:
            return ""

        def holder(self, address: str) -> str:
            return ""

    from podwire_base.kube.registry import of

    after: Object = {"metadata": {"name": "n", "labels": {key: "x"}}}
    for before in (None, {"metadata": {"name": "n"}}):
        assert (nodes.written("n", of("Node"), "", after, before, Nothing()) is not None) is bad
    assert (nodes.written("n", of("Node"), "status", {"metadata": {"name": "n"}}, after, Nothing()) is not None) is bad


names = st.sampled_from("abcde")


@settings(max_examples=examples(25, 500))
@given(names, names, names, names, names)
def test_every_way_to_refer_is_found(a: str, b: str, c: str, d: str, e: str) -> None:
    spec = {
        "serviceAccountName": a,
        "imagePullSecrets": [{"name": b}],
        "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": c}}}, {"value": "x"}]}],
        "ephemeralContainers": [{"envFrom": [{"configMapRef": {"name": d}}]}],
        "volumes": [
            {"name": "v", "ephemeral": {"volumeClaimTemplate": {}}},
            {"name": "w", "projected": {"sources": [{"secret": {"name": d}}, {"configMap": {"name": e}}]}},
            {"name": "x", "csi": {"nodePublishSecretRef": {"name": e}}},
        ],
    }
    assert of_pod({"metadata": {"name": "p"}, "spec": spec}) == {
        ("ServiceAccount", a), ("Secret", b), ("Secret", c), ("ConfigMap", d), ("Secret", d), ("ConfigMap", e),
        ("Secret", e), ("PersistentVolumeClaim", "p-v"),
    }  # fmt: skip


# ---- the status of an agent with a kubelet's credentials


def test_an_agent_with_a_kubelets_credentials_tells_its_roles_in_the_conditions_of_its_node(
    server: Server, tmp_path: Path
) -> None:
    """No Role lets it write the Lease: NodeRestriction keeps it to its own one in kube-node-lease."""
    rule = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "list", "create", "update"]}
    roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system"
    server.good("POST", f"{roles}/roles", {"metadata": {"name": "podwire-status"}, "rules": [rule]})
    group = {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": auth.NODES}
    ref = {"kind": "Role", "apiGroup": "rbac.authorization.k8s.io", "name": "podwire-status"}
    server.good(
        "POST", f"{roles}/rolebindings", {"metadata": {"name": "podwire-status"}, "subjects": [group], "roleRef": ref}
    )
    own = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    of_lb = {"type": "PodwireLoadBalancer", "status": "True", "reason": "Ready", "message": "of an agent before"}
    server.good(
        "PATCH", f"{NODES}/n1/status", {"status": {"conditions": [own, of_lb]}},
        headers={"Content-Type": "application/merge-patch+json"},
    )  # fmt: skip

    async def told(*standings: Standing) -> list[Reporter]:
        async with ApiClient(server.config("node-token")) as api:
            made = Reporter(api, ReporterConfig("n1", None, tmp_path, "podwire.service"))
            for one in standings:
                await made.publish({"proxy": one, "identity": one})
            return [made]

    ready, hangs = Standing(True, "Ready", "3 Services"), Standing(False, "NoProgress", "no progress for 4 s")
    [reporter] = asyncio.run(told(ready, ready))
    assert reporter.by_node and reporter.every == nodeconditions.EVERY
    _, node_ = server.ask("GET", f"{NODES}/n1")
    found = {row["type"]: row for row in node_["status"]["conditions"]}
    assert set(found) == {"Ready", "PodwireProxy"}, "those of others stay, that of a role that is gone goes"
    assert found["Ready"]["reason"] == "KubeletReady" and found["PodwireProxy"]["message"] == "3 Services"
    began = found["PodwireProxy"]["lastTransitionTime"]
    before = nodeconditions.patch(node_, {"proxy": ready}, time.time() + 60)["status"]["conditions"][0]
    assert before["lastTransitionTime"] == began < before["lastHeartbeatTime"]
    asyncio.run(told(hangs))
    _, node_ = server.ask("GET", f"{NODES}/n1")
    assert [r["reason"] for r in node_["status"]["conditions"] if r["type"] == "PodwireProxy"] == ["NoProgress"]
    assert server.ask("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/podwire-n1")[0] == 404


def test_an_agent_that_may_write_neither_says_which_right_it_lacks(server: Server, tmp_path: Path) -> None:
    async def told() -> None:
        async with ApiClient(server.config("nobody-token")) as api:
            await Reporter(api, ReporterConfig("n1", None, tmp_path)).publish({"proxy": Standing(True, "Ready", "")})

    with pytest.raises(Refused, match="leases"):
        asyncio.run(told())

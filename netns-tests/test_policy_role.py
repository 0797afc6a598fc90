"""The policy role as a process on a node: ClusterNetworkPolicies of an API that gets the kind later, open flows that a
policy ends, and what other programs do to its tables.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import evidence
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.patience import patient, wait_until
from lab.policyflows import dial
from lab.policyworld import PolicyWorld, Probe
from podwire_base.kernel import nflog, nflogsocket
from podwire_base.kernel.netns import within
from podwire_base.kernel.reasons import Reason
from podwire_policy import bridged
from podwire_policy.testing import table
from podwire_policy.testing.rows_cluster import ALL, X_A, cluster, rule

PODS, NAMESPACES, NODES = "/api/v1/pods", "/api/v1/namespaces", "/api/v1/nodes"
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"
CLUSTERS = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
CODE = """
import pathlib, sys
from podwire_policy import config, main
main.ABSENT = main.LOOK = 0.3
settings = dict({more}metrics_address="127.0.0.1:9154")
main.run(config.PolicyConfig("n1", sys.argv[1], pathlib.Path(sys.argv[2]), **settings))
"""


class Running:
    """The role on n1, with the pods of the scenario table."""

    name = "policy"

    def __init__(self, world: PolicyWorld, folder: Path, more: str = "") -> None:
        """more: settings of the role, as keyword arguments."""
        self.world, self.ns, self.status = world, world.nodes["n1"], folder / "run" / "status" / "policy.json"
        self.undo = contextlib.ExitStack()
        self.api = self.undo.enter_context(FakeApi(self.ns))
        self.api.unknown.add(CLUSTERS)
        objects = table.world()
        for path, some in ((PODS, objects.pods), (NAMESPACES, objects.namespaces)):
            for one in some.values():
                self.api.put(path, one)
        (folder / "run").mkdir()
        code = CODE.replace("{more}", f"{more}, " if more else "")
        command = [sys.executable, "-c", code, str(self.api.kubeconfig(folder / "kubeconfig")), str(folder / "run")]
        self.process = self.ns.popen(command, stderr=subprocess.PIPE)
        self.undo.callback(self.stop)
        evidence.tells(self)

    def describe(self) -> str:
        return self.status.read_text() if self.status.exists() else "no status"

    def said(self) -> dict[str, object]:
        return dict(json.loads(self.status.read_text())) if self.status.exists() else {"ready": False}

    def drops(self, metric: str) -> dict[str, int]:
        """Returns policy -> packets of the page /metrics."""
        text = self.ns.run(["curl", "-s", "http://127.0.0.1:9154/metrics"]).stdout
        found = re.findall(rf'^podwire_policy_{metric}_packets_total{{.*policy="(.*?)".*}} (\S+)$', text, re.M)
        return {policy: int(float(count)) for policy, count in found}

    def logged(self, src: str) -> nflog.Logged | None:
        """Returns what a rule logs of a packet from this pod, None if none does while it tries."""
        reader = within(self.ns.fd, nflogsocket.Reader)
        try:
            probe = Probe(table.address(src, "ip"), table.address("x/a", "ip"), "TCP", 80)
            self.world.passed([probe], [True])
            if not select.select([reader], [], [], 5)[0]:
                return None
            return next((one for one in reader.read()[0] if one.packet.src == probe.src), None)
        finally:
            reader.close()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=patient(30))

    def reach(self, src: str, wanted: bool, what: str, dst: str = "x/a", family: str = "ip") -> None:
        probe = Probe(table.address(src, family), table.address(dst, family), "TCP", 80)
        wait_until(lambda: self.world.passed([probe], [wanted]) == [wanted], what, 20)


@pytest.fixture(scope="module")
def role(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Lab() as lab:
        made = Running(PolicyWorld(lab), tmp_path_factory.mktemp("policy"))
        with made.undo:
            wait_until(lambda: made.said()["ready"], "the role is ready", 30)
            yield made


def test_an_open_flow_ends_when_a_policy_forbids_it(role: Running) -> None:
    with contextlib.closing(dial(role.world, "x/c", table.address("x/a", "ip"), "TCP", "ip", 8110)) as flow:
        assert flow.says("client") and flow.says("server")
        deny = {**table.on(table.has(pod="a"), policyTypes=["Ingress"]), "kind": "NetworkPolicy"}
        role.api.put(POLICIES, deny)
        for end in (flow.server, flow.client):
            wait_until(lambda end=end: flow.reset(end), "a reset", 20)  # type: ignore[misc]  # bound now
        role.reach("x/c", False, "isolated")
        role.api.delete(POLICIES, "p", "x")
        role.reach("x/c", True, "open again")


def test_what_is_dropped_is_logged_and_counted_with_its_policy(role: Running) -> None:
    deny = {**table.on(table.has(pod="a"), policyTypes=["Ingress"]), "kind": "NetworkPolicy"}
    role.api.put(POLICIES, deny)
    role.reach("x/c", False, "isolated")
    seen = role.logged("x/c")
    assert seen is not None
    assert (seen.reason, seen.words) == (Reason.POLICY, "ingress: no rule of x/p allows it")
    dropped = role.drops("dropped")["x/p"]
    assert dropped >= 1
    staged = {**deny, "metadata": {**deny["metadata"], "annotations": {"podwire.io/staged": "true"}}}
    role.api.put(POLICIES, staged)
    role.reach("x/c", True, "let pass")
    seen = role.logged("x/c")
    assert seen is not None
    assert (seen.reason, seen.words) == (Reason.STAGED, "ingress: no rule of x/p allows it")
    assert role.drops("staged")["x/p"] >= 1
    assert role.drops("dropped")["x/p"] >= dropped, "a change of the rules loses no packet"
    assert "1 of these not in force" in str(role.said()["message"])
    role.api.delete(POLICIES, "p", "x")
    wait_until(lambda: role.said()["message"] == "0 NetworkPolicies, 0 pods isolated", "it is gone", 20)


def test_cluster_policies_count_once_the_api_has_them(role: Running) -> None:
    deny = cluster("guard", "Admin", 1, X_A, ingress=[rule("Deny", "ingress", ALL)])
    role.reach("y/a", True, "no policy")
    role.api.put(CLUSTERS, deny)
    role.api.unknown.discard(CLUSTERS)
    role.reach("y/a", False, "denied by the administrator")
    assert "1 ClusterNetworkPolicies" in str(role.said()["message"])
    role.api.put(CLUSTERS, {**deny, "spec": {**deny["spec"], "tier": "Later"}})
    wait_until(lambda: "guard" in str(role.said()["message"]), "the status names the policy", 20)
    role.api.put(CLUSTERS, deny)
    role.reach("y/a", False, "denied again")
    role.api.delete(CLUSTERS, "guard")
    role.reach("y/a", True, "open again")


def test_what_others_do_to_the_tables_is_mended_and_told(role: Running) -> None:
    deny = {**table.on(table.has(pod="a"), policyTypes=["Ingress"]), "kind": "NetworkPolicy"}
    role.api.put(POLICIES, deny)
    role.reach("x/c", False, "isolated")
    role.ns.run(["nft", "flush", "ruleset"])
    role.reach("x/c", False, "isolated again")
    wait_until(lambda: "repairs" in json.dumps(role.said()), "the status tells it", 20)
    wait_until(lambda: any(one["reason"] == "KernelStateMended" for _, one in role.api.posted), "an Event", 20)
    role.api.delete(POLICIES, "p", "x")
    role.reach("x/c", True, "open again")


def test_nobody_else_can_ask_the_role(role: Running) -> None:
    assert os.stat(role.status.parents[1] / "policy.sock").st_mode & 0o777 == 0o600  # of a socket


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The role beside another program's wiring, with traffic to the node judged."""
    with Lab() as lab:
        made = Running(PolicyWorld(lab), tmp_path_factory.mktemp("beside"), "own_node=True, foreign=True")
        with made.undo:
            made.api.put(
                NODES, {"metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.0.0/24", "fd00:244:0::/64"]}}
            )
            yield made


def test_frames_that_no_table_sees_are_told(beside: Running) -> None:
    """The pods of this world are on a bridge, which is another program's for the role."""
    names = [f"net/bridge/{name}" for name in bridged.SYSCTL.values()]

    def switch(value: str) -> None:
        for name in names:
            beside.ns.sysctl(name, value)

    def told() -> bool:
        said = beside.said()
        return said.get("reason") == "NotEnforced" and "pass podwire0 unjudged" in str(said["message"])

    netfilter = beside.ns.call(lambda: Path(f"/proc/sys/{names[0]}").exists())
    if netfilter:
        switch("0")
    wait_until(told, "the status says NOT ENFORCED", 30)
    assert not beside.said()["ready"]
    if netfilter:
        switch("1")
        wait_until(lambda: bool(beside.said()["ready"]), "the role is ready", 30)


def test_addresses_of_the_node_that_the_role_does_not_know_are_dropped(beside: Running) -> None:
    """A pod that the API has without its address, to one of the other node and back."""
    key = next(key for key, pod in table.world().pods.items() if pod["spec"]["nodeName"] == "n1" and key != "x/a")
    pod = table.world().pods[key]
    other = next(one for one, found in table.world().pods.items() if found["spec"]["nodeName"] == "n2")
    inside = table.address(key, "ip").startswith("10.244.0.")
    assert inside, "the podCIDR of n1 has it"
    beside.reach(other, True, "the pod is known", key)
    beside.api.put(PODS, {**pod, "status": {"phase": "Pending"}})
    beside.reach(other, False, "the pod has no address that the API knows", key)
    beside.reach(key, False, "so it is with what it sends", other)
    beside.api.put(PODS, pod)
    beside.reach(other, True, "known again", key)


def test_a_pods_traffic_to_its_own_node_is_judged(beside: Running) -> None:
    key = "x/a"
    host = beside.world.by_address[table.address(key, "ip")]
    node = table.world().pods[key]["spec"]["nodeName"]
    assert node == "n1"
    listener = beside.ns.call(lambda: socket.create_server(("", 8200)))
    beside.undo.callback(listener.close)

    def passes(address: str) -> bool:
        def work() -> bool:
            with socket.socket() as sock:
                sock.settimeout(0.5)
                return sock.connect_ex((address, 8200)) == 0

        return host.ns.call(work)

    gateway = "198.18.0.1"
    assert passes(gateway)
    deny = {**table.on(table.has(pod="a"), policyTypes=["Egress"]), "kind": "NetworkPolicy"}
    beside.api.put(POLICIES, deny)
    wait_until(lambda: not passes(gateway), "denied", 20)
    beside.api.put(
        POLICIES, {**deny, "spec": {**deny["spec"], "egress": [{"to": [{"ipBlock": {"cidr": f"{gateway}/32"}}]}]}}
    )
    wait_until(lambda: passes(gateway), "an ipBlock names the node", 20)
    beside.api.delete(POLICIES, "p", "x")

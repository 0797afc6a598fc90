"""NetworkPolicies on a running cluster: real packets between pods of one node and of two, by pod address and by
Service; a pod's first packets; the role's death.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from lab.cluster import EXAMPLES, cluster
from podwire.demo.lab import DemoLab, Pod, wait_for
from podwire.main import cli

PORT = 9376
DENY = {"kind": "NetworkPolicy", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "deny"}}
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: MyApp}, ports: [{port: 80, targetPort: 9376, nodePort: 30980}]}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(2, name="pol", watched=True) as made:
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.run_tool("apply", "-f", "-", stdin=SERVICE)
        made.wait_pods("MyApp", 4)
        yield made


@pytest.fixture
def policies(lab: DemoLab) -> Iterator[None]:
    yield
    lab.run_tool("delete", "networkpolicies", "--all", "-n", "default")
    first, second = pods(lab)[:2]
    reached(lab, first, second, True)


def pods(lab: DemoLab) -> list[Pod]:
    return sorted(lab.pods("MyApp"), key=lambda pod: pod.name)


def put(lab: DemoLab, **spec: object) -> None:
    lab.run_tool("apply", "-f", "-", stdin=json.dumps({**DENY, "spec": spec}))


def open_(lab: DemoLab, src: Pod, address: str, port: int = PORT) -> bool:
    return lab.tcp(src.netns, address, port, 0.4).ok


def reached(lab: DemoLab, src: Pod, dst: Pod, wanted: bool) -> None:
    wait_for(lambda: open_(lab, src, dst.address) is wanted, 10)


def test_nobody_reaches_an_isolated_pod_and_its_own_node_does(lab: DemoLab, policies: None) -> None:
    every = pods(lab)
    for src in every:
        reached(lab, src, every[0], True)
    put(lab, podSelector={}, policyTypes=["Ingress"])
    for src in every:
        for dst in every:
            reached(lab, src, dst, src == dst)
    for dst in every:
        assert lab.tcp(lab.node_netns(dst.node), dst.address, PORT, 1).ok, "probes of the kubelet"
        other = next(pod for pod in every if pod.node != dst.node)
        assert not lab.tcp(lab.node_netns(other.node), dst.address, PORT, 0.5).ok, "another node is nobody's peer"


@pytest.mark.parametrize("way", ["Ingress", "Egress"])
def test_explain_names_the_policy_that_isolates(lab: DemoLab, policies: None, way: str) -> None:
    first, second = pods(lab)[:2]
    put(lab, podSelector={}, policyTypes=[way])
    reached(lab, first, second, False)
    words = ["explain", f"pod/{first.name}", f"{second.address}:{PORT}", "--kubeconfig", str(lab.config.kubeconfig)]
    done = CliRunner().invoke(cli, words)
    assert f"{way.lower()}: no rule of default/deny allows it" in " ".join(done.output.split()), done.output


def test_a_policy_judges_behind_services(lab: DemoLab, policies: None) -> None:
    every = pods(lab)
    ip = lab.cluster_ip("web")
    wait_for(lambda: open_(lab, every[0], ip, 80), 10)
    put(lab, podSelector={}, policyTypes=["Egress"], egress=[])
    for src in every:
        wait_for(lambda src=src: not any(open_(lab, src, ip, 80) for _ in "ab"), 10)  # type: ignore[misc]  # bound now
    put(lab, podSelector={}, policyTypes=["Egress"], egress=[{"to": [{"podSelector": {}}], "ports": [{"port": PORT}]}])
    wait_for(lambda: all(open_(lab, every[0], ip, 80) for _ in "abcdef"), 10)


def test_rules_stay_when_the_role_ends_and_a_restart_writes_nothing(lab: DemoLab, policies: None) -> None:
    every = pods(lab)
    put(lab, podSelector={}, policyTypes=["Ingress"])
    reached(lab, every[1], every[0], False)
    node = every[0].node
    before = lab.supervised(node, "policy")
    os.kill(before, signal.SIGKILL)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert not open_(lab, every[1], every[0].address)
    wait_for(lambda: lab.supervised(node, "policy") not in (0, before), 10)
    status = lab.config.node_dir(node) / "status" / "policy.json"
    wait_for(lambda: (told := json.loads(status.read_text()))["ready"] and told["pid"] != before, 10)
    assert json.loads(status.read_text())["figures"]["commits"] == 0, "nothing was written again"


def test_a_new_pod_is_isolated_before_its_first_packet(lab: DemoLab, policies: None) -> None:
    """The pods send from their first instruction, to a pod that would answer; each ends well if nothing came back. One
    that no policy selects gets an answer.
    """
    put(lab, podSelector={"matchLabels": {"app": "early"}}, policyTypes=["Egress"])
    target = f"http://{pods(lab)[0].address}:{PORT}/"
    script = f"for i in 1 2 3 4 5 6; do curl -s -m 0.3 -o /dev/null {target} && exit 3; done; exit 0"
    labels = {f"early{number}": "early" for number in range(4)} | {"free": "free"}
    for name, app in labels.items():
        container = {"name": "c", "image": "podwire.io/host", "command": ["sh", "-c", script]}
        spec = {"restartPolicy": "Never", "containers": [container]}
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": app}}, "spec": spec}
        lab.run_tool("apply", "-f", "-", stdin=json.dumps(made))

    def ended() -> dict[str, str] | None:
        found = {name: lab.get("Pod", name)["status"].get("phase", "") for name in labels}
        return found if set(found.values()) <= {"Succeeded", "Failed"} else None

    found = wait_for(ended, 40)
    lab.run_tool("delete", "pods", *labels, "--wait=false")
    assert found == {name: "Succeeded" if app == "early" else "Failed" for name, app in labels.items()}

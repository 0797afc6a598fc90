"""A Service of type LoadBalancer in a whole cluster: it gets an address from the pool, a client outside uses it, and
the node that answers for it dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from lab.cluster import EXAMPLES, cluster
from podwire.demo.lab import DemoLab, wait_for

SERVICE = """
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{type: {kind}, selector: {{app: MyApp}}, ports: [{{port: 80, targetPort: 9376}}]{more}}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(2, name="lb", outside=True, watched=True) as made:
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.wait_pods("MyApp", 4)
        yield made


def apply(lab: DemoLab, name: str, kind: str = "LoadBalancer", more: str = "") -> None:
    lab.run_tool("apply", "-f", "-", stdin=SERVICE.format(name=name, kind=kind, more=more))


def address(lab: DemoLab, name: str) -> str:
    found = json.loads(lab.run_tool("get", "service", name, "-o", "json"))
    return next((i["ip"] for i in found["status"].get("loadBalancer", {}).get("ingress") or []), "")


def answers_for(lab: DemoLab, node: str, ip: str) -> bool:
    """Whether the node reports that it answers for the address."""
    try:
        status = json.loads((lab.config.node_dir(node) / "status" / "lb.json").read_text())
    except (OSError, ValueError):
        return False
    return ip in status["figures"].get("mine", ())


def owner(lab: DemoLab, ip: str) -> str:
    """The node that reports that it answers for the address, "" unless it is exactly one."""
    found = [node for node in lab.config.node_names() if answers_for(lab, node, ip)]
    return found[0] if len(found) == 1 else ""


def test_a_load_balancer_from_its_first_address_to_its_last(lab: DemoLab) -> None:
    outside = lab.outside("client")
    apply(lab, "public")
    ip = wait_for(lambda: address(lab, "public"), 10)
    assert ip.startswith("172.30.0.19")
    wait_for(lambda: owner(lab, ip), 15)
    assert wait_for(lambda: lab.tcp(outside, ip, 80).ok, 10)
    time.sleep(1.5)
    first = wait_for(lambda: owner(lab, ip), 10)
    other = next(node for node in lab.config.node_names() if node != first)
    cluster_supervisor = json.loads((lab.config.run_dir / "supervisor.json").read_text())["pid"]
    os.kill(cluster_supervisor, signal.SIGSTOP)  # nothing restarts the node: only another one can answer
    try:
        os.kill(lab.supervised(None, first), signal.SIGKILL)  # the node's supervisor: all its roles end with it
        wait_for(lambda: answers_for(lab, other, ip), 15)
        wait_for(lambda: lab.tcp(outside, ip, 80, 1).ok, 15)
        assert all(answer.ok for answer in lab.many(outside, ip, 80, 20))
    finally:
        os.kill(cluster_supervisor, signal.SIGCONT)
    wait_for(lambda: lab.supervised(first, "lb"), 15)
    for kind in ("ClusterIP", "LoadBalancer"):
        apply(lab, "public", kind)
        has = kind == "LoadBalancer"
        wait_for(lambda has=has: bool(address(lab, "public")) == has, 10)  # type: ignore[misc]  # bound now
    lab.run_tool("delete", "service", "public")
    wait_for(lambda: not any(owner(lab, ip) for _ in "x"), 10)


def test_a_pool_that_is_used_up_is_told_on_the_service(lab: DemoLab) -> None:
    more = ", loadBalancerIP: 172.30.0.9"
    apply(lab, "wanting", more=more)
    wait_for(lambda: "AddressNotInPool" in lab.run_tool("get", "events", "-o", "json"), 10)
    assert address(lab, "wanting") == ""
    lab.run_tool("delete", "service", "wanting")

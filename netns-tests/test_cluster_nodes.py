"""`podwire nodes` on a running cluster: nodes come, go, and are switched off and on, while pods and Services work."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest
from dnslib import DNSRecord

from lab.cluster import cluster
from lab.patience import patient
from podwire.cluster.config import ClusterConfig
from podwire.cluster.record import load
from podwire.demo.lab import DemoLab, Pod, wait_for
from podwire_base.kernel.netns import call_in
from podwire_base.kube.conditions import condition
from podwire_base.testing.ports import free_port

WEB = (
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  replicas: 4\n"
    "  selector: {matchLabels: {app: MyApp}}\n  template:\n    metadata: {labels: {app: MyApp}}\n"
    "    spec:\n      terminationGracePeriodSeconds: 1\n"
    "      containers: [{name: c, image: podwire.io/echo, args: [--http, '9376']}]\n---\n"
    "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
    "spec: {selector: {app: MyApp}, ports: [{port: 80, targetPort: 9376}]}\n"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(2, name="members") as made:
        made.run_tool("apply", "-f", "-", stdin=WEB)
        made.wait_pods("MyApp", 4)
        yield made


def nodes(lab: DemoLab, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "podwire.main", "nodes", *words, "--name", lab.config.name],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(180),
    )
    assert done.returncode == status, done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def listed(lab: DemoLab) -> dict[str, tuple[str, list[str], int]]:
    rows = json.loads(nodes(lab, "list", "-o", "json"))["nodes"]
    return {row["name"]: (row["status"], row["podCIDRs"], row["pods"]) for row in rows}


def reach(lab: DemoLab, node: str, pods: list[Pod]) -> bool:
    return all(lab.tcp(lab.node_netns(node), pod.address, 9376, 1).ok for pod in pods)


def serves(lab: DemoLab, node: str) -> None:
    address = lab.cluster_ip("web")
    wait_for(lambda: all(a.ok for a in lab.many(lab.node_netns(node), address, 80, 20)), 30)


def on(lab: DemoLab, node: str) -> list[Pod]:
    return [pod for pod in lab.pods("MyApp") if pod.node == node]


def test_a_new_node_runs_pods_that_all_others_reach(lab: DemoLab) -> None:
    assert "node3 is ready" in nodes(lab, "add")
    assert listed(lab)["node3"] == ("Ready", ["10.244.2.0/24"], 0)
    nodes(lab, "cordon", "node1", "node2")
    assert listed(lab)["node1"][0] == "Ready,SchedulingDisabled"
    lab.run_tool("apply", "-f", "-", stdin=WEB.replace("replicas: 4", "replicas: 6"))
    lab.wait_pods("MyApp", 6)
    fresh = on(lab, "node3")
    assert len(fresh) == 2
    for node in ("node1", "node2", "node3"):
        wait_for(lambda node=node: reach(lab, node, fresh), 15)  # type: ignore[misc]  # the loop's node
        serves(lab, node)
    nodes(lab, "uncordon", "node1", "node2")
    assert listed(lab)["node1"][0] == "Ready"


def test_a_stopped_node_keeps_its_pods_namespaces(lab: DemoLab) -> None:
    before = {pod.name: (pod.address, pod.netns, pod.sandbox.process()) for pod in on(lab, "node3")}
    pods = on(lab, "node3")
    assert before
    assert "node3 is stopped" in nodes(lab, "stop", "node3")
    assert listed(lab)["node3"][0] == "Stopped"
    assert condition(lab.get("Node", "node3", ""), "Ready")["status"] == "Unknown"
    assert lab.supervised(None, "node3") == 0
    assert not lab.tcp(lab.node_netns("node1"), pods[0].address, 9376, 1).ok, "its link is down"
    serves(lab, "node1")  # by the pods of other nodes
    assert {pod.name: (pod.address, pod.netns, pod.sandbox.process()) for pod in pods} == before
    assert nodes(lab, "stop", "node3")
    nodes(lab, "start", "node3")
    back = wait_for(lambda: found if len(found := on(lab, "node3")) == len(before) else [], 30)
    assert {pod.name: (pod.address, pod.netns, pod.sandbox.process()) for pod in back} == before
    wait_for(lambda: reach(lab, "node1", back), 15)
    assert listed(lab)["node3"][0] == "Ready"


def test_a_removed_node_is_drained_and_gives_its_podcidr_back(lab: DemoLab) -> None:
    (cidr,) = listed(lab)["node2"][1]
    bare = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: bare}\nspec: {nodeName: node2, terminationGracePeriodSeconds: 1, "
    )
    lab.run_tool("apply", "-f", "-", stdin=bare + "containers: [{name: c, image: podwire.io/echo}]}\n")
    assert "default/bare" in nodes(lab, "rm", "node2", status=1)
    assert listed(lab)["node2"][0] == "Ready"
    lab.run_tool("delete", "pod", "bare")
    pods = on(lab, "node2")
    with lab.hammer(lab.node_netns("node1"), lab.cluster_ip("web"), 80):
        assert "node2 is removed" in nodes(lab, "rm", "node2")
    assert set(listed(lab)) == {"node1", "node3"}
    assert not [pod for pod in pods if pod.sandbox.process()]
    assert not lab.config.node_dir("node2").exists()
    assert not lab.config.netns("node2").exists()
    lab.wait_pods("MyApp", 6)
    serves(lab, "node1")
    routes = lab.in_netns(lab.node_netns("node1"), "ip", "route")
    wait_for(lambda: cidr not in lab.in_netns(lab.node_netns("node1"), "ip", "route"), 10)
    assert "10.244.2.0/24" in routes
    nodes(lab, "add")
    assert listed(lab)["node4"][1] == [cidr]
    serves(lab, "node4")


def test_what_is_no_node_or_the_last_one_is_refused(lab: DemoLab) -> None:
    assert "it has node1, node3, node4" in nodes(lab, "stop", "node9", status=1)
    assert "whole cluster" in nodes(lab, "rm", "node1", "node3", "node4", status=1)


def test_a_node_that_is_stopped_can_be_removed(lab: DemoLab) -> None:
    nodes(lab, "stop", "node4")
    nodes(lab, "rm", "node4")
    assert set(listed(lab)) == {"node1", "node3"}
    lab.wait_pods("MyApp", 6)
    serves(lab, "node3")
    found = load(lab.config.name)
    assert found is not None and (found.names, found.stopped) == (("node1", "node3"), ())


def reached(lab: DemoLab, pod: Pod, address: str, port: int) -> bool:
    return lab.tcp(pod.netns, address, port).ok


def both_families_of_a_service(lab: DemoLab, pod: Pod) -> None:
    """A NodePort Service of both families: its addresses, the node's port, its names, and what one family alone has."""
    assert lab.get("ServiceCIDR", "kubernetes", "")["spec"]["cidrs"] == ["10.78.0.0/24", "fd00:78::/112"]
    spec = "type: NodePort, selector: {app: MyApp}, ports: [{port: 80, targetPort: 9376}], ipFamilyPolicy: "
    text = f"apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{{spec}POLICY}}"
    lab.run_tool("apply", "-f", "-", stdin=text.replace("POLICY", "RequireDualStack"))
    found = lab.get("Service", "web")["spec"]
    fourth, sixth = found["clusterIPs"]
    assert found["ipFamilies"] == ["IPv4", "IPv6"]
    assert ipaddress.ip_address(fourth) in ipaddress.ip_network("10.78.0.0/24")
    assert ipaddress.ip_address(sixth) in ipaddress.ip_network("fd00:78::/112")
    for address, port in ((fourth, 80), (sixth, 80), ("fd70:6f64:7769::c", found["ports"][0]["nodePort"])):
        wait_for(partial(reached, lab, pod, address, port), 20)
    server = lab.config.dns_address
    wait_for(lambda: names(lab, pod, server, "web.default.svc.cluster.local") == {fourth, sixth}, 20)
    lab.run_tool("apply", "-f", "-", stdin=text.replace("POLICY", "SingleStack"))
    wait_for(lambda: not lab.tcp(pod.netns, sixth, 80, 1).ok, 20)
    assert lab.tcp(pod.netns, fourth, 80).ok
    wait_for(lambda: names(lab, pod, server, "web.default.svc.cluster.local") == {fourth}, 20)


def names(lab: DemoLab, pod: Pod, server: str, name: str) -> set[str]:
    """Return the A and AAAA records of a name, as the pod gets them."""

    def ask(kind: str) -> set[str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patient(3))
            sock.sendto(DNSRecord.question(name, kind).pack(), (server, 53))
            return {str(row.rdata) for row in DNSRecord.parse(sock.recv(4096)).rr}

    return call_in(pod.netns, lambda: ask("A") | ask("AAAA"))


def test_ranges_and_both_families_of_pods() -> None:
    """--cluster-cidr of two families, --service-cidr and --node-cidr-mask-size, as pods and the API show them."""
    config = ClusterConfig(
        name=f"both{os.getpid()}",
        nodes=2,
        api_port=free_port(),
        cluster_cidr="10.77.0.0/20",
        cluster_cidr6="fd00:77::/56",
        service_cidr="10.78.0.0/24",
        service_cidr6="fd00:78::/112",
        node_cidr_mask_size=22,
    )
    with cluster(config=config) as lab:
        pod = "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{0}, labels: {{app: MyApp}}}}\nspec: {{nodeName: node{0}, "
        pod += "terminationGracePeriodSeconds: 1, "
        pod += "containers: [{{name: c, image: podwire.io/echo, args: [--http, '9376']}}]}}\n"
        lab.run_tool("apply", "-f", "-", stdin=f"{pod.format(1)}---\n{pod.format(2)}")
        one, two = lab.wait_pods("MyApp", 2)
        found = [[ip["ip"] for ip in lab.get("Pod", name)["status"]["podIPs"]] for name in ("p1", "p2")]
        ranges = [ipaddress.ip_network(text) for text in (config.cluster_cidr, config.cluster_cidr6)]
        assert all(ipaddress.ip_address(ip) in net for ips in found for ip, net in zip(ips, ranges, strict=True)), found
        nodes_seen = {n["metadata"]["name"]: n for n in lab.items("Node", "")}
        cidrs = sorted(node["spec"]["podCIDRs"] for node in nodes_seen.values())
        assert cidrs == [["10.77.0.0/22", "fd00:77::/64"], ["10.77.4.0/22", "fd00:77:0:1::/64"]]
        addresses = [a["address"] for a in nodes_seen["node1"]["status"]["addresses"] if a["type"] == "InternalIP"]
        assert addresses == ["172.30.0.11", "fd70:6f64:7769::b"]
        assert lab.get("Service", "kubernetes")["spec"]["clusterIP"] == "10.78.0.1"

        def greeting() -> bytes:
            with socket.create_connection((found[1][1], 9376), patient(3)) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return sock.recv(4096)

        def answers() -> bool:
            try:
                return found[0][1].encode() in call_in(one.netns, greeting)
            except OSError:
                return False

        wait_for(answers, 20)  # the server saw the client's own address
        assert lab.tcp(one.netns, two.address, 9376).ok
        both_families_of_a_service(lab, one)

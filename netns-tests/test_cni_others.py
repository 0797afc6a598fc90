"""What other programs and people do to a node: they delete the link of a pod, lay another conflist, edit ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.cnicluster import Cluster, two_nodes
from lab.cninode import ask, wait_until
from podwire_cni.plan import host_veth
from podwire_cni.types import Attachment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    quick = "from podwire_cni import agent; agent.RESYNC_SECONDS = 0.3"
    with two_nodes(tmp_path_factory.mktemp, dual=True, first=quick) as cluster:
        yield cluster


def events(cluster: Cluster, pod: str) -> list[str]:
    return [e["reason"] for _, e in cluster.api.posted if e["involvedObject"].get("name") == pod]


@pytest.mark.parametrize("where", ["node", "pod"])
def test_a_pod_whose_link_was_deleted_works_again(cluster: Cluster, where: str) -> None:
    """With its addresses, MAC, routes and hostPort; connections that were open go on."""
    one, name = cluster.nodes[0], f"lost-{where}"
    conf: dict[str, Any] = one.conf(runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80}]})
    pod, (peer, peer_ip) = cluster.lab.netns(name), cluster.pod(cluster.nodes[1], f"peer-{where}")
    added = one.cni("ADD", name, pod, conf)
    assert added.status == 0, added.out
    cluster.made.append((one, name))
    six = str(added.body["ips"][1]["address"]).split("/")[0]
    ports = [cluster.serve(pod, address) for address in (added.address, six)]
    link, ns = (host_veth(Attachment(name, "eth0")), one.ns) if where == "node" else ("eth0", pod)
    ns.run(["ip", "link", "del", link])
    wait_until(lambda: events(cluster, name) == ["NetworkInterfaceRestored"], "the agent tells of it")
    assert one.cni("CHECK", name, pod, {**conf, "prevResult": added.body}).status == 0
    assert ask(peer, added.address, ports[0]) == peer_ip and ask(peer, six, ports[1]).startswith("fd00:2::")
    assert ask(pod, peer_ip, cluster.serve(peer, peer_ip)) == added.address
    assert one.status()["ready"] and "without" not in one.status()["message"]
    cluster.clear()


def test_a_pod_that_cannot_be_attached_again_is_told(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    cluster.pod(one, "limited", runtimeConfig={"bandwidth": {"ingressRate": 10**9}})
    one.ns.run(["ip", "link", "del", host_veth(Attachment("limited", "eth0"))])
    wait_until(lambda: events(cluster, "limited") == ["NetworkInterfaceLost"], "the agent tells of it")
    wait_until(lambda: "without their interface: default/limited" in one.status()["message"], "the status names it")
    assert len(one.leases()) == 2, "its addresses are not given to others"
    cluster.clear()
    wait_until(lambda: "without" not in one.status()["message"], "with the pod's end the status is clean")


def test_a_link_that_was_set_down_is_set_up(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    pod, ip = cluster.pod(one, "down")
    peer, peer_ip = cluster.pod(one, "peer")
    port = cluster.serve(pod, ip)
    one.ns.run(["ip", "link", "set", host_veth(Attachment("down", "eth0")), "down"])
    wait_until(lambda: "set up again" in one.log(), "the agent notices")
    assert ask(peer, ip, port) == peer_ip
    cluster.clear()


def test_the_file_that_the_runtime_reads_is_named(cluster: Cluster) -> None:
    one = cluster.nodes[0]
    other = one.run_dir / "cni" / "net.d" / "05-flannel.conflist"
    other.write_text(json.dumps({"name": "cbr0", "plugins": [{"type": "flannel"}]}))
    wait_until(lambda: f"the runtime reads {other} (network cbr0" in one.status()["message"], "the status names it")
    assert "another conflist comes first" in one.log()
    other.unlink()
    wait_until(lambda: "the runtime reads" not in one.status()["message"], "it is gone")


@pytest.mark.parametrize("edited", ["{", '{"cniVersion": "1.0.0", "name": "podwire", "hairpin": true}', "[]"])
def test_del_with_an_edited_conflist(cluster: Cluster, edited: str) -> None:
    one = cluster.nodes[0]
    pod, _ = cluster.pod(one, "edited")
    socket = str(one.run_dir / "cni.sock")
    answer = one.cni("DEL", "edited", pod, edited, PODWIRE_CNI_SOCKET=socket, CNI_ARGS="IgnoreUnknown")
    assert (answer.status, answer.out) == (0, ""), one.log()
    assert one.leases() == {} and not [name for name in one.links() if name.startswith("veth")]
    assert "del in spite of its configuration" in one.log()
    cluster.clear()

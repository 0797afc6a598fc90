"""What other programs and people do to a node: they delete the link of a pod, lay another conflist, edit ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab.cnicluster import OUTSIDE, Cluster, two_nodes
from lab.cninode import ask, wait_until
from podwire_cni.plan import host_veth
from podwire_cni.types import Attachment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    quick = "from podwire_cni import following; following.RESYNC_SECONDS = 0.3"
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


def test_pods_are_forwarded_though_docker_turned_the_policy_to_drop(cluster: Cluster) -> None:
    """Docker sets the policy when it starts before the agent. The programs of iptables still read the chain."""
    one, outside = cluster.nodes[0], cluster.outside
    (pod, ip), (far, far_ip) = cluster.pod(one, "forwarded"), cluster.pod(cluster.nodes[1], "far")
    world, there = cluster.serve(outside, OUTSIDE), cluster.serve(far, far_ip)
    mine = cluster.serve(pod, ip)
    before = one.ns.run(["iptables-save", "-t", "filter"]).stdout
    for program in ("iptables", "ip6tables"):
        one.ns.run(
            [
                program,
                "-w",
                "-A",
                "FORWARD",
                "-s",
                "198.51.100.1" if program == "iptables" else "2001:db8::1",
                "-j",
                "DROP",
            ]
        )
        one.ns.run([program, "-w", "-P", "FORWARD", "DROP"])
    wait_until(lambda: "podwire" in one.ns.run(["nft", "list", "chain", "ip", "filter", "FORWARD"]).stdout, "rules")
    wait_until(lambda: "podwire" in one.ns.run(["nft", "list", "chain", "ip6", "filter", "FORWARD"]).stdout, "rules")
    assert ask(pod, OUTSIDE, world) == "192.0.2.1" and ask(pod, far_ip, there) == ip
    assert ask(far, ip, mine) == far_ip
    for save in ("iptables-save", "ip6tables-save"):
        rules = [
            line for line in one.ns.run([save, "-t", "filter"]).stdout.splitlines() if line.startswith("-A FORWARD")
        ]
        assert rules[0].endswith("-j DROP") and all(line.endswith("-j ACCEPT") for line in rules[1:]), (
            "after the host's"
        )
        assert len(rules) > 1
    for program in ("iptables", "ip6tables"):
        one.ns.run([program, "-w", "-P", "FORWARD", "ACCEPT"])
        one.ns.run([program, "-w", "-D", "FORWARD", "1"])
    wait_until(
        lambda: "podwire" not in one.ns.run(["nft", "list", "ruleset"]).stdout.partition("chain FORWARD")[2][:400],
        "gone",
    )
    assert "podwire" not in before
    cluster.clear()

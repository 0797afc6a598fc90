"""Pods whose link another program deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podwire_cni import takeback
from podwire_cni.commands import Sandbox
from podwire_cni.ops import AddAddress, AddRoute, CreateVeth
from podwire_cni.plan import host_veth
from podwire_cni.podcare import LOST, RESTORED, PodCare
from podwire_cni.testing.cri import listing, runtime
from podwire_cni.types import Attachment

from .test_verbs import DUAL, Host

OWNER = Attachment("c1", "eth0")
VETH = host_veth(OWNER)
NETNS = "4:4026532345 /run/netns/a"
ARGS = {"CNI_ARGS": "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1"}


def host(**conf: Any) -> Host:
    """A node with a pod whose link was deleted and whose namespace lives."""
    made = Host(DUAL)
    made.kernel.namespaces[NETNS] = True
    assert made.call("ADD", "c1", Sandbox(9, "", netns=NETNS), ARGS, **conf).status == 0
    made.kernel.veths.clear()
    return made


def care(node: Host, *sockets: Path) -> PodCare:
    return PodCare(node.plugin, "n1", sockets)


def test_a_living_pod_is_attached_again_as_before() -> None:
    node = host(runtimeConfig={"portMappings": [{"hostPort": 80, "containerPort": 80}]}, mtu=1400)
    before, state = node.kernel.applied[0], (dict(node.held), dict(node.firewall.pods))
    looks = care(node)
    looks.look()
    assert node.kernel.applied[1] == before, "the very same steps: what the runtime was told is true again"
    assert (node.held, node.firewall.pods) == state and VETH in node.kernel.veths
    (event,) = looks.events
    assert (event["reason"], event["involvedObject"]["uid"], looks.note) == (RESTORED, "u1", "")
    assert VETH in event["message"] and event["metadata"]["namespace"] == "default"
    looks.look()
    assert len(node.kernel.applied) == 2 and len(looks.events) == 1
    assert node.call("DEL").status == 0 and node.held == {}


@pytest.mark.parametrize(
    ("conf", "why"),
    [
        ({"runtimeConfig": {"bandwidth": {"ingressRate": 10**6}}}, "all that its configuration asked for"),
        ({"runtimeConfig": {"mac": "0a:58:0a:01:00:09"}}, "all that its configuration asked for"),
        ({"ipam": {"routes": [{"dst": "10.0.0.0/8"}]}}, "all that its configuration asked for"),
        ({"name": "a-chain"}, "all that its configuration asked for"),  # plugins after ours may have changed the pod
    ],
)
def test_a_pod_that_asked_for_more_is_told_to_be_replaced(conf: dict[str, Any], why: str) -> None:
    node = host(**conf)
    looks = care(node)
    for _ in range(3):
        looks.look()
    assert len(node.kernel.applied) == 1 and node.kernel.veths == {}
    (event,) = looks.events
    assert event["reason"] == LOST and why in event["message"] and "delete the pod" in event["message"]
    assert looks.note == "pods without their interface: default/web"
    node.call("DEL")
    looks.look()
    assert looks.note == ""


def test_what_the_kernel_refuses_is_told_and_tried_again() -> None:
    node = host()
    looks, node.kernel.fail_at = care(node), 3
    looks.look()
    assert looks.events[0]["reason"] == LOST and "refused" in looks.events[0]["message"] and node.kernel.veths == {}
    looks.look()
    assert looks.events[1]["reason"] == RESTORED and VETH in node.kernel.veths


def test_another_podcidr_is_another_gateway_and_mac() -> None:
    node = host()
    node.node = Host().node  # IPv4 only: the pod had two addresses
    looks = care(node)
    looks.look()
    assert "podCIDRs" in looks.events[0]["message"]


def test_a_dead_pod_is_not_attached() -> None:
    node = host()
    node.kernel.namespaces[NETNS] = False
    looks = care(node)
    for _ in range(3):
        looks.look()
    assert looks.events == [] and looks.note == "" and node.kernel.veths == {} and node.held


def test_a_namespace_out_of_sight_is_told_if_the_runtime_has_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the second look: a DEL deletes the link a moment before it frees the lease."""
    monkeypatch.setattr(takeback, "AGAIN", 0.0)
    node = Host()
    for name in ("c1", "c2"):
        node.call("ADD", name, None, {"CNI_ARGS": f"K8S_POD_NAMESPACE=default;K8S_POD_NAME={name}"})
    node.kernel.veths.clear()
    looks = care(node, tmp_path / "cri.sock")
    with runtime(tmp_path / "cri.sock", listing(["c1"])):
        looks.look()
        assert looks.events == []
        looks.look()
    assert [event["involvedObject"]["name"] for event in looks.events] == ["c1"]
    assert "not visible" in looks.events[0]["message"]
    assert {lease.owner.container_id for lease in node.held.values()} == {"c1"}, "the other one was nobody's"


def test_the_steps_of_a_pod_have_all_that_an_add_makes() -> None:
    kinds = {type(op) for op in host().kernel.applied[0]}
    assert {CreateVeth, AddAddress, AddRoute} <= kinds


def test_a_link_that_was_set_down_is_set_up() -> None:
    node = Host()
    node.call("ADD")
    node.kernel.set_down = {VETH, "eth0"}
    assert node.plugin.repair() == [f"{VETH} of c1/eth0: set up again"]
    assert node.kernel.set_down == {"eth0"} and node.plugin.repair() == []

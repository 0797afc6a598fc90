"""Plain pods are attached by one prepared program (native/attach.c): it has the same effect as the single steps, and
fails like them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.cninode import CniNode, ask, peer_server, put_node, wait_until
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from podwire_cni.native import is_compiled

RUN = "; from podwire_cni.main import command; command()"


class StepsNode(CniNode):
    """Its agent has no compiled library."""

    CODE = "from podwire_cni.native import attach; attach.load = lambda: None"

    def start(self, *, wait: bool = True) -> None:
        with open(self.run_dir / "agent.log", "a") as log:
            self.agent = self.ns.popen(
                [
                    sys.executable,
                    "-c",
                    self.CODE + RUN,
                    "--node-name",
                    self.name,
                    "--kubeconfig",
                    str(self.kubeconfig),
                    "--run-dir",
                    str(self.run_dir),
                ],
                stderr=log,
                stdout=log,
            )
        wait_until(self.ready, "the agent is ready")


class PatientNode(StepsNode):
    """Its agent waits long for a link to carry packets."""

    CODE = "from podwire_cni import kernel; kernel.READY_SECONDS = 60"


@contextmanager
def dual_stack(lab: Lab, folder: Path, kind: type[CniNode]) -> Iterator[CniNode]:
    ns = lab.netns("node")
    lab.wire(ns, "eth0", lab.netns("outside"), "eth0", "192.0.2.1/24")
    with FakeApi(ns) as api:
        put_node(api, "n1", "10.244.1.0/24", "192.0.2.1", cidr6="fd00:1::/64")
        node = kind(ns, folder, "n1", api)
        try:
            node.start()
            yield node
        finally:
            node.close()


def said(ns: NetNS, *words: str) -> list[dict[str, Any]]:
    found = json.loads(ns.run(["ip", "-j", *words]).stdout or "[]")
    return [
        {
            key: value
            for key, value in entry.items()
            if key not in ("ifindex", "link_index", "link_netnsid", "master_index")
        }
        for entry in found
    ]


def view(node: CniNode, pod: NetNS, host: str) -> dict[str, object]:
    """Everything that the kernel reports about one pod, on both sides."""
    return {
        "pod's links": said(pod, "-d", "link"),
        "addresses": said(pod, "addr", "show", "scope", "global"),
        "routes": said(pod, "route"),
        "routes, IPv6": said(pod, "-6", "route", "show", "table", "main"),
        "neighbours": sorted(map(str, said(pod, "neigh", "show", "nud", "permanent"))),
        "node's end": said(node.ns, "-d", "link", "show", "dev", host),
        "node's neighbours": sorted(map(str, said(node.ns, "neigh", "show", "dev", "podwire0", "nud", "permanent"))),
        "forwarding": sorted(
            line for line in node.ns.run(["bridge", "fdb", "show", "dev", host]).stdout.splitlines() if "static" in line
        ),
    }


def test_a_prepared_pod_is_as_one_wired_step_by_step(lab: Lab, tmp_path: Path) -> None:
    views, results = [], []
    for n, kind in enumerate((CniNode, StepsNode)):
        inner = Lab()
        with inner, dual_stack(inner, tmp_path / str(n), kind) as node:
            pod = inner.netns("pod")
            added = node.cni("ADD", "p", pod)
            assert added.status == 0, added.out
            host = added.body["interfaces"][1]["name"]
            wait_until(lambda: not said(pod, "addr", "show", "tentative"), "addresses are valid")  # noqa: B023 - at once
            views.append(view(node, pod, host))
            results.append({**added.body, "interfaces": [{**i, "sandbox": ""} for i in added.body["interfaces"]]})
    assert results[0] == results[1]
    for what in views[0]:
        assert views[0][what] == views[1][what], what
    assert len(views[0]["neighbours"]) == 2 and views[0]["forwarding"]  # type: ignore[arg-type]  # a list


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CniNode]:
    with Lab() as lab, dual_stack(lab, tmp_path_factory.mktemp("run"), CniNode) as made:
        yield made


def bare(node: CniNode) -> bool:
    return (
        not node.leases()
        and not [link for link in node.links() if link.startswith("veth")]
        and node.table_elements() == 0
    )


def test_a_refused_program_leaves_nothing(node: CniNode, lab: Lab) -> None:
    pod = lab.netns("pod")
    pod.netlink(lambda ipr: ipr.link("add", ifname="eth0", kind="bridge"))
    answer = node.cni("ADD", "p", pod)
    assert (answer.status, answer.body["code"]) == (1, 4) and "already has an interface eth0" in answer.body["msg"]
    assert bare(node)
    pod.netlink(lambda ipr: ipr.link("del", index=ipr.link_lookup(ifname="eth0")[0]))

    def lose() -> None:
        assert node.cni("DEL", "p", pod).status == 0  # of a turn in which the agent mended first
        node.ns.run(["ip", "link", "del", "podwire0"], check=False)

    lost = node.complaint(lose, lambda: node.cni("ADD", "p", pod), "JoinBridge")
    assert (lost.status, lost.body["code"]) == (1, 5) and "JoinBridge" in lost.body["details"], lost.out
    assert "eth0" not in pod.run(["ip", "-o", "link"]).stdout
    wait_until(lambda: "podwire0" in node.links(), "the agent makes its bridge again")
    wait_until(lambda: node.cni("ADD", "p", pod).status == 0, "and pods are wired")
    assert node.cni("DEL", "p", pod).status == 0
    wait_until(lambda: bare(node), "nothing is left")


def slow_bridge(node: CniNode) -> None:
    """A spanning tree makes a new port wait for twice two seconds."""
    node.ns.run(["ip", "link", "set", "podwire0", "type", "bridge", "forward_delay", "200", "stp_state", "1"])


def test_a_pod_whose_link_never_carries_packets_is_refused(node: CniNode, lab: Lab) -> None:
    slow_bridge(node)
    answer = node.cni("ADD", "p", lab.netns("pod"))
    node.ns.run(["ip", "link", "set", "podwire0", "type", "bridge", "stp_state", "0"])
    assert (answer.status, answer.body["code"]) == (1, 5) and "carries no packets" in answer.body["msg"], answer.out
    assert "spanning tree" in answer.body["details"] and bare(node)


def test_an_add_waits_until_the_pods_link_carries_packets(lab: Lab, tmp_path: Path) -> None:
    with dual_stack(lab, tmp_path, PatientNode) as node:
        pod = lab.netns("pod")
        slow_bridge(node)
        added = node.cni("ADD", "p", pod)
        assert added.status == 0, added.out
        host = added.body["interfaces"][1]["name"]
        assert "state forwarding" in node.ns.run(["bridge", "-d", "link", "show", "dev", host]).stdout


def test_a_sandbox_with_ipv6_off_gets_the_nodes_ipv6(node: CniNode, lab: Lab) -> None:
    """Docker's sandboxes are such, with IPv6 off for all and for new links."""
    pod = lab.netns("pod")
    for key in ("all", "default"):
        pod.sysctl(f"net/ipv6/conf/{key}/disable_ipv6", "1")
    added = node.cni("ADD", "p", pod)
    assert added.status == 0, added.out
    six = added.body["ips"][1]["address"].split("/")[0]
    with peer_server(pod, six) as port:
        assert ask(node.ns, six, port) == "fd00:1::1"
    assert pod.run(["cat", "/proc/sys/net/ipv6/conf/default/disable_ipv6"]).stdout == "1\n", "only its own link"
    assert node.cni("DEL", "p", pod).status == 0 and bare(node)


def test_the_longest_names(node: CniNode, lab: Lab) -> None:
    """Kubernetes allows 63 characters for a namespace and 253 for a pod, and runtimes have container ids of their
    own.
    """
    for args in (f"K8S_POD_NAMESPACE={'n' * 63};K8S_POD_NAME={'p' * 253}", "IgnoreUnknown=1"):
        pod, name = lab.netns(f"pod{len(args)}"), "c" * 250
        added = node.cni("ADD", name, pod, CNI_ARGS=args)
        assert added.status == 0, added.out
        host = added.body["interfaces"][1]["name"]
        alias = node.ns.run(["ip", "-d", "link", "show", "dev", host]).stdout
        assert ("n" * 63 + "/" + "p" * 190 if "POD" in args else "c" * 249) in alias
        assert node.cni("DEL", name, pod).status == 0
    assert bare(node)


def test_the_agent_uses_what_was_compiled() -> None:
    from podwire_cni.native import attach

    assert (attach.load() is not None) == is_compiled()

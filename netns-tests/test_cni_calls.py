"""The plugin binary as a runtime sees it: verbs, versions, errors, and the state after crashes and restarts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.cninode import CniNode, ask, peer_server, put_node, wait_until
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient
from podwire_cni import native, readiness

CLIENTS = [
    pytest.param(native.client_path(), id="binary"),
    pytest.param(Path(native.__file__).parent / "standin" / "podwire-cni", id="python"),
]


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def shared(world: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CniNode]:
    """One node with a running agent."""
    ns, outside = world.netns("node"), world.netns("outside")
    world.wire(ns, "eth0", outside, "eth0", "192.0.2.1/24", "192.0.2.42/24")
    with FakeApi(ns) as api:
        put_node(api, "n1", "10.244.1.0/24", "192.0.2.1")
        node = CniNode(ns, tmp_path_factory.mktemp("run"), "n1", api)
        node.start()
        yield node
        node.close()


@pytest.fixture
def node(shared: CniNode) -> Iterator[CniNode]:
    """The node without pods and with its agent running, before and after."""
    shared.client = native.client_path()
    yield shared
    if shared.agent is None or shared.agent.poll() is not None:
        shared.start()
    for container in set(shared.leases().values()):
        assert shared.cni("DEL", container).status == 0
    assert shared.leases() == {} and veths(shared) == set()


def veths(node: CniNode) -> set[str]:
    return {name for name in node.links() if name.startswith("veth")}


def has_eth0(pod: NetNS) -> bool:
    return bool(pod.netlink(lambda ipr: ipr.link_lookup(ifname="eth0")))


# ---- verbs ----


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add_check_del(node: CniNode, lab: Lab, client: Path, version: str) -> None:
    node.client = client
    pod, conf = lab.netns("a"), node.conf(version)
    done = node.cni("ADD", "a", pod, conf)
    assert done.status == 0, done.out
    assert done.body["cniVersion"] == version
    link = next(i for i in done.body["interfaces"] if i.get("sandbox"))
    assert link["name"] == "eth0" and link["sandbox"] == pod.path
    assert done.body["ips"][0]["gateway"] == "10.244.1.1"
    assert node.leases() == {done.address: "a"}
    if version >= "0.4.0":
        check = node.cni("CHECK", "a", pod, {**conf, "prevResult": done.body})
        assert (check.status, check.out) == (0, "")
    gone = node.cni("DEL", "a", pod, {**conf, "prevResult": done.body})
    assert gone.status == 0, gone.out + node.log()[-2000:]
    assert not has_eth0(pod) and veths(node) == set() and node.leases() == {}


def test_add_twice_is_an_error_and_harms_nothing(node: CniNode, lab: Lab) -> None:
    pod = lab.netns("a")
    first = node.cni("ADD", "a", pod)
    second = node.cni("ADD", "a", pod)
    assert second.status == 1 and second.body["code"] == 4 and "already attached" in second.body["msg"]
    other = node.cni("ADD", "b", pod)  # another container's id, but the interface is there
    assert other.status == 1 and "eth0" in other.body["msg"]
    assert node.leases() == {first.address: "a"} and len(veths(node)) == 1
    with peer_server(pod, first.address) as port:
        assert ask(node.ns, first.address, port) == "10.244.1.1"


def test_del_is_repeatable_and_content_with_what_is_missing(node: CniNode, lab: Lab) -> None:
    pod = lab.netns("a")
    assert node.cni("ADD", "a", pod).status == 0
    assert node.cni("DEL", "a", None).status == 0, "empty CNI_NETNS"
    assert not has_eth0(pod)
    assert node.cni("DEL", "a", pod).status == 0, "a second time"
    assert node.cni("DEL", "a", "/run/netns/long-gone").status == 0
    assert node.cni("DEL", "never-seen", pod).status == 0


def test_del_after_the_namespace_died(node: CniNode, lab: Lab) -> None:
    pod = lab.netns("a")
    assert node.cni("ADD", "a", pod).status == 0
    pod.close()
    wait_until(lambda: not veths(node), "the kernel takes the veth with the namespace")
    assert node.cni("DEL", "a", "/proc/999999/ns/net").status == 0
    assert node.leases() == {}


def test_failed_add_leaves_nothing(node: CniNode, lab: Lab) -> None:
    pod = lab.netns("a")
    pod.netlink(lambda ipr: ipr.link("add", ifname="eth0", kind="veth", peer={"ifname": "other"}))
    failed = node.cni("ADD", "a", pod)
    assert failed.status == 1 and failed.body["code"] == 4
    pod.netlink(lambda ipr: ipr.link("del", ifname="eth0"))
    conf = node.conf()
    # A route with an unreachable gateway: the kernel refuses it when most steps are done.
    conf["ipam"] = {**conf["ipam"], "routes": [{"dst": "0.0.0.0/0", "gw": "198.51.100.1"}]}
    failed = node.cni("ADD", "a", pod, conf)
    assert failed.status == 1 and failed.body["code"] == 5 and "AddRoute" in failed.body["details"]
    assert node.leases() == {} and veths(node) == set() and not has_eth0(pod)
    neighbours = node.ns.netlink(lambda ipr: [n.get("NDA_DST") for n in ipr.get_neighbours(family=socket.AF_INET)])
    assert not [n for n in neighbours if n.startswith("10.244.1.")]


def test_check_finds_what_was_changed(node: CniNode, lab: Lab) -> None:
    pod = lab.netns("a")
    added = node.cni("ADD", "a", pod)
    conf, host = node.conf(prevResult=added.body), veths(node).pop()
    for ns, change, words in (
        (pod, "ip route del default", "lacks the route to 0.0.0.0/0"),
        (pod, f"ip addr del {added.address}/32 dev eth0", f"lacks address {added.address}/32"),
        (node.ns, f"ip link set {host} nomaster", "is not a port of podwire0"),
        (pod, "ip link del eth0", "the pod has no interface eth0"),
    ):
        answer = node.complaint(
            lambda ns=ns, change=change: ns.run(change.split(), check=False),  # type: ignore[misc]  # bound now
            lambda: node.cni("CHECK", "a", pod, conf),
            words,
        )
        assert answer.status == 1 and answer.body["code"] == 5 and words in answer.body["msg"]


def test_gc_frees_what_the_runtime_does_not_know(node: CniNode, lab: Lab) -> None:
    pods = {name: lab.netns(name) for name in ("a", "b", "c")}
    for name, pod in pods.items():
        assert node.cni("ADD", name, pod).status == 0
    conf = {**node.conf("1.1.0"), "cni.dev/valid-attachments": [{"containerID": "b", "ifname": "eth0"}]}
    assert node.cni("GC", "", None, conf).status == 0
    assert set(node.leases().values()) == {"b"} and len(veths(node)) == 1
    assert [name for name, pod in pods.items() if has_eth0(pod)] == ["b"]


def test_status_and_version(node: CniNode) -> None:
    assert node.cni("STATUS", "", None, node.conf("1.1.0")).status == 0
    version = node.cni("VERSION", "", None, '{"cniVersion": "1.0.0"}')
    assert version.body == {"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


@pytest.mark.skipif(not native.is_compiled(), reason="only the compiled program is a loopback plugin too")
def test_called_as_loopback(node: CniNode, lab: Lab, tmp_path: Path) -> None:
    node.client = tmp_path / "loopback"
    node.client.symlink_to(native.client_path())
    pod = lab.netns("a")
    pod.netlink(lambda ipr: ipr.link("set", index=1, state="down"))
    for version, more in (("0.3.1", {"version": "4"}), ("1.0.0", {})):
        done = node.cni("ADD", "a", pod, {"cniVersion": version, "name": "lo", "type": "loopback"}, CNI_IFNAME="lo")
        assert done.status == 0 and done.body["cniVersion"] == version, done.out
        assert done.body["ips"][0] == {**more, "address": "127.0.0.1/8", "interface": 0}
        assert done.body["interfaces"] == [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.path}]
    assert pod.netlink(lambda ipr: ipr.get_links(1)[0]["state"]) == "up"
    before = {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/32"}], "dns": {"search": ['a"}b']}}
    chained = node.cni("ADD", "a", pod, {"cniVersion": "1.0.0", "name": "x", "prevResult": before, "type": "loopback"})
    assert chained.body == before
    assert node.cni("DEL", "a", None).status == 0
    gone = node.cni("ADD", "a", "/run/netns/gone", {"cniVersion": "1.0.0", "name": "lo"})
    assert (gone.status, gone.body["code"]) == (1, 5)


# ---- errors ----


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"cniVersion": "9.9.9"}, 1, "cniVersion"),
        ({"mtuu": 1400}, 2, "mtuu"),
        ({"mtu": "big"}, 7, "mtu"),
        ({"name": "no good"}, 7, "name"),
        ({"ipam": {"ranges": [[{"subnet": "10.99.0.0/24"}]]}}, 7, "ipam.ranges[0][0].subnet"),
        ({"ipam": {"ranges": [[{"subnet": "10.244.1.0/33"}]]}}, 7, "ipam.ranges[0][0].subnet"),
    ],
)
def test_bad_configurations_name_the_field(
    node: CniNode, lab: Lab, change: dict[str, object], code: int, words: str
) -> None:
    answer = node.cni("ADD", "a", lab.netns("a"), {**node.conf(), **change})
    assert (answer.status, answer.body["code"]) == (1, code) and words in answer.body["msg"], answer.out
    assert answer.body.get("details")
    assert node.leases() == {} and veths(node) == set()


def test_configuration_that_is_no_json(node: CniNode, lab: Lab) -> None:
    answer = node.cni("ADD", "a", lab.netns("a"), "{no json", PODWIRE_CNI_SOCKET=str(node.run_dir / "cni.sock"))
    assert (answer.status, answer.body["code"]) == (1, 6)


@pytest.mark.parametrize(
    ("netns", "code", "words"),
    [
        ("/run/netns/missing", 3, "No such file"),
        ("/etc/hostname", 4, "is not a network namespace"),
        ("/proc/self/ns/net", 4, "the node's own network namespace"),
        ("", 4, "CNI_NETNS"),
    ],
)
def test_bad_namespaces(node: CniNode, netns: str, code: int, words: str) -> None:
    answer = node.cni("ADD", "a", netns)
    assert (answer.status, answer.body["code"]) == (1, code) and words in answer.body["msg"], answer.out
    assert node.leases() == {}


def test_missing_variables_are_named(node: CniNode) -> None:
    answer = node.cni("ADD", "a", None, CNI_IFNAME="")
    assert answer.body["code"] == 4 and {"CNI_NETNS,", "CNI_IFNAME"} <= set(answer.body["msg"].split()), answer.out


def test_call_from_another_nodes_namespace_is_refused(node: CniNode, lab: Lab) -> None:
    """A plugin that finds the wrong node's socket must not attach a pod to that node."""
    stranger, pod = lab.netns("stranger"), lab.netns("a")
    done = stranger.run(
        [str(node.client)], check=False, input=json.dumps(node.conf()), env=node.environment("ADD", "a", pod)
    )
    assert done.returncode == 1 and "another network namespace" in done.stdout
    assert node.leases() == {} and not has_eth0(pod)


def test_garbage_on_the_socket_harms_nobody(node: CniNode, lab: Lab) -> None:
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PWC1" + b"\xff" * 16, os.urandom(300)):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(node.run_dir / "cni.sock"))
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(patient(15))
            with contextlib.suppress(ConnectionResetError):  # also a way to disconnect
                sock.recv(1000)
    assert node.cni("ADD", "a", lab.netns("a")).status == 0


@pytest.mark.parametrize("client", CLIENTS)
def test_agent_down(node: CniNode, lab: Lab, client: Path) -> None:
    node.client = client
    assert node.stop() == 0, "SIGTERM is a clean end"
    conf = node.conf("1.1.0")
    readiness.path(node.run_dir).unlink()
    for command, code in (("ADD", 11), ("DEL", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)):
        answer = node.cni(command, "a", lab.netns("a"), conf, PODWIRE_CNI_WAIT="0")
        assert (answer.status, answer.body["code"]) == (1, code)
        assert str(node.run_dir / "cni.sock") in answer.body["msg"] and "start the agent" in answer.body["details"]
    assert node.cni("VERSION", "a", None, conf).status == 0
    for gone in (None, "/run/netns/long-gone"):
        assert node.cni("DEL", "a", gone, conf).status == 0, (
            "a dead pod can be deleted, and the agent's start frees the rest"
        )


def test_socket_from_the_environment_wins(node: CniNode, lab: Lab) -> None:
    conf = {**node.conf(), "socket": "/nowhere/cni.sock"}
    assert "/nowhere/cni.sock" in node.cni("ADD", "a", lab.netns("a"), conf, PODWIRE_CNI_WAIT="0").body["msg"]
    assert node.cni("ADD", "a", lab.netns("b"), conf, PODWIRE_CNI_SOCKET=str(node.run_dir / "cni.sock")).status == 0


def test_standalone_takes_over_while_the_agent_is_down(node: CniNode, lab: Lab, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!/bin/sh\nexec {sys.executable} -m podwire_cni.main\n")
    plugin.chmod(0o755)
    with_agent = lab.netns("a")
    first = node.cni("ADD", "a", with_agent)
    node.stop()
    conf = node.conf(standalone=True, pythonPlugin=str(plugin))
    pod = lab.netns("b")
    second = node.cni("ADD", "b", pod, conf)
    assert second.status == 0, second.out + second.err
    assert node.leases() == {first.address: "a", second.address: "b"}
    with peer_server(pod, second.address) as port:
        assert ask(with_agent, second.address, port) == first.address
    edited = {key: value for key, value in conf.items() if key != "ipam"} | {"hairpin": True}
    assert node.cni("ADD", "c", lab.netns("c"), edited).status == 1
    done = node.cni("DEL", "a", with_agent, edited)
    assert done.status == 0, f"DEL ends well with a configuration that was edited: {done.out}"
    node.start()
    assert node.leases() == {second.address: "b"}
    with peer_server(pod, second.address) as port:
        assert ask(node.ns, second.address, port) == "10.244.1.1"


# ---- restarts and crashes ----


def test_pods_and_leases_survive_an_agent_restart(node: CniNode, lab: Lab) -> None:
    a, b = lab.netns("a"), lab.netns("b")
    first = node.cni("ADD", "a", a)
    node.stop()
    with peer_server(a, first.address) as port:
        assert ask(node.ns, first.address, port) == "10.244.1.1", "no agent, no difference"
        node.start()
        second = node.cni("ADD", "b", b)
        assert second.address != first.address
        assert ask(b, first.address, port) == second.address


def test_restart_without_the_api_server(node: CniNode, lab: Lab, tmp_path: Path) -> None:
    """The node's podCIDR stays the same while the API server is unreachable."""
    node.stop()
    kubeconfig = node.kubeconfig
    node.kubeconfig = tmp_path / "kubeconfig"
    node.kubeconfig.write_text(kubeconfig.read_text().replace("127.0.0.1", "127.0.0.2"))
    try:
        node.start(wait=False)
        wait_until(lambda: node.cni("STATUS", "", None, node.conf("1.1.0")).status == 0, "pods can be wired")
        assert node.cni("ADD", "a", lab.netns("a")).status == 0
    finally:
        node.stop()
        node.kubeconfig = kubeconfig


def test_kill_in_the_middle_of_adds_leaks_no_lease(node: CniNode, lab: Lab) -> None:
    pods, agent = [lab.netns(f"p{i}") for i in range(24)], node.agent
    now = {"PODWIRE_CNI_WAIT": "0"}
    assert agent is not None
    with ThreadPoolExecutor(24) as pool:
        answers = [pool.submit(node.cni, "ADD", f"p{i}", pod, None, **now) for i, pod in enumerate(pods[:16])]
        wait_until(lambda: len(node.leases()) >= 4, "some leases are written")
        agent.send_signal(signal.SIGSTOP)  # whatever it was doing; present callers must see it die
        answers += [pool.submit(node.cni, "ADD", f"p{i}", pod, None, **now) for i, pod in enumerate(pods[16:], 16)]
        agent.send_signal(signal.SIGKILL)
        agent.wait()
        done = [a.result() for a in answers]
    assert all(a.status for a in done[16:])
    node.start()
    won = {a.address for a in done if a.status == 0}
    left = node.leases()
    assert won <= left.keys(), "what a runtime was told stays"
    # A call can also have completed with only its answer lost; its lease is complete, and the runtime's DEL frees it.
    assert len(veths(node)) == len(left)
    for i, answer in enumerate(done):
        if answer.status:
            assert answer.body["code"] == 11
            assert node.cni("DEL", f"p{i}", pods[i]).status == 0
    assert set(node.leases()) == won
    again = next(i for i, a in enumerate(done) if a.status)
    assert node.cni("ADD", f"p{again}", pods[again]).status == 0


def test_lease_of_an_earlier_boot_is_freed(node: CniNode, lab: Lab) -> None:
    pod = lab.netns("a")
    first = node.cni("ADD", "a", pod)
    node.stop()
    lease = node.run_dir / "cni" / "leases" / first.address
    head, rest = lease.read_text().split("\n", 1)
    lease.write_text(json.dumps({**json.loads(head), "bootID": "another"}) + "\n" + rest)
    (lease.parent / "10.244.1.200").write_text('{"torn')
    node.start()
    assert node.leases() == {} and veths(node) == set()


def test_pool_exhausted_then_freed_by_a_dead_namespace(node: CniNode, lab: Lab) -> None:
    conf = node.conf(
        ipam={"ranges": [[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.100", "rangeEnd": "10.244.1.101"}]]}
    )
    a, b, c = (lab.netns(name) for name in "abc")
    assert {node.cni("ADD", "a", a, conf).address, node.cni("ADD", "b", b, conf).address} == {
        "10.244.1.100",
        "10.244.1.101",
    }
    full = node.cni("ADD", "c", c, conf)
    assert full.body["code"] == 11 and "no free address" in full.body["msg"]
    a.close()  # a runtime that crashed never calls DEL
    wait_until(lambda: len(veths(node)) == 1, "the kernel takes the veth")
    assert node.cni("ADD", "c", c, conf).status == 0


def test_addresses_are_not_reused_at_once(node: CniNode, lab: Lab) -> None:
    pod, given = lab.netns("a"), []
    for _ in range(5):
        given.append(node.cni("ADD", "a", pod).address)
        assert node.cni("DEL", "a", pod).status == 0
    assert len(set(given)) == 5


def test_a_lost_bridge_is_made_again_with_its_ports(node: CniNode, lab: Lab) -> None:
    pod = lab.netns("a")
    added, conf = node.cni("ADD", "a", pod), node.conf("1.1.0")

    def lose() -> None:
        node.ns.run(["ip", "link", "del", "podwire0"], check=False)

    assert node.complaint(lose, lambda: node.cni("STATUS", "", None, conf), "podwire0").body["code"] == 51
    node.stop()
    lose()
    node.start()
    with peer_server(pod, added.address) as port:
        assert ask(node.ns, added.address, port) == "10.244.1.1"


def test_a_flushed_masquerade_table_comes_back(node: CniNode, lab: Lab) -> None:
    node.ns.run(["nft", "delete", "table", "ip", "podwire-cni"])
    node.stop()
    node.start()
    assert "podwire-cni" in node.ns.run(["nft", "list", "tables"]).stdout


def test_a_second_agent_waits_for_the_first_to_go(node: CniNode) -> None:
    first = node.agent
    assert first is not None
    node.start(wait=False)  # as with a supervisor that starts the next agent before the last one has ended
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=patient(20)) == 0
    wait_until(node.ready, "the second agent serves")
    assert node.cni("STATUS", "", None, node.conf("1.1.0")).status == 0

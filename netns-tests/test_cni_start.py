"""Incomplete starts: an agent without a podCIDR, an agent without a usable kubeconfig, and no agent at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
from scapy.layers.l2 import Ether

from lab.cninode import CniNode, ask, peer_server, put_node, wait_until
from lab.fakeapi import FakeApi
from lab.netns import Lab
from podwire_cni import native

CLIENTS = [
    pytest.param(native.client_path(), id="binary"),
    pytest.param(Path(native.__file__).parent / "standin" / "podwire-cni", id="python"),
]


def test_node_without_podcidr_waits_for_one(lab: Lab, tmp_path: Path) -> None:
    ns, pod = lab.netns("late"), lab.netns("p")
    with FakeApi(ns) as api:
        put_node(api, "late", None, "192.0.2.9")
        node = CniNode(ns, tmp_path, "late", api)
        try:
            node.start(wait=False)
            wait_until(lambda: node.status().get("reason") == "NoPodCIDR", "the agent says what it waits for")
            assert not (tmp_path / "cni" / "net.d" / "10-podwire.conflist").exists()
            conf = {
                "cniVersion": "1.1.0",
                "name": "podwire",
                "type": "podwire-cni",
                "socket": str(tmp_path / "cni.sock"),
            }
            add, status = node.cni("ADD", "p", pod, conf), node.cni("STATUS", "", None, conf)
            assert (add.body["code"], status.body["code"]) == (11, 50) and "spec.podCIDR" in add.body["msg"]
            put_node(api, "late", "10.244.9.0/24", "192.0.2.9")
            wait_until(node.ready, "ready with a podCIDR")
            assert node.cni("ADD", "p", pod).address == "10.244.9.2"
        finally:
            node.close()


def test_a_node_that_turned_ipv6_off_by_default(lab: Lab, tmp_path: Path) -> None:
    """The node's own links stay as they are; those of pods with IPv6 addresses have IPv6, and the tunnel too."""
    ns = lab.netns("n1")
    for key in ("all", "default"):
        ns.sysctl(f"net/ipv6/conf/{key}/disable_ipv6", "1")
    with FakeApi(ns) as api:
        lab.wire(ns, "eth0", lab.netns("outside"), "eth0", "192.0.2.1/24")
        put_node(api, "n1", "10.244.1.0/24", "192.0.2.1", cidr6="fd00:1::/64")
        put_node(api, "n2", "10.244.2.0/24", "192.0.2.2", cidr6="fd00:2::/64")
        node = CniNode(ns, tmp_path, "n1", api, flags=("--encapsulation", "always"))
        try:
            node.start()
            added = node.cni("ADD", "p", lab.netns("p"))
            assert [ip["address"] for ip in added.body["ips"]] == ["10.244.1.2/32", "fd00:1::2/128"], added.out
            routes = ns.run(["ip", "-6", "route", "show", "proto", "143"]).stdout
            assert "fd00:1::/64 dev podwire0" in routes and "fd00:2::/64 via fd00:2::1 dev podwire-vxlan" in routes
            assert ns.run(["cat", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6"]).stdout == "1\n"
        finally:
            node.close()


def test_a_damaged_lease_is_written_anew_from_the_pods_other_family(lab: Lab, tmp_path: Path) -> None:
    """After a restart the pod has both addresses as before: they answer, and no other pod gets one."""
    ns, pod, other = lab.netns("n1"), lab.netns("pod"), lab.netns("other")
    with FakeApi(ns) as api:
        put_node(api, "n1", "10.244.1.0/24", "192.0.2.1", cidr6="fd00:1::/64")
        node = CniNode(ns, tmp_path, "n1", api)
        try:
            node.start()
            added = node.cni("ADD", "p", pod, node.conf("1.1.0"))
            assert added.status == 0, added.out
            file = tmp_path / "cni" / "leases" / "fd00:1::2"
            whole = file.read_text()
            node.stop(kill=True)
            file.write_text("{")
            node.start()
            wait_until(lambda: "was unreadable, written anew" in node.log(), "the agent says what it did")
            assert file.read_text() == whole
            with peer_server(pod, "fd00:1::2") as port:
                assert ask(ns, "fd00:1::2", port) == "fd00:1::1"
            assert node.cni("CHECK", "p", pod, node.conf("1.1.0", prevResult=added.body)).out == ""
            assert node.cni("ADD", "other", other).body["ips"][1]["address"] == "fd00:1::3/128"
            assert {node.cni("DEL", name).status for name in ("p", "other")} == {0}
            assert node.leases() == {}
        finally:
            node.close()


def test_unknown_kubeconfig_is_told_in_one_line(lab: Lab, tmp_path: Path) -> None:
    bad = tmp_path / "kubeconfig"
    bad.write_text("clusters: 7\n")
    code = "from podwire_cni.main import command; command()"
    done = lab.netns("n").run(
        [sys.executable, "-c", code, "--node-name", "n", "--kubeconfig", str(bad), "--run-dir", str(tmp_path)],
        check=False,
    )
    assert done.returncode == 1 and "kubeconfig" in done.stderr and "Traceback" not in done.stderr


def test_without_an_agent_an_add_frees_what_a_crash_and_a_reboot_left(lab: Lab, tmp_path: Path) -> None:
    """No agent does it: three addresses, two of them held by containers that no longer exist."""
    ns = lab.netns("alone")
    plugin = tmp_path / "plugin"
    plugin.write_text(f"#!/bin/sh\nexec {sys.executable} -m podwire_cni.main\n")
    plugin.chmod(0o755)
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "podwire",
        "type": "podwire-cni",
        "standalone": True,
        "socket": str(tmp_path / "cni.sock"),
        "pythonPlugin": str(plugin),
        "ipam": {"ranges": [[{"subnet": "10.99.0.0/29", "rangeEnd": "10.99.0.4"}]]},
    }
    with FakeApi(ns) as api:
        node = CniNode(ns, tmp_path, "alone", api)
    assert node.cni("ADD", "whole", lab.netns("whole"), conf).address == "10.99.0.2"
    leases = tmp_path / "cni" / "leases"
    lease = (leases / "10.99.0.2").read_text().splitlines()[0]
    for address, owner, change in (("10.99.0.3", "cut-off", {}), ("10.99.0.4", "rebooted", {"bootID": "another"})):
        raw = {**json.loads(lease), "address": address, "containerID": owner, **change}
        (leases / address).write_text(json.dumps(raw) + "\n" + ("wired\n" if change else ""))
    for name in ("b", "c"):
        answer = node.cni("ADD", name, lab.netns(name), conf)
        assert answer.status == 0, answer.out
    assert set(node.leases().values()) == {"whole", "b", "c"}
    assert node.cni("ADD", "d", lab.netns("d"), conf).body["code"] == 11


def test_without_an_agent_a_node_is_ready_before_its_first_pods_and_they_come_all_at_once(
    lab: Lab, tmp_path: Path
) -> None:
    """A runtime that calls STATUS sends no pod to a node that is not ready. The uplink has an arbitrary name, and an
    MTU other than 1500.
    """
    ns, outside, plugin = lab.netns("alone"), lab.netns("outside"), tmp_path / "plugin"
    lab.wire(ns, "ens3", outside, "eth0", "192.0.2.1/24", "192.0.2.42/24")
    lab.route(ns, "default", "192.0.2.42")
    ns.netlink(lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname="ens3")[0], mtu=1400))
    plugin.write_text(f"#!/bin/sh\nexec {sys.executable} -m podwire_cni.main\n")
    plugin.chmod(0o755)
    conf: dict[str, Any] = {
        "cniVersion": "1.1.0",
        "name": "podwire",
        "type": "podwire-cni",
        "standalone": True,
        "socket": str(tmp_path / "cni.sock"),
        "pythonPlugin": str(plugin),
        "ipam": {"ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]]},
    }
    with FakeApi(ns) as api:
        node = CniNode(ns, tmp_path, "alone", api)
    ready = node.cni("STATUS", "", None, conf)
    assert ready.status == 0, ready.out
    pods = {f"p{n}": lab.netns(f"p{n}") for n in range(4)}
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda name: node.cni("ADD", name, pods[name], conf, CNI_ARGS="K8S_POD_NAME=\udcff"), pods)
        )
    assert {answer.status for answer in made} == {0}, [answer.out for answer in made]
    assert len({answer.address for answer in made}) == 4
    assert {answer.body["interfaces"][2]["mtu"] for answer in made} == {1400}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("command", ["ADD", "VERSION", "\udcff"])
@pytest.mark.parametrize(
    "stdin",
    [
        b"",
        b"\0",
        b"[" * 100_000,
        b'{"cniVersion": "\xff"}',
        b'{"cniVersion": "\xc3\xa9"}',
        b'{"cniVersion": "\xe2\x82"}',
        b'{"cniVersion": "1.1.0", "socket": "/\xff\xc3\xa9/\x01"}',
        b'{"socket": "/' + b"\xc3\xa9" * 49 + b'"}',
        b'{"cniVersion": "\xed\xa0\x80"}',
        b'{"cniVersion": "\xc0\xaf"}',
        b'{"socket": 7, "cniVersion": {}}',
    ],
    ids=lambda stdin: repr(stdin[:24]),
)
def test_whatever_comes_the_client_says_json(client: Path, command: str, stdin: bytes, tmp_path: Path) -> None:
    """Without an agent the client prints the error itself."""
    env = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": str(tmp_path),
        "PATH": os.environ["PATH"],
        "PODWIRE_CNI_SOCKET": "" if b"socket" in stdin else str(tmp_path / "none"),
        "PODWIRE_CNI_WAIT": "0",
    }
    done = subprocess.run([str(client)], input=stdin, capture_output=True, env=env, check=False)
    said = json.loads(done.stdout.decode())  # strictly UTF-8
    assert isinstance(said["cniVersion"], str) and not done.stderr
    assert (done.returncode, said.get("code")) == ((0, None) if command == "VERSION" else (1, 11))


def test_the_nodes_own_ipv6_router_is_not_lost(lab: Lab, tmp_path: Path) -> None:
    """Forwarding, which IPv6 pods need, would remove the default route that the node learned from a router
    advertisement.
    """
    ns, router = lab.netns("node"), lab.netns("router")
    lab.wire(ns, "eth0", router, "eth0", "192.0.2.1/24", "192.0.2.42/24")
    frame = (
        Ether(src="02:00:00:00:00:99", dst="33:33:00:00:00:01")
        / IPv6(src="fe80::99", dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=1800)
    )

    def routers() -> list[str]:
        return ns.netlink(
            lambda ipr: [str(r.get("RTA_GATEWAY")) for r in ipr.get_default_routes(family=socket.AF_INET6)]
        )

    def heard() -> bool:
        with router.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
            sock.bind(("eth0", 0))
            sock.send(bytes(frame))
        return routers() == ["fe80::99"]

    wait_until(heard, "the node has learned its router")
    with FakeApi(ns) as api:
        put_node(api, "n1", "10.244.1.0/24", "192.0.2.1", cidr6="fd00:1::/64")
        node = CniNode(ns, tmp_path, "n1", api)
        try:
            node.start()
            assert ns.run(["cat", "/proc/sys/net/ipv6/conf/all/forwarding"]).stdout == "1\n"
            assert routers() == ["fe80::99"] and "accept_ra=2" in node.log()
        finally:
            node.close()

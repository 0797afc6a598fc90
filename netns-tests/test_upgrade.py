"""An upgrade from the version before, and the way back: agents take over what the other version left on a running node.
No connection is lost, no lease changes, and nothing of the other layout stays.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from lab import oldversion
from lab.cninode import wait_until
from lab.netns import NetNS
from lab.oldversion import OldVersion
from lab.upgradeworld import Node, Traffic, World, echo, world

PORTS = [
    {"name": "tcp", "port": 80, "targetPort": 8080, "protocol": "TCP"},
    {"name": "udp", "port": 80, "targetPort": 8080, "protocol": "UDP"},
]
HOST_PORT = {"runtimeConfig": {"portMappings": [{"hostPort": 8888, "containerPort": 8080, "protocol": "tcp"}]}}


BACKENDS = {"n1": ("--set", "proxy.backend=nftables"), "n2": ("--set", "proxy.backend=iptables")}


@contextlib.contextmanager
def running(made: World) -> Iterator[Traffic]:
    """Clients of pods, Services, hostPorts and names, on both nodes. Nothing that they send may be lost."""
    with contextlib.ExitStack() as stack:
        (client, _), (other, _) = made.pod("n1", "client"), made.pod("n2", "other")
        (near, near_ip), (far, far_ip) = made.pod("n1", "near", **HOST_PORT), made.pod("n2", "far")
        stack.enter_context(echo(near, near_ip, 8080))
        stack.enter_context(echo(far, far_ip, 8080))
        both = made.service("both", {"near": "n1", "far": "n2"}, PORTS)
        sticky = made.service("sticky", {"far": "n2"}, PORTS, type="NodePort", sessionAffinity="ClientIP")
        traffic = Traffic()
        for name, pod in (("n1", client), ("n2", other)):
            for ip in (both, sticky):
                wait_until(lambda pod=pod, ip=ip: answers(pod, ip), f"{ip} answers on {name}", 20)  # type: ignore[misc]  # bound
            traffic.lasting(f"TCP to a Service on {name}", pod, both, 80)
            traffic.lasting(f"TCP to a sticky Service on {name}", pod, sticky, 80)
            traffic.datagrams(f"UDP to a Service on {name}", pod, both, 80)
            traffic.connections(f"connections to a Service on {name}", pod, both, 80)
            traffic.queries(f"DNS on {name}", pod, "both.default.svc.cluster.local", both, 40)
        traffic.lasting("TCP through the tunnel", client, far_ip, 8080)
        traffic.lasting("TCP back through the tunnel", other, near_ip, 8080)
        traffic.lasting("TCP on the node", client, near_ip, 8080)
        traffic.lasting("TCP to a hostPort", made.outside, "172.30.9.11", 8888)
        traffic.connections("connections to a hostPort", made.outside, "172.30.9.11", 8888)
        yield traffic
        lost = traffic.end()
        print(traffic.describe())
        assert lost == []


def answers(pod: NetNS, ip: str) -> bool:
    try:
        pod.call(lambda: socket.create_connection((ip, 80), timeout=1)).close()
    except OSError:
        return False
    return True


def change(node: Node, old: OldVersion | None, *commands: str) -> None:
    """Replace the agent as a DaemonSet does: one ends, then the other starts. commands: of podwire, in between."""
    assert node.stop() == 0, node.log()[-3000:]
    if commands:
        node.ns.run([f"{sys.prefix}/bin/podwire", *commands])
    node.run(old)
    wait_until(node.ready, f"the other version is ready on {node.name}", 40)
    if old is None:
        guarded(node)


def guarded(node: Node) -> None:
    """Wait for the tables of the tunnels. An agent that finds its conflist serves pods before it knows the Nodes."""
    wait_until(
        lambda: any(" podwire-tunnel input from a node" in row for row in node.rules()),
        f"the tunnels of {node.name} are guarded",
        20,
    )


def calls(made: World, old: OldVersion) -> None:
    """A DaemonSet replaces the plugin before the agent or after it: each client talks to each agent."""
    node = made.nodes["n1"]
    for name, client in (("by-old", old.client), ("by-new", node.new_client)):
        node.client = client
        made.pod("n1", name)
    for name, client in (("by-old", node.new_client), ("by-new", old.client)):
        node.client = client
        checked = node.cni("CHECK", name, made.pods[name][0], node.conf(prevResult=made.results[name]))
        assert checked.status == 0, checked.out
        assert node.cni("DEL", name, made.pods[name][0]).status == 0


def fresh(node: Node) -> set[str]:
    """Return the rules that this version writes where there are none."""
    assert node.stop() == 0
    node.ns.run(["nft", "flush", "ruleset"])
    node.run(None)
    wait_until(node.ready, f"a fresh agent is ready on {node.name}", 40)
    guarded(node)
    return node.rules()


def test_there_and_back(tmp_path: Path) -> None:
    old = oldversion.needed()
    with world(tmp_path, BACKENDS) as made:
        nodes = list(made.nodes.values())
        for node in nodes:
            node.run(old)
        for node in nodes:
            wait_until(node.ready, f"the old agent is ready on {node.name}", 40)
        with running(made) as traffic:
            before = {node.name: node.rules() for node in nodes}
            leases = {node.name: node.lease_texts() for node in nodes}
            calls(made, old)
            for node in nodes:
                change(node, None)
            assert not [stream.name for stream in traffic.streams if stream.servfail], "the servers had the zone"
            upgraded = {node.name: node.rules() for node in nodes}
            calls(made, old)
            assert {node.name: node.lease_texts() for node in nodes} == leases
            first, second = nodes
            change(first, old, "cleanup", "--for-downgrade", "--run-dir", str(first.run_dir))
            assert not (first.run_dir / "layout.json").exists()
            assert not (first.run_dir / "cni/leases/.layout").exists()
            assert first.rules() ^ before["n1"] == set(), "nothing of the new layout stayed"
            change(second, old)  # without it: it works too, and docs/install.md says what stays
            assert {row for row in second.rules() ^ before["n2"] if "tables-save" in row} == set(), "nor of its chains"
            calls(made, old)
            assert {node.name: node.lease_texts() for node in nodes} == leases
        for node in nodes:
            wanted = fresh(node)
            assert upgraded[node.name] - wanted == set(), "nothing of the old layout stayed"
            assert wanted - upgraded[node.name] == set(), "the rules of this version are whole"

"""An upgrade from the version before, and the way back: agents take over what the other version left on a running node.
No connection is lost, no lease changes, and nothing of the other layout stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import oldversion
from lab.cninode import wait_until
from lab.oldversion import OldVersion
from lab.upgradeworld import Node, Traffic, World, echo, world

PORTS = [
    {"name": "tcp", "port": 80, "targetPort": 8080, "protocol": "TCP"},
    {"name": "udp", "port": 80, "targetPort": 8080, "protocol": "UDP"},
]
HOST_PORT = {"runtimeConfig": {"portMappings": [{"hostPort": 8888, "containerPort": 8080, "protocol": "tcp"}]}}


@contextlib.contextmanager
def running(made: World) -> Iterator[Traffic]:
    with contextlib.ExitStack() as stack:
        client, _ = made.pod("n1", "client")
        (near, near_ip), (far, far_ip) = made.pod("n1", "near", **HOST_PORT), made.pod("n2", "far")
        stack.enter_context(echo(near, near_ip, 8080))
        stack.enter_context(echo(far, far_ip, 8080))
        both = made.service("both", {"near": "n1", "far": "n2"}, PORTS)
        only = made.service("only", {"far": "n2"}, PORTS, type="NodePort", sessionAffinity="ClientIP")
        traffic = Traffic()
        queries = Traffic()

        def answers() -> bool:
            for ip in (both, only):
                try:
                    traffic.lasting(f"TCP to {ip}", client, ip, 80)
                except OSError:
                    return False
            return True

        wait_until(answers, "Services answer", 20)
        traffic.lasting("TCP through the tunnel", client, far_ip, 8080)
        traffic.lasting("TCP on the node", client, near_ip, 8080)
        traffic.lasting("TCP to a hostPort", made.outside, "172.30.9.11", 8888)
        traffic.datagrams("UDP to a Service", client, both, 80)
        traffic.connections("connections to a Service", client, both, 80)
        traffic.connections("connections to a hostPort", made.outside, "172.30.9.11", 8888)
        queries.queries("DNS", client, "both.default.svc.cluster.local", both)
        yield traffic
        lost = traffic.end() + queries.end()
        print(traffic.describe(), queries.describe(), sep="\n")
        assert lost == []


def change(node: Node, old: OldVersion | None) -> None:
    """Replace the agent, as a DaemonSet does: the old one ends, then the new one starts."""
    assert node.stop() == 0, node.log()[-3000:]
    node.run(old)
    wait_until(node.ready, f"the other version is ready on {node.name}", 40)


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_there_and_back(backend: str, tmp_path: Path) -> None:
    old = oldversion.needed()
    with world(tmp_path, "--set", f"proxy.backend={backend}") as made:
        for node in made.nodes.values():
            node.run(old)
        for node in made.nodes.values():
            wait_until(node.ready, f"the old agent is ready on {node.name}", 40)
        with running(made):
            leases = {name: node.lease_texts() for name, node in made.nodes.items()}
            for node in made.nodes.values():
                change(node, None)
            assert {name: node.lease_texts() for name, node in made.nodes.items()} == leases

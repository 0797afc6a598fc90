"""A hostPort and a NodePort of one number: the Service has the port, also where it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lab.dataplane import CHOICES
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.proxyrole import Running, until
from lab.serviceworld import SILENCE, Answer, World, ask
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kube.meta import Object
from podwire_base.role import hostports
from podwire_base.role.hostports import HostPort
from podwire_cni import nodetable
from podwire_cni.nodetable import NodeRules, PodRules
from podwire_cni.types import PortMapping
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, port, service

HOST_PORT = s.TARGET + 1  # of the pod behind the hostPort


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """POD_C has the hostPort NODE_PORT, by the rules of pod wiring."""
    with Lab() as lab:
        made = World(lab)
        addresses = (ip_address(s.POD_C), ip_address(s._v6(s.POD_C)))
        ports = tuple(PortMapping(s.NODE_PORT, HOST_PORT, protocol) for protocol in ("tcp", "udp"))
        pod = PodRules("none", "02:00:00:00:00:01", addresses, ports)
        with nft_socket.Connection(made.node.fd) as conn:
            conn.commit(nodetable.plan(NodeRules(("10.244.1.0/24", "fd00:244:1::/64"), None), [pod]))
        yield made
        made.close()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("protocol", "v6"), [("TCP", False), ("UDP", True)])
def test_a_node_port_is_the_services_although_a_pod_has_the_hostport(
    world: World, choice: str, protocol: str, v6: bool
) -> None:
    world.forget()
    node = s.Scenario("", (), {}).v6().node if v6 else s.INFO
    at = s._v6 if v6 else str
    proxier = backends.proxier(node, world.node.fd, choice)

    def serve(*endpoints: Any, **spec: Any) -> None:
        tracker = Tracker(node)
        objects = (s.everything(protocol=protocol, **spec), s.some_slice(*endpoints, protocol=protocol))
        row = s.Scenario("", objects, {})
        for obj in (row.v6() if v6 else row).objects if spec or endpoints else ():
            (tracker.service if obj["kind"] == "Service" else tracker.slice)("default/my-service", obj)
        tracker.flush()
        proxier.sync(tracker.dataplane, None)
        proxier.sweep()

    def dial(client: str, timeout: float = 5) -> Answer:
        return ask(world.client(client), at(s.NODE_IP), s.NODE_PORT, protocol, src=at(client), timeout=timeout)

    try:
        serve()
        assert [dial(client).server for client in (s.OUT, s.POD)] == [(at(s.POD_C), HOST_PORT)] * 2, "no Service yet"
        serve(endpoint(s.POD_B, s.NODE))
        assert [dial(client).server for client in (s.OUT, s.POD)] == [(at(s.POD_B), s.TARGET)] * 2
        serve(endpoint(s.POD_B, s.NODE, ready=False, serving=False))
        assert [dial(client).result for client in (s.OUT, s.POD)] == ["refused"] * 2, "the Service refuses"
        serve(endpoint(s.POD_A, "n2"), externalTrafficPolicy="Local")
        assert dial(s.OUT, SILENCE).result == "timeout", "the Service has its endpoints elsewhere"
        serve()
        assert dial(s.OUT).server == (at(s.POD_C), HOST_PORT)
    finally:
        proxier.close()
        proxier.backend.cleanup(world.node.fd)


def test_the_losers_are_named_in_status_and_log(world: World, tmp_path: Path) -> None:
    def claimant(name: str, ip: str, created: str) -> Object:
        made = service(name, ip, [port(s.PORT, node_port=s.NODE_PORT)], type="NodePort", externalIPs=[s.EXTERNAL])
        made["metadata"] |= {"creationTimestamp": created, "uid": name}
        return made

    node = {
        "kind": "Node",
        "metadata": {"name": s.NODE},
        "status": {"addresses": [{"type": "InternalIP", "address": s.NODE_IP}]},
    }
    pod = HostPort(s.NODE_PORT, "TCP", "", "shop/web-0", "uid-1")
    hostports.path(tmp_path).write_text(hostports.encode([pod]))
    with FakeApi(world.node) as api:
        api.apply(node, claimant("elder", s.VIP, "2026-01-01T00:00:00Z"))
        proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path)

        def message() -> str:
            return str(json.loads(proxy.status_file.read_text())["message"]) if proxy.ready() else ""

        until(lambda: "pod shop/web-0: hostPort 30080/TCP does not lead to the pod" in message(), "the hostPort")
        api.apply(claimant("a-younger", s.VIP2, "2026-01-02T00:00:00Z"))
        wanted = f"Service default/a-younger: ExternalIP {s.EXTERNAL}:{s.PORT}/TCP is not served"
        until(lambda: wanted in message(), "the lost address")
        api.remove(claimant("elder", s.VIP, ""))
        until(lambda: wanted not in message(), "the younger one has it now")
        log = proxy.stop()
    assert "another Service has what this one claims" in log
    assert "nodePort 30080/TCP is not served: Service default/elder has it" in log
    assert "a Service has a pod's hostPort" in log

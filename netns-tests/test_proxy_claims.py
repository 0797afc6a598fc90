"""A hostPort and a NodePort of one number: the Service has the port, also where it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from lab.dataplane import CHOICES
from lab.netns import Lab
from lab.serviceworld import SILENCE, Answer, World, ask
from podwire_base.kernel.nft import socket as nft_socket
from podwire_cni import nodetable
from podwire_cni.nodetable import NodeRules, PodRules
from podwire_cni.types import PortMapping
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint

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
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
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

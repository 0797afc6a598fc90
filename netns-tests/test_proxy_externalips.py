"""externalIPs that are the node's own address, on a running proxy: what is served, left alone, refused and told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.dataplane import CHOICES
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.proxyrole import Running, until
from lab.serviceworld import World, ask
from podwire_base.kube.meta import Object
from podwire_proxy import backends
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service


def node(name: str, *ips: str) -> Object:
    addresses = [{"type": "InternalIP", "address": ip} for ip in ips]
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}}


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    yield made
    made.close()


@pytest.mark.parametrize(("choice", "starts"), [(CHOICES[0], 2), (CHOICES[-1], 1)])
def test_a_nodes_own_address(world: World, tmp_path: Path, choice: str, starts: int) -> None:
    """80 is served, 22 stays the node's, with an Event at every start; a hidden process is told."""
    made = service(
        "my-service",
        s.VIP,
        [port(80, name="a"), port(22, name="b"), port(81, name="c")],
        externalIPs=[s.NODE_IP, s.NODE2_IP],
    )
    backend = endpoint_slice(
        "my-service", [endpoint(s.POD_B, s.NODE)], [(name, "TCP", s.TARGET) for name in ("a", "b", "c")]
    )
    fields = backends.chosen(choice)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
    world.servers.listen(world.node, s.NODE_IP, 22)
    world.servers.listen(world.node, s.NODE_IP, 81)

    with FakeApi(world.node) as api:
        api.apply(made, backend, node(s.NODE, s.NODE_IP), node("n2", s.NODE2_IP))  # the Service is older

        def told(reason: str) -> list[str]:
            return [o["message"] for _, o in api.posted if o["reason"] == reason and o["involvedObject"]["name"]]

        for _start in range(starts):
            api.posted.clear()
            proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path, *flags)
            until(proxy.ready, "the first sync")
            for client in (s.OUTSIDE, s.NODE_IP, s.POD_A):
                assert ask(world.client(client), s.NODE_IP, 80).server == (s.POD_B, s.TARGET)
                assert ask(world.client(client), s.NODE_IP, 22).server == (s.NODE_IP, 22), "ssh stays the node's"
            assert ask(world.client(s.POD_A), s.NODE2_IP, 80).server == (s.POD_B, s.TARGET), "the same on every node"
            until(lambda: len(told("ExternalIPRefused")) == 2, "both nodes' port 22")
            assert {ip for ip in (s.NODE_IP, s.NODE2_IP) for m in told("ExternalIPRefused") if f" {ip} port 22" in m}
            until(lambda: told("ExternalIPHidesProcess"), "port 81 has a listener")
            assert [f"{s.NODE_IP} port 81/TCP" in m for m in told("ExternalIPHidesProcess")] == [True]
            assert proxy.stop().count("externalIP of a Service is refused") == 2

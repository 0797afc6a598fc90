"""externalIPs: what is served, what is refused and told, and what a Service hides. For packets see
testing/nodeaddresses.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from podwire_base.kernel.listening import Listener
from podwire_base.kube.errors import ConfigError
from podwire_base.kube.meta import Object
from podwire_proxy.changes import Tracker
from podwire_proxy.config import ProxyConfig, check, claimable
from podwire_proxy.dataplane import Key
from podwire_proxy.externalips import hidden
from podwire_proxy.model import NodeInfo
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

BASE = ProxyConfig("n1", None, Path("/run/x"))


def node(name: str, *addresses: tuple[str, str], **spec: Any) -> Object:
    found = [{"type": kind, "address": ip} for kind, ip in addresses]
    return {"metadata": {"name": name}, "spec": spec, "status": {"addresses": found}}


ONE = node("n1", ("InternalIP", s.NODE_IP), ("InternalIP", "fd00:30::11"), ("ExternalIP", "203.0.113.11"))
TWO = node("n2", ("InternalIP", s.NODE2_IP), ("Hostname", "n2"), podCIDRs=["10.9.2.0/24"])


VIPS = [s.VIP, s._v6(s.VIP)]


def info(config: ProxyConfig = BASE) -> NodeInfo:
    return replace(config.node(ONE), claimable=claimable(config, [ONE, TWO]))


def world(config: ProxyConfig = BASE) -> Tracker:
    return Tracker(info(config))


def add(tracker: Tracker, *ips: str, number: int = 80, name: str = "x", **spec: Any) -> None:
    tracker.service(f"default/{name}", service(name, VIPS, [port(number)], externalIPs=list(ips), **spec))
    tracker.slice(f"default/{name}-1", endpoint_slice(name, [endpoint(s.POD_B, "n1")], [("", "TCP", s.TARGET)]))
    tracker.flush()


def at(tracker: Tracker) -> set[str]:
    return {key.ip for key in tracker.dataplane.frontends} - {*VIPS}


NODES = (s.NODE_IP, "fd00:30::11", "203.0.113.11", s.NODE2_IP)


def test_every_address_of_every_node_is_served() -> None:
    tracker = world()
    add(tracker, *NODES, s.EXTERNAL)
    assert at(tracker) == {*NODES, s.EXTERNAL}
    assert tracker.refusals == {"default/x": []}


@pytest.mark.parametrize(
    "ip",
    [
        "10.96.0.1",
        "10.244.2.3",
        "10.9.2.7",  # a podCIDR outside of --cluster-cidr
        "127.0.0.1",
        "127.8.0.1",
        "::1",
        "0.0.0.0",
        "::",
        "169.254.1.1",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "172.30.0.77",  # in --node-cidr, of no Node
    ],
)
def test_addresses_that_no_service_may_have(ip: str) -> None:
    tracker = world(replace(BASE, node_cidrs=("172.30.0.0/24",)))
    add(tracker, ip, s.NODE_IP)
    assert at(tracker) == {s.NODE_IP}
    assert [line.split()[1] for line in tracker.refusals["default/x"]] == [ip]


@pytest.mark.parametrize("number", [22, 53, 4789, 6443, 9153, 10248, 10250, 10259, 30000, 32767])
def test_ports_that_nodes_need_are_never_served_on_a_node(number: int) -> None:
    tracker = world()
    add(tracker, *NODES, s.EXTERNAL, number=number)
    assert at(tracker) == {s.EXTERNAL}
    assert [line.split()[1] for line in tracker.refusals["default/x"]] == list(NODES)


@pytest.mark.parametrize("number", [21, 23, 80, 443, 8080, 10247, 10260, 29999, 32768])
def test_other_ports_are(number: int) -> None:
    tracker = world()
    add(tracker, s.NODE2_IP, number=number)
    assert at(tracker) == {s.NODE2_IP}


def test_what_is_in_use_is_reserved_whatever_the_list_says() -> None:
    """Health checks, NodePorts outside of the usual range, the API server's port, the proxy's own pages."""
    config = replace(BASE, external_ips_reserved_ports=("5000-5001",), metrics_address="0.0.0.0:9100")
    tracker = world(config)
    policy: dict[str, Any] = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 20081}
    local = service("lb", s.VIP2, [port(80, node_port=20080)], type="LoadBalancer", **policy)
    for number in (5000, 5001, 9100, 20080, 20081, 8443, 22, 81):
        add(tracker, s.NODE_IP, number=number, name=f"x{number}")
    assert {key.port for key in tracker.dataplane.frontends if key.ip == s.NODE_IP} == {20080, 20081, 8443, 22, 81}
    tracker.service("default/lb", local)
    api = endpoint_slice("kubernetes", [endpoint(s.NODE2_IP)], [("https", "TCP", 8443)])
    tracker.slice("default/kubernetes", api)
    tracker.flush()
    plane = tracker.dataplane.frontends
    assert {key.port for key in plane if key.ip == s.NODE_IP and plane[key].kind == "ExternalIP"} == {22, 81}
    assert sorted(key for key, lines in tracker.refusals.items() if lines)[:2] == ["default/x20080", "default/x20081"]
    tracker.service("default/lb", None)
    tracker.slice("default/kubernetes", None)
    tracker.flush()
    assert {20080, 20081, 8443} <= {key.port for key in tracker.dataplane.frontends if key.ip == s.NODE_IP}


def test_the_api_servers_own_address_and_port_is_refused_where_no_node_has_it() -> None:
    tracker = world()
    tracker.slice("default/kubernetes", endpoint_slice("kubernetes", [endpoint("192.0.2.10")], [("https", "TCP", 443)]))
    add(tracker, "192.0.2.10", s.NODE_IP, number=443)
    assert at(tracker) == {s.NODE_IP}, "port 443 of nodes is free: no node has the API server's address"
    add(tracker, "192.0.2.10", number=444)
    assert at(tracker) == {"192.0.2.10"}


def test_refuse_leaves_nodes_alone() -> None:
    tracker = world(replace(BASE, external_ips_on_nodes="Refuse"))
    add(tracker, *NODES, s.EXTERNAL)
    assert at(tracker) == {s.EXTERNAL}
    assert len(tracker.refusals["default/x"]) == len(NODES)


def test_a_service_that_is_older_than_what_is_known_of_nodes_is_told_too() -> None:
    """At a start Services come before Nodes. Until all Nodes are known, nothing is served and nothing is told."""
    early = replace(info(), claimable=replace(info().claimable, known=False, nodes=frozenset({s.NODE_IP})))
    tracker = Tracker(early)
    add(tracker, s.NODE2_IP, s.EXTERNAL, number=22)
    assert at(tracker) == set()
    assert tracker.refusals == {"default/x": []}
    assert not tracker.node(info()), "no rule but those of the frontends changes"
    assert tracker.pending
    tracker.flush()
    assert at(tracker) == {s.EXTERNAL}
    assert [line.split()[1] for line in tracker.refusals["default/x"]] == [s.NODE2_IP]
    tracker.node(replace(info(), claimable=claimable(BASE, [ONE])))
    tracker.flush()
    assert at(tracker) == {s.EXTERNAL, s.NODE2_IP}, "the Node left, so its address is an ordinary one"
    assert tracker.refusals == {"default/x": []}


def test_services_without_external_ips_are_not_worked_out_again() -> None:
    tracker = world()
    tracker.service("default/y", service("y", s.VIP2, [port(80)]))
    add(tracker, s.NODE_IP)
    tracker.node(replace(info(), claimable=claimable(BASE, [ONE])))
    assert tracker.pending == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"external_ips_on_nodes": "serve"}, "external_ips_on_nodes"),
        ({"external_ips_reserved_ports": ("22", "x")}, "external_ips_reserved_ports"),
        ({"external_ips_reserved_ports": ("30-20",)}, "external_ips_reserved_ports"),
        ({"external_ips_reserved_ports": ("70000",)}, "external_ips_reserved_ports"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        check(replace(BASE, **change))


ANY, V4, V6 = (Listener("TCP", "", 80, families) for families in ("46", "4", "6"))


@pytest.mark.parametrize(
    ("listener", "ip", "told"),
    [
        (ANY, s.NODE_IP, True),
        (V4, s.NODE_IP, True),
        (V6, s.NODE_IP, False),
        (V6, "fd00:30::11", True),
        (Listener("TCP", s.NODE_IP, 80, "4"), s.NODE_IP, True),
        (Listener("TCP", "127.0.0.1", 80, "4"), s.NODE_IP, False),
        (Listener("UDP", "", 80, "4"), s.NODE_IP, False),
        (Listener("TCP", "", 81, "4"), s.NODE_IP, False),
        (ANY, s.NODE2_IP, False),  # another machine's
    ],
)
def test_a_service_hides_a_process(listener: Listener, ip: str, told: bool) -> None:
    tracker = world()
    family = "IPv6" if ":" in ip else "IPv4"
    pod = s._v6(s.POD_B) if ":" in ip else s.POD_B
    tracker.service("default/x", service("x", (s.VIP, "fd00:96::20"), [port(80)], externalIPs=[ip]))
    tracker.slice("default/x-1", endpoint_slice("x", [endpoint(pod)], [("", "TCP", s.TARGET)], family=family))
    tracker.flush()
    found = hidden(tracker.external_frontends(), {s.NODE_IP, "fd00:30::11"}, [listener])
    assert bool(found) is told
    assert all(ip in line and "port 80/TCP" in line for lines in found.values() for line in lines)


def test_an_endpoint_of_the_service_itself_is_not_hidden() -> None:
    tracker = world()
    tracker.service("default/x", service("x", s.VIP, [port(80)], externalIPs=[s.NODE_IP]))
    assert not hidden(tracker.external_frontends(), {s.NODE_IP}, [ANY]), "without endpoints the process answers"
    tracker.slice("default/x-1", endpoint_slice("x", [endpoint(s.NODE_IP)], [("", "TCP", 80)]))
    tracker.flush()
    assert Key(s.NODE_IP, "TCP", 80) in tracker.dataplane.frontends
    assert not hidden(tracker.external_frontends(), {s.NODE_IP}, [ANY])

"""Objects -> model: which Services and EndpointSlices count, defaults, and the problems reported for unusable parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podwire_base.kernel.ip import packed
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.role import logs
from podwire_proxy import main
from podwire_proxy.changes import Tracker
from podwire_proxy.config import ProxyConfig, one_sided
from podwire_proxy.convert import NOBODY, service_ports, slice_info
from podwire_proxy.dataplane import Balance, Key
from podwire_proxy.model import Destination, Endpoint, NodeInfo, PortName, ServicePort, normal_ip
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service
from podwire_proxy.topology import choose, merge
from podwire_proxy.verdict import NO_ENDPOINTS

NODE = NodeInfo("n1", ("172.30.0.11",), "zone-a", ("10.244.0.0/16",), ("10.96.0.0/16",))


@pytest.mark.parametrize(
    ("text", "ip"),
    [("10.0.0.1", "10.0.0.1"), ("010.000.0.010", "10.0.0.10"), (" 10.0.0.1 ", "10.0.0.1"), ("FD00::0001", "fd00::1")],
)
def test_addresses_are_normalised(text: str, ip: str) -> None:
    assert normal_ip(text) == ip
    assert len(packed(ip)) in (4, 16)


@pytest.mark.parametrize(
    "text", ["", "10.0.0", "10.0.0.256", "10.0.0.1.2", "example.com", "10.0.0.1/32", "1.2.3.+4", "fe80::1%eth0"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        normal_ip(text)


@pytest.mark.parametrize(
    "obj",
    [
        service("x", "None", [port(80)]),
        service("x", "", [port(80)]),
        service("x", "10.96.0.1", [port(80)], type="ExternalName"),
        service("x", "10.96.0.1", [port(80)], labels={"service.kubernetes.io/service-proxy-name": ""}),
        {"kind": "Service", "metadata": {"name": "x"}},
    ],
)
def test_services_that_are_not_proxied(obj: dict[str, Any]) -> None:
    assert service_ports(obj) == ((), [])


def test_a_services_fields() -> None:
    ports, problems = service_ports(
        service(
            "web",
            ["10.96.0.1", "fd00:96::1"],
            [port(80, name="http", node_port=30080), port(80, "UDP", "h3")],
            type="LoadBalancer",
            externalIPs=["198.51.100.07", "198.51.100.7"],
            internalTrafficPolicy="Local",
            externalTrafficPolicy="Local",
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
            loadBalancerSourceRanges=[" 10.0.0.0/8 "],
            healthCheckNodePort=30500,
            ingress=[{"ip": "198.51.100.8"}, {"hostname": "lb.example"}, {"ip": "198.51.100.9", "ipMode": "Proxy"}],
        )
    )
    assert problems == []
    http = ServicePort(
        "default/web",
        "http",
        "TCP",
        80,
        ("10.96.0.1", "fd00:96::1"),
        30080,
        ("198.51.100.7",),
        ("198.51.100.8",),
        "Local",
        "Local",
        60,
        ("10.0.0.0/8",),
        30500,
        "2026-01-01T00:00:00Z",
    )
    assert ports[0] == http
    assert (ports[1].port_name, ports[1].node_port) == (PortName("h3", "UDP"), 0)


def test_problems_name_the_field_and_the_rest_is_served() -> None:
    ports, problems = service_ports(
        service(
            "web",
            "10.96.0.1",
            [port(80, name="a"), port(70000, name="b"), port(81, "GRE", "c"), port(82, name="a")],
            externalIPs=["198.51.100.300"],
        )
    )
    assert [p.name for p in ports] == ["a"]
    assert [p.split(":")[0] for p in problems] == [
        "spec.externalIPs[0]",
        "spec.ports[1].port",
        "spec.ports[2].protocol",
        "spec.ports[3]",
    ]
    assert service_ports(service("web", "10.96.0.300", [port(80)]))[1][0].startswith("spec.clusterIPs[0]")


def test_addresses_of_a_family_that_the_service_does_not_have_are_told() -> None:
    made = service(
        "web",
        "10.96.0.1",
        [port(80)],
        type="LoadBalancer",
        externalIPs=["2001:db8::7", "198.51.100.7"],
        ingress=[{"ip": "198.51.100.8"}, {"ip": "2001:db8::8"}],
    )
    _, problems = service_ports(made)
    assert [problem.split(" is of an IP family that")[0] for problem in problems] == [
        "spec.externalIPs: 2001:db8::7",
        "status.loadBalancer.ingress: 2001:db8::8",
    ]


@pytest.mark.parametrize(
    ("ranges", "open_"),
    [
        ([], []),
        (["203.0.113.0/24"], ["2001:db8::8"]),
        (["::/0"], ["198.51.100.8"]),
        (["0.0.0.0/0", "2001:db8::/32"], []),
    ],
)
def test_addresses_that_ranges_of_the_other_family_leave_open_are_told(ranges: list[str], open_: list[str]) -> None:
    made = service(
        "web",
        ["10.96.0.1", "fd00:96::1"],
        [port(80)],
        type="LoadBalancer",
        loadBalancerSourceRanges=ranges,
        ingress=[{"ip": "198.51.100.8"}, {"ip": "2001:db8::8"}],
    )
    assert [problem.split()[-1] for problem in service_ports(made)[1]] == open_


@pytest.mark.parametrize(
    ("ranges", "wanted", "problems"),
    [
        (
            [" 203.0.113.7/25 ", "010.1.0.0/16", "198.51.100.1"],
            ("203.0.113.0/25", "10.1.0.0/16", "198.51.100.1/32"),
            [],
        ),
        (["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32"], ("2001:db8::/32",), []),
        (["0.0.0.0/0", "ten"], (), ["spec.loadBalancerSourceRanges[1]"]),
        (
            ["10.0.0.0/33", "ten"],
            NOBODY,
            ["spec.loadBalancerSourceRanges[0]", "spec.loadBalancerSourceRanges[1]", "spec.loadBalancerSourceRanges"],
        ),
    ],
)
def test_source_ranges(ranges: list[str], wanted: tuple[str, ...], problems: list[str]) -> None:
    obj = service(
        "web",
        "10.96.0.1",
        [port(80)],
        type="LoadBalancer",
        loadBalancerSourceRanges=ranges,
        ingress=[{"ip": "198.51.100.8"}],
    )
    ports, found = service_ports(obj)
    assert ports[0].source_ranges == wanted
    assert [text.split(":")[0] for text in found] == problems


def test_condition_defaults_and_first_address_only() -> None:
    obj = endpoint_slice(
        "web",
        [
            {"addresses": ["10.244.1.2", "10.244.9.9"]},
            {
                "addresses": ["10.244.1.3"],
                "conditions": {"ready": None, "serving": None, "terminating": None},
                "nodeName": "n1",
            },
            endpoint("10.244.1.4", ready=False, serving=True, terminating=True),
        ],
        [("", "TCP", 9376)],
    )
    info, problems = slice_info(obj)
    assert problems == []
    assert info.service == "default/web"
    assert info.endpoints == {
        PortName("", "TCP"): (
            Endpoint("10.244.1.2", 9376),
            Endpoint("10.244.1.3", 9376, "n1"),
            Endpoint("10.244.1.4", 9376, ready=False, serving=True, terminating=True),
        )
    }


def test_slices_that_do_not_count() -> None:
    good = endpoint_slice("web", [endpoint("10.244.1.2")], [("", "TCP", 80)])
    info, problems = slice_info({**good, "addressType": "FQDN"})
    assert (info.endpoints, problems) == ({}, ["addressType: 'FQDN' is neither 'IPv4' nor 'IPv6'; left out"])
    headless = endpoint_slice(
        "web", [endpoint("10.244.1.2")], [("", "TCP", 80)], labels={"service.kubernetes.io/headless": ""}
    )
    assert slice_info(headless)[0].endpoints == {}
    orphan = {**good, "metadata": {"name": "x", "namespace": "default"}}
    assert slice_info(orphan)[0].service == ""


def test_unusable_parts_of_a_slice_are_left_out_and_told() -> None:
    obj = endpoint_slice(
        "web",
        [{"addresses": []}, endpoint("fd00::1"), endpoint("10.244.1.x"), endpoint("10.244.1.2")],
        [("ok", "TCP", 80), ("none", "TCP", None), ("big", "TCP", 70000)],
    )
    obj["ports"].append({"name": None, "port": 81})
    info, problems = slice_info(obj)
    assert info.endpoints == {PortName("ok", "TCP"): (Endpoint("10.244.1.2", 80),)}
    assert [p.split(":")[0] for p in problems] == [
        "endpoints[0].addresses",
        "endpoints[1].addresses[0]",
        "endpoints[2].addresses[0]",
        "ports[1]",
        "ports[2].port",
        "ports[3]",
    ]


def test_of_duplicates_the_living_one_counts() -> None:
    dying = Endpoint("10.244.1.2", 80, "n1", ready=False, terminating=True)
    living = Endpoint("10.244.1.2", 80, "n2")
    assert merge([dying, living]) == merge([living, dying]) == (living,)


READY, TERM, DEAD = (
    {"ready": True},
    {"ready": False, "serving": True, "terminating": True},
    {"ready": False, "serving": False},
)


@pytest.mark.parametrize(
    ("here", "there", "cluster", "local"),
    [
        ([READY], [READY], "ab", "a"),
        ([TERM], [READY], "b", "a"),
        ([READY], [TERM], "a", "a"),
        ([TERM], [TERM], "ab", "a"),
        ([DEAD], [READY], "b", ""),
        ([DEAD], [DEAD], "", ""),
        ([], [READY], "b", ""),
        ([{"ready": False, "serving": True}], [READY], "b", ""),
    ],
)
def test_choice(here: list[dict[str, bool]], there: list[dict[str, bool]], cluster: str, local: str) -> None:
    endpoints = [
        Endpoint(ip, 80, node, **c)  # type: ignore[arg-type]  # the values are conditions, all bool
        for ip, node, conditions in (("a", "n1", here), ("b", "n2", there))
        for c in conditions
    ]
    choice = choose(endpoints, NODE)
    assert "".join(e.ip for e in choice.cluster) == cluster
    assert "".join(e.ip for e in choice.local) == local


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ([("zone-a", ""), ("zone-b", "")], "a"),
        ([("zone-b", ""), ("zone-b", "")], "ab"),
        ([("zone-a", ""), ("", "")], "ab"),
        ([("zone-b", "n1"), ("zone-b", "n2")], "a"),
        ([("zone-b", "n1"), ("zone-a", "")], "b"),
        ([("zone-b", "n3"), ("zone-a", "n2")], "b"),
    ],
)
def test_hints(hints: list[tuple[str, str]], expected: str) -> None:
    endpoints = [
        Endpoint(name, 80, "n9", zone_hints=(zone,) if zone else (), node_hints=(node,) if node else ())
        for name, (zone, node) in zip("ab", hints, strict=True)
    ]
    assert "".join(e.ip for e in choose(endpoints, NODE).cluster) == expected


def test_the_older_of_two_services_holds_a_contested_address() -> None:
    tracker = Tracker(NODE)
    new, old = service("a", "10.96.0.1", [port(80)]), service("b", "10.96.0.1", [port(80)])
    new["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z"
    for obj in (new, old):
        tracker.service(f"default/{obj['metadata']['name']}", obj)
    tracker.slice("x", endpoint_slice("a", [endpoint("10.244.1.2")], [("", "TCP", 80)]))
    tracker.flush()
    key = Key("10.96.0.1", "TCP", 80)
    assert tracker.dataplane.frontends[key].internal is NO_ENDPOINTS
    tracker.service("default/b", None)
    assert tracker.flush().frontends == {key}
    assert tracker.dataplane.frontends[key].internal == Balance((Destination("10.244.1.2", 80),))


def test_a_node_change_moves_the_node_ports() -> None:
    tracker = Tracker(NODE)
    tracker.service("default/a", service("a", "10.96.0.1", [port(80, node_port=30080)], type="NodePort"))
    tracker.flush()
    assert tracker.node(NODE) is False
    assert tracker.node(NodeInfo("n1", ("172.30.0.12",), "", NODE.pod_cidrs, NODE.service_cidrs)) is True
    assert tracker.flush().frontends == {Key("172.30.0.11", "TCP", 30080), Key("172.30.0.12", "TCP", 30080)}


def test_what_the_node_object_tells() -> None:
    obj = {
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "172.30.0.11"},
                {"type": "InternalIP", "address": "172.31.0.11"},
                {"type": "InternalIP", "address": "nonsense"},
                {"type": "InternalIP", "address": "fd00:30::11"},
            ]
        },
    }
    info = ProxyConfig("n1", None, Path("/nowhere")).node(obj)
    assert (info.addresses, info.zone) == (("172.30.0.11", "fd00:30::11"), "zone-a")
    assert ProxyConfig("n1", None, Path("/nowhere")).node().addresses == ()


def test_an_element_is_told_as_people_read_it() -> None:
    """In the kernel's errors, each type of a key has its own readable form."""
    macs = nft.Set(nft.Table("bridge", "t"), "macs", ("ifname", "ether_addr"))
    own = nft.key(b"veth1".ljust(16, b"\0"), bytes.fromhex("0a58c0a80a01"))
    assert nft.show(macs, own, None) == "veth1 . 0a:58:c0:a8:0a:01"
    ports = nft.Set(nft.Table("ip", "t"), "ports", ("ipv4_addr", "inet_proto", "inet_service"), ("ipv4_addr",))
    assert (
        nft.show(ports, nft.key(bytes((10, 0, 0, 1)), b"\x06", b"\x01\xbb"), bytes((10, 0, 0, 2)))
        == "10.0.0.1 . tcp . 443 : 10.0.0.2"
    )


DUAL: dict[str, Any] = {
    "cluster_cidrs": ("10.244.0.0/16", "fd00:244::/32"),
    "service_cidrs": ("10.96.0.0/16", "fd00:96::/112"),
}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (DUAL, []),
        ({}, []),
        (DUAL | {"node_port_addresses": ("172.30.0.0/24",)}, ["node_port_addresses IPv6"]),
        (DUAL | {"node_port_addresses": ("fd00:30::/64", "::1/128")}, ["node_port_addresses IPv4"]),
        (DUAL | {"node_port_addresses": ("172.30.0.0/24", "::/0")}, []),
        ({"node_port_addresses": ("172.30.0.0/24",)}, []),
        (DUAL | {"cluster_cidrs": ("10.244.0.0/16",)}, ["cluster_cidrs IPv6"]),
        (DUAL | {"cluster_cidrs": ()}, []),
        (DUAL | {"cluster_cidrs": ("fd00:244::/32",), "detect_local": "NodeCIDR"}, []),
        ({"service_cidrs": ("fd00:96::/112",)}, ["cluster_cidrs IPv6"]),
    ],
)
def test_settings_that_leave_out_a_family_are_told(changed: dict[str, Any], told: list[str]) -> None:
    found = one_sided(ProxyConfig("n1", None, Path("/nowhere"), **changed))
    assert [f"{line.split()[0]} {line.split(' has no CIDR of ')[1][:4]}" for line in found] == told


def test_the_log_says_at_the_start_that_a_family_is_closed(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    async def stop(_: ProxyConfig) -> None:
        return

    monkeypatch.setattr(main, "_main", stop)
    monkeypatch.setattr(main, "frugal", lambda: None)
    monkeypatch.setattr(logs, "configure", lambda **_: None)
    main.run(ProxyConfig("n1", None, Path("/nowhere"), node_port_addresses=("172.30.0.0/24",), **DUAL))
    assert "NodePorts and healthCheckNodePorts are closed at all IPv6 addresses" in capfd.readouterr().err

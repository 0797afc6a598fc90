"""Results in the form of each cniVersion, and back."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from podwire_cni.result import merge, parse_result, to_json
from podwire_cni.types import VERSIONS, Dns, Interface, IPConfig, Result, Route

FULL = Result(
    (Interface("podwire0", "0a:58:0a:01:00:01", 1500), Interface("eth0", "0a:58:0a:01:00:02", 1500, "/proc/1/ns/net")),
    (IPConfig(ip_interface("10.1.0.2/32"), ip_address("10.1.0.1"), 1), IPConfig(ip_interface("fd00::2/128"), None, 1)),
    (Route(ip_network("0.0.0.0/0"), ip_address("10.1.0.1"), mtu=1400, priority=5),),
    Dns(("10.96.0.10",), "d", ("s",)),
)


def test_newest_version_says_all() -> None:
    got = to_json(FULL, "1.1.0")
    assert got["interfaces"][1] == {
        "name": "eth0",
        "mac": "0a:58:0a:01:00:02",
        "mtu": 1500,
        "sandbox": "/proc/1/ns/net",
    }
    assert got["ips"] == [
        {"address": "10.1.0.2/32", "gateway": "10.1.0.1", "interface": 1},
        {"address": "fd00::2/128", "interface": 1},
    ]
    assert got["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "priority": 5}]
    assert got["dns"] == {"nameservers": ["10.96.0.10"], "domain": "d", "search": ["s"]}


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_older_versions_have_no_newer_fields(version: str) -> None:
    got = to_json(FULL, version)
    assert got["cniVersion"] == version
    assert all("mtu" not in link for link in got["interfaces"])
    assert got["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]
    assert [ip.get("version") for ip in got["ips"]] == (["4", "6"] if version < "1.0.0" else [None, None])


@pytest.mark.parametrize("version", VERSIONS)
def test_round_trip(version: str) -> None:
    """A runtime passes a result back unchanged: the next answer is the same."""
    once = to_json(FULL, version)
    assert to_json(parse_result(once), version) == once
    if version == VERSIONS[-1]:
        assert parse_result(once) == FULL


def test_chained_result_keeps_the_positions_of_those_before() -> None:
    got = merge(Result((Interface("lo"),), (), (), Dns(("1.1.1.1",))), Result(FULL.interfaces, FULL.ips, FULL.routes))
    assert [got.interfaces[ip.interface].name for ip in got.ips if ip.interface is not None] == ["eth0", "eth0"]
    assert got.dns.nameservers == ("1.1.1.1",)


def test_what_plugins_before_us_said_is_passed_on() -> None:
    """A user-space or SR-IOV plugin names its device in these fields."""
    theirs = {
        "name": "vhost0",
        "mac": "02:00:00:00:00:01",
        "mtu": 1400,
        "sandbox": "/s",
        "socketPath": "/v",
        "pciID": "0:1f.6",
    }
    before = {"cniVersion": "1.1.0", "interfaces": [theirs], "ips": [], "routes": [], "dns": {}}
    assert to_json(merge(parse_result(before), FULL), "1.1.0")["interfaces"][0] == theirs
    assert to_json(parse_result(before), "1.0.0")["interfaces"] == [{k: theirs[k] for k in ("name", "mac", "sandbox")}]

"""Parsing of the input: every error names its field, and valid input becomes data."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_cni.call import as_asked, check_version, parse_env
from podwire_cni.conf import parse_conf, version_of
from podwire_cni.errors import CNIError
from podwire_cni.types import VERSIONS, Attachment, Dns

GOOD: dict[str, Any] = {"cniVersion": "1.0.0", "name": "podwire", "type": "podwire-cni"}
ENV = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/proc/1/ns/net", "CNI_IFNAME": "eth0"}


def conf(**change: Any) -> bytes:
    return json.dumps({**GOOD, **change}).encode()


def ranges(*entries: Any) -> dict[str, Any]:
    return {"ranges": [list(entries)]}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"cniVersion": "0.2.0"}, 1, "cniVersion"),
        ({"cniVersion": None}, 1, "cniVersion"),
        ({"hairpinMode": False}, 2, "hairpinMode"),
        ({"ipam": {"range": []}}, 2, "ipam.range is"),
        ({"dns": {"nameserver": []}}, 2, "dns.nameserver is"),
        ({"runtimeConfig": {"bandwith": {}}}, 2, "runtimeConfig.bandwith"),
        ({"runtimeConfig": {"bandwidth": {"ingress": 1}}}, 2, "runtimeConfig.bandwidth.ingress"),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": "1M"}}}, 7, "runtimeConfig.bandwidth.ingressRate"),
        ({"runtimeConfig": {"bandwidth": {"egressRate": 999}}}, 7, "runtimeConfig.bandwidth.egressRate"),
        ({"runtimeConfig": {"bandwidth": {"egressBurst": 1}}}, 7, "runtimeConfig.bandwidth.egressBurst"),
        ({"isDefaultGateway": True, "isGateway": False}, 7, "isDefaultGateway"),
        ({"isDefaultGateway": True, "ipam": {"routes": [{"dst": "10.0.0.0/8"}]}}, 7, "isDefaultGateway"),
        ({"name": ""}, 7, "name"),
        ({"mtu": True}, 7, "mtu"),
        ({"mtu": 67}, 7, "mtu"),
        ({"mtu": 1279, "ipam": ranges({"subnet": "fd00::/64"})}, 7, "mtu"),
        ({"standalone": "yes"}, 7, "standalone"),
        ({"ipam": []}, 7, "ipam"),
        ({"ipam": {"type": "host-local"}}, 7, "ipam.type"),
        ({"ipam": {"ranges": [[]]}}, 7, "ipam.ranges[0]"),
        ({"ipam": {"ranges": {}}}, 7, "ipam.ranges"),
        ({"ipam": ranges({"subnet": "10.0.0.0/31"})}, 7, "ipam.ranges[0][0].subnet"),
        ({"ipam": ranges({"subnet": 10})}, 7, "ipam.ranges[0][0].subnet"),
        ({"ipam": ranges({"subnet": "10.0.0.0/24", "gateway": "10.0.1.1"})}, 7, "ipam.ranges[0][0].gateway"),
        (
            {"ipam": ranges({"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.8"})},
            7,
            "rangeStart",
        ),
        ({"ipam": ranges({"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"})}, 7, "one IP family"),
        ({"ipam": ranges({"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0.128/25"})}, 7, "apart from ipam.ranges[0][0]"),
        ({"ipam": {"routes": [{"dst": "everywhere"}]}}, 7, "ipam.routes[0].dst"),
        ({"ipam": {"routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]}}, 7, "ipam.routes[0].gw"),
        ({"ipam": {"routes": [{"dst": "0.0.0.0/0", "priority": 1 << 32}]}}, 7, "ipam.routes[0].priority"),
        ({"runtimeConfig": {"mac": "00:00:00:00:00:00"}}, 7, "runtimeConfig.mac"),
        ({"ipam": {"routes": [{"dst": "0.0.0.0/0", "scope": 256}]}}, 7, "ipam.routes[0].scope"),
        ({"runtimeConfig": {"ips": ["10.0.0.300"]}}, 7, "runtimeConfig.ips[0]"),
        ({"runtimeConfig": {"mac": "aa:bb"}}, 7, "runtimeConfig.mac"),
        ({"runtimeConfig": {"portMappings": {}}}, 7, "runtimeConfig.portMappings"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 1}]}}, 7, "portMappings[0].containerPort"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 65536, "containerPort": 1}]}}, 7, "portMappings[0].hostPort"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": "80", "containerPort": 1}]}}, 7, "portMappings[0].hostPort"),
        (
            {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}},
            7,
            "[0].protocol",
        ),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "hostIP": "here"}]}}, 7, "[0].hostIP"),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerport": 1, "name": "x"}]}}, 2, "[0].name"),
        (
            {
                "runtimeConfig": {
                    "portMappings": [{"hostPort": 1, "containerPort": 1}, {"hostPort": 1, "containerPort": 2}]
                }
            },
            7,
            "portMappings[1]",
        ),
        ({"prevResult": {"ips": [{"address": "10.0.0.1/24", "interface": 3}]}}, 7, "prevResult.ips[0].interface"),
        ({"prevResult": "none"}, 7, "prevResult"),
        ({"cni.dev/valid-attachments": [{"containerID": "c"}]}, 7, "cni.dev/valid-attachments[0].ifname"),
    ],
)
def test_bad_field_is_named(change: dict[str, Any], code: int, words: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_conf(conf(**change))
    assert int(caught.value.code) == code and words in caught.value.msg


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b"\xff\xfe"])
def test_text_that_is_no_object(text: bytes) -> None:
    with pytest.raises(CNIError) as caught:
        parse_conf(text)
    assert int(caught.value.code) == 6
    assert version_of(text) == VERSIONS[-1]


REFERENCE: dict[str, Any] = {  # what a conflist of the reference plugins says, and podwire does anyway
    "isGateway": True,
    "isDefaultGateway": True,
    "forceAddress": False,
    "ipMasq": True,
    "ipMasqBackend": "nftables",
    "hairpinMode": True,
    "promiscMode": False,
    "vlan": 0,
    "vlanTrunk": [],
    "preserveDefaultVlan": False,
    "macspoofchk": True,
    "enabledad": False,
    "disableContainerInterface": False,
    "portIsolation": None,
}


def test_keys_of_the_reference_plugin_that_mean_what_we_do_are_taken() -> None:
    asked = parse_conf(conf(**REFERENCE, ipam={"subnet": "10.1.0.0/24", "dataDir": ""}))
    assert asked == parse_conf(conf(ipMasq=True, macspoofchk=True, ipam={"subnet": "10.1.0.0/24"}))


def test_all_other_keys_are_refused_at_once() -> None:
    other = {"vlan": 5, "promiscMode": True, "hairpinMode": False, "isDefaultGateway": "yes", "hairpin": True}
    ipam = {"type": "host-local", "dataDir": "/x", "resolvConf": "/y"}
    with pytest.raises(CNIError) as caught:
        parse_conf(conf(**other, ipam=ipam, dns={"server": []}, runtimeConfig={"infinibandGUID": "x"}))
    assert int(caught.value.code) == 2
    names = [*other, *(f"ipam.{key}" for key in ipam), "dns.server", "runtimeConfig.infinibandGUID"]
    for name in names:
        assert name in caught.value.msg and f"{name}: " in caught.value.details
    assert "VLANs" in caught.value.details and "did you mean" in caught.value.details


@pytest.mark.parametrize("value", [1, 0, "true", [], {}])
def test_a_key_of_the_reference_plugin_has_its_type(value: Any) -> None:
    with pytest.raises(CNIError, match="hairpinMode"):
        parse_conf(conf(hairpinMode=value))


IP, MAC = "10.1.0.7", "0a:58:0a:01:00:07"


@pytest.mark.parametrize(
    ("more", "args", "ips", "mac"),
    [
        ({}, "", [], ""),
        ({}, f"IP={IP};MAC={MAC.upper()}", [IP], MAC),
        ({}, "IP=10.1.0.7,fd00::7", [IP, "fd00::7"], ""),
        ({"args": {"cni": {"ips": [IP + "/24"], "mac": MAC}}}, "IP=10.1.0.9;MAC=02:00:00:00:00:09", [IP], MAC),
        (
            {"args": {"cni": {"ips": ["10.1.0.9"]}}, "runtimeConfig": {"ips": [IP], "mac": MAC}},
            "MAC=02:00:00:00:00:09",
            [IP],
            MAC,
        ),
    ],
)
def test_who_asks_for_an_address_or_a_mac(more: dict[str, Any], args: str, ips: list[str], mac: str) -> None:
    """A capability takes precedence over args.cni, and that over CNI_ARGS."""
    got = as_asked(parse_conf(conf(**more)), parse_env({**ENV, "CNI_ARGS": args}))
    assert (got.ips, got.mac) == (tuple(map(ip_address, ips)), mac)


@pytest.mark.parametrize(
    ("args", "words"), [("IP=10.1.0.300", "CNI_ARGS: IP[0]"), ("MAC=01:00:00:00:00:07", "CNI_ARGS: MAC")]
)
def test_args_that_ask_for_nonsense(args: str, words: str) -> None:
    with pytest.raises(CNIError) as caught:
        as_asked(parse_conf(conf()), parse_env({**ENV, "CNI_ARGS": args}))
    assert caught.value.code == 4 and words in caught.value.msg


def test_near_miss_is_suggested() -> None:
    with pytest.raises(CNIError) as caught:
        parse_conf(conf(mtuu=1400))
    assert caught.value.details == "did you mean mtu?"


def test_whole_configuration() -> None:
    got = parse_conf(
        conf(
            mtu=1400,
            socket="/s",
            ipam={"subnet": "10.1.0.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
            args={"x": 1},
            runtimeConfig={
                "IPs": ["10.1.0.9/24"],
                "mac": "0A:58:00:00:00:01",
                "dns": {"Servers": ["10.96.0.10"], "Searches": ["a.b"]},
                "aliases": {"podwire": ["db", "db-0"], "other": ["x"]},
            },
            **{"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}], "io.kubernetes/anything": {}},
        )
    )
    ((only,),) = got.ranges
    assert (only.subnet, only.gateway, only.start, only.end) == (
        ip_network("10.1.0.0/24"),
        ip_address("10.1.0.1"),
        ip_address("10.1.0.1"),
        ip_address("10.1.0.254"),
    )
    assert (got.mtu, got.socket, got.ips, got.mac) == (1400, "/s", (ip_address("10.1.0.9"),), "0a:58:00:00:00:01")
    assert got.aliases == ("db", "db-0") and got.dns == Dns(("10.96.0.10",), search=("a.b",))
    assert got.valid_attachments == frozenset({Attachment("c", "eth0")})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"CNI_COMMAND": "PLUG"}, "CNI_COMMAND"),
        ({"CNI_COMMAND": ""}, "CNI_COMMAND"),
        ({"CNI_NETNS": "", "CNI_IFNAME": ""}, "CNI_NETNS, CNI_IFNAME not set"),
        ({"CNI_CONTAINERID": "../etc"}, "CNI_CONTAINERID"),
        ({"CNI_IFNAME": "a/b"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "sixteen-letters-"}, "CNI_IFNAME"),
        ({"CNI_IFNAME": ".."}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "\u00e9" * 8}, "CNI_IFNAME"),
        ({"CNI_IFNAME": "eth%d"}, "CNI_IFNAME"),
        ({"CNI_ARGS": "A=1;B"}, "CNI_ARGS"),
    ],
)
def test_bad_variable_is_named(change: dict[str, str], words: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_env({**ENV, **change})
    assert int(caught.value.code) == 4 and words in caught.value.msg


def test_del_needs_no_namespace() -> None:
    assert parse_env({**ENV, "CNI_COMMAND": "DEL", "CNI_NETNS": ""}).netns == ""


def test_pod_is_read_from_the_arguments() -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a=b"
    assert parse_env({**ENV, "CNI_ARGS": args}).pod == "default/a=b"


@pytest.mark.parametrize(
    ("command", "version", "fine"),
    [
        ("CHECK", "0.3.1", False),
        ("CHECK", "0.4.0", True),
        ("GC", "1.0.0", False),
        ("GC", "1.1.0", True),
        ("STATUS", "1.0.0", False),
        ("ADD", "0.3.0", True),
    ],
)
def test_verbs_exist_from_their_version_on(command: str, version: str, fine: bool) -> None:
    call, netconf = parse_env({**ENV, "CNI_COMMAND": command}), parse_conf(conf(cniVersion=version))
    if fine:
        check_version(call, netconf)
    else:
        with pytest.raises(CNIError, match=command):
            check_version(call, netconf)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)
KEYS = st.sampled_from(
    ["mtu", "ipam", "dns", "runtimeConfig", "prevResult", "cni.dev/valid-attachments", "name", "socket"]
)


@given(st.dictionaries(KEYS, JSON | st.fixed_dictionaries({"ranges": JSON, "routes": JSON, "ips": JSON}), max_size=4))
def test_any_configuration_gives_data_or_an_error_of_ours(change: dict[str, Any]) -> None:
    try:
        parse_conf(conf(**change))
    except CNIError as err:
        assert err.msg


@given(st.binary(max_size=60))
def test_any_bytes_give_an_error_of_ours(text: bytes) -> None:
    with pytest.raises(CNIError):
        parse_conf(text)

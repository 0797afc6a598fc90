"""State derived from the Node objects: the peers, the masquerade table, the conflist."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_cni import conflist, conflistfile, nodetable, routes
from podwire_cni.conf import parse_conf
from podwire_cni.ipam.ranges import podcidr_range
from podwire_cni.main import install
from podwire_cni.nodetable import NodeRules, OtherNet, PodRules
from podwire_cni.plan import NodeNet
from podwire_cni.routes import Peer
from podwire_cni.types import PortMapping


def node(cidrs: list[str], *ips: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "b"},
        "spec": {"podCIDRs": cidrs},
        "status": {
            "addresses": [{"type": "Hostname", "address": "n"}, *({"type": "InternalIP", "address": ip} for ip in ips)]
        },
    }


def test_the_others_and_not_itself() -> None:
    got = routes.view(
        {
            "n1": node(["10.0.1.0/24"], "192.0.2.1"),
            "n2": node(["10.0.2.0/24", "fd00:2::/64"], "192.0.2.2", "fd01::2"),
            "n3": node([], "192.0.2.3"),
            "n4": node(["10.0.4.0/24"]),
        },
        "n1",
    )
    assert got.peers == (
        Peer(
            "n2",
            (ip_network("10.0.2.0/24"), ip_network("fd00:2::/64")),
            (ip_address("192.0.2.2"), ip_address("fd01::2")),
        ),
    )
    assert got.own == (ip_address("192.0.2.1"),)
    assert {str(ip) for ip in got.node_ips} == {"192.0.2.1", "192.0.2.2", "192.0.2.3", "fd01::2"}
    assert got.problems == ("Node n4: status.addresses has neither InternalIP nor ExternalIP; no routes",)


def addressed(cidrs: list[str], *addresses: tuple[str, str]) -> dict[str, Any]:
    return {**node(cidrs), "status": {"addresses": [{"type": kind, "address": ip} for kind, ip in addresses]}}


def test_a_node_with_only_an_external_address_is_reached_there() -> None:
    """By IP version: an InternalIP wins, in whatever order the Node has them."""
    got = routes.view(
        {
            "n1": addressed(["10.0.1.0/24"], ("ExternalIP", "203.0.113.1")),
            "n2": addressed(["10.0.2.0/24"], ("ExternalIP", "203.0.113.2"), ("ExternalDNS", "n2.example")),
            "n3": addressed(["10.0.3.0/24"], ("ExternalIP", "203.0.113.3"), ("InternalIP", "192.0.2.3")),
            "n4": addressed(["10.0.4.0/24"], ("ExternalIP", "2001:db8::4"), ("InternalIP", "192.0.2.4")),
            "n5": addressed(["10.0.5.0/24"], ("InternalIP", "nonsense"), ("ExternalIP", "203.0.113.5")),
        },
        "n1",
    )
    assert list(map(str, got.own)) == ["203.0.113.1"]
    assert {peer.name: list(map(str, peer.addresses)) for peer in got.peers} == {
        "n2": ["203.0.113.2"],
        "n3": ["192.0.2.3"],
        "n4": ["192.0.2.4", "2001:db8::4"],
        "n5": ["203.0.113.5"],
    }
    assert got.problems == ()


def test_what_concerns_no_route_is_no_news() -> None:
    """Every Node's conditions change all the time, and every node receives the events."""
    before = node(["10.0.2.0/24"], "192.0.2.2")
    beat = {
        **before,
        "status": {**before["status"], "conditions": [{"type": "Ready", "lastHeartbeatTime": "t"}]},
        "metadata": {"name": "b", "labels": {"x": "y"}, "resourceVersion": "7"},
    }
    assert routes.facts(beat) == routes.facts(before)
    for other in (
        node(["10.0.3.0/24"], "192.0.2.2"),
        node(["10.0.2.0/24"], "192.0.2.3"),
        node([], "192.0.2.2"),
        node(["10.0.2.0/24"]),
        node(["10.0.2.0/24", "fd00:2::/64"], "192.0.2.2"),
    ):
        assert routes.facts(other) != routes.facts(before)
        assert routes.view({"b": other}, "a") != routes.view({"b": before}, "a")


def test_what_pods_reach_with_their_own_address() -> None:
    got = routes.view(
        {"n1": node(["10.0.1.0/24"], "192.0.2.1"), "n2": node(["10.0.2.0/24", "fd00:2::/64"], "192.0.2.2", "fd01::2")},
        "n1",
    )
    assert routes.native(got, ["10.0.0.0/16"]) == {
        "10.0.0.0/16",
        "192.0.2.1/32",
        "192.0.2.2/32",
        "fd01::2/128",
        "fd00:2::/64",
    }


def test_a_node_behind_a_router_sees_the_address_of_the_pod_s_node() -> None:
    got = routes.view({"n1": node(["10.0.1.0/24"], "192.0.2.1"), "n2": node([], "198.51.100.2", "fd01::2")}, "n1")
    assert [peer.name for peer in got.members] == ["n2"] and got.peers == ()
    far = routes.native(got, ["10.0.0.0/16"], {ip_address("198.51.100.2")})
    assert far == {"10.0.0.0/16", "192.0.2.1/32", "fd01::2/128"}


def test_a_stolen_or_broken_podcidr_is_named_and_left_out() -> None:
    got = routes.view(
        {
            "me": node(["10.0.1.0/24"], "192.0.2.1"),
            "a": node(["10.0.1.128/25"], "192.0.2.2"),
            "b": node(["10.0.300.0/24"], "192.0.2.3"),
            "c": node(["10.0.3.0/24"], "not-an-ip", "192.0.2.4"),
            "d": node(["10.0.4.1/32"], "192.0.2.5"),
        },
        "me",
    )
    assert got.peers == (Peer("c", (ip_network("10.0.3.0/24"),), (ip_address("192.0.2.4"),)),)
    assert len(got.problems) == 3 and "Node a" in got.problems[0] and "Node b: spec.podCIDRs" in got.problems[1]
    assert "10.0.4.1/32 has no room" in got.problems[2]


def loaded(rules: NodeRules, *pods: PodRules) -> dict[tuple[str, str], dict[bytes, nft.Value]]:
    """(family, set) -> elements of the tables in a kernel in memory, which refuses what the real one would."""
    kernel = FakeConnection()
    kernel.commit(nodetable.plan(rules, pods))
    return {(table.family, name): held for table, dump in kernel.state.items() for name, held in dump.elements.items()}


def test_masquerading_is_planned_a_family() -> None:
    found = loaded(NodeRules(("10.0.1.0/24", "fd00:1::/64"), frozenset({"10.0.0.0/16", "192.0.2.1/32", "fd00::/48"})))
    assert found["ip", "pods"] == nft.intervals(["10.0.1.0/24"])
    assert set(found["ip6", "native"]) == set(nft.intervals(["fd00::/48", "fd00:1::/64", "ff00::/8"]))
    assert ("ip6", "pods") not in loaded(NodeRules(("10.0.1.0/24",), frozenset()))
    assert ("ip", "pods") not in loaded(NodeRules(("10.0.1.0/24",), None))


def test_hostports_lead_to_the_address_of_the_same_family() -> None:
    ports = (
        PortMapping(80, 8080),
        PortMapping(53, 5353, "udp", ip_address("192.0.2.1")),
        PortMapping(9, 9, "sctp", ip_address("::")),
    )
    pod = PodRules("veth1", "0a:58:0a:00:01:02", (ip_address("10.0.1.2"), ip_address("fd00:1::2")), ports)
    found = loaded(NodeRules(("10.0.1.0/24", "fd00:1::/64"), frozenset()), pod)
    four, six = bytes((10, 0, 1, 2)), ip_address("fd00:1::2").packed
    assert found["ip", "hostports"] == {nft.key(b"\6", b"\0\x50"): nft.key(four, b"\x1f\x90")}
    assert found["ip6", "hostports"] == {
        nft.key(b"\6", b"\0\x50"): nft.key(six, b"\x1f\x90"),
        nft.key(b"\x84", b"\0\x09"): nft.key(six, b"\0\x09"),
    }
    assert found["ip", "hostports-on"] == {
        nft.key(bytes((192, 0, 2, 1)), b"\x11", b"\0\x35"): nft.key(four, b"\x14\xe9")
    }
    assert found["ip6", "hostports-on"] == {} and len(found["ip", "hairpin"]) == len(found["ip6", "hairpin"]) == 1


def test_pods_can_come_and_go_in_any_order_as_elements() -> None:
    pods = [
        PodRules(f"veth{n}", f"0a:58:0a:00:01:0{n}", (ip_address(f"10.0.1.{n}"),), (PortMapping(8000 + n, 80),))
        for n in (2, 3, 4)
    ]
    rules, kernel = NodeRules(("10.0.1.0/24",), frozenset()), FakeConnection()
    kernel.commit(nodetable.plan(rules, pods[:1]))
    kernel.commit(nft.Transaction().add(*nodetable.elements(pods[1]), *nodetable.elements(pods[2])))
    kernel.commit(nft.Transaction().delete(*nodetable.elements(pods[0])))
    fresh = FakeConnection()
    fresh.commit(nodetable.plan(rules, pods[1:]))
    assert {t: d.elements for t, d in kernel.state.items()} == {t: d.elements for t, d in fresh.state.items()}


PORT = st.builds(
    PortMapping,
    st.integers(1, 3),
    st.just(80),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from([None, *map(ip_address, ("0.0.0.0", "192.0.2.1", "192.0.2.2", "::", "fd00::1"))]),
)


@given(PORT, PORT)
def test_ports_clash_exactly_where_a_packet_could_mean_both(one: PortMapping, other: PortMapping) -> None:
    def takes(port: PortMapping, dialled: str) -> bool:
        mine, asked = port.host_ip, ip_address(dialled)
        return mine is None or mine == asked or (mine.is_unspecified and mine.version == asked.version)

    both = any(
        takes(one, ip) and takes(other, ip) for ip in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "fd00::1", "fd00::2")
    )
    same = (one.host_port, one.protocol) == (other.host_port, other.protocol)
    assert one.clashes(other) == other.clashes(one) == (same and both)


def test_conflist_is_written_once_and_read_back(tmp_path: Path) -> None:
    net = NodeNet(((podcidr_range(ip_network("10.0.1.0/24")),), (podcidr_range(ip_network("fd00:1::/64")),)), 1450)
    path = tmp_path / "net.d" / "10-podwire.conflist"
    assert conflistfile.read(path) is None
    assert conflistfile.write(path, Path("/run/x/cni.sock"), net)
    assert not conflistfile.write(path, Path("/run/x/cni.sock"), net)
    assert conflistfile.read(path) == conflist.Last(net.ranges, 1450)
    listed = json.loads(path.read_text())
    conf = parse_conf(json.dumps({**listed["plugins"][0], "cniVersion": "1.0.0", "name": listed["name"]}).encode())
    assert (conf.ranges, conf.mtu, conf.socket) == (net.ranges, 1450, "/run/x/cni.sock")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_install_writes_the_plugin_and_a_configuration_that_it_takes(tmp_path: Path) -> None:
    program = tmp_path / "podwire-cni"
    program.write_bytes(b"\x7fELF program")
    done = conflistfile.install(
        program,
        tmp_path / "bin",
        tmp_path / "net.d",
        Path("/run/x"),
        ["10.0.1.0/24", "fd00:1::/64"],
        Path("/venv/bin/podwire-cni-standalone"),
    )
    assert [path.name for path in done] == ["podwire-cni", "loopback", "10-podwire.conflist"]
    assert (
        done[0].read_bytes() == done[1].read_bytes() == b"\x7fELF program" and done[0].stat().st_mode & 0o777 == 0o755
    )
    listed = json.loads(done[2].read_text())
    plugin = listed["plugins"][0]
    assert (plugin["standalone"], plugin["pythonPlugin"]) == (True, "/venv/bin/podwire-cni-standalone")
    conf = parse_conf(json.dumps({**plugin, "cniVersion": "1.0.0", "name": listed["name"]}).encode())
    assert [str(r.subnet) for ranges in conf.ranges for r in ranges] == ["10.0.1.0/24", "fd00:1::/64"]
    assert conf.mtu is None, "each pod gets the uplink's present MTU"
    assert len(conflistfile.install(program, tmp_path / "bin", tmp_path / "net.d", Path("/run/x"), [], Path())) == 1


@pytest.mark.parametrize(
    ("subnets", "words"),
    [
        (["10.0.1.0/31"], "at least four addresses"),
        (["10.0.1.7/24"], "host bits"),
        (["10.0.1.0/24", "10.0.2.0/24"], "one subnet of each"),
    ],
)
def test_subnets_that_cannot_serve_are_not_installed(tmp_path: Path, subnets: list[str], words: str) -> None:
    asked = [word for subnet in subnets for word in ("--subnet", subnet)]
    done = CliRunner().invoke(
        install, [*asked, "--bin-dir", str(tmp_path / "bin"), "--conf-dir", str(tmp_path / "net.d")]
    )
    assert done.exit_code == 2 and words in done.output and not list(tmp_path.iterdir())


def test_a_foreign_conflist_is_not_taken_up(tmp_path: Path) -> None:
    for text in ("", "[]", '{"plugins": []}', '{"plugins": [{"ipam": {"ranges": [[{"subnet": "x"}]]}}]}'):
        (tmp_path / "c").write_text(text)
        assert conflistfile.read(tmp_path / "c") is None


def test_a_bridge_without_a_known_mac_gets_no_rule_that_drops_all_unicast() -> None:
    def comments(mac: str) -> list[str]:
        rules = NodeRules(("10.0.1.0/24",), None, mac=mac)
        return [op.thing.comment for op in nodetable.plan(rules, ()) if isinstance(op.thing, nft.Rule)]

    many = NodeRules(
        ("10.0.1.0/24",),
        None,
        mac="0a:00:00:00:00:00",
        others=tuple(OtherNet(f"b{n}", (), None, f"0a:00:00:00:00:0{n}") for n in range(1, 8)),
    )
    assert all(len(op.thing.comment) < 128 for op in nodetable.plan(many, ()) if isinstance(op.thing, nft.Rule))
    assert any("another MAC than 0a:58:0a:00:01:01" in comment for comment in comments("0a:58:0a:00:01:01"))
    assert not any("another MAC" in comment for comment in comments(""))

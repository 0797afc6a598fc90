"""What follows from the Node objects: routes, masquerade table, conflist."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from podwire_cni import conflist, masquerade, routes
from podwire_cni.conf import parse_conf
from podwire_cni.ipam.ranges import podcidr_range
from podwire_cni.plan import NodeNet
from podwire_proxy import nft


def node(cidrs: list[str], *ips: str) -> dict[str, Any]:
    return {"metadata": {"name": "b"}, "spec": {"podCIDRs": cidrs}, "status": {"addresses": [
        {"type": "Hostname", "address": "n"}, *({"type": "InternalIP", "address": ip} for ip in ips)]}}


def test_routes_to_the_others_and_none_to_itself() -> None:
    got = routes.view({"n1": node(["10.0.1.0/24"], "192.0.2.1"),
                       "n2": node(["10.0.2.0/24", "fd00:2::/64"], "192.0.2.2", "fd01::2"),
                       "n3": node([], "192.0.2.3"), "n4": node(["10.0.4.0/24"])}, "n1")
    assert got.routes == {ip_network("10.0.2.0/24"): ip_address("192.0.2.2"), ip_network("fd00:2::/64"): ip_address("fd01::2")}
    assert {str(ip) for ip in got.node_ips} == {"192.0.2.1", "192.0.2.2", "192.0.2.3", "fd01::2"}
    assert got.problems == ()


def test_a_stolen_or_broken_podcidr_is_named_and_left_out() -> None:
    got = routes.view({"me": node(["10.0.1.0/24"], "192.0.2.1"), "a": node(["10.0.1.128/25"], "192.0.2.2"),
                       "b": node(["10.0.300.0/24"], "192.0.2.3"), "c": node(["10.0.3.0/24"], "not-an-ip", "192.0.2.4")}, "me")
    assert got.routes == {ip_network("10.0.3.0/24"): ip_address("192.0.2.4")}
    assert len(got.problems) == 2 and "Node a" in got.problems[0] and "Node b: spec.podCIDRs" in got.problems[1]


TABLE = st.dictionaries(st.integers(0, 5).map(lambda n: ip_network(f"10.0.{n}.0/24")),
                        st.integers(1, 4).map(lambda n: ip_address(f"192.0.2.{n}")))


@given(TABLE, TABLE)
def test_changes_lead_from_any_table_to_the_desired_one(desired: dict[Any, Any], present: dict[Any, Any]) -> None:
    put, drop = routes.changes(desired, present)
    assert {**{k: v for k, v in present.items() if k not in drop}, **put} == desired
    assert not put.keys() & drop.keys() and all(present.get(k) != v for k, v in put.items())


def test_masquerade_plan_has_one_table_a_family() -> None:
    tx = masquerade.plan(["10.0.1.0/24", "fd00:1::/64"], ["10.0.0.0/16", "192.0.2.1/32", "fd00::/48"])
    elements = {(op.thing.set.table.family, op.thing.set.name): set(op.thing.items)
                for op in tx if isinstance(op.thing, nft.Elements)}
    assert [t.family for t in masquerade.tables(["10.0.1.0/24", "fd00:1::/64"])] == ["ip", "ip6"]
    assert elements["ip", "pods"] == set(nft.intervals(["10.0.1.0/24"]))
    assert elements["ip6", "native"] == set(nft.intervals(["fd00::/48", "fd00:1::/64", "ff00::/8"]))
    assert {len(key) for key in elements["ip", "native"]} == {4}


def test_conflist_is_written_once_and_read_back(tmp_path: Path) -> None:
    net = NodeNet(((podcidr_range(ip_network("10.0.1.0/24")),), (podcidr_range(ip_network("fd00:1::/64")),)), 1450)
    path = tmp_path / "net.d" / "10-podwire.conflist"
    assert conflist.read_ranges(path) is None
    assert conflist.write(path, Path("/run/x/cni.sock"), net)
    assert not conflist.write(path, Path("/run/x/cni.sock"), net)
    assert conflist.read_ranges(path) == net.ranges
    listed = json.loads(path.read_text())
    conf = parse_conf(json.dumps({**listed["plugins"][0], "cniVersion": "1.0.0", "name": listed["name"]}).encode())
    assert (conf.ranges, conf.mtu, conf.socket) == (net.ranges, 1450, "/run/x/cni.sock")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_foreign_conflist_is_not_taken_up(tmp_path: Path) -> None:
    for text in ("", "[]", '{"plugins": []}', '{"plugins": [{"ipam": {"ranges": [[{"subnet": "x"}]]}}]}'):
        (tmp_path / "c").write_text(text)
        assert conflist.read_ranges(tmp_path / "c") is None

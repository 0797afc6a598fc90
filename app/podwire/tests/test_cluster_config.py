"""The embedded cluster's settings: errors name the bad one, and a damaged record does not stop `podwire down`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from podwire.cluster import config, network, record, run
from podwire.cluster.config import BadConfig, ClusterConfig, parse
from podwire.commands.cluster import up
from podwire.commands.pods import log_lines
from podwire.main import cli


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ".."),
        ("name", "A"),
        ("name", ""),
        ("nodes", 0),
        ("nodes", 51),
        ("node_cidr", "10.0.0.1/8"),
        ("upstream_dns", ("bogus",)),
        ("cluster_cidr", "fd00::/56"),
        ("cluster_cidr", "10.0.0.1/8"),
        ("cluster_cidr6", "10.8.0.0/16"),
        ("service_cidr", "fd00::/112"),
        ("service_cidr", "10.96.0.0/29"),
        ("service_cidr6", "fd00:96::/112"),
        ("node_cidr_mask_size", 15),
        ("node_cidr_mask_size", 30),
        ("node_cidr_mask_size", 17),
        ("upstream_dns", ("",)),
        ("upstream_dns", ("1.1.1.1#0",)),
        ("upstream_dns", ("1.1.1.1#99999",)),
        ("upstream_dns", ("1.1.1.1:53",)),
    ],
)
def test_bad_settings_name_their_field(field: str, value: Any) -> None:
    with pytest.raises(BadConfig, match=f"^{field}: "):
        ClusterConfig(**{field: value})


def test_pods_of_both_families_get_nodes_of_both() -> None:
    made = ClusterConfig(nodes=2, cluster_cidr6="fd00:10:244::/56")
    assert made.cluster_cidrs == ("10.244.0.0/16", "fd00:10:244::/56")
    assert made.node_addresses("node2") == ("172.30.0.12", "fd70:6f64:7769::c")
    assert parse(made.to_json()) == made
    assert (ClusterConfig().cluster_cidrs, ClusterConfig().node_cidrs) == (("10.244.0.0/16",), ("172.30.0.0/24",))
    with pytest.raises(BadConfig, match="fd70:6f64:7769::/64 and fd70::/16 overlap"):
        ClusterConfig(cluster_cidr6="fd70::/16", node_cidr_mask_size_ipv6=64)
    with pytest.raises(BadConfig, match="node_cidr_mask_size_ipv6: 40: from 56"):
        ClusterConfig(cluster_cidr6="fd00::/56", node_cidr_mask_size_ipv6=40)


def test_services_of_both_families() -> None:
    pods = "fd00:10:244::/56"
    made = ClusterConfig(cluster_cidr6=pods, service_cidr6="fd00:10:96::/112")
    assert made.service_cidrs == ("10.96.0.0/16", "fd00:10:96::/112") and parse(made.to_json()) == made
    assert made.dns_address == "10.96.0.10" and ClusterConfig().service_cidrs == ("10.96.0.0/16",)
    for bad, words in (("10.0.0.0/16", "IPv6 range"), ("fd00::/125", "too small"), ("fd00:10:244::/112", "overlap")):
        with pytest.raises(BadConfig, match=words):
            ClusterConfig(cluster_cidr6=pods, service_cidr6=bad)


def test_ranges_must_not_overlap() -> None:
    with pytest.raises(BadConfig, match=r"10.244.0.0/16 and 10.244.0.0/20 overlap"):
        ClusterConfig(cluster_cidr="10.244.0.0/16", service_cidr="10.244.0.0/20")


def test_addresses_do_not_collide() -> None:
    made = ClusterConfig(nodes=50, upstream_dns=("9.9.9.9", "::1#5353"))
    addresses = [made.gateway, *map(made.node_address, made.node_names())]
    assert len(set(addresses)) == 51
    assert made.kubernetes_address != made.dns_address


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"name": ".."}', '{"nodes": 0, "upstream_dns": []}', '{"colour": 1}']
)
def test_a_damaged_record_is_no_record(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BASE", tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "cluster.json").write_text(text)
    assert record.load("c") is None


def test_a_saved_record_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BASE", tmp_path)
    made = ClusterConfig(name="c", nodes=2, upstream_dns=("9.9.9.9",), bridge_nf=1)
    made.run_dir.mkdir()
    record.save(made)
    assert record.load("c") == made


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("down", "--name", ".."), "name:"),
        (("up", "--name", "A B"), "name:"),
        (("up", "--nodes", "0"), "nodes:"),
        (("up", "--cluster-cidr", "10.1.0.0/16,10.2.0.0/16"), "cluster_cidr:"),
        (("up", "--cluster-cidr", "fd00::/56"), "cluster_cidr:"),
        (("up", "--node-cidr-mask-size", "9"), "node_cidr_mask_size:"),
        (("up", "--service-cidr", "10.96.0.0/30"), "service_cidr:"),
        (("up", "--service-cidr", "fd00::/112,fd01::/112"), "service_cidr:"),
        (("up", "--service-cidr", "10.96.0.0/16,fd00::/125"), "service_cidr6:"),
        (("up", "--upstream-dns", "bogus"), "upstream_dns:"),
        (("demo", "--nodes", "51"), "nodes:"),
        (("up", "--api-port", "70000"), "--api-port"),
        (("up", "--nodes", "abc"), "--nodes"),
        (("logs", "p", "--tail", "-1", "--name", "none"), "--tail"),
        (("exec", "p", "--name", "none", "--", "true"), "none"),
    ],
    ids=str,
)
def test_mistakes_on_the_command_line_get_one_clear_error(words: tuple[str, ...], text: str) -> None:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert text in result.output


def test_the_last_lines_of_a_log_come_once(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("".join(f"2026-01-01T00:00:00Z stdout F line {n}\n" for n in range(5)))
    other = tmp_path / "other"
    other.write_text("2026-01-01T00:00:00Z stderr F of another\n")

    def lines(*paths: Path, tail: int | None = None) -> list[tuple[int, str]]:
        return list(log_lines(list(paths), False, tail))

    assert lines(file) == [(0, f"line {n}") for n in range(5)]
    assert lines(file, tail=2) == [(0, "line 3"), (0, "line 4")]
    assert lines(file, tail=0) == []
    assert lines(file, tail=99) == lines(file)
    assert lines(tmp_path / "none") == []
    assert lines(tmp_path / "none", other, file, tail=1) == [(1, "of another"), (2, "line 4")]
    rows = (
        "stdout P one ",
        "stderr P a",
        "stdout P and ",
        "stderr F b",
        "stdout F two",
        "stdout F three",
        "stdout P cut",
    )
    file.write_text("".join(f"2026-01-01T00:00:00Z {row}\n" for row in rows))
    assert lines(file) == [(0, "ab"), (0, "one and two"), (0, "three")]


def test_up_knows_the_proxys_backends() -> None:
    done = CliRunner().invoke(up, ["--proxy-backend", "ipvs"])
    assert (done.exit_code, "'ipvs' is not one of" in done.output) == (2, True)
    sets = ClusterConfig().role_sets({"backend": "iptables", "iptables_variant": "legacy"})
    assert sets[:2] == (("proxy", "backend", "iptables"), ("proxy", "iptables_variant", "legacy"))


def test_nodes_take_neither_the_machine_nor_each_other_for_a_pod() -> None:
    made = ClusterConfig(name="c", nodes=2)
    specs = [role.run.args[0] for role in run._node_roles(made)]  # type: ignore[attr-defined]  # partials
    assert {made.netns(name).parent for name in (network.SWITCH, *made.node_names())} == {made.ns_dir}
    assert [spec.no_pods for spec in specs] == [(f"/proc/{os.getpid()}/ns/net", str(made.ns_dir))] * 2

"""Foreign chains in iptables, in both variants: the proxy names their owner and leaves them alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.proxyrole import Running, until
from lab.serviceworld import World
from podwire.main import cli
from podwire_proxy.hostfacts import leftovers
from podwire_proxy.iptables import programs
from podwire_proxy.iptables.leftovers import foreign_chains
from test_proxy_iptables import no_rules, started
from test_proxy_live import BOTH, NODE, my_service, my_slice


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    yield made
    made.close()


LEGACY = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-ABC
-A KUBE-SVC-ABC -p tcp -j DNAT --to-destination 172.30.0.11:6443
COMMIT
*filter
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
COMMIT
"""


@pytest.mark.parametrize("way", ["python-iptables", "iptables-legacy-save"])
def test_leftovers_of_others_are_named_and_left_alone(
    world: World, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both variants; and the same where python-iptables is not installed."""
    if way == "python-iptables":
        pytest.importorskip(
            "iptc", reason="python-iptables is not installed: pip install podwire[iptables] (needs gcc)"
        )
        monkeypatch.setattr(programs, "save", None)
    else:
        monkeypatch.setitem(sys.modules, "iptc", None)
    world.node.run(["iptables-legacy-restore", "--noflush", "-w"], input=LEGACY)
    world.node.run(["ip6tables-nft", "-t", "nat", "-N", "cali-PREROUTING"])
    found = {str(one): one.owner for one in leftovers(world.node.call(foreign_chains))}
    assert found == {
        "2 chains of table nat (iptables-legacy, IPv4): KUBE-SERVICES, KUBE-SVC-ABC": "kube-proxy",
        "chain of table nat (iptables-legacy, IPv4): PREROUTING": "",
        "chain of table filter (iptables-legacy, IPv4): DOCKER-USER": "Docker",
        "chain of table filter (iptables-legacy, IPv4): FORWARD": "",
        "chain of table nat (iptables-nft, IPv6): cali-PREROUTING": "Calico",
    }
    monkeypatch.undo()
    _, proxier = started(world, my_service(), my_slice(*BOTH), variant="legacy")
    proxier.close()
    assert {str(one): one.owner for one in leftovers(world.node.call(foreign_chains))} == found, (
        "ours are not among them"
    )
    done = CliRunner().invoke(cli, ["cleanup", "--netns", f"/proc/{os.getpid()}/fd/{world.node.fd}"])
    assert "(iptables-legacy, IPv4): KUBE-SERVICES, KUBE-SVC-ABC, of kube-proxy (kube-proxy --cleanup)" in done.output
    assert "-A KUBE-SVC-ABC -p tcp -j DNAT" in world.node.run(["iptables-legacy-save"]).stdout
    assert no_rules(world.node)


def test_the_role_tells_of_leftovers(world: World, tmp_path: Path) -> None:
    world.node.run(["iptables-legacy-restore", "--noflush", "-w"], input=LEGACY)
    with FakeApi(world.node) as api:
        api.apply(NODE, my_service(), my_slice(*BOTH))
        proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path, "--backend", "iptables")
        until(proxy.ready, "the first sync")
        assert "kube-proxy left 2 chains of table nat" in proxy.status_file.read_text()
        log = proxy.stop()
    assert "kube-proxy --cleanup" in log
    assert "variant=legacy" in log, "where the rules of others are"


def _without_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "installed", lambda variant: False)


def test_cleanup_without_programs_removes_the_nft_variant(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains, jumps and sets go, and the rules of others in the same tables stay."""
    _, proxier = started(world, my_service(), my_slice(*BOTH), variant="nft")
    proxier.close()
    world.node.run(["iptables-nft", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "7", "-j", "ACCEPT"])
    _without_programs(monkeypatch)
    path = f"/proc/{os.getpid()}/fd/{world.node.fd}"
    dry = CliRunner().invoke(cli, ["cleanup", "--dry-run", "--netns", path])
    done = CliRunner().invoke(cli, ["cleanup", "--netns", path])
    assert done.exit_code == 0 and "chains of table nat (iptables-nft, IPv4)" in done.output
    assert done.output == dry.output.replace("would remove", "removed")
    assert no_rules(world.node)
    assert "--dport 7 -j ACCEPT" in world.node.run(["iptables-nft-save", "-t", "nat"]).stdout


def test_cleanup_without_programs_never_calls_gone_what_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, proxier = started(world, my_service(), my_slice(*BOTH), variant="legacy")
    proxier.close()
    path = f"/proc/{os.getpid()}/fd/{world.node.fd}"
    with monkeypatch.context() as without:
        _without_programs(without)
        dry = CliRunner().invoke(cli, ["cleanup", "--dry-run", "--netns", path]).output
        assert "would remove chains of table nat (iptables-legacy, IPv4)" in dry
        done = CliRunner().invoke(cli, ["cleanup", "--netns", path])
    assert done.exit_code == 1 and "removed" not in done.stdout.replace("removed set", "")
    assert "these stay, because iptables-legacy is not installed: chains of table" in done.output.replace("\n", " ")
    done = CliRunner().invoke(cli, ["cleanup", "--netns", path])
    assert done.exit_code == 0 and "removed" in done.output and no_rules(world.node)

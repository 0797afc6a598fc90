"""`podwire install` in a temporary root is idempotent, upgrades keep settings, and uninstall restores the earlier
state."""

from __future__ import annotations

import configparser
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from podwire.commands.parts import agent
from podwire.deploy import apply, plan
from podwire.main import cli
from podwire_cni import native

PROGRAM = b"\x7fELF of this version"
CONF = "/etc/cni/net.d"


def wanted(*parts: str, **more: object) -> plan.Wanted:
    fields = {
        "parts": parts or ("plugin", "agent"),
        "program": "/opt/podwire/bin/podwire",
        "plugin": PROGRAM,
        "settings": {"PODWIRE_KUBECONFIG": "/etc/kubernetes/kubelet.conf"},
        **more,
    }
    return plan.Wanted(**fields)  # type: ignore[arg-type]  # as the test has them


def facts(root: Path, want: plan.Wanted) -> plan.Facts:
    return apply.look(root, plan.paths(want), want.cni_conf_dir)


def install(root: Path, want: plan.Wanted) -> list[str]:
    steps = plan.install(want, facts(root, want))
    apply.do(root, steps, lambda _: None)
    return [str(step) for step in steps]


def uninstall(root: Path, *, purge: bool = False) -> None:
    found = apply.look_for_uninstall(root, "/opt/cni/bin", CONF)
    apply.do(
        root,
        plan.uninstall(found, cni_bin_dir="/opt/cni/bin", cni_conf_dir=CONF, kernel=False, purge=purge),
        lambda _: None,
    )


def tree(root: Path) -> dict[str, bytes | str]:
    """Every file and link under root, with its content."""
    return {
        str(p.relative_to(root)): str(p.readlink()) if p.is_symlink() else p.read_bytes()
        for p in root.rglob("*")
        if p.is_symlink() or p.is_file()
    }


def test_install_twice_and_back(tmp_path: Path) -> None:
    (tmp_path / "etc/cni/net.d").mkdir(parents=True)
    (tmp_path / "etc/cni/net.d/10-flannel.conflist").write_text("theirs")
    (tmp_path / "etc/hostname").write_text("n1")
    before = tree(tmp_path)
    want = wanted("plugin", "agent", "control-plane", listen="192.0.2.1:6443", take_over=True)
    assert install(tmp_path, want)
    after = tree(tmp_path)
    assert install(tmp_path, want) == [] and tree(tmp_path) == after, "a second install does nothing"
    assert after["opt/cni/bin/podwire-cni"] == after["opt/cni/bin/loopback"] == PROGRAM
    assert (tmp_path / "opt/cni/bin/podwire-cni").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "etc/podwire/agent.env").stat().st_mode & 0o777 == 0o600
    assert "etc/cni/net.d/10-flannel.conflist" not in after
    assert after["etc/cni/net.d/10-flannel.conflist.before-podwire"] == b"theirs"
    (tmp_path / "etc/cni/net.d/10-podwire.conflist").write_text("written by the agent")
    uninstall(tmp_path)
    left = tree(tmp_path)
    assert left.pop("etc/podwire/agent.env") and left == before, "settings stay for a later install"
    uninstall(tmp_path, purge=True)
    assert (
        plan.uninstall(
            apply.look_for_uninstall(tmp_path, "/opt/cni/bin", CONF),
            cni_bin_dir="/opt/cni/bin",
            cni_conf_dir=CONF,
            kernel=False,
            purge=False,
        )
        == []
    )


def test_an_upgrade_keeps_settings_and_replaces_the_rest(tmp_path: Path) -> None:
    install(tmp_path, wanted())
    env = tmp_path / "etc/podwire/agent.env"
    env.write_text(env.read_text() + "# ours\nPODWIRE_UPLINK=bond0\nPODWIRE_CNI_CONF_DIR=/elsewhere\n")
    steps = install(
        tmp_path,
        wanted(
            plugin=b"\x7fELF of the next version",
            program="/opt/next/bin/podwire",
            settings={"PODWIRE_SET": "wiring.mtu=1400 proxy.masquerade_all=true"},
        ),
    )
    assert [step.split()[1] for step in steps] == [
        "/opt/cni/bin/podwire-cni",
        "/opt/cni/bin/loopback",
        "/etc/podwire/agent.env",
        "/etc/systemd/system/podwire-agent.service",
    ]
    kept = plan.read_settings(env.read_text())
    assert kept["PODWIRE_UPLINK"] == "bond0" and kept["PODWIRE_KUBECONFIG"] == "/etc/kubernetes/kubelet.conf"
    assert kept["PODWIRE_CNI_CONF_DIR"] == "/elsewhere" and kept["PODWIRE_SET"].endswith("proxy.masquerade_all=true")
    assert (
        "# ours" in env.read_text()
        and b"/opt/next/bin/podwire" in (tmp_path / "etc/systemd/system/podwire-agent.service").read_bytes()
    )


def test_anothers_loopback_stays_anothers(tmp_path: Path) -> None:
    theirs = tmp_path / "opt/cni/bin/loopback"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("reference plugin")
    install(tmp_path, wanted())
    uninstall(tmp_path)
    assert theirs.read_text() == "reference plugin" and not theirs.with_name("podwire-cni").exists()


def test_the_plugin_alone_writes_nowhere_else(tmp_path: Path) -> None:
    """The DaemonSet's init container has only these directories of the node."""
    install(tmp_path, wanted("plugin", settings={}))
    assert sorted(tree(tmp_path)) == ["opt/cni/bin/loopback", "opt/cni/bin/podwire-cni"]
    uninstall(tmp_path)
    assert tree(tmp_path) == {}


def test_the_managers_alone_write_nowhere_else(tmp_path: Path) -> None:
    """The DaemonSet's other init container has only these directories of the node; a switch turns it off."""
    install(tmp_path, wanted("managers", settings={}, host_managers=False))
    assert tree(tmp_path) == {}
    install(tmp_path, wanted("managers", settings={}))
    assert sorted(tree(tmp_path)) == [
        "run/NetworkManager/conf.d/99-podwire.conf",
        "run/systemd/network/00-podwire.link",
        "run/systemd/network/00-podwire.network",
    ]
    uninstall(tmp_path)
    assert tree(tmp_path) == {}


def test_units_say_what_they_run(tmp_path: Path) -> None:
    install(tmp_path, wanted("agent", "control-plane", listen="192.0.2.1:7443", data_dir="/srv/pod wire"))
    folder = tmp_path / "etc/systemd/system"
    for path in folder.glob("*.service"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(path.read_text())
        assert parser["Service"]["KillMode"] == "process", "a stop must not end pods"
        words = shlex.split(parser["Service"]["ExecStart"])
        done = CliRunner().invoke(cli, [words[1], "--help"])
        assert done.exit_code == 0, "the command is one of ours"
        for flag in (word for word in words if word.startswith("--")):
            assert flag in done.output
        assert (folder / "multi-user.target.wants" / path.name).resolve() == path, "enabled"
    api = (folder / "podwire-apiserver.service").read_text()
    assert "--listen 0.0.0.0:7443 --advertise 192.0.2.1:7443" in api and "'/srv/pod wire/api'" in api


@pytest.mark.skipif(not os.access("/usr/bin/systemd-analyze", os.X_OK), reason="systemd-analyze is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    want = wanted("agent", "control-plane", listen="192.0.2.1:7443", program="/bin/true")
    install(tmp_path, want)
    made = (tmp_path / "etc/systemd/system").glob("*.service")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, made)], capture_output=True, text=True, check=False
    )
    assert "Unknown" not in done.stderr and "rror" not in done.stderr, done.stderr


def _services(tmp_path: Path, **more: Any) -> dict[str, configparser.SectionProxy]:
    install(tmp_path, wanted("agent", "control-plane", listen="192.0.2.1:7443", program="/bin/true", **more))
    found = {}
    for path in (tmp_path / "etc/systemd/system").glob("*.service"):
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.read_string(path.read_text())
        found[path.name] = parser["Service"]
    return found


def test_every_unit_has_the_sandbox_that_its_work_allows(tmp_path: Path) -> None:
    found = _services(tmp_path)
    for service in found.values():
        assert service["WatchdogSec"] == "60" and service["WatchdogSignal"] == "SIGKILL"
        assert service["NoNewPrivileges"] == "yes" and service["ProtectSystem"] == "strict"
    for name in ("podwire-apiserver.service", "podwire-controllers.service"):
        assert found[name]["CapabilityBoundingSet"] == "CAP_NET_BIND_SERVICE"
        assert "AF_NETLINK" in found[name]["RestrictAddressFamilies"], "the controllers read the default gateway"
    assert "/var/lib/podwire" in found["podwire-apiserver.service"]["ReadWritePaths"]
    assert "ReadWritePaths" not in found["podwire-controllers.service"]
    agent = found["podwire-agent.service"]
    assert set(agent["CapabilityBoundingSet"].split()) > {"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SETUID"}
    for path in ("/run", "/etc/cni/net.d", "/etc/podwire"):
        assert f"-{path}" in agent["ReadWritePaths"].split()


@pytest.mark.parametrize("value", ["true", "1", "Yes"])
def test_an_agent_with_pods_has_no_sandbox_that_its_pods_would_inherit(tmp_path: Path, value: str) -> None:
    agent = _services(tmp_path, settings={"PODWIRE_PODS": value})["podwire-agent.service"]
    inherited = {"NoNewPrivileges", "ProtectSystem", "CapabilityBoundingSet", "SystemCallFilter", "PrivateTmp"}
    assert not {name.lower() for name in inherited} & set(agent)
    assert agent["WatchdogSec"] == "60"
    again = _services(tmp_path, settings={"PODWIRE_PODS": ""})["podwire-agent.service"]
    assert again["NoNewPrivileges"] == "yes"


def test_data_in_a_home_stays_reachable(tmp_path: Path) -> None:
    assert "ProtectHome" not in _services(tmp_path, data_dir="/root/cluster")["podwire-apiserver.service"]
    assert _services(tmp_path / "b", data_dir="/srv/x")["podwire-apiserver.service"]["ProtectHome"] == "yes"


@pytest.mark.skipif(not os.access("/usr/bin/systemd-analyze", os.X_OK), reason="systemd-analyze is not installed")
def test_systemd_finds_little_exposed(tmp_path: Path) -> None:
    """The scale goes from 0 to 10; a unit without a sandbox has 9.6."""
    _services(tmp_path)
    most = {"podwire-apiserver.service": 3.0, "podwire-controllers.service": 3.0, "podwire-agent.service": 7.0}
    for name, exposure in most.items():
        path = tmp_path / "etc/systemd/system" / name
        words = ["systemd-analyze", "security", "--offline=true", f"--threshold={exposure * 10:.0f}", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if "offline" in done.stderr:
            pytest.skip("systemd-analyze is too old: security --offline came with 250")
        assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_with_systemd_units_are_started_and_only_changes_restart_them() -> None:
    want = wanted("agent")
    fresh = plan.install(want, plan.Facts(systemd=True))
    assert [str(s) for s in fresh if isinstance(s, plan.Run)] == [
        "run systemctl daemon-reload",
        "run systemctl restart podwire-agent.service",
    ]
    written = {s.path: s for s in fresh if isinstance(s, plan.Write)}
    links = {s.path: s.target for s in fresh if isinstance(s, plan.Link)}
    done = plan.Facts(
        {p: w.content for p, w in written.items()}, {p: w.mode for p, w in written.items()}, links, systemd=True
    )
    assert [str(s) for s in plan.install(want, done)] == ["run systemctl start podwire-agent.service"], (
        "a start of a running unit"
    )
    back = plan.uninstall(done, cni_bin_dir="/opt/cni/bin", cni_conf_dir=CONF, kernel=True, purge=False)
    assert str(back[0]) == "run systemctl stop podwire-agent.service" and isinstance(back[1], plan.CleanKernel)


def test_checks_name_what_is_missing_and_the_fix() -> None:
    bare = plan.Facts(configurations=("05-cilium.conflist", "README"), cgroup_v2=False, nft=False)
    found = plan.checks(wanted(settings={}), bare, False)
    assert len(found) == 4
    for problem, word in zip(
        found, ["modprobe nf_tables", "05-cilium.conflist", "--kubeconfig", "failCgroupV1: false"], strict=True
    ):
        assert word in problem
    assert plan.checks(wanted(take_over=True), plan.Facts(configurations=("05-cilium.conflist",)), True) == []


_NAMES = st.sampled_from([f"PODWIRE_{n}" for n in ("UPLINK", "SET", "ROLE", "KUBECONFIG", "NODE_NAME")])
_VALUES = st.text(
    st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="$`"), min_size=1, max_size=20
)


@given(st.lists(st.dictionaries(_NAMES, _VALUES | st.just(""), max_size=4), max_size=5))
def test_settings_after_any_installs_are_the_last_that_were_given(calls: list[dict[str, str]]) -> None:
    text, expected = "", dict[str, str]()
    for call in calls:
        text = plan.merged_settings(text, call, {"PODWIRE_RUN_DIR": "/run/podwire"})
        expected = {name: value for name, value in {**expected, **call}.items() if value}
    assert plan.read_settings(text) == ({**expected, "PODWIRE_RUN_DIR": "/run/podwire"} if calls else {})
    assert plan.merged_settings(text, {}, {}) == text or not calls
    shell = subprocess.run(["sh", "-c", 'set -a; eval "$0"; env -0', text], capture_output=True, check=True).stdout
    for name, value in expected.items():
        assert f"{name}={value}".encode() in shell.split(b"\0"), "a shell reads the same values"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "control-plane"], "--listen"),
        (["--setting", "X"], "PODWIRE_NAME=VALUE"),
        (["--setting", "X=1"], "PODWIRE_NAME"),
        (["--program", "podwire"], "absolute"),
        (["--cni-bin-dir", "/a/../b"], "absolute"),
        (["--only", "all"], "--only"),
        (["--address", "10.0.0.7x"], "--address: '10.0.0.7x'"),
        (["--setting", "PODWIRE_CLUSTER_CIRD=10.0.0.0/8"], "CLUSTER_CIRD"),
        (["--setting", "PODWIRE_ROLE=wiring prox"], "prox"),
        (["--setting", "PODWIRE_SET=wirng.mtu=1400"], "wirng.mtu=1400"),
        (["--setting", "PODWIRE_LOG_JSON=perhaps"], "PODWIRE_LOG_JSON"),
        (["--pods"], "--address"),
    ],
)
def test_what_cannot_be_is_said(tmp_path: Path, words: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, ["install", "--root", str(tmp_path), *words])
    assert done.exit_code and says in done.output and tree(tmp_path) == {}


def test_a_setting_that_was_there_and_cannot_be_is_warned_of(tmp_path: Path) -> None:
    """An administrator's own invalid line stays, and the warning says how to fix it."""
    (tmp_path / "etc/podwire").mkdir(parents=True)
    (tmp_path / "etc/podwire/agent.env").write_text("PODWIRE_DNS_ADDRESS=10.96.0\nHTTP_PROXY=http://192.0.2.1\n")
    words = ["install", "--root", str(tmp_path), "--kubeconfig", "/k"]
    done = CliRunner().invoke(cli, words)
    assert (
        done.exit_code == 0
        and "--dns-address: '10.96.0' is not an IP address (in /etc/podwire/agent.env)" in done.output
    )
    done = CliRunner().invoke(cli, [*words, "--setting", "PODWIRE_DNS_ADDRESS=10.96.0.10"])
    assert done.exit_code == 0 and "not an IP address" not in done.output
    for more in (["--address", "192.0.2.7"], ["--pods"]):  # the second run needs the files of the first
        done = CliRunner().invoke(cli, [*words, *more])
        assert done.exit_code == 0, done.output


def test_every_setting_of_the_agent_can_be_given(tmp_path: Path) -> None:
    values = {
        "PODWIRE_ROLE": "wiring dns",
        "PODWIRE_LEAVE_ROLE": "dns",
        "PODWIRE_SET": "dns.ttl=3 wiring.mtu=1400",
        "PODWIRE_PODS": "false",
        "PODWIRE_LOG_FILES": "no",
        "PODWIRE_HOST_MANAGERS": "false",
        "PODWIRE_LOG_JSON": "1",
        "PODWIRE_WATCHDOG": "off",
        "PODWIRE_ADDRESS": "192.0.2.7",
        "PODWIRE_DNS_ADDRESS": "fd00::a",
    }
    flags = [o.envvar for o in agent.params if isinstance(o, click.Option) and o.envvar]
    names = [flag if isinstance(flag, str) else flag[-1] for flag in flags]
    assert set(values) < set(names) and len(names) > 15
    words = [word for name in names for word in ("--setting", f"{name}={values.get(name, '/some-text')}")]
    done = CliRunner().invoke(cli, ["install", "--root", str(tmp_path), *words])
    assert done.exit_code == 0, done.output
    assert set(plan.read_settings((tmp_path / "etc/podwire/agent.env").read_text())) >= set(names)


def test_the_command(tmp_path: Path) -> None:
    words = [
        "install",
        "--root",
        str(tmp_path),
        "--kubeconfig",
        "/etc/kubernetes/kubelet.conf",
        "--role",
        "proxy",
        "--address",
        "192.0.2.7",
        "--setting",
        "PODWIRE_SET=dns.ttl=3 proxy.masquerade_all=true",
    ]
    runner = CliRunner()
    dry = runner.invoke(cli, [*words, "--dry-run"])
    assert dry.exit_code == 0 and "write /opt/cni/bin/podwire-cni" in dry.output and tree(tmp_path) == {}
    done = runner.invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "there is no /etc/kubernetes/kubelet.conf yet" in done.output
    assert (tmp_path / "opt/cni/bin/podwire-cni").read_bytes() == native.client_path().read_bytes()
    env = plan.read_settings((tmp_path / "etc/podwire/agent.env").read_text())
    assert env["PODWIRE_ROLE"] == "proxy" and env["PODWIRE_SET"] == "dns.ttl=3 proxy.masquerade_all=true"
    assert "installed already" in runner.invoke(cli, words).output
    gone = runner.invoke(cli, ["uninstall", "--root", str(tmp_path), "--purge"])
    assert gone.exit_code == 0 and tree(tmp_path) == {}
    assert "nothing of podwire" in runner.invoke(cli, ["uninstall", "--root", str(tmp_path), "--purge"]).output

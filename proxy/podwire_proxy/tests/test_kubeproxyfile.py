"""KubeProxyConfigurations as people have them: every form that kube-proxy's defaulting accepts, and its defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from podwire_base.kube.errors import ConfigError
from podwire_proxy import backends, host, kubeproxyfile, main, offline
from podwire_proxy.config import CONNTRACK, ProxyConfig, check, wanted_flows
from podwire_proxy.hostfacts import HostFacts, findings

HEAD = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
CLOSE_WAIT, ESTABLISHED = "nf_conntrack_tcp_timeout_close_wait", "nf_conntrack_tcp_timeout_established"


def read(tmp_path: Path, content: dict[str, Any] | str, **flags: Any) -> ProxyConfig:
    """A file as the role reads it, with the flags of the command line."""
    file = tmp_path / "config.conf"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump({**HEAD, **content}))
    made = offline.configured(file, {"node_name": "n1", "run_dir": tmp_path, **flags})
    backends.check(made)
    return made


@pytest.mark.parametrize(
    ("text", "metrics", "healthz"),
    [
        ("0.0.0.0", "0.0.0.0:10249", "0.0.0.0:10256"),
        ("127.0.0.1", "127.0.0.1:10249", "127.0.0.1:10256"),
        ("010.0.0.1", "10.0.0.1:10249", "10.0.0.1:10256"),
        ("::", "[::]:10249", "[::]:10256"),
        ("::1", "[::1]:10249", "[::1]:10256"),
        ("[::]", "[::]:10249", "[::]:10256"),
        ("fd00:0::1", "[fd00::1]:10249", "[fd00::1]:10256"),
        ("0.0.0.0:9999", "0.0.0.0:9999", "0.0.0.0:9999"),
        ("[::]:9999", "[::]:9999", "[::]:9999"),
    ],
)
def test_addresses_without_a_port_get_kube_proxys(tmp_path: Path, text: str, metrics: str, healthz: str) -> None:
    made = read(tmp_path, {"metricsBindAddress": text, "healthzBindAddress": text})
    assert (made.metrics_address, made.healthz_address) == (metrics, healthz)
    flags = read(tmp_path, {}, metrics_address=text, healthz_address=text)
    assert (flags.metrics_address, flags.healthz_address) == (metrics, healthz)


@pytest.mark.parametrize("text", ["0.0.0.0.0", "10249", "[::", "0.0.0.0:http", "0.0.0.0:70000"])
def test_an_address_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^metrics_address: "):
        read(tmp_path, {"metricsBindAddress": text})


@pytest.mark.parametrize(
    ("bind", "healthz", "metrics"),
    [
        (None, "0.0.0.0:10256", "127.0.0.1:10249"),
        ("", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("192.0.2.1", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("::", "[::]:10256", "[::1]:10249"),
    ],
)
def test_where_the_file_is_silent_the_pages_are_kube_proxys(
    tmp_path: Path, bind: Any, healthz: str, metrics: str
) -> None:
    made = read(tmp_path, {"bindAddress": bind})
    assert (made.healthz_address, made.metrics_address) == (healthz, metrics)


@pytest.mark.parametrize(
    ("section", "settings", "flows"),
    [
        (None, dict(CONNTRACK), 131072),
        ({}, dict(CONNTRACK), 131072),
        (dict.fromkeys(("maxPerCore", "min", "tcpCloseWaitTimeout", "tcpEstablishedTimeout")), dict(CONNTRACK), 131072),
        ({"tcpCloseWaitTimeout": "30m"}, {ESTABLISHED: 86400, CLOSE_WAIT: 1800}, 131072),
        (
            {"tcpEstablishedTimeout": "2h45m", "tcpCloseWaitTimeout": None},
            {ESTABLISHED: 9900, CLOSE_WAIT: 3600},
            131072,
        ),
        ({"tcpCloseWaitTimeout": "0s"}, {ESTABLISHED: 86400}, 131072),
        ({"tcpCloseWaitTimeout": 0, "tcpEstablishedTimeout": "0"}, {}, 131072),
        ({"tcpCloseWaitTimeout": "300ms"}, {ESTABLISHED: 86400, CLOSE_WAIT: 1}, 131072),
        ({"udpTimeout": "30s", "udpStreamTimeout": "0s"}, {**dict(CONNTRACK), "nf_conntrack_udp_timeout": 30}, 131072),
        ({"tcpBeLiberal": True}, {**dict(CONNTRACK), "nf_conntrack_tcp_be_liberal": 1}, 131072),
        ({"maxPerCore": 0}, dict(CONNTRACK), 0),
        ({"min": 0}, dict(CONNTRACK), 65536),
        ({"maxPerCore": 100000}, dict(CONNTRACK), 200000),
    ],
)
def test_conntracks_defaults_and_zeros(tmp_path: Path, section: Any, settings: dict[str, int], flows: int) -> None:
    """Null is the default, a zero leaves the kernel's value: kube-proxy's fields are pointers."""
    made = read(tmp_path, {"conntrack": section} if section is not None else {})
    assert dict(made.conntrack) == settings
    assert wanted_flows(made, 2) == flows
    again = read(tmp_path, kubeproxyfile.write(made))
    assert dict(again.conntrack) == settings, "/configz is itself such a file"
    assert wanted_flows(again, 2) == flows


def test_the_defaults_hold_without_a_file() -> None:
    made = ProxyConfig("n1", None, Path("/nowhere"))
    assert dict(made.conntrack) == {ESTABLISHED: 86400, CLOSE_WAIT: 3600}
    assert (made.conntrack_max_per_core, made.conntrack_min) == (32768, 131072)


def test_other_defaults(tmp_path: Path) -> None:
    """Of SetDefaults_KubeProxyConfiguration: what else podwire has a counterpart for."""
    made = read(tmp_path, {})
    assert made.oom_score_adj == -999
    assert made.healthz_timeout == 2 * 30
    assert made.node_port_addresses == ("primary",)
    assert not made.bind_hard_fail
    assert read(tmp_path, {"oomScoreAdj": 0}).oom_score_adj == 0
    assert read(tmp_path, {"oomScoreAdj": -5, "bindAddressHardFail": True}).bind_hard_fail
    with pytest.raises(ConfigError, match="oom_score_adj"):
        read(tmp_path, {"oomScoreAdj": -2000})


def test_a_node_without_a_name_has_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Worker-1 ")
    assert read(tmp_path, {}, node_name=None).node_name == "worker-1"
    assert read(tmp_path, {"hostnameOverride": "other"}, node_name=None).node_name == "other"
    assert read(tmp_path, {"hostnameOverride": "other"}).node_name == "n1", "flags override the file"


def test_flags_take_the_same_forms() -> None:
    seen: list[ProxyConfig] = []
    words = ["--node-name", "n1", "--metrics-address", "0.0.0.0", "--healthz-address", "::"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "run", seen.append)
        done = CliRunner().invoke(main.command, words)
    assert done.exit_code == 0, done.output
    assert (seen[0].metrics_address, seen[0].healthz_address) == ("0.0.0.0:10249", "[::]:10256")


# ---- what is written


def settings(tmp_path: Path, **values: int) -> Path:
    for name, value in values.items():
        (tmp_path / name).write_text(f"{value}\n")
    return tmp_path


WANTED = {CLOSE_WAIT: 3600}


def test_what_differs_is_written_and_the_table_only_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "in_the_machines_namespace", lambda: True)
    root = settings(tmp_path, **{CLOSE_WAIT: 60, "nf_conntrack_max": 1000, "nf_conntrack_buckets": 10})
    made = host.ConntrackSettings(WANTED, 2000, root=root)
    made.apply()
    assert [int((root / name).read_text()) for name in (CLOSE_WAIT, "nf_conntrack_max", "nf_conntrack_buckets")] == [
        3600,
        2000,
        500,
    ]
    assert not made.refused
    host.ConntrackSettings(WANTED, 500, root=root).apply()
    assert int((root / "nf_conntrack_max").read_text()) == 2000


@pytest.mark.parametrize(("same", "table"), [(False, True), (True, False)])
def test_the_machines_table_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool, table: bool
) -> None:
    monkeypatch.setattr(host, "in_the_machines_namespace", lambda: same)
    root = settings(tmp_path, **{CLOSE_WAIT: 60, "nf_conntrack_max": 1000, "nf_conntrack_buckets": 10})
    host.ConntrackSettings(WANTED, 2000, table, root=root).apply()
    assert int((root / "nf_conntrack_max").read_text()) == 1000
    assert int((root / "nf_conntrack_buckets").read_text()) == 10
    assert int((root / CLOSE_WAIT).read_text()) == 3600, "a timeout is the namespace's own"


def test_what_is_not_allowed_is_told_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only /proc, or a module that is not loaded yet."""
    monkeypatch.setattr(host, "in_the_machines_namespace", lambda: True)
    made = host.ConntrackSettings(WANTED, 2000, root=tmp_path)
    made.apply()
    assert list(made.refused) == [CLOSE_WAIT]
    refused = tuple((name, made.wanted[name], why) for name, why in made.refused.items())
    (line,) = findings(HostFacts(conntrack_refused=refused))
    assert f"{CLOSE_WAIT} cannot be set to 3600: No such file" in line
    settings(tmp_path, **{CLOSE_WAIT: 60})
    made.apply()
    assert not made.refused


def test_a_configs_addresses_are_checked(tmp_path: Path) -> None:
    base = ProxyConfig("n1", None, tmp_path)
    check(replace(base, metrics_address="0.0.0.0"))
    with pytest.raises(ConfigError, match="healthz_address"):
        check(replace(base, healthz_address="10256"))

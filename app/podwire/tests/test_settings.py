"""An agent's settings: flags, variables, files, and single fields of the roles' Configs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from click.testing import CliRunner

from podwire import agent, settings
from podwire.main import cli
from podwire.settings import BadSetting
from podwire_cni.agent import WiringConfig
from podwire_dns.config import DnsConfig
from podwire_dns.sources import Sources
from podwire_policy.config import PolicyConfig
from podwire_proxy.config import ProxyConfig


@dataclass(frozen=True)
class Some:
    text: str = "a"
    number: int = 1
    share: float = 0.5
    on: bool = False
    many: tuple[str, ...] = ()
    where: Path | None = None
    one: Literal["auto", "never"] = "auto"
    odd: tuple[tuple[str, int], ...] = ()


def _set(*texts: str) -> Some:
    return settings.override(Some(), "proxy", settings.assignments(texts))


def test_fields_are_read_as_their_type_says() -> None:
    assert _set(
        "proxy.text=x=y",
        "proxy.number=-3",
        "proxy.share=2",
        "proxy.on=Yes",
        "proxy.many=a,b",
        "proxy.where=/x",
        "proxy.one=never",
        "dns.text=not ours",
    ) == Some("x=y", -3, 2.0, True, ("a", "b"), Path("/x"), "never")
    assert _set("proxy.where=").where is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("proxy.number=x", "is not a number"),
        ("proxy.on=perhaps", "neither true nor false"),
        ("proxy.nothing=1", "fields are"),
        ("proxy.odd=a", "cannot be set"),
        ("proxy.one=x", "auto, never"),
        ("number=1", "ROLE.FIELD=VALUE"),
        ("node.text=1", "wiring, proxy, dns"),
        ("proxy.number", "ROLE.FIELD=VALUE"),
    ],
)
def test_what_cannot_be_set_is_said(text: str, says: str) -> None:
    with pytest.raises(BadSetting, match=says):
        _set(text)


def test_roles_and_resolvers() -> None:
    assert settings.chosen(("dns", "wiring", "dns")) == ("wiring", "dns")
    for bad in ((), ("proxy", "kubelet")):
        with pytest.raises(BadSetting):
            settings.chosen(bad)
    text = (
        "# nameserver 9.9.9.9\nsearch a b\nnameserver 192.0.2.1\nnameserver 10.96.0.10\n"
        "nameserver\nnameserver 192.0.2.1\n"
    )
    assert settings.nameservers(text, ["10.96.0.10"]) == ("192.0.2.1",)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> str:
    path = tmp_path / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": "http://192.0.2.1"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {}}],
            }
        )
    )
    return str(path)


def check(kubeconfig: str, *words: str, **env: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        cli, ["agent", "--check", "--node-name", "n1", *words], env={"PODWIRE_KUBECONFIG": kubeconfig, **env}
    )
    return done.exit_code, done.output


def test_variables_are_flags_and_flags_win(kubeconfig: str) -> None:
    code, text = check(
        kubeconfig,
        "--role",
        "proxy",
        PODWIRE_ROLE="dns wiring",
        PODWIRE_CLUSTER_CIDR="10.1.0.0/16 fd00::/56",
        PODWIRE_PODS="false",
        PODWIRE_RUN_DIR="/run/elsewhere",
        PODWIRE_UPSTREAM_DNS="",
    )
    assert code == 0 and "roles: ('proxy',)" in text and "('10.1.0.0/16', 'fd00::/56')" in text
    assert "pods: False" in text and "/run/elsewhere" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--address", "here"], "--address"),
        (["--pods"], "--address"),
        (["--dns-address", "x"], "--dns-address"),
        (["--role", "kubelet"], "role"),
        (["--leave-role", "kubelet"], "role"),
        (["--role", "dns", "--leave-role", "dns"], "--leave-role: no role of --role is left"),
        (["--set", "proxy.backend=magic"], "backend"),
        (["--set", "dns.ttl=x"], "dns.ttl"),
        (["--service-cidr", "x"], "service_cidrs"),
        (["--proxy-config", "/nowhere"], "/nowhere"),
        (["--corefile", "/nowhere"], "nowhere"),
        (["--upstream-dns", "10.96.0.10"], "this DNS itself"),
        (["--kubeconfig", "/nowhere"], "--kubeconfig: /nowhere"),
        (["--api-servers", "nonsense"], "https://HOST:PORT"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_touched(
    kubeconfig: str, words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PODWIRE_API_SERVERS", "")  # --api-servers sets it for the roles; this restores it
    code, text = check(kubeconfig, *words)
    assert code == 1 and says in " ".join(text.split()), text


def _config(tmp_path: Path, **more: Any) -> agent.AgentConfig:
    return agent.AgentConfig(
        "n1", None, tmp_path, "", cluster_cidrs=("10.9.0.0/16",), service_cidrs=("10.8.0.0/16",), uplink="lo", **more
    )


def test_the_roles_get_what_was_said(tmp_path: Path) -> None:
    (tmp_path / "proxy.conf").write_text(
        "kind: KubeProxyConfiguration\napiVersion: kubeproxy.config.k8s.io/v1alpha1\n"
        "healthzBindAddress: 0.0.0.0:10256\n"
    )
    (tmp_path / "Corefile").write_text(".:53 {\n kubernetes cluster.local {\n ttl 17\n }\n forward . 192.0.2.53\n}\n")
    sets = settings.assignments(["proxy.masquerade_all=true", "dns.lame_duck=3", "wiring.mtu=1400"])
    config = _config(
        tmp_path,
        proxy_config=tmp_path / "proxy.conf",
        corefile=tmp_path / "Corefile",
        sets=sets,
        conf_dir=Path("/etc/cni/net.d"),
    )
    proxy, dns, wiring = agent.proxy_config(config), agent.dns_config(config), agent.wiring_config(config)
    assert isinstance(proxy, ProxyConfig) and isinstance(dns, DnsConfig) and isinstance(wiring, WiringConfig)
    assert proxy.healthz_address == "0.0.0.0:10256" and proxy.masquerade_all
    assert (proxy.cluster_cidrs, proxy.service_cidrs) == (("10.9.0.0/16",), ("10.8.0.0/16",))
    served = Sources(dns).load()
    assert served.ttl == 17 and served.lame_duck == 3 and served.forwards[0].upstreams == ("192.0.2.53",)
    assert (
        wiring.mtu == 1400 and wiring.conflist == Path("/etc/cni/net.d/10-podwire.conflist") and wiring.uplink == "lo"
    )
    (tmp_path / "proxy.conf").write_text("clusterCIDR: 10.7.0.0/16\n" + (tmp_path / "proxy.conf").read_text())
    again = agent.proxy_config(config)
    assert isinstance(again, ProxyConfig) and again.cluster_cidrs == ("10.7.0.0/16",), "the file's, where it says them"


def test_tunnels_keep_other_sources_where_the_proxy_does(tmp_path: Path) -> None:
    def sources(*sets: str, **more: Any) -> object:
        made = agent.wiring_config(_config(tmp_path, sets=settings.assignments(sets), **more))
        assert isinstance(made, WiringConfig)
        return made.tunnel_sources

    assert sources() == sources("proxy.masquerade_all=true") == sources("proxy.detect_local=NodeCIDR") == "cluster"
    assert sources("proxy.cluster_cidrs=") == "any"
    assert sources("proxy.cluster_cidrs=", roles=("wiring",)) == "cluster"
    assert sources("proxy.cluster_cidrs=", "proxy.detect_local=NodeCIDR") == "cluster"
    assert sources("wiring.tunnel_sources=any") == "any"
    assert sources("proxy.cluster_cidrs=", "wiring.tunnel_sources=cluster") == "cluster"


def test_what_a_role_itself_refuses_is_told_as_a_setting(tmp_path: Path) -> None:
    config = _config(tmp_path, sets=settings.assignments(["wiring.mtu=12"]))
    with pytest.raises(BadSetting, match=r"^set: wiring\.mtu: 12 is neither 0 nor from 68"):
        agent.wiring_config(config)


@pytest.mark.parametrize(("text", "cuts"), [("policy.cut_flows=false", False), ("wiring.mtu=1400", True)])
def test_open_flows_may_go_on_under_policies(tmp_path: Path, text: str, cuts: bool) -> None:
    made = agent.policy_config(_config(tmp_path, sets=settings.assignments([text])))
    assert isinstance(made, PolicyConfig) and made.cut_flows is cuts


def test_a_field_that_the_policy_role_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"policy\.cut"):
        agent.policy_config(_config(tmp_path, sets=settings.assignments(["policy.cut=false"])))


def test_roles_that_are_not_chosen_do_not_run(tmp_path: Path) -> None:
    def names(**more: object) -> list[str]:
        return [role.name for role in agent.roles(_config(tmp_path, **more))]

    assert names() == ["policy", "wiring", "proxy", "dns-feeder", "dns", "lb", "observe", "node"]
    assert names(roles=("dns",), pods=False) == ["dns-feeder", "dns", "status"]
    assert "observe" not in names(sets=(("observe", "mode", "off"),))
    assert [role.log for role in agent.roles(_config(tmp_path, log_files=False))] == [None] * 8


def test_two_agents_share_the_roles_of_a_node(kubeconfig: str, tmp_path: Path) -> None:
    """What roles said before in the run directory of an agent that leaves them to another one goes: it would stay for
    ever, and look like a role that hangs.
    """
    for leave, mine in (
        ("dns lb", "('wiring', 'proxy')"),
        ("wiring proxy", "('dns',)"),
        ("", "('wiring', 'proxy', 'dns')"),
    ):
        code, text = check(kubeconfig, PODWIRE_ROLE="wiring proxy dns", PODWIRE_LEAVE_ROLE=leave)
        assert code == 0 and f"roles: {mine}" in text
    status = tmp_path / "status"
    status.mkdir()
    for name in ("wiring", "proxy", "dns", "dns-feeder", "lb"):
        for kind in ("json", "beat"):
            (status / f"{name}.{kind}").touch()
    agent.forget(_config(tmp_path, roles=("wiring", "proxy"), left=("dns", "lb")))
    assert sorted(p.name for p in status.iterdir()) == ["proxy.beat", "proxy.json", "wiring.beat", "wiring.json"]

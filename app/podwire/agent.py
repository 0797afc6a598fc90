"""`podwire agent`: one supervisor for a node's roles. This module composes the roles, so it imports all packages."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from podwire_base.role import beat, layout, logs
from podwire_base.role.supervisor import Role, Supervisor
from podwire_node.cri.daemonconfig import CriConfig
from podwire_node.podspec import NodeDns

from .settings import JOINED, ROLES, nameservers, override

LINGER_SECONDS = 15.0  # for which names are answered without an agent, as when another version takes its place


@dataclass(frozen=True)
class AgentConfig:
    """The settings of one node. pods: also run the node agent that makes pods (off if a kubelet does).

    roles: a selection of "policy" (always there with pods), "wiring", "proxy", "dns" (feeder and server) and "lb".
    log_files: write each role's log to <run_dir>/log; otherwise all logs go to stderr, for journald or the container's
    log. uplink: "" selects the link that has `address`, or else the link of the default route. conf_dir: the directory
    in which container runtimes look for the conflist. corefile, proxy_config: a CoreDNS Corefile and a
    KubeProxyConfiguration with settings. sets: values for single fields of the roles' Configs (settings.py); they
    override all other settings. no_pods: network namespaces that are no pod's: the machine's, and those of other nodes;
    a directory stands for its files. more_addresses: further InternalIPs of the node (with pods). left: roles that
    another agent of the node runs, with another run_dir. pod_name: the name of the agent's own pod. cri_data: the
    node's directory on disk, where containerd runs the pods; None: the netns runtime. cri_cgroup: of these pods.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    address: str
    cluster_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    service_cidrs: tuple[str, ...] = ("10.96.0.0/16",)
    dns_address: str = "10.96.0.10"
    cluster_domain: str = "cluster.local"
    upstream_dns: tuple[str, ...] = ()
    uplink: str = "eth0"
    pods: bool = True
    netns: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    node_cidrs: tuple[str, ...] = ()
    roles: tuple[str, ...] = ROLES
    log_files: bool = True
    conf_dir: Path | None = None
    host_managers: bool = True
    corefile: Path | None = None
    proxy_config: Path | None = None
    sets: tuple[tuple[str, str, str], ...] = ()
    no_pods: tuple[str, ...] = ()
    more_addresses: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    pod_name: str = ""
    cri_data: Path | None = None
    cri_cgroup: str = ""


def dns_config(config: AgentConfig) -> object:
    from podwire_dns.config import DnsConfig

    made = DnsConfig(
        config.node_name,
        config.kubeconfig,
        config.run_dir,
        listen=(config.dns_address,),
        cluster_domain=config.cluster_domain,
        upstreams=config.upstream_dns,
        pod_cidrs=config.cluster_cidrs,
        service_cidrs=config.service_cidrs,
        corefile=str(config.corefile or ""),
        linger=LINGER_SECONDS,
    )
    return override(made, "dns", config.sets)


def wiring_config(config: AgentConfig) -> object:
    from podwire_cni.agent import WiringConfig

    return override(
        WiringConfig(
            config.node_name,
            config.kubeconfig,
            config.run_dir,
            cluster_cidrs=config.cluster_cidrs,
            uplink=config.uplink or find_uplink(config.address),
            conf_dir=config.conf_dir,
            host_managers=config.host_managers,
            tunnel_sources="cluster" if detects_pods(config) else "any",
            no_pods=config.no_pods,
        ),
        "wiring",
        config.sets,
    )


def detects_pods(config: AgentConfig) -> bool:
    """Return whether the Service proxy tells pods from other machines. If it does not, it keeps the sources of other
    machines on the way to pods of other nodes.
    """
    given = config.proxy_config is not None or any(role == "proxy" for role, _, _ in config.sets)
    if "proxy" not in config.roles or not given:  # the defaults detect; do not import the proxy for them
        return "proxy" not in config.roles or bool(config.cluster_cidrs)
    made: Any = proxy_config(config)
    return made.detect_local != "ClusterCIDR" or bool(made.cluster_cidrs)


def proxy_config(config: AgentConfig) -> object:
    from podwire_proxy.config import ProxyConfig
    from podwire_proxy.offline import configured

    made = ProxyConfig(
        config.node_name,
        config.kubeconfig,
        config.run_dir,
        cluster_cidrs=config.cluster_cidrs,
        service_cidrs=config.service_cidrs,
        node_cidrs=config.node_cidrs,
    )
    if config.proxy_config is not None:
        given: dict[str, object] = {
            "node_name": config.node_name,
            "kubeconfig": config.kubeconfig,
            "run_dir": config.run_dir,
            "service_cidrs": config.service_cidrs,
            "node_cidrs": config.node_cidrs,
        }
        if not configured(config.proxy_config, given).cluster_cidrs:  # the file's clusterCIDR has priority
            given["cluster_cidrs"] = config.cluster_cidrs
        made = replace(configured(config.proxy_config, given), kubeconfig=config.kubeconfig)  # not kube-proxy's
    return override(made, "proxy", config.sets)


def lb_config(config: AgentConfig) -> object:
    from podwire_proxy.l2.announcer import LbConfig

    return override(
        LbConfig(config.node_name, config.kubeconfig, config.run_dir, config.uplink or find_uplink(config.address)),
        "lb",
        config.sets,
    )


def find_uplink(address: str) -> str:
    """Return the link in this network namespace that has `address`, else the link of the default route, else "eth0"."""
    from podwire_base.kernel.addresses import uplink

    return uplink(address) or "eth0"


def _wiring(config: AgentConfig) -> None:
    from podwire_cni.agent import run

    run(wiring_config(config))  # type: ignore[arg-type]  # kept as object so that the import stays inside


def _proxy(config: AgentConfig) -> None:
    from podwire_proxy.main import run

    run(proxy_config(config))  # type: ignore[arg-type]  # as above


def _lb(config: AgentConfig) -> None:
    from podwire_proxy.l2.announcer import run

    run(lb_config(config))  # type: ignore[arg-type]  # as above


def _dns_feeder(config: AgentConfig) -> None:
    from podwire_dns.feeder import run

    run(dns_config(config))  # type: ignore[arg-type]  # as above


def _dns_server(config: AgentConfig) -> None:
    from podwire_dns.role import run

    run(dns_config(config))  # type: ignore[arg-type]  # as above


def policy_config(config: AgentConfig) -> object:
    from podwire_policy.config import PolicyConfig

    made = PolicyConfig(
        config.node_name, config.kubeconfig, config.run_dir, foreign="wiring" not in (*config.roles, *config.left)
    )
    return override(made, "policy", config.sets)


def _policy(config: AgentConfig) -> None:
    from podwire_policy.main import run

    run(policy_config(config))  # type: ignore[arg-type]  # kept as object so that the import stays inside


def observe_config(config: AgentConfig) -> object:
    from podwire_observe.config import ObserveConfig

    made = ObserveConfig(
        config.node_name,
        config.kubeconfig,
        config.run_dir,
        cluster_cidrs=config.cluster_cidrs,
        service_cidrs=config.service_cidrs,
    )
    return override(made, "observe", config.sets)


def _observes(config: AgentConfig) -> bool:
    """Whether the node tells who talks to whom."""
    return config.pods and ("observe", "mode", "off") not in config.sets


def _observe(config: AgentConfig) -> None:
    from podwire_observe.main import run

    run(observe_config(config))  # type: ignore[arg-type]  # kept as object so that the import stays inside


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _node(config: AgentConfig) -> None:
    from podwire_cni.native import cni_bin_dir, pause_command
    from podwire_node.kubelet import NodeConfig, run

    servers = [
        server
        for text in config.upstream_dns
        for server in (nameservers(_text(text), [config.dns_address]) if text.startswith("/") else (text,))
    ]
    run(
        NodeConfig(
            config.node_name,
            config.kubeconfig,
            config.run_dir,
            config.address,
            NodeDns((config.dns_address,), config.cluster_domain, tuple(servers)),
            cni_bin_dir(),
            tuple(pause_command()),
            config.labels,
            config.more_addresses,
            _cri(config),
        )
    )


def _cri(config: AgentConfig) -> CriConfig | None:
    if config.cri_data is None:
        return None
    from podwire_cni import native, pauseimage

    program = Path(native.pause_command()[0]).read_bytes()
    return CriConfig(config.cri_data, config.cri_cgroup, pauseimage.build(program, os.uname().machine))


def _identity(config: AgentConfig) -> None:
    from .renewal import IdentityConfig, run

    run(IdentityConfig(config.node_name, str(config.kubeconfig), config.run_dir))


def _status(config: AgentConfig) -> None:
    import socket

    from podwire_base.role.reporter import ReporterConfig, run

    holder = config.pod_name or f"the agent on {socket.gethostname()}"
    run(ReporterConfig(config.node_name, config.kubeconfig, config.run_dir, holder))


# role, the name of its process, its work; in the order in which they start
_TABLE: tuple[tuple[str, str, Callable[[AgentConfig], None]], ...] = (
    ("policy", "policy", _policy),  # before wiring, whose ADDs ask it
    ("wiring", "wiring", _wiring),
    ("proxy", "proxy", _proxy),
    ("dns", "dns-feeder", _dns_feeder),
    ("dns", "dns", _dns_server),
    ("lb", "lb", _lb),
)


def roles(config: AgentConfig) -> list[Role]:
    """Return the node's roles, in the order in which they start."""
    chosen = {*config.roles, *(["policy"] if config.pods else [])}
    rows = [(name, work) for role, name, work in _TABLE if role in chosen]
    if config.pods:
        if _observes(config):
            rows.append(("observe", _observe))
        rows.append(("node", _node))  # it publishes the state of the roles as conditions of its Node
    elif "wiring" not in config.left:  # else the other agent tells of this one's roles too
        rows.append(("status", _status))
    if config.kubeconfig is not None and JOINED in _text(config.kubeconfig):
        rows.append(("identity", _identity))
    return [
        Role(
            name,
            partial(work, config),
            config.run_dir / "log" / f"{name}.log" if config.log_files else None,
            title=(name, config.node_name),
            beat=beat.path_of(config.run_dir, name),
        )
        for name, work in rows
    ]


def check(config: AgentConfig) -> None:
    """Check the settings of every role without any change to the node. Raises BadSetting, BadConfig, ConfigError or
    OSError.
    """
    from podwire_dns.config import DnsConfig
    from podwire_dns.sources import Sources
    from podwire_proxy.backends import check as check_proxy
    from podwire_proxy.config import ProxyConfig

    layout.check(config.run_dir)
    if "wiring" in config.roles:
        wiring_config(config)
    if "proxy" in config.roles:
        made = proxy_config(config)
        assert isinstance(made, ProxyConfig)
        check_proxy(made)
    if "lb" in config.roles:
        lb_config(config)
    if config.pods or "policy" in config.roles:
        policy_config(config)
    if config.pods:
        observe_config(config)
    if "dns" in config.roles:
        dns = dns_config(config)
        assert isinstance(dns, DnsConfig)
        Sources(dns).load()


def forget(config: AgentConfig) -> None:
    """Remove what roles said in this run directory that another agent runs now: nobody would renew it."""
    for name in (name for role, name, _ in _TABLE if role in config.left):
        for path in (config.run_dir / "status" / f"{name}.json", beat.path_of(config.run_dir, name)):
            path.unlink(missing_ok=True)


def run(config: AgentConfig) -> None:
    """Run the roles until SIGTERM. The caller's process is already in the node's network namespace."""
    logs.configure(node=config.node_name)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    beat.ensure(beat.path_of(config.run_dir, "agent"))
    forget(config)
    Supervisor(roles(config), config.run_dir / "agent.json").run()

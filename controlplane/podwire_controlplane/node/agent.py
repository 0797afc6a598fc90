"""`podwire agent`: one supervisor for a node's roles. A composition root: it knows all packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..client import logs
from .podspec import NodeDns
from .supervisor import Role, Supervisor


@dataclass(frozen=True)
class AgentConfig:
    """Everything about one node. pods: also run the node agent that makes pods (off where a kubelet does)."""

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


def _dns_config(config: AgentConfig) -> object:
    from podwire_dns.config import DnsConfig

    return DnsConfig(config.node_name, config.kubeconfig, config.run_dir, listen=(config.dns_address,),
                     cluster_domain=config.cluster_domain, upstreams=config.upstream_dns, pod_cidrs=config.cluster_cidrs,
                     service_cidrs=config.service_cidrs)


def _wiring(config: AgentConfig) -> None:
    from podwire_cni.agent import WiringConfig, run

    run(WiringConfig(config.node_name, config.kubeconfig, config.run_dir, cluster_cidrs=config.cluster_cidrs,
                     uplink=config.uplink))


def _proxy(config: AgentConfig) -> None:
    from podwire_proxy.main import ProxyConfig, run

    run(ProxyConfig(config.node_name, config.kubeconfig, config.run_dir, cluster_cidrs=config.cluster_cidrs,
                    service_cidrs=config.service_cidrs, node_cidrs=config.node_cidrs))


def _dns_feeder(config: AgentConfig) -> None:
    from podwire_dns.feeder import run

    run(_dns_config(config))  # type: ignore[arg-type]  # kept as object so that the import stays inside


def _dns_server(config: AgentConfig) -> None:
    from podwire_dns.server import run

    run(_dns_config(config))  # type: ignore[arg-type]  # as above


def _node(config: AgentConfig) -> None:
    from podwire_cni.native import cni_bin_dir, pause_command

    from .kubelet import NodeConfig, run

    run(NodeConfig(config.node_name, config.kubeconfig, config.run_dir, config.address,
                   NodeDns((config.dns_address,), config.cluster_domain, config.upstream_dns), cni_bin_dir(),
                   tuple(pause_command()), config.labels))


def roles(config: AgentConfig) -> list[Role]:
    """The node's roles, in the order of their start."""
    table: list[tuple[str, Callable[[AgentConfig], None]]] = [
        ("wiring", _wiring), ("proxy", _proxy), ("dns-feeder", _dns_feeder), ("dns", _dns_server)]
    if config.pods:
        table.append(("node", _node))
    return [Role(name, partial(work, config), config.run_dir / "log" / f"{name}.log") for name, work in table]


def run(config: AgentConfig) -> None:
    """Until SIGTERM. Must already run in the node's network namespace."""
    logs.configure(node=config.node_name)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    Supervisor(roles(config), config.run_dir / "agent.json").run()

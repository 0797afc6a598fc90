"""The parts of podwire, each alone: `podwire agent`, `apiserver`, `controllers`."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..node.agent import AgentConfig
from ..node.settings import ROLES, BadSetting, assignments, chosen, variable
from .common import Failed


def setting(flag: str, *names: str, **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option that is also an environment variable, so that a ConfigMap or a unit's EnvironmentFile can hold it."""
    env = variable(flag.partition("/")[0])
    more["help"] = f"{more.get('help', '')} [{env}]".strip()
    return click.option(flag, *names, envvar=env, **more)


@click.command()
@click.option("--node-name", envvar=["NODE_NAME", "PODWIRE_NODE_NAME"], default=socket.gethostname,
              help="Name of this node's Node object. [NODE_NAME; default: the host's name]")
@setting("--kubeconfig", type=click.Path(), help="Default: the pod's service account.")
@setting("--api-servers", default="", help="Addresses of the API server in place of the kubeconfig's, spaces between; the next "
         "is asked when one does not answer. Without kube-proxy the Service `kubernetes` is none of them.")
@click.option("--address", envvar=["NODE_ADDRESS", "PODWIRE_ADDRESS"], default="",
              help="This node's InternalIP; needed with --pods. [NODE_ADDRESS]")
@setting("--run-dir", type=click.Path(path_type=Path), default=Path("/run/podwire/node"), show_default=True)
@setting("--role", "role", multiple=True, default=ROLES, show_default=True, help="What to run; repeatable.")
@setting("--cluster-cidr", multiple=True, default=("10.244.0.0/16",), show_default=True, help="Pod addresses; repeatable.")
@setting("--service-cidr", multiple=True, default=("10.96.0.0/16",), show_default=True, help="Service addresses.")
@setting("--node-cidr", multiple=True, help="Addresses of nodes, which no Service may claim.")
@setting("--dns-address", default="10.96.0.10", show_default=True, help="The cluster DNS address, bound on this node's lo.")
@setting("--cluster-domain", default="cluster.local", show_default=True)
@setting("--upstream-dns", multiple=True, metavar="IP[#PORT]", help="For other names; default: those in /etc/resolv.conf.")
@setting("--corefile", type=click.Path(path_type=Path), help="DNS settings from a CoreDNS Corefile.")
@setting("--proxy-config", type=click.Path(path_type=Path), help="Proxy settings from a KubeProxyConfiguration.")
@setting("--uplink", default="", help="The link to the other nodes; default: the one with --address or the default route.")
@setting("--cni-conf-dir", type=click.Path(path_type=Path), help="Where container runtimes look; default: RUN_DIR/cni/net.d")
@setting("--set", "sets", multiple=True, metavar="ROLE.FIELD=VALUE", help="A single field of a role; repeatable.")
@setting("--log-files/--no-log-files", default=False, show_default=True, help="Each role's log in RUN_DIR/log, not on stderr.")
@setting("--log-json/--no-log-json", default=False, show_default=True, help="Log lines as JSON.")
@setting("--pods/--no-pods", default=False, show_default=True, help="Also run pods (where no kubelet does).")
@click.option("--check", "only_check", is_flag=True, help="Look at the settings, print them, and exit.")
def agent(only_check: bool, log_json: bool, **flags: Any) -> None:
    """The roles of one node under one supervisor, in this network namespace. What is in the kernel outlives it."""
    from podwire_dns.config import BadConfig

    from ..client import logs
    from ..client.config import SERVERS, ConfigError, load
    from ..node.agent import check, run

    if servers := flags.pop("api_servers"):
        os.environ[SERVERS] = servers  # the roles read it each on their own
    try:  # before anything is touched
        config = agent_config(**flags)
        load(config.kubeconfig)
        check(config)
    except ConfigError as error:
        raise Failed(f"--kubeconfig: {error}" if "kubeconfig" in str(error) else str(error)) from error
    except (BadSetting, BadConfig, OSError) as error:
        raise Failed(str(error)) from error
    if only_check:
        for field in dataclasses.fields(config):
            click.echo(f"{field.name}: {getattr(config, field.name)}")
        return
    if log_json:
        os.environ[logs.JSON] = "1"
    run(config)


def agent_config(*, node_name: str, kubeconfig: str | None, address: str, run_dir: Path, role: tuple[str, ...],
                 cluster_cidr: tuple[str, ...], service_cidr: tuple[str, ...], node_cidr: tuple[str, ...], dns_address: str,
                 cluster_domain: str, upstream_dns: tuple[str, ...], corefile: Path | None, proxy_config: Path | None,
                 uplink: str, cni_conf_dir: Path | None, sets: tuple[str, ...], log_files: bool, pods: bool) -> AgentConfig:
    """Raises BadSetting."""
    for option, value in (("--address", address), ("--dns-address", dns_address)):
        try:
            if value or option == "--dns-address" or pods:
                ipaddress.ip_address(value)
        except ValueError:
            raise BadSetting(f"{option}: {value!r} is no IP address") from None
    roles = chosen(role)
    if not upstream_dns and corefile is None:
        upstream_dns = ("/etc/resolv.conf",)
    return AgentConfig(
        node_name, kubeconfig or None, run_dir, address, cluster_cidr, service_cidr, dns_address, cluster_domain, upstream_dns,
        uplink, pods, node_cidrs=node_cidr, roles=roles, log_files=log_files, conf_dir=cni_conf_dir, corefile=corefile,
        proxy_config=proxy_config, sets=assignments(sets))


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path),
              help="Directory with server.pem, server-key.pem, ca.pem, tokens.json; store.db is made there.")
@click.option("--listen", default="127.0.0.1:6443", show_default=True, metavar="ADDRESS:PORT")
@click.option("--advertise", default=None, metavar="ADDRESS:PORT",
              help="Endpoint of Service default/kubernetes; default --listen.")
@click.option("--service-cidr", default="10.96.0.0/16", show_default=True)
def apiserver(data: Path, listen: str, advertise: str | None, service_cidr: str) -> None:
    """The API server alone, over a SQLite store."""
    from ..server.main import ServerConfig, run

    def pair(text: str) -> tuple[str, int]:
        address, _, port = text.rpartition(":")
        if not address or not port.isdigit():
            raise click.BadParameter(f"{text!r}: expected ADDRESS:PORT")
        return address.strip("[]"), int(port)

    run(ServerConfig(data, ((*pair(listen), ""),), pair(advertise or listen), service_cidr))


@click.command()
@click.option("--kubeconfig", required=True, type=click.Path(exists=True))
@click.option("--cluster-cidr", default="10.244.0.0/16", show_default=True)
@click.option("--node-prefix", default=24, show_default=True, help="Length of each node's part of the pod range.")
def controllers(kubeconfig: str, cluster_cidr: str, node_prefix: int) -> None:
    """Controllers and scheduler alone."""
    from ..controllers.driver import ControllersConfig, run

    run(ControllersConfig(kubeconfig, cluster_cidr, node_prefix))

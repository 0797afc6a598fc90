"""The parts of podwire, each alone: `podwire agent`, `apiserver`, `controllers`."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import click

from .common import Failed

run_dir_option = click.option("--run-dir", type=click.Path(path_type=Path), default=Path("/run/podwire/node"),
                              show_default=True)


@click.command()
@click.option("--node-name", required=True, envvar="NODE_NAME", help="Name of this node's Node object.")
@click.option("--kubeconfig", type=click.Path(exists=True), help="Default: the pod's service account.")
@click.option("--address", required=True, envvar="NODE_ADDRESS", help="This node's InternalIP.")
@run_dir_option
@click.option("--cluster-cidr", multiple=True, default=("10.244.0.0/16",), show_default=True, help="Pod addresses; repeatable.")
@click.option("--service-cidr", multiple=True, default=("10.96.0.0/16",), show_default=True, help="Service addresses.")
@click.option("--dns-address", default="10.96.0.10", show_default=True)
@click.option("--upstream-dns", multiple=True, metavar="IP[#PORT]")
@click.option("--uplink", default="eth0", show_default=True, help="The link to the other nodes.")
@click.option("--pods/--no-pods", default=False, show_default=True, help="Also run pods (where no kubelet does).")
def agent(node_name: str, kubeconfig: str | None, address: str, run_dir: Path, cluster_cidr: tuple[str, ...],
          service_cidr: tuple[str, ...], dns_address: str, upstream_dns: tuple[str, ...], uplink: str, pods: bool) -> None:
    """All roles of one node under one supervisor, in this network namespace. What is in the kernel outlives it."""
    from ..client.config import ConfigError, load
    from ..node.agent import AgentConfig, run

    try:  # before anything is touched
        load(kubeconfig)
        for option, value in (("--address", address), ("--dns-address", dns_address)):
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise Failed(f"{option}: {value!r} is no IP address") from None
    except ConfigError as error:
        raise Failed(f"--kubeconfig: {error}") from error
    run(AgentConfig(node_name, kubeconfig, run_dir, address, cluster_cidr, service_cidr, dns_address,
                    upstream_dns=upstream_dns, uplink=uplink, pods=pods))


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

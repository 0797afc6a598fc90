"""Single parts of podwire as commands: `podwire agent`, `apiserver`, `controllers`."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from podwire_base.kube.errors import StatusError
from podwire_base.kube.times import duration
from podwire_base.numerals import decimal
from podwire_controlplane.server.join import Addresses, read_addresses

from ..agent import AgentConfig
from ..settings import ROLES, BadSetting, assignments, chosen, variable
from .common import Failed


def setting(flag: str, *names: str, **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return an option with an environment variable, so that a ConfigMap or a unit's EnvironmentFile can set the
    option.
    """
    env = variable(flag.partition("/")[0])
    more["help"] = f"{more.get('help', '')} [{env}]".strip()
    return click.option(flag, *names, envvar=env, **more)


@click.command()
@click.option(
    "--node-name",
    envvar=["NODE_NAME", "PODWIRE_NODE_NAME"],
    default=socket.gethostname,
    help="Name of this node's Node object. [NODE_NAME; default: the host's name]",
)
@setting("--kubeconfig", type=click.Path(), help="Default: the pod's service account.")
@setting(
    "--api-servers",
    default="",
    help="Addresses of the API server instead of the kubeconfig's, separated by spaces; if one does not answer, the "
    "next is tried. Without kube-proxy, do not give the address of Service `kubernetes`.",
)
@click.option(
    "--address",
    envvar=["NODE_ADDRESS", "PODWIRE_ADDRESS"],
    default="",
    help="This node's InternalIP; needed with --pods. [NODE_ADDRESS]",
)
@click.option(
    "--pod-name", envvar=["POD_NAME", "PODWIRE_POD_NAME"], default="", help="Signs the status Lease. [POD_NAME]"
)
@setting(
    "--run-dir",
    type=click.Path(path_type=Path),
    default=Path("/run/podwire/node"),
    show_default=True,
    help="For leases, sockets, states and logs.",
)
@setting(
    "--role", "role", multiple=True, default=ROLES, show_default=True, help="What to run, also policy; repeatable."
)
@setting("--leave-role", multiple=True, help="Of --role: what another agent of this node runs, with another --run-dir.")
@setting(
    "--cluster-cidr", multiple=True, default=("10.244.0.0/16",), show_default=True, help="Pod addresses; repeatable."
)
@setting("--service-cidr", multiple=True, default=("10.96.0.0/16",), show_default=True, help="Service addresses.")
@setting("--node-cidr", multiple=True, help="Network of the nodes, where a Service may claim only Nodes' addresses.")
@setting(
    "--dns-address", default="10.96.0.10", show_default=True, help="The cluster DNS address, bound on this node's lo."
)
@setting("--cluster-domain", default="cluster.local", show_default=True, help="The DNS zone of the cluster.")
@setting(
    "--upstream-dns", multiple=True, metavar="IP[#PORT]", help="For other names; default: those in /etc/resolv.conf."
)
@setting("--corefile", type=click.Path(path_type=Path), help="DNS settings from a CoreDNS Corefile.")
@setting("--proxy-config", type=click.Path(path_type=Path), help="Proxy settings from a KubeProxyConfiguration.")
@setting(
    "--uplink", default="", help="The link to the other nodes; default: the one with --address or the default route."
)
@setting(
    "--cni-conf-dir", type=click.Path(path_type=Path), help="Where container runtimes look; default: RUN_DIR/cni/net.d"
)
@setting(
    "--host-managers/--no-host-managers",
    default=True,
    show_default=True,
    help="Keep systemd-networkd, udev and NetworkManager of this machine off podwire's interfaces (drop-ins in /run).",
)
@setting("--set", "sets", multiple=True, metavar="ROLE.FIELD=VALUE", help="A single field of a role; repeatable.")
@setting(
    "--log-files/--no-log-files",
    default=False,
    show_default=True,
    help="Write each role's log to RUN_DIR/log instead of stderr.",
)
@setting("--log-json/--no-log-json", default=False, show_default=True, help="Log lines as JSON.")
@setting("--pods/--no-pods", default=False, show_default=True, help="Also run pods (on a node without a kubelet).")
@setting(
    "--watchdog/--no-watchdog",
    default=True,
    show_default=True,
    help="Kill a role that makes no progress for 30 s, and start it again.",
)
@click.option("--check", "only_check", is_flag=True, help="Check the settings, print them, and exit.")
def agent(only_check: bool, log_json: bool, watchdog: bool, **flags: Any) -> None:
    """The roles of one node under one supervisor, in this network namespace. The kernel state stays when the agent
    ends.
    """
    from podwire_base.kube.client.config import SERVERS, load
    from podwire_base.kube.errors import ConfigError
    from podwire_base.role import logs, watching
    from podwire_base.role.privileges import no_new_privileges
    from podwire_dns.config import BadConfig

    from ..agent import check, run

    if servers := flags.pop("api_servers"):
        os.environ[SERVERS] = servers  # each role reads this setting itself
    try:  # check the settings before any change to the node
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
    if config.pods and no_new_privileges():
        raise Failed(
            "--pods: this process may gain no privileges (NoNewPrivileges), and its pods would inherit that: run "
            "`podwire install --pods` again, which writes another unit"
        )
    if log_json:
        os.environ[logs.JSON] = "1"
    if not watchdog:
        os.environ[watching.VARIABLE] = "0"
    run(config)


def agent_config(
    *,
    node_name: str,
    kubeconfig: str | None,
    address: str,
    run_dir: Path,
    role: tuple[str, ...],
    leave_role: tuple[str, ...] = (),
    cluster_cidr: tuple[str, ...],
    service_cidr: tuple[str, ...],
    node_cidr: tuple[str, ...],
    dns_address: str,
    cluster_domain: str,
    upstream_dns: tuple[str, ...],
    corefile: Path | None,
    proxy_config: Path | None,
    uplink: str,
    cni_conf_dir: Path | None,
    host_managers: bool,
    sets: tuple[str, ...],
    log_files: bool,
    pods: bool,
    pod_name: str = "",
) -> AgentConfig:
    """Return the agent's configuration for the values of the command's options. Raises BadSetting."""
    for option, value in (("--address", address), ("--dns-address", dns_address)):
        try:
            if value or option == "--dns-address" or pods:
                ipaddress.ip_address(value)
        except ValueError:
            raise BadSetting(f"{option}: {value!r} is not an IP address") from None
    left = chosen(leave_role) if leave_role else ()
    roles = tuple(name for name in chosen(role) if name not in left)
    if not roles and not pods:
        raise BadSetting("--leave-role: no role of --role is left for this agent")
    if not upstream_dns and corefile is None:
        upstream_dns = ("/etc/resolv.conf",)
    # With --pods, podwire's node agent reads the conflist in the run directory. No runtime of the machine may use it.
    return AgentConfig(
        node_name,
        kubeconfig or None,
        run_dir,
        address,
        _ranges(cluster_cidr),
        _ranges(service_cidr),
        dns_address,
        cluster_domain,
        upstream_dns,
        uplink,
        pods,
        node_cidrs=node_cidr,
        roles=roles,
        pod_name=pod_name,
        log_files=log_files,
        conf_dir=None if pods else cni_conf_dir,
        host_managers=host_managers,
        corefile=corefile,
        proxy_config=proxy_config,
        sets=assignments(sets),
        left=left,
    )


def _ranges(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the ranges of a repeatable option; those of `podwire join` have both families after a comma."""
    return tuple(part.strip() for value in values for part in value.split(","))


@click.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Directory with server.pem, server-key.pem, ca.pem, tokens.json; store.db is made there.",
)
@click.option(
    "--listen", default="127.0.0.1:6443", show_default=True, metavar="ADDRESS:PORT", help="Where it serves HTTPS."
)
@click.option(
    "--advertise",
    default=None,
    metavar="ADDRESS:PORT",
    help="Endpoint of Service default/kubernetes; default: that of --listen.",
)
@click.option(
    "--service-cidr",
    metavar="CIDR[,CIDR]",
    help="An IPv4 and an IPv6 range make Services dual-stack. Default: as `podwire init` wrote it in --data, else "
    "10.96.0.0/16.",
)
@click.option("--dns-address", help="Address for the Service kube-dns; default: as in --data, else no Service.")
@click.option(
    "--event-ttl", default="1h0m0s", show_default=True, metavar="DURATION", help="Events are deleted this long after."
)
def apiserver(
    data: Path, listen: str, advertise: str | None, service_cidr: str | None, dns_address: str | None, event_ttl: str
) -> None:
    """The API server alone, with a SQLite store. `podwire init` makes the files that it needs."""
    from podwire_base.kube.errors import ConfigError
    from podwire_controlplane.server.main import ServerConfig, run
    from podwire_controlplane.store.sqlite import StoreInUse

    def pair(text: str) -> tuple[str, int]:
        address, _, port = text.rpartition(":")
        if not address or (number := decimal(port)) is None:
            raise click.BadParameter(f"{text!r}: expected ADDRESS:PORT, the port at most 65535")
        return address.strip("[]"), number

    try:
        ttl = duration(event_ttl)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--event-ttl") from None
    made = _made(data)
    dns = dns_address or (made.dns_address if made else "")
    domain = made.cluster_domain if made else "cluster.local"
    config = ServerConfig(
        data,
        ((*pair(listen), ""),),
        pair(advertise or listen),
        service_cidr or (made.service_cidr if made else "10.96.0.0/16"),
        dns=(dns, domain) if dns else None,
        event_ttl=ttl,
    )
    try:
        run(config)
    except sqlite3.DatabaseError as error:
        raise Failed(
            f"the API server cannot start: {data}/store.db is damaged or cannot be written: {error}"
        ) from error
    except (StatusError, ConfigError, StoreInUse, OSError, ValueError) as error:  # certificates, store, socket, objects
        raise Failed(f"the API server cannot start: {error}") from error


def _made(data: Path) -> Addresses | None:
    try:
        return read_addresses(data)
    except (OSError, ValueError, TypeError) as error:
        raise Failed(f"{data}/cluster.json is not a file that `podwire init` wrote: {error}") from error


@click.command()
@click.option("--kubeconfig", type=click.Path(exists=True), help="Default: controllers.kubeconfig in --data.")
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="What `podwire init` made.")
@click.option("--cluster-cidr", help="Default: as in --data, else 10.244.0.0/16.")
@click.option("--node-prefix", default=24, show_default=True, help="Prefix length of each node's podCIDR.")
@click.option(
    "--load-balancer-pool",
    multiple=True,
    metavar="CIDR",
    help="Load balancer addresses, used if ConfigMap kube-system/podwire-load-balancer does not exist yet; repeatable.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Run only this controller, for example loadbalancer; repeatable.  [default: all]",
)
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Where the beat is written, for probes; default: nowhere."
)
def controllers(
    run_dir: Path | None,
    kubeconfig: str | None,
    data: Path | None,
    cluster_cidr: str | None,
    node_prefix: int,
    load_balancer_pool: tuple[str, ...],
    only: tuple[str, ...],
) -> None:
    """Controllers and scheduler alone. In a cluster that has its own controllers, use --only loadbalancer."""
    from podwire_base.kube.errors import ConfigError
    from podwire_base.role import beat
    from podwire_controlplane.controllers.driver import ControllersConfig, run

    if run_dir is not None:
        beat.ensure(beat.path_of(run_dir, "controllers"))

    made = _made(data) if data else None
    if kubeconfig is None and data is None and not only:
        raise Failed("give --kubeconfig or --data")
    try:
        run(
            ControllersConfig(
                kubeconfig or (str(data / "controllers.kubeconfig") if data else None),
                cluster_cidr or (made.cluster_cidr if made else "10.244.0.0/16"),
                node_prefix,
                load_balancer_pool,
                only,
            )
        )
    except ConfigError as error:
        raise Failed(str(error)) from error

"""`podwire up`, `down` and `kubeconfig`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from dataclasses import replace
from typing import Any

import click
import yaml

from podwire_base.role import watching
from podwire_observe.config import MODES
from podwire_proxy import backends

from ..cluster import credentials, internet, merging, outward, publisher
from ..cluster.config import PODS6, RUNTIMES, BadConfig, ClusterConfig
from ..cluster.lifecycle import READY, UpFailed, down_command, hold_port
from ..cluster.lifecycle import down as take_down
from ..cluster.lifecycle import up as bring_up
from ..cluster.publications import WORDS, BadPublication, parse
from ..cluster.record import load
from ..cluster.teardown import supervisor
from .common import NAME_VARIABLE, Failed, complete_clusters, err, local_clusters, make_table, out, print_table

name_option = click.option(
    "--name",
    envvar=NAME_VARIABLE,
    show_envvar=True,
    default="podwire",
    show_default=True,
    shell_complete=complete_clusters,
    help="Name of the cluster and of its namespaces.",
)


backend_option = click.option(
    "--proxy-backend",
    type=click.Choice(backends.choices()),
    default=backends.names()[0],
    show_default=True,
    help="Backend that writes the nodes' Service rules.",
)


def free_port(wanted: int) -> int:
    """Return the TCP port `wanted` if it is free on 127.0.0.1, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(sock.getsockname()[1])
    raise Failed("no free port on 127.0.0.1")


def interruptible() -> None:
    """Make SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does, so that the command removes what it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def _families(field: str, text: str) -> tuple[str, str]:
    """Return the IPv4 range and the IPv6 range ("": none) of an option. They may come in any order."""
    ranges = [part.strip() for part in text.split(",") if part.strip()]
    sixth = [part for part in ranges if ":" in part]
    fourth = [part for part in ranges if ":" not in part]
    if len(fourth) != 1 or len(sixth) > 1:
        raise BadConfig(f"{field}: {text!r}: one IPv4 range, and if you like one IPv6 range after a comma")
    return fourth[0], (sixth or [""])[0]


def _pool(found: tuple[str, ...]) -> tuple[str, ...] | None:
    return (
        None if not found else () if found == ("none",) else tuple(part for text in found for part in text.split(","))
    )


def _with_internet(config: ClusterConfig, wanted: bool | None, host_access: bool) -> tuple[ClusterConfig, str]:
    """Return the configuration with a way out if it is wanted and possible, and else the reason. Raises Failed."""
    if wanted is False:
        if host_access:
            raise Failed("--host-access needs --internet")
        return config, "--no-internet"
    why = internet.problem()
    if not why:
        cidr = internet.choose((config.node_cidr, config.cluster_cidr, config.service_cidr))
        why = "" if cidr else "no range for slirp4netns is free: this machine has routes to all of them"
    if why:
        if wanted or host_access:
            raise Failed(f"--{'internet' if wanted else 'host-access'}: {why}")
        return config, why
    servers = config.upstream_dns or (outward.resolver(cidr),)
    return replace(config, internet=cidr, host_access=host_access, upstream_dns=servers), ""


def _way_out(config: ClusterConfig, why: str) -> str:
    """Return the line that says what pods reach outside the cluster. why: the reason why they do not."""
    if not config.internet:
        return "pods reach nothing outside the cluster" + (f": {why}" if why else "")
    if not internet.works(config):
        return f"pods do not reach the internet: slirp4netns did not start: {config.run_dir}/log/internet.log"
    mine = "this machine's addresses too" if config.host_access else "not this machine's own addresses"
    return f"pods reach the internet by slirp4netns (IPv4 alone; {mine}); --no-internet turns it off"


@click.command()
@name_option
@click.option("--nodes", default=3, show_default=True, help="How many nodes.")
@click.option(
    "--api-port",
    default=6443,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Port on 127.0.0.1; if it is taken, another one is used.",
)
@click.option(
    "--upstream-dns", multiple=True, metavar="IP[#PORT]", help="DNS servers, as nodes reach them; repeatable."
)
@click.option(
    "--cluster-cidr",
    default=ClusterConfig.cluster_cidr,
    show_default=True,
    metavar="CIDR[,CIDR]",
    help="Pod addresses; an IPv4 and an IPv6 range make pods dual-stack.",
)
@click.option(
    "--service-cidr",
    default=ClusterConfig.service_cidr,
    show_default=True,
    metavar="CIDR[,CIDR]",
    help="Service addresses; an IPv4 and an IPv6 range make Services and pods dual-stack.",
)
@click.option(
    "--node-cidr-mask-size",
    default=ClusterConfig.node_cidr_mask_size,
    show_default=True,
    help="Prefix length of each node's part of the IPv4 pod addresses.",
)
@click.option(
    "--node-cidr-mask-size-ipv6",
    default=ClusterConfig.node_cidr_mask_size_ipv6,
    show_default=True,
    help="The same of IPv6.",
)
@click.option("--bridge-nf", type=click.Choice(["0", "1"]), help="net.bridge.bridge-nf-call-iptables on the nodes.")
@click.option(
    "--load-balancer-pool",
    multiple=True,
    metavar="CIDR",
    help="Addresses for Services of type LoadBalancer: CIDRs or ranges on the node network; repeatable; 'none' for "
    "no pool.  [default: 172.30.0.192/27]",
)
@click.option(
    "--publish",
    multiple=True,
    metavar=WORDS,
    help="Publish a Service at a port of this machine, as `podwire publish` does; it may be made later; repeatable.",
)
@click.option(
    "--internet/--no-internet",
    "wanted",
    default=None,
    help="Pods reach the internet and the machine's DNS through slirp4netns.  [default: on where it is installed]",
)
@click.option("--host-access", is_flag=True, help="With --internet: pods reach this machine's own addresses, too.")
@click.option(
    "--watchdog/--no-watchdog",
    default=True,
    show_default=True,
    help="Kill a role that makes no progress for 30 s, and start it again.",
)
@click.option(
    "--observe",
    type=click.Choice(MODES),
    default="always",
    show_default=True,
    help="Follow the nodes' connections for `podwire flows`.",
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default=RUNTIMES[0],
    show_default=True,
    help="What runs pods: podwire's own runtime, which has no images, or containerd (cri).",
)
@backend_option
def up(
    name: str,
    nodes: int,
    api_port: int,
    upstream_dns: tuple[str, ...],
    cluster_cidr: str,
    service_cidr: str,
    node_cidr_mask_size: int,
    node_cidr_mask_size_ipv6: int,
    bridge_nf: str | None,
    load_balancer_pool: tuple[str, ...],
    publish: tuple[str, ...],
    wanted: bool | None,
    host_access: bool,
    watchdog: bool,
    observe: str,
    runtime: str,
    proxy_backend: str,
) -> None:
    """Start a cluster on this machine: every node is a network namespace. The machine's own network is not touched."""
    begin = time.monotonic()
    try:
        publications = [parse(text) for text in publish]
        publisher.check_free(publications)
        pods4, pods6 = _families("cluster_cidr", cluster_cidr)
        services4, services6 = _families("service_cidr", service_cidr)
        port = hold_port(api_port)
        config = ClusterConfig(
            name=name,
            nodes=nodes,
            api_port=port.getsockname()[1],
            upstream_dns=upstream_dns,
            cluster_cidr=pods4,
            cluster_cidr6=pods6 or (PODS6 if services6 else ""),
            service_cidr=services4,
            service_cidr6=services6,
            node_cidr_mask_size=node_cidr_mask_size,
            node_cidr_mask_size_ipv6=node_cidr_mask_size_ipv6,
            bridge_nf=int(bridge_nf or -1),
            load_balancer_pool=_pool(load_balancer_pool),
            proxy_backend=proxy_backend,
            observe=observe,
            runtime=runtime,
            publish=tuple(str(one) for one in publications),
        )
        config, no_internet = _with_internet(config, wanted, host_access)
        interruptible()
        if not watchdog:
            os.environ[watching.VARIABLE] = "0"
        made = bring_up(config, lambda text: err.print(f"  {text}", style="dim"), port=port)
    except (BadConfig, BadPublication, publisher.CannotPublish, UpFailed) as error:
        raise Failed(str(error)) from error
    except KeyboardInterrupt:
        raise Failed("interrupted") from None
    seconds = f"after {time.monotonic() - begin:.1f} s"
    if made.again:
        if differs := _different(config, made.config):
            err.print(f"  the cluster keeps its own {differs}: `podwire down` first to change that", style="yellow")
        out.print(f"cluster [bold]{name}[/bold], whose process had ended, is up again {seconds}")
    else:
        out.print(f"cluster [bold]{name}[/bold] with {nodes} nodes is ready {seconds}")
    config = made.config
    if config.cluster_cidr6:
        services = "Services too (ipFamilyPolicy)" if config.service_cidr6 else "Services have IPv4 addresses only"
        out.print(f"  pods have IPv4 and IPv6 addresses; {services}")
    out.print(f"  export KUBECONFIG={config.kubeconfig}", soft_wrap=True)
    out.print(f"  {_way_out(config, no_internet)}", soft_wrap=True)
    if publications:
        for row in _published(config, [str(one) for one in publications] if made.again else []):
            out.print(f"  published: {row['place']} -> {row['service']}:{row['servicePort']}", soft_wrap=True)
    out.print(
        "  try: podwire apply -f examples/; podwire status; podwire get pods -o wide; "
        f"{down_command(config).strip('`')}",
        soft_wrap=True,
    )


def _published(config: ClusterConfig, more: list[str]) -> list[dict[str, Any]]:
    """Return what is published, after publishing `more`. Raises Failed."""
    try:
        if more:
            publisher.ask(config, "add", more)
        return publisher.ask(config, "list", [])
    except publisher.CannotPublish as error:
        raise Failed(str(error)) from error


def _different(given: ClusterConfig, own: ClusterConfig) -> str:
    """Return the options that the command line gives and that the cluster has otherwise."""
    context = click.get_current_context()
    named = [p for p in context.params if context.get_parameter_source(p) == click.core.ParameterSource.COMMANDLINE]
    return ", ".join(
        f"--{option.replace('_', '-')}"
        for option in named
        if getattr(given, option, None) != getattr(own, option, None)
    )


@click.command()
@name_option
def down(name: str) -> None:
    """Take the cluster down: processes, namespaces, links and files. It can be repeated."""
    try:
        config = load(name) or ClusterConfig(name=name)
    except BadConfig as error:
        raise Failed(str(error)) from error
    if os.geteuid() and config.run_dir.exists():
        raise Failed("podwire down needs root: the cluster is root's")
    if stays := take_down(config, lambda text: err.print(f"  removed {text}", style="dim")):
        raise Failed(
            "\n  ".join(
                [f"cluster {name} is down, but these things stay, each with the command that removes it:", *stays]
            )
        )
    out.print(f"cluster [bold]{name}[/bold] is down")


@click.command("list")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Output format.")
def list_(output: str | None) -> None:
    """Show the clusters on this machine."""
    rows: list[dict[str, str | int | None]] = []
    for name in local_clusters():
        config = load(name)
        if config is None:
            row: dict[str, str | int | None] = {
                "name": name,
                "status": "damaged record",
                "nodes": None,
                "server": "",
                "kubeconfig": "",
            }
        else:
            ready, pid = (config.run_dir / READY).exists() or config.layout == 1, supervisor(config)
            status = ("running" if ready else "starting") if pid else "process ended"
            row = {"name": name, "status": status, "nodes": len(config.node_names())}
            row |= {"server": f"https://127.0.0.1:{config.api_port}", "kubeconfig": str(config.kubeconfig)}
        rows.append(row)
    if output == "json":
        click.echo(json.dumps({"clusters": rows}, indent=2))
        return
    if not rows:
        err.print("no cluster on this machine: start one with `podwire up`")
        return
    grid = make_table("NAME", "STATUS", "NODES", "SERVER", "KUBECONFIG")
    for row in rows:
        grid.add_row(*("-" if value in ("", None) else str(value) for value in row.values()))
    print_table(grid)
    for row in rows:
        if row["status"] == "process ended":
            err.print(f"  cluster {row['name']} lost its process: `podwire up --name {row['name']}` takes it up again")


@click.command()
@name_option
@click.option("--merge", is_flag=True, help="Put the cluster's context into your ~/.kube/config; `down` takes it out.")
@click.option("--user", metavar="NAME", default="", help="Print a kubeconfig for a new user of the cluster.")
@click.option(
    "--role",
    type=click.Choice(sorted(credentials.GROUPS)),
    help="What the new user may do: viewer reads everything but Secrets.  [default: viewer]",
)
def kubeconfig(name: str, merge: bool, user: str, role: str | None) -> None:
    """Print the path of the cluster's kubeconfig: `export KUBECONFIG=$(podwire kubeconfig)`.

    With --user, print the kubeconfig itself. With --merge, change yours.
    """
    config = load(name)
    if config is None:
        raise Failed(f"no cluster {name!r}: start one with `podwire up`")
    if role and not user:
        raise Failed("--role: name the user with --user")
    if user and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,62}", user):
        raise Failed(f"--user: {user!r}: letters, digits and @._-, at most 63")
    if not (user or merge):
        click.echo(config.kubeconfig)
        return
    if os.geteuid():
        raise Failed("--user and --merge need root: the cluster's keys are root's; with sudo, your own file is changed")
    try:
        text = credentials.for_user(config, user, role or "viewer") if user else config.kubeconfig.read_text()
        if not merge:
            click.echo(text.rstrip())
            return
        own = yaml.safe_load(text)
        file = merging.merge(config, own, merging.caller(), os.environ.get("KUBECONFIG", ""))
    except (credentials.Damaged, merging.CannotMerge, OSError) as error:
        raise Failed(str(error)) from error
    out.print(f"context {own['current-context']} is in {file}, as its current one", soft_wrap=True)

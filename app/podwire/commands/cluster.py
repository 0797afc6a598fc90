"""`podwire up`, `down` and `kubeconfig`."""

from __future__ import annotations

import os
import signal
import socket
import time

import click

from podwire_base.role import watching
from podwire_proxy import backends

from ..cluster import publisher
from ..cluster.config import BadConfig, ClusterConfig
from ..cluster.lifecycle import UpFailed, down_command
from ..cluster.lifecycle import down as take_down
from ..cluster.lifecycle import up as bring_up
from ..cluster.publications import WORDS, BadPublication, parse
from ..cluster.record import load
from .common import Failed, err, out

name_option = click.option(
    "--name", default="podwire", show_default=True, help="Name of the cluster and of its namespaces."
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


def _pool(found: tuple[str, ...]) -> tuple[str, ...] | None:
    return (
        None if not found else () if found == ("none",) else tuple(part for text in found for part in text.split(","))
    )


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
    "--watchdog/--no-watchdog",
    default=True,
    show_default=True,
    help="Kill a role that makes no progress for 30 s, and start it again.",
)
@backend_option
def up(
    name: str,
    nodes: int,
    api_port: int,
    upstream_dns: tuple[str, ...],
    bridge_nf: str | None,
    load_balancer_pool: tuple[str, ...],
    publish: tuple[str, ...],
    watchdog: bool,
    proxy_backend: str,
) -> None:
    """Start a cluster on this machine: every node is a network namespace. The machine's own network is not touched."""
    begin = time.monotonic()
    try:
        publications = [parse(text) for text in publish]
        publisher.check_free(publications)
        config = ClusterConfig(
            name=name,
            nodes=nodes,
            api_port=free_port(api_port),
            upstream_dns=upstream_dns,
            bridge_nf=int(bridge_nf or -1),
            load_balancer_pool=_pool(load_balancer_pool),
            proxy_backend=proxy_backend,
            publish=tuple(str(one) for one in publications),
        )
        interruptible()
        if not watchdog:
            os.environ[watching.VARIABLE] = "0"
        bring_up(config, lambda text: err.print(f"  {text}", style="dim"))
    except (BadConfig, BadPublication, publisher.CannotPublish, UpFailed) as error:
        raise Failed(str(error)) from error
    except KeyboardInterrupt:
        raise Failed("interrupted; taking everything down again") from None
    out.print(f"cluster [bold]{name}[/bold] with {nodes} nodes is ready after {time.monotonic() - begin:.1f} s")
    out.print(f"  export KUBECONFIG={config.kubeconfig}", soft_wrap=True)
    if publications:
        for row in publisher.ask(config, "list", []):
            out.print(f"  published: {row['place']} -> {row['service']}:{row['servicePort']}", soft_wrap=True)
    out.print(
        "  try: podwire apply -f examples/; podwire status; podwire get pods -o wide; "
        f"{down_command(config).strip('`')}",
        soft_wrap=True,
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


@click.command()
@name_option
def kubeconfig(name: str) -> None:
    """Print the path of the cluster's kubeconfig: `export KUBECONFIG=$(podwire kubeconfig)`."""
    config = load(name)
    if config is None:
        raise Failed(f"no cluster {name!r}: start one with `podwire up`")
    click.echo(config.kubeconfig)

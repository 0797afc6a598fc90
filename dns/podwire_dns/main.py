"""`podwire dns`: run the feeder or a server on this node, take their traces away, or ask a question as a pod would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .config import BadConfig, DnsConfig

Command = TypeVar("Command", bound=Callable[..., Any])
DEFAULTS = DnsConfig("", None, Path("/run/podwire"))


def _many(name: str, default: tuple[str, ...], text: str) -> Callable[[Command], Command]:
    return click.option(name, multiple=True, default=default, show_default=True, help=text)


@click.command()
@click.argument("role", type=click.Choice(["feeder", "server", "cleanup"]))
@click.option("--node-name", default="", help="This node's name, for log lines.")
@click.option("--kubeconfig", type=click.Path(dir_okay=False), help="Default: the pod's own service account.")
@click.option("--run-dir", type=click.Path(path_type=Path, file_okay=False), default=DEFAULTS.run_dir, show_default=True,
              help="Where dns.sock and the status files are.")
@_many("--listen", DEFAULTS.listen, "Cluster DNS address; may be repeated.")
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULTS.port, show_default=True)
@click.option("--cluster-domain", default=DEFAULTS.cluster_domain, show_default=True)
@_many("--upstream", (), "IP or IP#port of a resolver for other names; may be repeated. None: such names are refused.")
@_many("--pod-cidr", DEFAULTS.pod_cidrs, "Range whose reverse names are answered here; may be repeated.")
@_many("--service-cidr", DEFAULTS.service_cidrs, "The same for Service addresses.")
@click.option("--ttl", type=click.IntRange(0, 3600), default=DEFAULTS.ttl, show_default=True, help="Seconds.")
@click.option("--pods/--no-pods", default=True, show_default=True, help="Answer a-b-c-d.NAMESPACE.pod names.")
@click.option("--notrack/--no-notrack", default=True, show_default=True, help="Keep DNS out of conntrack.")
def command(role: str, node_name: str, kubeconfig: str | None, run_dir: Path, listen: tuple[str, ...], port: int,
            cluster_domain: str, upstream: tuple[str, ...], pod_cidr: tuple[str, ...], service_cidr: tuple[str, ...],
            ttl: int, pods: bool, notrack: bool) -> None:
    """The cluster's DNS on this node: `feeder` watches the API and renders answers, `server` gives them.

    `cleanup` removes the address from lo and the nft table podwire-dns.
    """
    from podwire_controlplane.client.config import ConfigError

    config = DnsConfig(node_name, kubeconfig, run_dir, listen, port, cluster_domain, upstream, pod_cidr, service_cidr,
                       ttl, pods, notrack)
    try:
        config.schema()
        config.checked_upstreams()
        _run(role, config)
    except (BadConfig, ConfigError, OSError) as err:
        click.echo(f"podwire dns {role}: {err}", err=True)
        sys.exit(1)


def _run(role: str, config: DnsConfig) -> None:
    from podwire_controlplane.client import logs

    logs.configure(node=config.node_name)
    if role == "feeder":
        from . import feeder

        feeder.run(config)
    elif role == "server":
        from . import server

        server.run(config)
    else:
        from . import host

        for line in host.cleanup(config.addresses()) or ["nothing to remove"]:
            click.echo(line)


if __name__ == "__main__":
    command()

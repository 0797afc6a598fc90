"""`podwire demo`: proves every behaviour with real traffic."""

from __future__ import annotations

import os
import sys

import click
from rich.console import Console

from ..cluster.config import BadConfig, ClusterConfig
from ..cluster.lifecycle import UpFailed
from .cluster import backend_option, free_port, interruptible
from .common import Failed


@click.command()
@click.option("--nodes", default=3, show_default=True, help="How many nodes.")
@click.option(
    "--bridge-nf",
    "passes",
    multiple=True,
    type=click.Choice(["0", "1"]),
    default=("0", "1"),
    show_default=True,
    help="Settings of net.bridge.bridge-nf-call-iptables to prove everything with.",
)
@backend_option
def demo(nodes: int, passes: tuple[str, ...], proxy_backend: str) -> None:
    """Start a cluster, apply examples/, prove each behaviour with real traffic, and take everything down. Exit status
    0: every check passed.
    """
    from ..demo.lab import UPSTREAM_DNS
    from ..demo.run import Demo

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    try:
        config = ClusterConfig(
            name=f"demo{os.getpid()}",
            nodes=nodes,
            api_port=free_port(6443),
            upstream_dns=(UPSTREAM_DNS,),
            proxy_backend=proxy_backend,
        )
        interruptible()
        held = Demo(config, Console(highlight=False, width=width), tuple(int(p) for p in passes)).run()
    except (BadConfig, UpFailed) as error:
        raise Failed(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0 if held else 1)

"""`podwire ui`: a page on this machine that shows who talks to whom, what fails and why."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import click

from podwire_base.kube.errors import ConfigError

from ..cluster.config import BASE
from ..cluster.record import load
from ..flows import asking
from .common import Failed, client_of, find_kubeconfig, kept_context, kubeconfig_option, local_cluster
from .flows import _nodes as nodes_of
from .pods import cluster_option

if TYPE_CHECKING:
    from ..page.keeper import Keeper


@click.command("ui")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of 127.0.0.1 and ::1.  [default: a free one]")
@click.option("--open", "browser", is_flag=True, help="Also open the page in the browser of the user who calls.")
@cluster_option
@kubeconfig_option
def ui(port: int, browser: bool, cluster: str | None, kubeconfig: str | None) -> None:
    """Show the network on a page of this machine: who connects to whom, what fails and why, live.

    It prints an address of 127.0.0.1 with a key, which the page needs, and serves until Ctrl-C. It needs root to ask
    the nodes; the page itself is served as the user who called sudo. Nothing can be changed on it.
    """
    from ..page import launch

    who = launch.caller(os.environ, os.geteuid(), os.getegid())
    try:
        launch.start(lambda: _keeper(cluster, kubeconfig), port, who, browser=browser)
    except OSError as err:
        words = "something listens there already" if err.errno == errno.EADDRINUSE else err.strerror or str(err)
        raise Failed(f"--port: {port}: {words}") from err


def _keeper(cluster: str | None, kubeconfig: str | None) -> Keeper:
    """Raises Failed."""
    from ..page.keeper import Keeper

    nodes = nodes_of(cluster, kubeconfig)
    if not asking.may_ask(nodes):
        raise Failed("only root may ask the nodes: run it with sudo")
    config = str(BASE / cluster / "kubeconfig") if cluster else kubeconfig
    try:
        api = client_of(config)
    except (Failed, ConfigError) as err:
        click.echo(f"without the API server, so without Services and workloads: {err}", err=True)
        api = None
    where, shown = _options(cluster, config)

    def current() -> list[asking.Node]:
        try:
            return nodes_of(cluster, kubeconfig)  # nodes come and go
        except Failed:
            return nodes

    return Keeper(current, api, where, shown)


def _options(cluster: str | None, kubeconfig: str | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the options that choose this cluster: for `podwire explain`, and for command lines that people read."""
    try:
        own = load(cluster or local_cluster(kubeconfig))
        if own is not None:
            given = () if cluster is None else ("--name", own.name)
            return ("--name", own.name), given
        found = find_kubeconfig(kubeconfig)
    except Failed:
        return (), ()
    context = ("--context", kept_context()) if kept_context() else ()
    return (*(("--kubeconfig", found) if found else ()), *context), context

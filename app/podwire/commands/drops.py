"""The command `podwire drops` shows the packets that the kernel drops on nodes of this machine, with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, ConfigError
from podwire_base.kube.meta import Object, key
from podwire_base.patience import patient

from .. import connections
from ..cluster.record import load
from ..drops.fold import Names, as_json, line
from ..explain.observe import HERE
from ..explain.onnode import Place
from .common import Failed, client_of, find_kubeconfig, kubeconfig_option, local_cluster

API_SECONDS = 3.0  # the time limit for the API server's lists of pods and Services
INTERVAL = 1.0  # seconds between two outputs


def _nodes(kubeconfig: str | None, node: str | None, run_dir: str) -> list[Place]:
    """Return the nodes of the chosen cluster if `podwire up` started it on this machine, else this machine as one node.
    node: only this node; "" or None for all. Raises Failed.
    """
    try:
        local = load(local_cluster(kubeconfig)) if find_kubeconfig(kubeconfig) else None
    except Failed:
        local = None
    if local is None:
        if node:
            raise Failed("--node needs a cluster that `podwire up` started on this machine; there is no such cluster")
        return [Place(HERE, "this node", Path(run_dir))]
    if node and node not in local.node_names():
        raise Failed(f"the cluster has no node {node!r}; its nodes are {', '.join(local.node_names())}")
    return [Place(str(local.netns(one)), one, local.node_dir(one)) for one in ([node] if node else local.node_names())]


async def _names(kubeconfig: str | None) -> Names:
    async with ApiClient(client_of(kubeconfig)) as api, asyncio.timeout(patient(API_SECONDS)):
        lists: list[list[Object]] = [(await api.get(f"/api/v1/{kind}"))["items"] for kind in ("pods", "services")]
    pods = {
        ip["ip"]: key(pod)
        for pod in lists[0]
        if not (pod.get("spec") or {}).get("hostNetwork")
        for ip in (pod.get("status") or {}).get("podIPs") or ()
    }
    return Names(pods, connections.named(lists[1]))


def _read_names(kubeconfig: str | None) -> Names:
    try:
        return asyncio.run(_names(kubeconfig))
    except (ApiError, ConfigError, Failed, TimeoutError, OSError) as err:
        why = getattr(err, "message", "") or str(err) or "no answer"
        click.echo(f"the output does not name Services and the pods of other nodes: {why}", err=True)
        return Names()


@click.command()
@click.option("--node", help="Watch only this node of the cluster on this machine.")
@click.option(
    "--for", "seconds", type=click.FloatRange(min=0), help="Stop after this many seconds; default: at Ctrl-C."
)
@click.option(
    "-o", "--output", "form", type=click.Choice(("text", "json")), default="text", help="Output format. [text]"
)
@click.option(
    "--run-dir",
    default="/run/podwire",
    show_default=True,
    help="Run directory of this machine's agent, which knows the pods' names.",
)
@kubeconfig_option
def drops(node: str | None, seconds: float | None, form: str, run_dir: str, kubeconfig: str | None) -> None:
    """Show the packets that the kernel drops, with the reason, pods and Service, once a second.

    One line stands for all packets of one second that differ only in time and source port. If a rule of podwire dropped
    the packet, the line shows the reason of this rule. The command needs root and Linux 5.17.
    """
    places = _nodes(kubeconfig, node, run_dir)
    names = _read_names(kubeconfig)
    try:
        _show(places, names, seconds, form)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as err:
        raise Failed(f"the command cannot watch dropped packets: {err.strerror or err}") from err


def _show(places: Sequence[Place], names: Names, seconds: float | None, form: str) -> None:
    from ..drops.watch import watch

    intervals = watch(places, names, seconds, INTERVAL)
    next(intervals)  # starts the tracer; the first item is empty
    click.echo(f"watching {', '.join(place.name for place in places)}", err=True)
    for rows, unlisted, unread in intervals:
        for row in rows:
            click.echo(as_json(row, names) if form == "json" else line(row, names))
        if unlisted:
            click.echo(f"the list omits {unlisted} more packets: it has its maximum number of rows", err=True)
        if unread:
            said = f"the list omits {unread} dropped packets: the kernel reported them faster than the command reads"
            click.echo(said, err=True)

"""`podwire drops`: packets that the kernel drops on nodes of this machine, with the reason, as they happen."""

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

SECONDS = 3.0  # for the API server's answers
EVERY = 1.0  # seconds between two outputs


def _places(kubeconfig: str | None, node: str | None, run_dir: str) -> list[Place]:
    """Return the nodes of the cluster of this machine; without one, this machine."""
    try:
        local = load(local_cluster(kubeconfig)) if find_kubeconfig(kubeconfig) else None
    except Failed:
        local = None
    if local is None:
        if node:
            raise Failed("--node chooses a node of a cluster that `podwire up` started here, and there is none")
        return [Place(HERE, "this node", Path(run_dir))]
    if node and node not in local.node_names():
        raise Failed(f"the cluster has no node {node!r}; it has {', '.join(local.node_names())}")
    return [Place(str(local.netns(one)), one, local.node_dir(one)) for one in ([node] if node else local.node_names())]


async def _names(kubeconfig: str | None) -> Names:
    async with ApiClient(client_of(kubeconfig)) as api, asyncio.timeout(patient(SECONDS)):
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
        click.echo(f"pods of other nodes and Services have no names here: {why}", err=True)
        return Names()


@click.command()
@click.option("--node", help="Only this node of the cluster on this machine.")
@click.option("--for", "seconds", type=click.FloatRange(min=0), help="End after so many seconds. [at Ctrl-C]")
@click.option(
    "-o", "--output", "form", type=click.Choice(("text", "json")), default="text", help="Form of the rows. [text]"
)
@click.option("--run-dir", default="/run/podwire", show_default=True, help="Of this machine's agent, for pods' names.")
@kubeconfig_option
def drops(node: str | None, seconds: float | None, form: str, run_dir: str, kubeconfig: str | None) -> None:
    """Show packets that the kernel drops, with reason, pods and Service, once a second, until Ctrl-C.

    Equal packets are one line. A rule that decided is named by its reason. It needs root.
    """
    places = _places(kubeconfig, node, run_dir)
    names = _read_names(kubeconfig)
    try:
        _show(places, names, seconds, form)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except OSError as err:
        raise Failed(f"dropped packets cannot be seen: {err.strerror or err}") from err


def _show(places: Sequence[Place], names: Names, seconds: float | None, form: str) -> None:
    from ..drops.watch import watch

    found = watch(places, names, seconds, EVERY)
    next(found)
    click.echo(f"watching {', '.join(place.name for place in places)}", err=True)
    for rows, others, lost in found:
        for row in rows:
            click.echo(as_json(row, names) if form == "json" else line(row, names))
        if others:
            click.echo(f"{others} more packets, of too many kinds to list", err=True)
        if lost:
            click.echo(f"{lost} packets were lost: they came faster than they could be read", err=True)

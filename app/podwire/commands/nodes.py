"""`podwire nodes`: the nodes of a cluster on this machine, while it runs."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from podwire_base.kube import table
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.conditions import condition
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object, controller_of, key, name, namespace, uid
from podwire_base.kube.registry import of
from podwire_base.kube.times import micro_timestamp
from podwire_base.patience import patient

from ..cluster import lifecycle, members
from ..cluster.config import ClusterConfig
from ..cluster.members import CannotChange
from ..cluster.record import load
from .common import Failed, err, make_table, out, print_table, with_api
from .pods import cluster_option, complete_nodes, find_cluster

READY_SECONDS, GONE_SECONDS = 60.0, 30.0
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_PATCH = "application/merge-patch+json"


def _cluster(cluster: str | None) -> ClusterConfig:
    config = load(find_cluster(cluster))
    if config is None:
        raise Failed(f"no cluster {cluster!r} on this machine: `podwire list`")
    return config


def _known(config: ClusterConfig, wanted: tuple[str, ...]) -> None:
    for node in wanted:
        if node not in config.node_names():
            raise Failed(f"no node {node!r} in cluster {config.name}: it has {', '.join(config.node_names())}")


def _root() -> None:
    if os.geteuid():
        raise Failed("this needs root: the cluster is root's")


def _api(config: ClusterConfig, work: Callable[[ApiClient], Any]) -> Any:
    return with_api(str(config.kubeconfig), work)


def _change(config: ClusterConfig, work: Callable[[ClusterConfig], ClusterConfig]) -> ClusterConfig:
    try:
        return members.change(config.name, work)
    except CannotChange as error:
        raise Failed(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def nodes() -> None:
    """The nodes of a cluster on this machine: list, add, stop, start, cordon, uncordon and remove them."""


nodes_argument = click.argument("wanted", metavar="NODE...", nargs=-1, required=True, shell_complete=complete_nodes)


# ---- list


def rows(config: ClusterConfig, found: list[Object], pods: list[Object]) -> list[dict[str, Any]]:
    """Return a row for each node of the record, with what the API says of it."""
    objects = {name(node): node for node in found}
    now = datetime.now(UTC)
    cells = {column.title: column for column in table.columns(of("Node"))}
    made = []
    for node in config.node_names():
        obj = objects.get(node)
        status = str(cells["Status"].value(obj, now)) if obj else "Unregistered"
        if node in config.stopped:
            status = "Stopped" + (",SchedulingDisabled" if "SchedulingDisabled" in status else "")
        made.append(
            {
                "name": node,
                "status": status,
                "address": ",".join(config.node_addresses(node)),
                "podCIDRs": (obj or {}).get("spec", {}).get("podCIDRs") or [],
                "pods": sum(pod["spec"].get("nodeName") == node for pod in pods),
            }
        )
    return made


@nodes.command("list")
@cluster_option
@click.option("-o", "--output", type=click.Choice(["json"]), help="Output format.")
def list_(cluster: str | None, output: str | None) -> None:
    """Show the nodes."""
    config = _cluster(cluster)

    async def ask(api: ApiClient) -> tuple[list[Object], list[Object]]:
        return (await api.get("/api/v1/nodes"))["items"], (await api.get("/api/v1/pods"))["items"]

    shown = rows(config, *_api(config, ask))
    if output == "json":
        click.echo(json.dumps({"nodes": shown}, indent=2))
        return
    grid = make_table("NAME", "STATUS", "ADDRESS", "POD CIDR", "PODS")
    for row in shown:
        grid.add_row(row["name"], row["status"], row["address"], ",".join(row["podCIDRs"]) or "-", str(row["pods"]))
    print_table(grid)


# ---- add, start


def _wait_ready(config: ClusterConfig, wanted: list[str], begin: float) -> None:
    async def wait(api: ApiClient) -> list[str]:
        end, missing = time.monotonic() + patient(READY_SECONDS), [""]
        while missing and time.monotonic() < end:
            missing = [
                row for row in await lifecycle.missing(api, config) if row.partition(":")[0].split()[0] in wanted
            ]
            if why := lifecycle.cannot_start(config):
                raise Failed(why)
            await asyncio.sleep(0.05)
        return missing

    if missing := _api(config, wait):
        raise Failed(f"not ready: {'; '.join(missing)}; logs: {config.run_dir}/nodes/NODE/log")
    for node in wanted:
        out.print(f"{node} is ready after {time.monotonic() - begin:.1f} s")


@nodes.command()
@click.option("--count", type=click.IntRange(1, 50), default=1, show_default=True, help="How many nodes.")
@cluster_option
def add(count: int, cluster: str | None) -> None:
    """Add nodes to a running cluster, and wait until they are ready."""
    _root()
    begin, config = time.monotonic(), _cluster(cluster)
    before = set(config.node_names())
    config = _change(config, lambda found: members.added(found, count))
    _wait_ready(config, [node for node in config.node_names() if node not in before], begin)


@nodes.command()
@nodes_argument
@cluster_option
def start(wanted: tuple[str, ...], cluster: str | None) -> None:
    """Start nodes that were stopped, with the pods that they had."""
    _root()
    begin, config = time.monotonic(), _cluster(cluster)
    _known(config, wanted)
    config = _change(config, lambda found: members.with_stopped(found, wanted, stopped=False))
    _wait_ready(config, list(wanted), begin)


# ---- stop


@nodes.command()
@nodes_argument
@cluster_option
def stop(wanted: tuple[str, ...], cluster: str | None) -> None:
    """Switch nodes off: their agents end and their links go down. Their pods keep their namespaces and addresses, and
    are back with `podwire nodes start`.
    """
    _root()
    config = _cluster(cluster)
    _known(config, wanted)
    config = _change(config, lambda found: members.with_stopped(found, wanted, stopped=True))
    _api(config, lambda api: _say_stopped(api, wanted))
    for node in wanted:
        out.print(f"{node} is stopped")


async def _say_stopped(api: ApiClient, wanted: tuple[str, ...]) -> None:
    """Let the Leases of the nodes run out at once, so that Services leave out their pods, as after a power failure."""
    now = time.time()
    for node in wanted:
        try:
            await api.patch(f"{LEASES}/{node}", {"spec": {"renewTime": micro_timestamp(now - 3600)}}, _PATCH)
            found = await api.get(f"/api/v1/nodes/{node}")
        except Refused as error:
            if error.code == 404:
                continue
            raise
        before = condition(found, "Ready")
        row = {**before, "type": "Ready", "status": "Unknown", "reason": "NodeStopped"}
        row |= {"message": "stopped by `podwire nodes stop`", "lastTransitionTime": micro_timestamp(now)[:19] + "Z"}
        others = [c for c in found["status"].get("conditions") or [] if c["type"] != "Ready"]
        await api.patch(f"/api/v1/nodes/{node}/status", {"status": {"conditions": [*others, row]}}, _PATCH)


# ---- cordon


def _mark(wanted: tuple[str, ...], cluster: str | None, *, unschedulable: bool) -> None:
    config = _cluster(cluster)
    _known(config, wanted)

    async def work(api: ApiClient) -> None:
        for node in wanted:
            await api.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": unschedulable or None}}, _PATCH)
            out.print(f"node/{node} {'cordoned' if unschedulable else 'uncordoned'}")

    _api(config, work)


@nodes.command()
@nodes_argument
@cluster_option
def cordon(wanted: tuple[str, ...], cluster: str | None) -> None:
    """Let no new pods onto nodes."""
    _mark(wanted, cluster, unschedulable=True)


@nodes.command()
@nodes_argument
@cluster_option
def uncordon(wanted: tuple[str, ...], cluster: str | None) -> None:
    """Let new pods onto nodes again."""
    _mark(wanted, cluster, unschedulable=False)


# ---- rm


@nodes.command()
@nodes_argument
@click.option("--force", is_flag=True, help="Also delete pods that nothing makes again, and do not wait for their end.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds until the node must be empty.")
@cluster_option
def rm(wanted: tuple[str, ...], force: bool, timeout: float, cluster: str | None) -> None:
    """Remove nodes: drain them, delete their Node objects, and return their podCIDRs."""
    _root()
    config = _cluster(cluster)
    _known(config, wanted)
    rest = [node for node in config.node_names() if node not in wanted]
    if not rest:
        raise Failed(f"that is the whole cluster: {lifecycle.down_command(config)} ends it")
    running = [node for node in wanted if node not in config.stopped]
    _api(config, lambda api: _drain(api, wanted, running, force, timeout))
    config = _change(config, lambda found: members.with_nodes(found, rest))
    _api(config, lambda api: _forget(api, wanted))
    for node in wanted:
        out.print(f"{node} is removed")


async def _drain(api: ApiClient, wanted: tuple[str, ...], running: list[str], force: bool, timeout: float) -> None:
    """Cordon nodes and evict their pods, but not those of DaemonSets, which end with the node. force: delete them."""
    every = [pod for pod in (await api.get("/api/v1/pods"))["items"] if pod["spec"].get("nodeName") in wanted]
    ours = [pod for pod in every if (controller_of(pod) or {}).get("kind") != "DaemonSet"]
    ended = ("Succeeded", "Failed")
    bare = [key(p) for p in ours if controller_of(p) is None and p.get("status", {}).get("phase") not in ended]
    if bare and not force:
        raise Failed(f"nothing would make these pods again: {', '.join(sorted(bare))}; --force deletes them")
    for node in wanted:
        try:
            await api.patch(f"/api/v1/nodes/{node}", {"spec": {"unschedulable": True}}, _PATCH)
        except Refused as error:
            if error.code != 404:
                raise
    left: dict[str, Object] = {uid(pod): pod for pod in ours}
    end = time.monotonic() + timeout

    async def empty(pod: Object) -> None:
        path = f"/api/v1/namespaces/{namespace(pod)}/pods/{name(pod)}"
        err.print(f"  {'deleting' if force else 'evicting'} {key(pod)}", style="dim")
        await (_delete(api, path, {"gracePeriodSeconds": 0}) if force else _evict(api, path, pod, end))

    # All at once: a budget that holds one pod does not keep the others.
    for done in await asyncio.gather(*map(empty, ours), return_exceptions=True):
        if isinstance(done, BaseException):
            raise done
    while left := {uid(p): p for p in (await api.get("/api/v1/pods"))["items"] if uid(p) in left}:
        if not any(pod["spec"].get("nodeName") in running for pod in left.values()):
            return  # a node that does not run ends no pod: they go with the Node
        if time.monotonic() > end:
            raise Failed(
                f"after {timeout:.0f} s there are still {', '.join(map(key, left.values()))}; --force, or wait"
            )
        await asyncio.sleep(0.1)


async def _evict(api: ApiClient, path: str, pod: Object, end: float) -> None:
    """Evict a pod, and ask again while a PodDisruptionBudget does not allow it. end: by time.monotonic."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name(pod), "namespace": namespace(pod)}}
    told = False
    while True:
        try:
            await api.create(f"{path}/eviction", body)
        except Refused as error:
            if error.code == 404:
                return
            if error.code == 429 and not told:
                told = True
                err.print(f"  waiting for a PodDisruptionBudget that keeps {key(pod)}", style="dim")
            if error.code != 429 or time.monotonic() > end:
                why = "; ".join(c.get("message", "") for c in (error.body.get("details") or {}).get("causes") or [])
                raise Failed(
                    f"pod {key(pod)} cannot be evicted: {why or error}; --force deletes it. The node stays cordoned: "
                    f"`podwire nodes uncordon {pod['spec'].get('nodeName', 'NODE')}`"
                ) from error
            await asyncio.sleep(0.5)
            continue
        return


async def _forget(api: ApiClient, wanted: tuple[str, ...]) -> None:
    """Delete the Nodes and their Leases, and wait until the pods that were left are gone."""
    for node in wanted:
        await _delete(api, f"/api/v1/nodes/{node}", {})
        await _delete(api, f"{LEASES}/{node}", {})
    end = time.monotonic() + patient(GONE_SECONDS)
    while left := [p for p in (await api.get("/api/v1/pods"))["items"] if p["spec"].get("nodeName") in wanted]:
        if time.monotonic() > end:
            raise Failed(f"the nodes are gone, but not their pods: {', '.join(map(key, left))}")
        await asyncio.sleep(0.1)


async def _delete(api: ApiClient, path: str, options: Object) -> None:
    try:
        await api.delete(path, options)
    except Refused as error:
        if error.code != 404:
            raise

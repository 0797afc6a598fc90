"""`podwire status`: where each role of each node stands, with the reasons first and in the exit status."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from podwire_base.kernel.netns import call_in
from podwire_base.kube import statuslease
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, ConfigError, Refused
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of
from podwire_base.kube.unattended import MISSING
from podwire_base.patience import patient
from podwire_base.role import beat
from podwire_base.role.standing import HANGS
from podwire_base.role.status import running, standings
from podwire_base.role.supervisor import read_state
from podwire_base.role.waits import within
from podwire_proxy import backends
from podwire_proxy.tally import Tallies

from .. import compiled, connections
from ..cluster.config import ClusterConfig
from ..cluster.record import load
from ..grid import WIDTH, folded, table
from ..statuspage import Report, Seen, from_leases, late, record, text, waits, with_lag
from . import policy
from .common import Failed, client_of, find_kubeconfig, kubeconfig_option, local_cluster

PATHS = {
    "nodes": "/api/v1/nodes",
    "pods": "/api/v1/pods",
    "services": "/api/v1/services",
    "slices": "/apis/discovery.k8s.io/v1/endpointslices",
}
EVENTS = "/api/v1/events"
PATIENCE = 6.0  # seconds for the API server's answers
AGAIN = 1.0  # seconds until the second look at a role that seems to lag
EACH = 1.0  # seconds between two looks of --wait and --watch


def _local(kubeconfig: str | None) -> ClusterConfig | None:
    """Return the cluster of this machine that the options choose; None: another machine's, or a pod's own."""
    try:
        return load(local_cluster(kubeconfig)) if find_kubeconfig(kubeconfig) else None
    except Failed:
        return None


def reports(config: ClusterConfig) -> dict[str, Report]:
    """Return what the files of a cluster of this machine say of the roles of each node."""
    found = {}
    for node in config.node_names():
        folder = config.node_dir(node)
        state = read_state(folder / "agent.json")
        restarts = {role: row["restarts"] for role, row in state.items()}
        found[node] = Report(standings(folder, state, restarts), "this machine")
    return found


def tallies(local: ClusterConfig | None) -> dict[str, Tallies]:
    """Return node -> what its socket hooks counted; without a cluster of this machine, those of this network namespace.
    A node without hooks has no entry.
    """
    places = {node: str(local.netns(node)) for node in local.node_names()} if local else {"this node": ""}
    found = {node: call_in(path, backends.tallies) if path else backends.tallies() for node, path in places.items()}
    return {node: one for node, one in found.items() if one is not None}


def processes(config: ClusterConfig) -> list[dict[str, object]]:
    """Return a row for each supervised process of the cluster. problem: "" for one that runs and makes progress."""
    rows: list[dict[str, object]] = []
    for where, folder, name in [("the machine", config.run_dir, "supervisor.json")] + [
        (node, config.node_dir(node), "agent.json") for node in config.node_names()
    ]:
        state = read_state(folder / name)
        if not state:
            what = "cluster" if name == "supervisor.json" else "agent"
            rows.append({"where": where, "process": what, "pid": 0, "restarts": 0, "problem": "its supervisor is gone"})
        for role, row in state.items():
            rows.append({"where": where, "process": role, **row, "problem": _problem(folder, role, row)})
    return rows


def _problem(folder: Path, role: str, row: Mapping[str, int]) -> str:
    if not row["pid"] or not running(row["pid"]):
        return f"not running now, restarted {row['restarts']} times"
    found = beat.read(beat.path_of(folder, role))
    age = time.monotonic() - found.at if found is not None and found.pid == row["pid"] else 0.0
    return f"no progress for {age:.0f} s; last: {found.did}" if found is not None and age > HANGS else ""


async def _look(api: ApiClient, local: ClusterConfig | None) -> Seen:
    async def read(path: str, **params: str) -> list[Object] | str:
        try:
            items: list[Object] = (await api.get(path, **params))["items"]
            return items
        except Refused as error:
            if error.code in (401, 403):
                return error.message
            raise

    async with asyncio.TaskGroup() as group:
        tasks = {kind: group.create_task(read(path)) for kind, path in PATHS.items()}
        label = f"{statuslease.LABEL}={statuslease.VALUE}"
        leases = group.create_task(read(statuslease.PATH, labelSelector=label))
    claims = leases.result()
    found = {kind: task.result() for kind, task in tasks.items()}
    lists = {kind: items for kind, items in found.items() if not isinstance(items, str)}
    waiting = any(map(waits, lists.get("services", ())))
    events = await read(EVENTS, fieldSelector="involvedObject.kind=Service") if waiting else []
    if isinstance(claims, str):
        found["leases"], claims = claims, []
    return Seen(
        **lists,
        events=[] if isinstance(events, str) else events,
        reports=reports(local) if local else from_leases(claims, time.time()),
        processes=processes(local) if local else (),
        now=time.time(),
        unreadable={kind: why for kind, why in found.items() if isinstance(why, str)},
    )


async def _unattended(api: ApiClient) -> dict[str, int]:
    """Return kind -> number of objects for each kind that has objects, and for which nothing acts. A server that does
    not serve a kind has none of it.
    """

    async def count(kind: str) -> int:
        try:
            page = await api.get(of(kind).path(), limit="1")
        except Refused:
            return 0
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)

    counts = await asyncio.gather(*map(count, MISSING))
    return {kind: number for kind, number in zip(MISSING, counts, strict=True) if number}


async def _policy_notes(api: ApiClient, pods: Sequence[Object]) -> dict[str, list[str]]:
    """Return policy -> what is probably not meant, of policies of which something is. Without rights it is {}."""
    try:
        made = await policy.read(api, pods)
    except Refused:
        return {}
    return {one.key: notes for one in made.policies if (notes := made.notes(one))}


async def look(api: ApiClient, local: ClusterConfig | None, *, services: bool = False) -> Object:
    """Return the page as data. A role that seems to lag behind the API is looked at twice. services: also what the
    socket hooks counted.
    """
    seen = await _look(api, local)
    if behind := late(seen):
        began = time.monotonic()
        await asyncio.sleep(AGAIN)
        assert local is not None  # only a cluster of this machine has reports that are read directly
        later = replace(seen, reports=reports(local), processes=processes(local))
        seen = replace(later, reports=with_lag(later, behind, time.monotonic() - began))
    # a stock cluster has its own controllers
    body = {**record(seen), "noController": await _unattended(api) if local else {}}
    body["policyNotes"] = await _policy_notes(api, seen.pods or ())
    if services:
        body["connections"] = connections.rows(tallies(local), seen.services or ())
    return body


async def _until(kubeconfig: str | None, seconds: float, *, watch: bool, show: str, services: bool) -> bool:
    """Print the page once, when all is well or `seconds` are over; or at each change. Returns whether all is well."""
    end, shown = time.monotonic() + seconds, ""
    local = None
    while True:
        try:
            local = _local(kubeconfig)
            async with ApiClient(client_of(kubeconfig)) as api:
                body = await within(look(api, local, services=services), patient(PATIENCE))
        except (ApiError, ConfigError, ExceptionGroup, TimeoutError) as error:
            known = Seen(reports=reports(local), processes=processes(local)) if local else Seen()
            body = {**record(known), "ok": False}
            body["problems"] = [
                f"the API server does not answer: {_cause(error)} ({find_kubeconfig(kubeconfig)})",
                *body["problems"],
            ]
        waiting = not body["ok"] and time.monotonic() < end
        page = _page(body, show)
        if page != shown and (watch or not waiting):
            if watch and show in ("", "wide"):
                click.clear()
            click.echo(page)
            shown = page
        if not watch and not waiting:
            return bool(body["ok"])
        await asyncio.sleep(EACH)


def _cause(error: BaseException) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"it takes connections, but nothing came within {PATIENCE:.0f} s"
    return getattr(error, "message", "") or str(error)


def _page(body: Object, show: str) -> str:
    if show == "json":
        return json.dumps(body, indent=2)
    if show == "yaml":
        import yaml

        return str(yaml.safe_dump(body, sort_keys=False)).rstrip()
    lines = text(body, wide=show == "wide")
    lines += [f"{kind} ({n}): no controller: {MISSING[kind]}" for kind, n in body.get("noController", {}).items()]
    if "connections" in body:
        lines += ["", *_connection_lines(body["connections"], 0 if show == "wide" else WIDTH)]
    lines += [f"policy {own}: {'; '.join(notes)}" for own, notes in body.get("policyNotes", {}).items()]
    lines += compiled.lines(compiled.missing())
    return "\n".join(lines if show == "wide" else (part for line in lines for part in folded(line)))


def _connection_lines(found: Sequence[Object], width: int) -> list[str]:
    titles = ["SERVICE", "NODE", "PROTOCOL", "PORT", "TO", "CONNECTIONS"]
    cells = [[str(value) for value in row.values()] for row in found]
    return table(titles, cells, width) if cells else [connections.NONE]


@click.command()
@click.option("-o", "--output", "show", type=click.Choice(("wide", "json", "yaml")), help="Form of the page.")
@click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
@click.option(
    "--wait",
    "seconds",
    type=click.FloatRange(min=0),
    is_flag=False,
    flag_value=60,
    metavar="[SECONDS]",
    help="Wait until all is well, at most 60 or SECONDS seconds.",
)
@click.option("-w", "--watch", is_flag=True, help="Show the page again whenever it changes, until Ctrl-C.")
@click.option("--services", is_flag=True, help="Also the connections that the socket hooks of each node counted.")
@kubeconfig_option
def status(
    show: str | None, as_json: bool, seconds: float | None, watch: bool, services: bool, kubeconfig: str | None
) -> None:
    """Show where each role of each node stands, and nodes, pods and Services.

    The exit status is 0 if all is well. Otherwise it is 1, and the reasons are the first lines.
    """
    if watch and seconds is not None:
        raise Failed("--wait ends when all is well and --watch never: give one of them")
    find_kubeconfig(kubeconfig)  # tells wrong options before the first look
    try:
        form = "json" if as_json else show or ""
        well = asyncio.run(_until(kubeconfig, seconds or 0, watch=watch, show=form, services=services))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0 if well else 1)

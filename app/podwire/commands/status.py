"""`podwire status`: nodes, pods, Services, and the state of each role on each node."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import click

from podwire_base.kube import table
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object, key, name
from podwire_base.kube.registry import of
from podwire_base.kube.unattended import MISSING
from podwire_base.role.supervisor import read_state
from podwire_node.kubelet import ROLES

from .. import compiled
from ..cluster.lifecycle import clusters
from .common import kubeconfig_option, make_table, out, print_table, with_api


def _row(kind: str, obj: Object, *titles: str) -> list[str]:
    now = datetime.now(UTC)
    cells = {column.title: column for column in table.columns(of(kind))}
    return [str(cells[title].value(obj, now)) for title in titles]


def summary(nodes: list[Object], pods: list[Object], services: list[Object], slices: list[Object]) -> Object:
    """Return the command's whole output as data (`--json`)."""
    endpoints: dict[str, list[int]] = {}
    for found in slices:
        service = (
            f"{found['metadata']['namespace']}/{found['metadata'].get('labels', {}).get('kubernetes.io/service-name')}"
        )
        counts = endpoints.setdefault(service, [0, 0])
        for endpoint in found.get("endpoints") or []:
            counts[0] += bool((endpoint.get("conditions") or {}).get("ready", True))
            counts[1] += 1
    return {
        "nodes": [
            {
                "name": name(n),
                "status": _row("Node", n, "Status")[0],
                "address": _row("Node", n, "Internal-IP")[0],
                "podCIDR": n["spec"].get("podCIDR", ""),
                "pods": sum(p["spec"].get("nodeName") == name(n) for p in pods),
                "roles": {
                    role: {
                        "ready": is_true(n, kind),
                        "reason": condition(n, kind).get("reason", ""),
                        "message": condition(n, kind).get("message", ""),
                    }
                    for role, kind in ROLES.items()
                },
            }
            for n in nodes
        ],
        "pods": [
            dict(
                zip(
                    ("pod", "ready", "status", "restarts", "ip", "node"),
                    (key(p), *_row("Pod", p, "Ready", "Status", "Restarts", "IP", "Node")),
                    strict=True,
                )
            )
            for p in pods
        ],
        "services": [
            dict(
                zip(
                    ("service", "type", "clusterIP", "ports", "endpoints"),
                    (
                        key(s),
                        *_row("Service", s, "Type", "Cluster-IP", "Port(s)"),
                        "{}/{}".format(*endpoints.get(key(s), (0, 0))),
                    ),
                    strict=True,
                )
            )
            for s in services
        ],
    }


def _print(data: Object) -> None:
    nodes = make_table("NODE", "STATUS", "ADDRESS", "POD CIDR", "PODS", *(r.upper() for r in ROLES))
    for row in data["nodes"]:
        stands = [
            "[green]ready[/green]" if r["ready"] else f"[red]{r['reason'] or 'unknown'}[/red]"
            for r in row["roles"].values()
        ]
        nodes.add_row(row["name"], row["status"], row["address"], row["podCIDR"], str(row["pods"]), *stands)
    roles = make_table("ROLE", "NODE", "STANDS")
    for row in data["nodes"]:
        for role, stand in row["roles"].items():
            roles.add_row(role, row["name"], stand["message"])
    grids = [nodes, roles]
    for kind, columns in (
        ("pods", ("POD", "READY", "STATUS", "RESTARTS", "IP", "NODE")),
        ("services", ("SERVICE", "TYPE", "CLUSTER-IP", "PORT(S)", "ENDPOINTS")),
    ):
        grid = make_table(*columns)
        for row in data[kind]:
            grid.add_row(*map(str, row.values()))
        grids.append(grid)
    for grid in grids:
        print_table(grid)
        out.print()


def _processes() -> list[dict[str, Any]]:
    """Return a row for each supervised process of the clusters on this machine."""
    rows = []
    for config in clusters():
        places = [("machine", config.run_dir / "supervisor.json")]
        places += [(node, config.node_dir(node) / "agent.json") for node in config.node_names()]
        for where, path in places:
            rows += [
                {"cluster": config.name, "where": where, "process": role, **state}
                for role, state in read_state(path).items()
            ]
    return rows


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


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@kubeconfig_option
def status(as_json: bool, kubeconfig: str | None) -> None:
    """Show nodes, pods, Services, and the state of each role."""
    paths = ("/api/v1/nodes", "/api/v1/pods", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices")

    async def work(api: ApiClient) -> tuple[list[list[Object]], dict[str, int]]:
        lists = await asyncio.gather(*(api.get(path) for path in paths))
        return [found["items"] for found in lists], await _unattended(api)

    lists, idle = with_api(kubeconfig, work)
    data = {**summary(*lists), "noController": idle}
    data["processes"] = _processes()
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    _print(data)
    for line in compiled.lines(compiled.missing()):
        out.print(line, highlight=False, markup=False)
    for kind, count in data["noController"].items():
        out.print(f"{kind} ({count}): no controller: {MISSING[kind]}", highlight=False, markup=False)
    restarted = [p for p in data["processes"] if p["restarts"] or not p["pid"]]
    for row in restarted:
        out.print(
            f"{row['process']} on {row['where']}: restarted {row['restarts']} times"
            + ("" if row["pid"] else ", [red]not running now[/red]")
        )

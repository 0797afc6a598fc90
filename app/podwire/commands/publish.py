"""`podwire publish`, `tunnel` and `open`: Services of a cluster on this machine, at ports of this machine."""

from __future__ import annotations

import json
from typing import Any

import click

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object

from ..cluster import publisher
from ..cluster.config import ClusterConfig
from ..cluster.publications import (
    WORDS,
    BadPublication,
    Place,
    Protocol,
    Publication,
    is_https,
    of_balancers,
    parse,
    parse_place,
    parse_service,
    url,
    web_port,
)
from ..cluster.record import load
from .choosing import completing
from .common import Failed, err, make_table, print_table, with_api
from .pods import cluster_option, find_cluster

output_option = click.option("-o", "--output", type=click.Choice(["json"]), help="Output format.")


def _config(cluster: str | None) -> ClusterConfig:
    name = find_cluster(cluster)
    config = load(name)
    if config is None:
        raise Failed(f"no cluster {name!r} on this machine: start one with `podwire up`")
    return config


def _ask(config: ClusterConfig, do: str, what: list[str]) -> list[dict[str, Any]]:
    try:
        return publisher.ask(config, do, what)
    except publisher.CannotPublish as error:
        raise Failed(str(error)) from error


def _show(rows: list[dict[str, Any]], output: str | None) -> None:
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    grid = make_table("LISTENS", "SERVICE", "PORT", "CLIENTS", "STATE")
    for row in rows:
        protocol = row["protocol"].lower()
        grid.add_row(
            f"{' '.join(_host(a) for a in row['addresses'])} :{row['port']}/{protocol}",
            row["service"],
            row["servicePort"],
            str(row["connections"]),
            row["state"],
        )
    print_table(grid)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _place(text: str, space: str) -> Place:
    """Parse the words of a whole publication, or of its place alone."""
    try:
        return parse(text, space).place
    except BadPublication:
        return parse_place(text)


def _warn(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["state"] != "ready":
            err.print(f"port {row['place']}: {row['state']}; until then its clients are refused", style="yellow")


@click.command()
@click.argument("what", nargs=-1, metavar=WORDS)
@click.option("--list", "listing", is_flag=True, help="Show what is published. (It is the default without arguments.)")
@click.option("--rm", "remove", is_flag=True, help="End these; [ADDRESS:]PORT[/udp] is enough. Their connections end.")
@click.option("-n", "--namespace", "space", default="default", show_default=True, help="Of Services without one.")
@output_option
@cluster_option
def publish(
    what: tuple[str, ...], listing: bool, remove: bool, space: str, output: str | None, cluster: str | None
) -> None:
    """Publish Services of the cluster at ports of this machine: `podwire publish 8080:web:80`.

    It listens on 127.0.0.1 and ::1 unless an address is given. PORT 0 takes any free port. A port of a Service may be
    its number or its name. Publications live as long as the cluster.
    """
    if remove and listing:
        raise Failed("--rm and --list do not go together")
    if remove and not what:
        raise Failed("--rm: name what to end, such as 8080: `podwire publish --list`")
    if listing and what:
        raise Failed("--list takes no arguments")
    try:
        texts = [str(_place(text, space) if remove else parse(text, space)) for text in what]
    except BadPublication as error:
        raise Failed(str(error)) from error
    config = _config(cluster)
    rows = _ask(config, "remove" if remove else "add" if texts else "list", texts)
    if remove:
        for row in rows:
            click.echo(f"port {row['place']} is no longer published")
        return
    if not rows and output is None:
        click.echo("nothing is published: `podwire publish 8080:web:80`", err=True)
        return
    _show(rows, output)
    if what:
        _warn(rows)


@click.command()
@output_option
@cluster_option
def tunnel(output: str | None, cluster: str | None) -> None:
    """Publish every Service of type LoadBalancer at free ports of 127.0.0.1 and ::1, and list them.

    It can be repeated: what is published already keeps its port. `podwire publish --rm PORT` ends one.
    """
    config = _config(cluster)

    async def work(api: ApiClient) -> list[Object]:
        found: list[Object] = (await api.get("/api/v1/services"))["items"]
        return found

    wanted = of_balancers(with_api(str(config.kubeconfig), work))
    if not wanted:
        if output == "json":
            click.echo("[]")
        else:
            click.echo("no Service is of type LoadBalancer: `podwire get services -A`", err=True)
        return
    _show(_ask(config, "add", [str(one) for one in wanted]), output)


@click.command("open")
@click.argument("service", metavar="[NAMESPACE/]SERVICE[:PORT]", shell_complete=completing("services"))
@click.option("-n", "--namespace", "space", default="default", show_default=True, help="Of a Service without one.")
@cluster_option
def open_(service: str, space: str, cluster: str | None) -> None:
    """Print the URL at which a browser on this machine reaches a Service: `podwire open web`.

    The Service is published at a free port, or keeps the port that it has. Without PORT it is the Service's web port.
    """
    try:
        namespace, own, port = parse_service(service, space)
    except BadPublication as error:
        raise Failed(str(error)) from error
    config = _config(cluster)

    async def work(api: ApiClient) -> Object:
        try:
            return await api.get(f"/api/v1/namespaces/{namespace}/services/{own}")
        except Refused as error:
            if error.code == 404:
                raise Failed(f"there is no Service {namespace}/{own}: `podwire get services -A`") from None
            raise

    found = with_api(str(config.kubeconfig), work)
    wanted = _port_of(found, port) if port else web_port(found)
    if wanted is None:
        raise Failed(
            f"Service {namespace}/{own} has no TCP port{' ' + port if port else ''}: `podwire get services -A`"
        )
    secure = is_https(wanted)
    rows = _ask(config, "list", [])
    names = {str(wanted["port"]), wanted.get("name")}
    mine = [
        r for r in rows if r["service"] == f"{namespace}/{own}" and r["protocol"] == "TCP" and r["servicePort"] in names
    ]
    if not mine:
        new = Publication(Place("", 0), namespace, own, str(wanted["port"]))
        mine = _ask(config, "add", [str(new)])
    row = mine[0]
    if row["state"] != "ready":
        raise Failed(f"nothing answers there: {row['state']}")
    protocol: Protocol = "TCP"
    click.echo(url(Place(row["addresses"][0] if len(row["addresses"]) == 1 else "", row["port"], protocol), secure))


def _port_of(service: Object, wanted: str) -> Object | None:
    for port in (service.get("spec") or {}).get("ports") or []:
        if (port.get("protocol") or "TCP") == "TCP" and wanted in (str(port.get("port")), port.get("name")):
            found: Object = port
            return found
    return None

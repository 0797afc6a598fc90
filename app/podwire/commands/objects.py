"""`podwire apply`, `get` and `delete`: a small subset of kubectl, for machines that lack it."""

from __future__ import annotations

import asyncio
import difflib
from typing import Any

import click
import yaml

from podwire_base.kube import codec, table
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, Refused, Unreachable
from podwire_base.kube.manifestfiles import read_files
from podwire_base.kube.manifests import BadManifest, resource_of, three_way, with_record
from podwire_base.kube.meta import Object, name, namespace, uid
from podwire_base.kube.registry import RESOURCES, Resource, by_name

from .choosing import complete_objects
from .common import Failed, kubeconfig_option, make_table, out, print_table, with_api

namespace_option = click.option(
    "-n",
    "--namespace",
    "space",
    default="default",
    show_default=True,
    help="Namespace of objects that do not name one.",
)
_STRICT = {"fieldValidation": "Strict"}
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


def _label(resource: Resource, own: str) -> str:
    return f"{resource.singular}{'.' + resource.group if resource.group else ''}/{own}"


def _scoped(obj: Object, space: str) -> tuple[Resource, str]:
    resource = resource_of(obj)
    return resource, (namespace(obj) or space) if resource.namespaced else ""


# ---- apply


async def apply_one(api: ApiClient, obj: Object, space: str) -> str:
    """Create or patch one object and return "created", "configured" or "unchanged". Raises ApiError."""
    resource, where = _scoped(obj, space)
    if where:
        obj = {**obj, "metadata": {**obj["metadata"], "namespace": where}}
    path = resource.path(where, name(obj))
    try:
        live = await api.get(path)
    except Refused as error:
        if error.code != 404:
            raise
        await api.request("POST", resource.path(where), with_record(obj), params=_STRICT)
        return "created"
    after = await api.request(
        "PATCH", path, three_way(obj, live), params=_STRICT, content_type="application/merge-patch+json"
    )
    return "unchanged" if after["metadata"]["resourceVersion"] == live["metadata"]["resourceVersion"] else "configured"


@click.command()
@click.option("-f", "--filename", "files", multiple=True, required=True, help="File, directory or - (standard input).")
@namespace_option
@kubeconfig_option
def apply(files: tuple[str, ...], space: str, kubeconfig: str | None) -> None:
    """Create or change objects from YAML files. Every file is read before the first object is sent."""
    try:
        objects = list(read_files(files))
    except BadManifest as error:
        raise Failed(str(error)) from error
    if not objects:
        raise Failed(f"{', '.join(files)}: no objects in these files")
    failures: list[str] = []

    async def work(api: ApiClient) -> None:
        for obj in objects:
            label = _label(resource_of(obj), name(obj))
            try:
                out.print(f"{label} {await apply_one(api, obj, space)}")
            except ApiError as error:
                failures.append(f"{label}: {error.message}")
                if isinstance(error, Unreachable):
                    break

    with_api(kubeconfig, work)
    if failures:
        raise Failed("\n".join(failures))


# ---- get


def _targets(words: tuple[str, ...]) -> list[tuple[Resource, str]]:
    """Parse the arguments KIND[,KIND] [NAME ...] or KIND/NAME ... and return (resource, name or "") for each object or
    kind. Raises Failed.
    """
    if not words:
        known = ", ".join(r.plural for r in RESOURCES)
        raise Failed(f"name a kind ({known}), and a name if you want one")

    def kind(word: str) -> Resource:
        found = by_name(word)
        if found is None:
            near = difflib.get_close_matches(word.lower(), [n for r in RESOURCES for n in (r.plural, r.singular)], 1)
            raise Failed(
                f"kind {word!r} is unknown" + (f"; did you mean {near[0]}?" if near else "") + " `podwire get` without "
                "a kind lists them, and `kubectl api-resources` does with their short names"
            )
        return found

    if "/" in words[0]:
        return [(kind(w.partition("/")[0]), w.partition("/")[2]) for w in words]
    for word in words[1:]:
        if by_name(word.partition("/")[0]) and "/" in word:
            raise Failed(f"{word} already contains its kind: leave {words[0]!r} out")
    kinds = (
        [r for r in RESOURCES if "all" in r.categories] if words[0] == "all" else [kind(w) for w in words[0].split(",")]
    )
    return [(k, n) for k in kinds for n in (words[1:] or ("",))]


def _print_rows(resource: Resource, found: Object, wide: bool, spaces: bool, *, head: bool, prefix: bool) -> None:
    columns = found.get("columnDefinitions") or table.definitions(resource)
    shown = [n for n, c in enumerate(columns) if wide or not c["priority"]]
    grid = make_table(*(["NAMESPACE"] if spaces else []), *(columns[n]["name"].upper() for n in shown))
    grid.show_header = head
    for row in found["rows"]:
        own = [str(row["cells"][n]) for n in shown]
        if prefix:
            own[0] = _label(resource, own[0])
        grid.add_row(*([namespace(row["object"])] if spaces else []), *own)
    print_table(grid)


@click.command()
@click.argument("what", nargs=-1, shell_complete=complete_objects)
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="Show objects of every namespace.")
@click.option("-o", "--output", type=click.Choice(["wide", "json", "yaml", "name"]), help="Output format.")
@click.option("-l", "--selector", default="", help="Label selector.")
@click.option("-w", "--watch", is_flag=True, help="Keep running and show each change.")
@kubeconfig_option
def get(
    what: tuple[str, ...],
    space: str,
    all_namespaces: bool,
    output: str | None,
    selector: str,
    watch: bool,
    kubeconfig: str | None,
) -> None:
    """Show objects: `podwire get pods`, `podwire get svc my-service -o yaml`, `podwire get pods,services -A`."""
    targets = _targets(what)

    async def work(api: ApiClient) -> None:
        params, shown = ({"labelSelector": selector} if selector else {}), False
        for resource, own in targets:
            where = "" if all_namespaces or not resource.namespaced else space
            if own and not where and resource.namespaced:
                raise Failed("a name needs one namespace: drop -A or the name")
            path = resource.path(where, own)
            if output in ("json", "yaml"):
                found = await api.get(path, **params)
                text = yaml.safe_dump(found, sort_keys=False) if output == "yaml" else codec.dumps(found).decode()
                click.echo(text.rstrip())
                continue
            found = await api.request("GET", path, params=params, accept=_TABLE)
            if not found["rows"] and not watch:
                if len(targets) == 1:
                    click.echo(f"no {resource.plural} found" + (f" in namespace {where}" if where else ""), err=True)
                continue
            if output == "name":
                for row in found["rows"]:
                    click.echo(_label(resource, row["cells"][0]))
                continue
            spaces = all_namespaces and resource.namespaced
            if shown:
                click.echo()
            shown = True
            _print_rows(resource, found, output == "wide", spaces, head=True, prefix=len({r for r, _ in targets}) > 1)
            if watch:
                await _follow(api, resource, where, own, params, found, output == "wide", spaces)

    with_api(kubeconfig, work)


async def _follow(
    api: ApiClient,
    resource: Resource,
    where: str,
    own: str,
    params: dict[str, str],
    found: Object,
    wide: bool,
    spaces: bool,
) -> None:
    from datetime import UTC, datetime

    version = found["metadata"].get("resourceVersion") or found["rows"][0]["object"]["metadata"]["resourceVersion"]
    query: dict[str, Any] = {**params, "resourceVersion": version, "timeoutSeconds": "3600"}
    if own:
        query["fieldSelector"] = f"metadata.name={own}"
    async for frame in api.watch(resource.path(where), query):
        if frame["type"] == "ERROR":
            raise Refused(int(frame["object"].get("code", 0)), "", str(frame["object"].get("message")))
        if frame["type"] == "BOOKMARK":
            continue
        made = table.table(resource, [frame["object"]], datetime.now(UTC))
        _print_rows(resource, made, wide, spaces, head=False, prefix=False)


# ---- delete


@click.command()
@click.argument("what", nargs=-1, shell_complete=complete_objects)
@click.option("-f", "--filename", "files", multiple=True, help="Delete the objects in these files.")
@namespace_option
@click.option("--grace-period", type=int, help="Grace period in seconds; default: that of the pod.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the objects are gone.")
@click.option("--ignore-not-found", is_flag=True, help="Exit with status 0 if there is no such object.")
@kubeconfig_option
def delete(
    what: tuple[str, ...],
    files: tuple[str, ...],
    space: str,
    grace_period: int | None,
    wait: bool,
    ignore_not_found: bool,
    kubeconfig: str | None,
) -> None:
    """Delete objects: `podwire delete pod NAME`, `podwire delete -f FILE`."""
    try:
        wanted = [(*_scoped(o, space), name(o)) for o in read_files(files)]
    except BadManifest as error:
        raise Failed(str(error)) from error
    if what or not files:
        for resource, own in _targets(what):
            if not own:
                raise Failed(f"name the {resource.singular} to delete")
            wanted.append((resource, space if resource.namespaced else "", own))
    missing: list[str] = []

    async def work(api: ApiClient) -> None:
        gone: list[tuple[str, str]] = []
        for resource, where, own in wanted:
            path = resource.path(where, own)
            try:
                options = {} if grace_period is None else {"gracePeriodSeconds": grace_period}
                answer = await api.delete(path, options)
                gone.append((path, uid(answer) or str(answer.get("details", {}).get("uid"))))
                out.print(f"{_label(resource, own)} deleted")
            except Refused as error:
                if error.code != 404:
                    raise
                if not ignore_not_found:
                    missing.append(error.message)
        for path, old in gone if wait else ():
            await _until_gone(api, path, old)

    with_api(kubeconfig, work)
    if missing:
        raise Failed("\n".join(missing))


async def _until_gone(api: ApiClient, path: str, old: str) -> None:
    while True:
        try:
            if uid(await api.get(path)) != old:
                return
        except Refused as error:
            if error.code == 404:
                return
            raise
        await asyncio.sleep(0.1)

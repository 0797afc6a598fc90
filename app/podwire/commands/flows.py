"""`podwire flows`: the connections of the whole cluster, who refused or dropped them, and sums."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import click
import yaml

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError
from podwire_base.kube.meta import Object
from podwire_base.role.logtext import printable
from podwire_observe import filters, query
from podwire_observe.filters import REASONS, BadFilter, Filters
from podwire_observe.record import PROTOCOLS, VERDICTS, Flow, from_json

from ..cluster.config import BASE
from ..cluster.record import load
from ..explain.lookup import agents_run_dir, this_node
from ..flows import asking, choosing, show
from ..flows.asking import Node
from .choosing import completing
from .common import Failed, kubeconfig_option, local_cluster, make_table, print_table, with_api
from .pods import cluster_option

PODS, SLICES = "/api/v1/pods", "/apis/discovery.k8s.io/v1/endpointslices"
LAST = 20
API_SECONDS = 3.0

# option -> (what it takes, help, completion); each also with --not before it
_NAMES: dict[str, tuple[str, str, str]] = {
    "from-pod": ("[NS/]POD", "From pods whose names begin so.", "pods"),
    "to-pod": ("[NS/]POD", "To such pods.", "pods"),
    "pod": ("[NS/]POD", "From or to such pods.", "pods"),
    "from-service": ("[NS/]SVC", "From pods behind such Services.", "services"),
    "to-service": ("[NS/]SVC", "To such Services.", "services"),
    "service": ("[NS/]SVC", "From or to such Services.", "services"),
    "from-namespace": ("NS", "From this namespace.", "namespaces"),
    "to-namespace": ("NS", "To this namespace.", "namespaces"),
    "namespace": ("NS", "From or to this namespace.", "namespaces"),
    "from-label": ("SELECTOR", "From pods with these labels.", ""),
    "to-label": ("SELECTOR", "To pods with these labels.", ""),
    "label": ("SELECTOR", "From or to pods with these labels.", ""),
    "from-ip": ("IP|CIDR", "From these addresses.", ""),
    "to-ip": ("IP|CIDR", "To these addresses.", ""),
    "ip": ("IP|CIDR", "From or to these addresses.", ""),
    "from-port": ("PORT", "From this port.", ""),
    "to-port": ("PORT", "To this port.", ""),
    "port": ("PORT", "From or to this port.", ""),
    "protocol": ("NAME", f"One of {', '.join(PROTOCOLS.values())}.", " ".join(PROTOCOLS.values())),
    "verdict": ("WORD", f"One of {', '.join(VERDICTS)}.", " ".join(VERDICTS)),
    "reason": ("CODE", "Why it was refused or dropped.", " ".join(REASONS)),
    "node-name": ("NODE", "Of this node, or with an end there.", "nodes"),
    "workload": ("[NS/][KIND/]NAME", "From or to pods of this workload.", "deployments"),
}
_SHORT = {"namespace": ("-n",), "label": ("-l",)}


def _complete(what: str) -> Any:
    words = what.split()
    if len(words) != 1:
        return lambda _c, _p, begun: [word for word in words if word.startswith(begun)]
    return completing(what)


class _Command(click.Command):
    """Turns `--not --verdict X` into the option that denies X."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        turned, deny = [], False
        for arg in args:
            if arg == "--not":
                deny = True
                continue
            if deny:
                option, equals, value = arg.partition("=")
                own = next((x for x, short in _SHORT.items() if option in short), option.removeprefix("--"))
                if own not in _NAMES:
                    raise click.UsageError(
                        f"--not: {option} is no filter; it stands before one, such as --not --verdict"
                    )
                turned.append(f"--not-{own}{equals}{value}")
                deny = False
            else:
                turned.append(arg)
        if deny:
            raise click.UsageError("--not: no filter follows; it stands before one, such as --not --verdict forwarded")
        return super().parse_args(ctx, turned)


def _with_filters(command: Any) -> Any:
    for own, (metavar, text, what) in reversed(_NAMES.items()):
        complete = {"shell_complete": _complete(what)} if what else {}
        command = click.option(f"--not-{own}", multiple=True, hidden=True, **complete)(command)
        command = click.option(*_SHORT.get(own, ()), f"--{own}", multiple=True, metavar=metavar, help=text, **complete)(
            command
        )
    return command


def _nodes(cluster: str | None, kubeconfig: str | None) -> list[Node]:
    """Returns the nodes that this machine can ask. Raises Failed."""
    own, why = None, ""
    try:
        own = load(cluster or local_cluster(kubeconfig))
    except Failed as err:
        why = err.message
    if own is not None:
        return [asking.node_at(node, own.node_dir(node)) for node in own.running_nodes()]
    run_dir = agents_run_dir()
    if run_dir is None:
        raise Failed(f"no node is on this machine: {why}" if why else "no node is on this machine")
    return [asking.node_at(this_node(), run_dir)]


async def _objects(api: ApiClient, path: str) -> list[Object]:
    async with asyncio.timeout(API_SECONDS):
        found = await api.get(path)
    return list(found.get("items") or [])


def _read(kubeconfig: str | None, path: str, *, needed: str = "") -> list[Object]:
    """Returns the objects of a kind. needed: the option that does not work without them; else none are returned if the
    API server does not answer. Raises Failed.
    """

    async def work(api: ApiClient) -> list[Object]:
        return await _objects(api, path)

    try:
        return with_api(kubeconfig, work)
    except (Failed, TimeoutError, ApiError) as err:
        if needed:
            raise Failed(f"{needed}: {getattr(err, 'message', '') or 'the API server does not answer'}") from err
        return []


class _Chosen:
    """The filters that the options choose."""

    def __init__(self, options: dict[str, Any], kubeconfig: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._pods: list[Object] | None = None
        self._slices: list[Object] | None = None
        self.behind: dict[str, tuple[str, ...]] = {}
        self.allow, self.deny = ({}, {})  # type: dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]
        for own in _NAMES:
            for found, prefix in ((self.allow, ""), (self.deny, "not-")):
                for value in options[(prefix + own).replace("-", "_")]:
                    self._take(found, own, value)

    def pods(self, option: str) -> list[Object]:
        if self._pods is None:
            self._pods = _read(self._kubeconfig, PODS, needed=f"--{option}")
        return self._pods

    def _take(self, found: dict[str, tuple[str, ...]], own: str, value: str) -> None:
        side = next((x for x in ("from", "to") if own.startswith(f"{x}-")), "")
        exact = f"{side}-exact" if side else "exact"
        if own.endswith("label"):
            chosen = choosing.pods_with(value, self.pods(own), f"--{own}")
            found[exact] = (*found.get(exact, ()), *chosen)
        elif own == "workload":
            chosen = choosing.pods_of_workload(value, self.pods(own))
            if not chosen:
                raise Failed(f"--workload: {value!r} has no pods")
            found[exact] = (*found.get(exact, ()), *chosen)
        else:
            found[own] = (*found.get(own, ()), value)
            if own in ("service", "from-service"):
                if self._slices is None:
                    self._slices = _read(self._kubeconfig, SLICES, needed=f"--{own}")
                self.behind[value] = choosing.pods_of_service(value, self._slices)

    def filters(self, *, probes: bool) -> Filters:
        return Filters(self.allow, self.deny, probes, self.behind)


class _Printer:
    """Prints connections in one form."""

    def __init__(self, form: str, later: choosing.Later) -> None:
        self.form, self.later = form, later

    def all(self, flows: Sequence[Flow]) -> None:
        if self.form == "wide":
            table = make_table(*show.WIDE)
            for flow in flows:
                table.add_row(*show.wide(self.later.name(flow)))
            print_table(table)
            return
        for flow in flows:
            self.one(flow)

    def one(self, flow: Flow) -> None:
        self.later.name(flow)
        if self.form == "json":
            click.echo(show.as_json(flow))
        elif self.form == "yaml":
            click.echo("---\n" + yaml.safe_dump(json.loads(show.as_json(flow)), sort_keys=False), nl=False)
        elif self.form == "wide":
            click.echo("  ".join(show.wide(flow)))
        else:
            click.echo(show.compact(flow))


def _silent(node: str, why: str) -> None:
    click.echo(f"node {node} is silent: {printable(why)}", err=True)


async def _gather(
    nodes: list[Node], wanted: query.Query
) -> tuple[list[dict[str, Any]], list[Flow], list[dict[str, Any]], bool]:
    """Returns (heads, connections in the order of time, sums, whether every node answered)."""
    heads: list[dict[str, Any]] = []
    flows: list[Flow] = []
    rows: list[dict[str, Any]] = []
    whole = True
    async for told in asking.ask(nodes, wanted):
        if told.silent:
            _silent(told.node, told.silent)
            whole = False
        elif "head" in told.line:
            heads.append(told.line["head"])
        elif "flow" in told.line:
            flows.append(from_json(told.line["flow"]))
        elif "row" in told.line:
            rows.append(told.line["row"])
    flows.sort(key=lambda flow: (flow.started, flow.node, flow.number))
    return heads, flows, rows, whole


async def _follow(nodes: list[Node], wanted: query.Query, printer: _Printer) -> bool:
    """Prints connections as they come. Returns whether every node answered until the end."""
    whole, shown = True, dict[tuple[str, int], str]()
    order: deque[tuple[str, int]] = deque()
    async for told in asking.ask(nodes, wanted):
        if told.silent:
            _silent(told.node, told.silent)
            whole = False
        elif "flow" in told.line:
            flow = from_json(told.line["flow"])
            key = flow.node, flow.number
            before = shown.get(key)
            if before == flow.verdict or (before is not None and flow.verdict == "forwarded"):
                continue  # that it went well is what its first line says
            if before is None:
                order.append(key)
                if len(order) > 1 << 16:
                    shown.pop(order.popleft(), None)
            shown[key] = flow.verdict
            printer.one(flow)
        elif "lost" in told.line or "missed" in told.line:
            count = told.line.get("lost") or told.line.get("missed")
            click.echo(f"node {told.node}: {count} {'events' if 'lost' in told.line else 'lines'} lost", err=True)
    return whole


def _check(
    all_namespaces: bool, options: dict[str, Any], by: str | None, follow: bool, form: str, top: int | None
) -> None:
    """Raises Failed for options that contradict each other."""
    if all_namespaces and options["namespace"]:
        raise Failed("-A and -n contradict each other: leave one out")
    if by and (follow or form in ("wide", "yaml")):
        raise Failed("--by: sums do not go with -f or this -o; use compact or json")
    if top and not by:
        raise Failed("--top: goes with --by")
    for own in _NAMES if by else ():
        if own in filters.OF_CONNECTIONS and (
            options[own.replace("-", "_")] or options[f"not_{own.replace('-', '_')}"]
        ):
            raise Failed(f"--{own}: sums do not have it; leave --by out")


def _query(
    options: dict[str, Any],
    kubeconfig: str | None,
    what: str,
    last: int | None,
    since: str,
    until: str,
    *,
    follow: bool,
    probes: bool,
) -> query.Query:
    """Raises Failed."""
    now = time.time()
    try:
        begin = choosing.moment("--since", since, now) if since else 0.0
        end = choosing.moment("--until", until, now) if until else None
        chosen = _Chosen(options, kubeconfig).filters(probes=probes)
    except (choosing.BadChoice, BadFilter) as err:
        raise Failed(str(err) if str(err).startswith("--") else f"--{err}") from err
    return query.Query(what, last, begin, end, chosen, follow)


@click.command("flows", cls=_Command)
@click.option("-f", "--follow", is_flag=True, help="Go on as connections open, and as they fail.")
@click.option("--last", type=click.IntRange(0), help=f"The last N connections.  [default: {LAST}; all with --since]")
@click.option("--since", default="", metavar="5m|TIME", help="Only what was there since then: 15 minutes are kept.")
@click.option("--until", default="", metavar="5m|TIME", help="Only what began before.")
@click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["compact", "wide", "json", "yaml"]),
    default="compact",
    show_default=True,
    help="The form.",
)
@click.option("--by", type=click.Choice(list(show.BY)), help="Sums of the last 15 minutes, what failed most first.")
@click.option("--top", type=click.IntRange(1), help="With --by: only the first N rows.")
@click.option("--probes", is_flag=True, help="Also the nodes' probes of their own pods.")
@click.option("-A", "--all-namespaces", is_flag=True, help="All namespaces; the default.")
@_with_filters
@cluster_option
@kubeconfig_option
def flows(
    follow: bool,
    last: int | None,
    since: str,
    until: str,
    form: str,
    by: str | None,
    top: int | None,
    probes: bool,
    all_namespaces: bool,
    cluster: str | None,
    kubeconfig: str | None,
    **options: Any,
) -> None:
    """Show who connects to whom in the whole cluster, what became of it, and why it failed.

    A filter may be given several times; --not before it leaves out what it matches. It needs root on the machine of the
    nodes. A connection whose end is not known yet has the verdict "open". Exit status 1: a node did not answer.
    """
    _check(all_namespaces, options, by, follow, form, top)
    nodes = _nodes(cluster, kubeconfig)
    if not asking.may_ask(nodes):
        raise Failed("only root may ask the nodes: run it with sudo")
    config = str(BASE / cluster / "kubeconfig") if cluster else kubeconfig
    if last is None and not (since or by):
        last = 0 if follow else LAST
    wanted = _query(options, config, "sums" if by else "flows", last, since, until, follow=follow, probes=probes)
    later = choosing.Later(_read(config, PODS))
    printer = _Printer(form, later)
    try:
        if follow:
            whole = asyncio.run(_follow(nodes, wanted, printer))
        else:
            heads, found, rows, whole = asyncio.run(_gather(nodes, wanted))
            for line in show.doubts(heads):
                click.echo(line, err=True)
            if by:
                _print_sums(show.summed(rows, by)[:top], by, form)
            else:
                printer.all(found if wanted.last is None else found[len(found) - min(len(found), wanted.last) :])
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if not whole:
        raise SystemExit(1)


def _print_sums(found: list[dict[str, Any]], by: str, form: str) -> None:
    if form == "json":
        for one in found:
            click.echo(json.dumps(one))
        return
    table = make_table(*(show.SUMMED if by != "service" else show.SUMMED[1:]))
    for one in found:
        table.add_row(*show.sum_cells(one, by))
    print_table(table)

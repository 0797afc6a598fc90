"""`podwire check`: is the network of a cluster right?"""

from __future__ import annotations

import json
import signal
import time

import click

from podwire_base.kube.client.http import ApiClient
from podwire_base.version import VERSION

from ..check.rows import Result, junit
from ..check.runner import explained, one, world
from ..check.table import IN_THE_DEMO, ON_ANY_CLUSTER, Check
from ..check.world import CannotCheck, Options, local_options
from .common import (
    Failed,
    err,
    find_kubeconfig,
    kept_context,
    kubeconfig_option,
    local_cluster,
    make_table,
    out,
    print_table,
    with_api,
)

_MARKS = {"ok": "[green]✓[/green]", "failed": "[red]✗[/red]", "left out": "[yellow]-[/yellow]"}


def _chosen(names: tuple[str, ...]) -> list[Check]:
    known = {check.name: check for check in ON_ANY_CLUSTER}
    if unknown := [name for name in names if name not in known]:
        raise Failed(f"--test {unknown[0]!r} is unknown; the tests are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] or list(ON_ANY_CLUSTER)


def _outside(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise Failed(f"--outside {text!r}: expected HOST:PORT, such as example.com:443")
    return host.strip("[]"), int(port)


def _options(kubeconfig: str | None, image: str | None, outside: tuple[str, int] | None) -> Options:
    try:
        made = Options(image) if image else local_options(local_cluster(kubeconfig))
    except Failed:  # it is a cluster elsewhere
        made = Options(f"podwire.io/podwire:{VERSION}")
    made.outside = outside
    return made


def _words(kubeconfig: str | None, options: Options) -> list[str]:
    """Return the options with which another command of podwire finds the same cluster."""
    if options.local:
        return ["--name", options.local]
    return ["--kubeconfig", find_kubeconfig(kubeconfig), *(("--context", kept) if (kept := kept_context()) else ())]


def _print(result: Result) -> None:
    back = f"  {result.back}" if result.back else ""
    out.print(f"{_MARKS[result.state]} {result.name:<18} [dim]{result.seconds:4.1f} s[/dim]{back}", highlight=False)
    shown = {"failed": result.says, "left out": ""}.get(result.state, "")
    for line in (shown, result.detail, *result.reasons):
        if line:
            out.print(f"    {line}", markup=False, highlight=False)


@click.command()
@click.option("--test", "tests", multiple=True, metavar="NAME", help="Make only this test; repeatable.")
@click.option("--list", "listing", is_flag=True, help="Show the tests and what each says.")
@click.option("-o", "--output", type=click.Choice(["json", "junit"]), help="Output format.")
@click.option("--image", help="Image of the probes, with python3.  [default: podwire's own]")
@click.option("--outside", metavar="HOST:PORT", help="A server outside the cluster that pods should reach.")
@kubeconfig_option
def check(
    tests: tuple[str, ...],
    listing: bool,
    output: str | None,
    image: str | None,
    outside: str | None,
    kubeconfig: str | None,
) -> None:
    """Check the network of any Kubernetes cluster with probe pods on its nodes, whatever network it has.

    Everything is made in a namespace of its own and removed afterwards. Exit status 0: every test held; 1: one did not.
    """
    if listing:
        _list(output)
        return
    chosen, goal = _chosen(tests), _outside(outside)
    options = _options(kubeconfig, image, goal)
    words = _words(kubeconfig, options)
    begin = time.monotonic()
    results: list[Result] = []

    async def work(api: ApiClient) -> None:
        async with world(api, options, lambda text: err.print(text, style="dim", highlight=False)) as made:
            for one_check in chosen:
                results.append(await one(one_check, made, explained(words)))
                if output is None:
                    _print(results[-1])

    for number in (signal.SIGTERM, signal.SIGHUP):  # as SIGINT, at which asyncio cancels the work
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with_api(kubeconfig, work)
    except CannotCheck as error:
        raise Failed(str(error)) from error
    except SystemExit:
        err.print("interrupted; everything is removed")
        raise
    _report(results, output, time.monotonic() - begin)
    raise SystemExit(any(r.state == "failed" for r in results))


def _report(results: list[Result], output: str | None, seconds: float) -> None:
    counts = {state: sum(r.state == state for r in results) for state in _MARKS}
    if output == "json":
        click.echo(json.dumps({"ok": not counts["failed"], "tests": [r.to_json() for r in results]}, indent=2))
    elif output == "junit":
        click.echo(junit(results))
    else:
        left = f", {counts['left out']} left out" if counts["left out"] else ""
        out.print(f"{counts['ok']} of {len(results)} tests held{left}, in {seconds:.0f} s")


def _list(output: str | None) -> None:
    rows = [(c.name, c.says, "podwire check") for c in ON_ANY_CLUSTER] + [
        (c.name, c.says, "podwire demo alone") for c in IN_THE_DEMO
    ]
    if output == "json":
        click.echo(json.dumps([{"name": n, "says": s, "made by": w} for n, s, w in rows], indent=2))
        return
    grid = make_table("TEST", "SAYS", "MADE BY")
    for row in rows:
        grid.add_row(*row)
    print_table(grid)

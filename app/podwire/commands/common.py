"""Code that several commands use: the API client, error messages for users, and tables."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import yaml
from click.core import ParameterSource
from rich.console import Console

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client import kubeconfigs
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, ConfigError, Refused, StatusError

from ..cluster.config import BASE, ClusterConfig
from ..grid import table

T = TypeVar("T")
out = Console(highlight=False)
NAME_VARIABLE = "PODWIRE_NAME"  # which cluster of this machine all commands of a shell mean
err = Console(stderr=True, highlight=False)


class Failed(click.ClickException):
    """The command failed. The user sees the message, and the exit status is 1."""

    def show(self, _file: Any = None) -> None:
        """Print the message, broken between words at the width of the terminal, or at 80 columns without one."""
        first, *rest = (wrapped(line, err.width, 7 if not n else 0) for n, line in enumerate(self.message.split("\n")))
        err.print(f"[red]error:[/red] {_escape(first)}", soft_wrap=True)
        for line in rest:
            err.print(_escape(line), soft_wrap=True)


def wrapped(text: str, width: int, taken: int = 0) -> str:
    """Break a line between words. taken: columns of the first line that are used already. A word that is longer than a
    line, such as a path, stays whole.
    """
    return "\n".join(
        textwrap.wrap(" " * taken + text, width, break_long_words=False, break_on_hyphens=False)
    ).removeprefix(" " * taken)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


_CONTEXT, _NAME = "podwire.context", "podwire.name"  # keys of click's Context.meta


def _keep(key: str) -> Callable[[click.Context, click.Parameter, str | None], str | None]:
    def callback(context: click.Context, _param: click.Parameter, value: str | None) -> str | None:
        if value:
            context.meta[key] = value
        return value

    return callback


keep_name = _keep(_NAME)


def _kept(key: str) -> str:
    context = click.get_current_context(silent=True)
    return str(context.meta.get(key, "")) if context else ""


def kept_context() -> str:
    """Return what --context says, "" if it is not given."""
    return _kept(_CONTEXT)


def local_clusters() -> list[str]:
    """Return the names of the clusters on this machine, those that lost their process included."""
    return sorted(path.parent.name for path in BASE.glob("*/cluster.json")) if os.access(BASE, os.R_OK) else []


def complete_clusters(_context: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    return [name for name in local_clusters() if name.startswith(begun)]


def complete_contexts(context: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    try:
        document = client_config.read(find_kubeconfig(context.params.get("kubeconfig")))
    except Exception:  # a broken file completes nothing
        return []
    return [str(row["name"]) for row in document["contexts"] if str(row["name"]).startswith(begun)]


def kubeconfig_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --kubeconfig, --context and --name. The command gets the first one as `kubeconfig`; `with_api` and
    `find_kubeconfig` know the others.
    """
    if "--name" not in {text for p in getattr(command, "__click_params__", ()) for text in p.opts}:
        command = click.option(
            "--name",
            envvar=NAME_VARIABLE,
            expose_value=False,
            callback=keep_name,
            shell_complete=complete_clusters,
            help="A cluster that `podwire up` started (`podwire list`).",
        )(command)
    command = click.option(
        "--context",
        expose_value=False,
        callback=_keep(_CONTEXT),
        shell_complete=complete_contexts,
        help="Context of the kubeconfig; default: its current one.",
    )(command)
    return click.option(
        "--kubeconfig",
        envvar="KUBECONFIG",
        type=click.Path(),
        default=None,
        help="One file, or several with ':' between. Default: $KUBECONFIG, or in a pod its service account, or the "
        "cluster that `podwire up` started, or ~/.kube/config.",
    )(command)


def find_kubeconfig(given: str | None, name: str = "") -> str:
    """Return the kubeconfig of a command: of the cluster that --name names, or `given`, or the only cluster on this
    machine, or ~/.kube/config. Raises Failed.
    """
    context = click.get_current_context(silent=True)
    typed = context is not None and context.get_parameter_source("kubeconfig") is ParameterSource.COMMANDLINE
    by_variable = context is not None and ParameterSource.ENVIRONMENT in map(
        context.get_parameter_source, ("name", "cluster")
    )
    if (name := name or _kept(_NAME)) and not (typed and by_variable):
        if typed:
            raise Failed("--name and --kubeconfig both choose a cluster: leave one out")
        path = BASE / name / "kubeconfig"
        if name not in local_clusters():
            known = f"there are: {', '.join(local_clusters())}" if local_clusters() else "start one with `podwire up`"
            raise Failed(f"no cluster {name!r} on this machine; {known}")
        return str(path)
    if given:
        return given
    if client_config.in_cluster(os.environ):
        return ""  # the service account of the pod that this process is in
    own = Path("~/.kube/config").expanduser()
    if _kept(_CONTEXT) and own.is_file():
        return str(own)
    found = local_clusters()
    if len(found) == 1 or ClusterConfig.name in found:
        return str(BASE / (ClusterConfig.name if ClusterConfig.name in found else found[0]) / "kubeconfig")
    if found:
        raise Failed(f"several clusters are up: pass --name, one of {', '.join(found)}")
    if own.is_file():
        return str(own)
    raise Failed("no cluster: start one with `podwire up`, or pass --kubeconfig")


def client_of(kubeconfig: str | None) -> ClientConfig:
    """Return the API server and the credentials that a command's options choose. Raises Failed and ConfigError."""
    return client_config.load(find_kubeconfig(kubeconfig), context=_kept(_CONTEXT))


def local_cluster(kubeconfig: str | None) -> str:
    """Return the name of the cluster on this machine that the options choose. In a merged kubeconfig it is the one with
    the authority of the chosen context. Raises Failed.
    """
    text = find_kubeconfig(kubeconfig)
    path = Path(text)
    if path.parent.parent == BASE:
        return path.parent.name
    try:
        document = client_config.read(text)
        chosen = kubeconfigs.entry(document, "contexts", _kept(_CONTEXT) or document["current-context"])
        wanted = kubeconfigs.entry(document, "clusters", str(chosen.get("cluster"))).get("certificate-authority-data")
        for name in local_clusters():
            if wanted and wanted in _authorities(BASE / name / "kubeconfig"):
                return name
    except (ConfigError, OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise Failed(f"{text}: {error}") from error
    raise Failed(f"{text}: its cluster is not on this machine; pass --name for one that is (`podwire list`)")


def _authorities(path: Path) -> set[str]:
    """Return the authorities of a cluster's own kubeconfig; none while `podwire up` or `down` is at work there."""
    try:
        rows = client_config.read(str(path))["clusters"]
        return {str(row["cluster"].get("certificate-authority-data")) for row in rows}
    except (ConfigError, OSError, ValueError, KeyError, yaml.YAMLError):
        return set()


def become(argv: list[str], env: Mapping[str, str], package: str = "util-linux") -> NoReturn:
    """Run another program in the place of this one. package: Debian's, which has the program. Raises Failed."""
    sys.stdout.flush()
    try:
        os.execvpe(argv[0], argv, dict(env))
    except FileNotFoundError:
        raise Failed(f"{argv[0]} is missing: install {package}, or set PATH") from None
    except OSError as error:
        raise Failed(f"{argv[0]}: {error.strerror}") from error


def with_api(kubeconfig: str | None, work: Callable[[ApiClient], Awaitable[T]]) -> T:
    """Run `work` with an API client and return its result. Errors of the API and of the kubeconfig become Failed."""

    async def body() -> T:
        async with ApiClient(client_of(kubeconfig)) as api:
            return await work(api)

    try:
        return asyncio.run(body())
    except ApiError as error:
        where = "" if isinstance(error, Refused) else f" ({find_kubeconfig(kubeconfig)})"
        raise Failed(error.message + where) from error
    except StatusError as error:
        raise Failed(error.message) from error
    except ConfigError as error:
        raise Failed(str(error)) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def with_own_api(kubeconfig: str | None, work: Callable[[ApiClient], Awaitable[T]]) -> T:
    """Like `with_api`, for a path that only podwire's API server has."""

    async def own(api: ApiClient) -> T:
        try:
            return await work(api)
        except Refused as error:
            if error.code == 404 and not error.body:  # no Status: the server does not know the path
                raise Failed(
                    f"the API server of {find_kubeconfig(kubeconfig)} does not serve this command: it is not "
                    "podwire's own, or of an older version"
                ) from error
            raise

    return with_api(kubeconfig, own)


@dataclass(slots=True)
class Grid:
    """A table that is being filled."""

    titles: list[str]
    rows: list[list[str]] = field(default_factory=list)
    show_header: bool = True

    def add_row(self, *cells: str) -> None:
        self.rows.append(list(cells))


def make_table(*columns: str) -> Grid:
    return Grid(list(columns))


def print_table(grid: Grid) -> None:
    """Print a table. On a terminal its last column continues on further lines; a pipe gets whole lines."""
    head, *lines = table(grid.titles, grid.rows, out.width if out.is_terminal else 0)
    for line in [*([click.style(head, bold=True)] if grid.show_header else []), *lines]:
        click.echo(line)

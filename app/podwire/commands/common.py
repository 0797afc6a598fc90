"""Code that several commands use: the API client, error messages for users, and tables."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, ConfigError, Refused, StatusError

from ..cluster.config import BASE

T = TypeVar("T")
out = Console(highlight=False)
_UNBOUNDED = 2000  # columns
err = Console(stderr=True, highlight=False)


class Failed(click.ClickException):
    """The command failed. The user sees the message, and the exit status is 1."""

    def show(self, _file: Any = None) -> None:
        err.print(f"[red]error:[/red] {_escape(self.message)}", soft_wrap=True)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def kubeconfig_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--kubeconfig",
        envvar="KUBECONFIG",
        type=click.Path(),
        default=None,
        help="Default: $KUBECONFIG, or the cluster that `podwire up` started.",
    )(command)


def find_kubeconfig(given: str | None) -> str:
    if given:
        return given
    found = sorted(BASE.glob("*/kubeconfig")) if os.access(BASE, os.R_OK) else []
    default = BASE / "podwire" / "kubeconfig"
    if default in found or len(found) == 1:
        return str(default if default in found else found[0])
    if found:
        raise Failed(f"several clusters are up: set KUBECONFIG to one of {', '.join(map(str, found))}")
    raise Failed("no cluster: start one with `podwire up`, or pass --kubeconfig")


def with_api(kubeconfig: str | None, work: Callable[[ApiClient], Awaitable[T]]) -> T:
    """Run `work` with an API client and return its result. Errors of the API and of the kubeconfig become Failed."""

    async def body() -> T:
        async with ApiClient(client_config.load(find_kubeconfig(kubeconfig))) as api:
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


def make_table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def print_table(table: Table) -> None:
    """Print a table at the full width of its cells. A terminal wraps long lines; a pipe gets whole lines."""
    Console(highlight=False, width=_UNBOUNDED).print(table, crop=False)

"""`podwire store backup` and `podwire store restore`."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import click

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ConfigError
from podwire_controlplane.server import backups
from podwire_controlplane.store import copies
from podwire_controlplane.store.sqlite import StoreInUse

from .common import Failed, kubeconfig_option, with_own_api


@click.group()
def store() -> None:
    """The objects of a cluster as one file."""


@store.command()
@click.argument("file", type=click.Path(path_type=Path))
@kubeconfig_option
def backup(file: Path, kubeconfig: str | None) -> None:
    """Write all objects of the running cluster, as of one moment, to FILE. It holds Secrets: keep it safe."""

    async def work(api: ApiClient) -> bytes:
        return await api.download(backups.PATH)

    raw = with_own_api(kubeconfig, work)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Failed(f"{file} exists; name a new file") from None
    except OSError as error:
        raise Failed(f"{file}: {error.strerror}") from error
    with os.fdopen(handle, "wb") as out:
        out.write(raw)
        out.flush()
        os.fsync(out.fileno())
    try:
        revision, items = copies.check(file)
    except (copies.BadBackup, OSError) as error:
        raise Failed(f"the backup is not whole: {error}") from error
    click.echo(f"{file}: {items} objects at revision {revision}, {len(raw)} bytes")


@store.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The API server's directory, as for `podwire apiserver`; the server must not run.",
)
def restore(file: Path, data: Path) -> None:
    """Replace the objects of a cluster with those of FILE. Stop the API server before, and start it again after."""
    path = data / "store.db"
    try:
        revision, items = copies.restore(file, path)
    except (copies.BadBackup, StoreInUse, ConfigError, OSError, sqlite3.Error) as error:
        raise Failed(f"nothing was restored: {error}") from error
    click.echo(f"{path}: {items} objects, from revision {revision} on; the store before is {path}.before-restore")

"""`podwire report`: one file with what a bug report needs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from podwire_base.kube.client.http import ApiClient

from ..cluster.config import ClusterConfig
from ..cluster.record import load
from ..report import collect
from ..report.redact import KINDS, Kind
from .common import Failed, err, find_kubeconfig, kubeconfig_option, local_cluster, out, with_api


def _local(kubeconfig: str | None) -> ClusterConfig | None:
    """Return the configuration of the cluster that the options choose, if it is on this machine."""
    try:
        return load(local_cluster(kubeconfig))
    except Failed:
        return None


def _cluster(archive: collect.Archive, config: ClusterConfig) -> None:
    collect.run_dir(archive, "cluster", config.run_dir)
    for node in config.node_names():
        collect.namespace(archive, f"nodes/{node}", str(config.netns(node)))
        collect.run_dir(archive, f"nodes/{node}", config.node_dir(node))
    collect.namespace(archive, "switch", str(config.netns("switch")))


@click.command()
@click.option("-f", "--file", "file", type=click.Path(path_type=Path, dir_okay=False), help="Default: a new name here.")
@click.option(
    "--include",
    multiple=True,
    type=click.Choice(KINDS),
    help="Keep these as they are; otherwise they are redacted; repeatable.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/podwire/node"),
    show_default=True,
    help="The agent's, on a node of a real cluster.",
)
@kubeconfig_option
def report(file: Path | None, include: tuple[Kind, ...], run_dir: Path, kubeconfig: str | None) -> None:
    """Collect rules, routes, leases, states, logs and versions into one file of mode 0600, for a bug report.

    Secrets, tokens and keys are left out. Environment variables, command lines and ConfigMaps are redacted. Addresses
    and names stay: look at the file before you publish it.
    """
    file = file or Path(time.strftime("podwire-report-%Y%m%d-%H%M%S.tar.gz"))
    if file.exists() or file.is_symlink():
        raise Failed(f"--file: {file} is there already")
    archive = collect.Archive()
    collect.versions(archive)
    collect.processes(archive)
    try:
        where = find_kubeconfig(kubeconfig)
    except Failed as error:
        where, reason = "", error.message
        archive.errors.append(f"api: {reason}")
    config = _local(kubeconfig)
    if config is not None:
        _cluster(archive, config)
    elif run_dir.is_dir():
        collect.namespace(archive, "node", f"/proc/{os.getpid()}/ns/net")
        collect.run_dir(archive, "node", run_dir)
    if where:
        _api(archive, kubeconfig, frozenset(include), config is None)
    try:
        archive.write(file)
    except OSError as error:
        raise Failed(f"--file: {file}: {error.strerror}") from error
    out.print(f"{file}: {len(archive.files)} files; look at it before you publish it", soft_wrap=True)
    if archive.errors:
        err.print(f"{len(archive.errors)} things could not be collected; errors.txt in it names them", style="yellow")


def _api(archive: collect.Archive, kubeconfig: str | None, include: frozenset[Kind], stock: bool) -> None:
    async def work(api: ApiClient) -> None:
        await collect.objects(archive, api, include)
        if stock:
            await collect.agents_logs(archive, api)

    try:
        with_api(kubeconfig, work)
    except Failed as error:
        archive.errors.append(f"api: {error.message}")

"""`podwire exec`, `logs` and `node`: commands for the pods and nodes of a cluster on this machine.

The commands find pods and nodes through the cluster's run directory.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from podwire_node.podspec import PATH
from podwire_node.podworker import enter_command
from podwire_node.runtime import Container, Sandbox, read

from ..cluster.config import BASE
from ..cluster.record import load
from .common import Failed, complete_clusters, keep_name, local_cluster


def cluster_option(command: Any) -> Any:
    """Give a command --name, as its argument `cluster`."""
    params = command.params if isinstance(command, click.Command) else getattr(command, "__click_params__", [])
    params[:] = [param for param in params if "--name" not in param.opts]  # that of kubeconfig_option
    return click.option(
        "--name",
        "cluster",
        default=None,
        callback=keep_name,
        shell_complete=complete_clusters,
        help="The cluster; default: that of $KUBECONFIG, or the only one.",
    )(command)


pod_options = (
    click.option("-n", "--namespace", "space", default="default", show_default=True, help="Namespace of the pod."),
    click.option("-c", "--container", "which", default="", help="Default: the pod's first container."),
    cluster_option,
)


def find_cluster(given: str | None) -> str:
    """Return the name of the cluster: `given`, or else the cluster of the kubeconfig. Raises Failed."""
    return given or local_cluster(os.environ.get("KUBECONFIG"))


def complete_nodes(context: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    try:
        config = load(find_cluster(context.params.get("cluster")))
    except Failed:
        return []
    return [node for node in (config.node_names() if config else []) if node.startswith(begun)]


def find_pod(cluster: str, space: str, own: str) -> Sandbox:
    """Return the sandbox of a pod in a cluster on this machine. Raises Failed."""
    for file in (BASE / cluster).glob("nodes/*/pods/*/pod.json"):
        facts = read(file) or {}
        if (facts.get("namespace"), facts.get("name")) == (space, own):
            return Sandbox(file.parent)
    if not (BASE / cluster).is_dir():
        raise Failed(f"no cluster {cluster!r} on this machine: `podwire up`, or use kubectl for a cluster elsewhere")
    raise Failed(f'no pod "{own}" in namespace "{space}" of cluster "{cluster}": `podwire get pods -A`')


def find_container(sandbox: Sandbox, which: str) -> Container:
    names = sandbox.facts().get("containers") or []
    known = {d.name for d in (sandbox.directory / "containers").glob("*")}
    if not known:
        raise Failed("the pod has no container yet: `podwire get pods`")
    if which and which not in known:
        raise Failed(f"no container {which!r}; the pod has {', '.join(sorted(known))}")
    return Container(sandbox, which or next((n for n in names if n in known), min(known)))


def _with_pod_options(command: click.Command) -> click.Command:
    for option in reversed(pod_options):
        option(command)
    return command


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("pod")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(pod: str, command: tuple[str, ...], space: str, which: str, cluster: str | None) -> None:
    """Run a command in a pod: `podwire exec POD -- COMMAND ...`."""
    container = find_container(find_pod(find_cluster(cluster), space, pod.removeprefix("pod/")), which)
    process = container.main_process()
    if process is None or not process.alive:
        raise Failed(f"container {container.name} is not running: `podwire logs {pod}`")
    words = command[1:] if command[0] == "--" else command
    sys.stdout.flush()
    argv = [*enter_command(process.pid), *words]
    os.execvpe(argv[0], argv, {"PATH": PATH, "TERM": os.environ.get("TERM", "dumb"), "HOME": "/root"})


@click.command("node", context_settings={"ignore_unknown_options": True})
@click.argument("node", shell_complete=complete_nodes)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@cluster_option
def node(node: str, command: tuple[str, ...], cluster: str | None) -> None:
    """Run a command (default: a shell) in a node of the cluster on this machine: `podwire node node1 -- ip route`.

    It has the node's network, and in its environment the node's name and kubeconfig.
    """
    config = load(find_cluster(cluster))
    if config is None or node not in config.node_names():
        known = f"it has {', '.join(config.node_names())}" if config else "start one with `podwire up`"
        raise Failed(f"no node {node!r} in cluster {config.name if config else cluster!r}: {known}")
    words = command[1:] if command[:1] == ("--",) else command
    argv = [
        "nsenter",
        f"--net={config.netns(node)}",
        "--",
        *(words or (os.environ.get("SHELL", "/bin/sh"),)),
    ]
    sys.stdout.flush()
    os.execvpe(
        argv[0], argv, {**os.environ, "KUBECONFIG": str(config.node_dir(node) / "kubeconfig"), "NODE_NAME": node}
    )


def log_lines(path: Path, follow: bool, tail: int | None = None) -> Iterator[str]:
    """Yield the lines of a CRI log file without their prefixes. tail: the number of last lines to start with; None
    starts at the beginning. With `follow`, wait for new lines until interrupted.
    """
    try:
        with path.open() as file:
            if tail is not None:
                lines = file.readlines()
                yield from (line.split(" ", 3)[-1].rstrip("\n") for line in lines[max(0, len(lines) - tail) :])
            while True:
                line = file.readline()
                if line:
                    yield line.split(" ", 3)[-1].rstrip("\n")
                elif follow:
                    time.sleep(0.1)
                else:
                    return
    except FileNotFoundError:
        return


@click.command()
@click.argument("pod")
@click.option("-f", "--follow", is_flag=True, help="Follow the log until interrupted.")
@click.option("--tail", type=click.IntRange(0), help="Show only the last N lines.")
def logs(pod: str, follow: bool, tail: int | None, space: str, which: str, cluster: str | None) -> None:
    """Show what a container wrote."""
    container = find_container(find_pod(find_cluster(cluster), space, pod.removeprefix("pod/")), which)
    try:
        for line in log_lines(container.log, follow, tail):
            click.echo(line)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


_with_pod_options(exec_)
_with_pod_options(logs)

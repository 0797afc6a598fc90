"""`podwire exec`, `logs` and `node`: commands for the pods and nodes of a cluster on this machine.

The commands find pods and nodes through the cluster's run directory.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from podwire_node.logfiles import joined
from podwire_node.podspec import PATH
from podwire_node.runtime import Container, RuntimeFailed, Sandbox, read

from ..cluster.config import BASE
from ..cluster.record import load
from . import terminal
from .choosing import completing, pod_of, pods_by_selector
from .common import NAME_VARIABLE, Failed, become, complete_clusters, err, keep_name, local_cluster


def cluster_option(command: Any) -> Any:
    """Give a command --name, as its argument `cluster`."""
    params = command.params if isinstance(command, click.Command) else getattr(command, "__click_params__", [])
    params[:] = [param for param in params if "--name" not in param.opts]  # that of kubeconfig_option
    return click.option(
        "--name",
        "cluster",
        envvar=NAME_VARIABLE,
        default=None,
        callback=keep_name,
        shell_complete=complete_clusters,
        help="The cluster; default: that of $KUBECONFIG, or the only one.",
    )(command)


pod_options = (
    click.option(
        "-n",
        "--namespace",
        "space",
        default="default",
        show_default=True,
        shell_complete=completing("namespaces"),
        help="Namespace of the pod.",
    ),
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


class WithCommand(click.Command):
    """A command whose last words are another program's: options are read up to `--`, or up to the pod without it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_interspersed_args = "--" in args
        return super().parse_args(ctx, args)


@click.command("exec", cls=WithCommand)
@click.argument("pod", shell_complete=completing("pods", kinds=True))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-i", "--stdin", "interactive", is_flag=True, help="Pass standard input on, also if it is no terminal.")
@click.option("-t", "--tty", is_flag=True, help="The command has this terminal. (It has, if there is one.)")
def exec_(
    pod: str, command: tuple[str, ...], interactive: bool, tty: bool, space: str, which: str, cluster: str | None
) -> None:
    """Run a command in a pod: `podwire exec -it POD -- sh`. POD may be deploy/NAME, svc/NAME or another KIND/NAME."""
    if command[0].startswith("-"):
        raise Failed(f"write -- before the command: `podwire exec {pod} {command[0]} ... -- COMMAND`")
    if tty and not sys.stdin.isatty():
        err.print("-t: standard input is no terminal, so the command gets none", style="yellow")
    name = find_cluster(cluster)
    container = find_container(find_pod(name, space, pod_of(name, space, pod)), which)
    own_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        enter = container.entered(terminal=own_terminal)
    except RuntimeFailed as error:
        raise Failed(f"{error}: `podwire logs {pod}`") from None
    env = {"PATH": PATH, "TERM": os.environ.get("TERM", "dumb"), "HOME": "/root"}
    if enter[0] == "nsenter":  # ctr: the container's environment is containerd's to give
        env = dict(os.environ)
    argv = [*enter, *command]
    if own_terminal and enter[0] != "nsenter":
        raise SystemExit(terminal.run(argv, env))
    if not interactive and not sys.stdin.isatty():  # as kubectl: a loop in a shell keeps its own input
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    become(argv, env)


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
    become(argv, {**os.environ, "KUBECONFIG": str(config.node_dir(node) / "kubeconfig"), "NODE_NAME": node})


def log_lines(paths: list[Path], follow: bool, tail: int | None = None) -> Iterator[tuple[int, str]]:
    """Yield (number of the file, line) of CRI log files, the lines without their prefixes. tail: the number of last
    lines of each to start with; None starts at the beginning. With `follow`, wait for new lines until interrupted.
    """
    with contextlib.ExitStack() as stack:
        files = []
        for number, path in enumerate(paths):
            with contextlib.suppress(FileNotFoundError):
                files.append((number, stack.enter_context(path.open(errors="replace"))))
        parts: dict[int, dict[str, str]] = {number: {} for number, _ in files}
        for number, file in files:
            lines = [line.text for line in joined(file, parts[number])]
            yield from ((number, line) for line in lines[max(0, len(lines) - tail) if tail is not None else 0 :])
        while follow:
            for number, file in files:
                yield from ((number, line.text) for line in joined(iter(file.readline, ""), parts[number]))
            time.sleep(0.1)


@click.command()
@click.argument("pod", required=False, shell_complete=completing("pods", kinds=True))
@click.option("-l", "--selector", default="", help="Of all pods with these labels, each line with its pod's name.")
@click.option("-f", "--follow", is_flag=True, help="Follow the log until interrupted.")
@click.option("--tail", type=click.IntRange(0), help="Show only the last N lines.")
def logs(
    pod: str | None, selector: str, follow: bool, tail: int | None, space: str, which: str, cluster: str | None
) -> None:
    """Show what a container wrote: `podwire logs -f deploy/web`, `podwire logs -f -l app=web`."""
    if bool(pod) == bool(selector):
        raise Failed("name a pod, deploy/NAME or another KIND/NAME, or pods by -l LABELS: one of the two")
    name = find_cluster(cluster)
    names = pods_by_selector(name, space, selector) if selector else [pod_of(name, space, pod or "")]
    if not names:
        raise Failed(f"no pod of namespace {space} has labels {selector}: `podwire get pods -A -l {selector}`")
    paths = [find_container(find_pod(name, space, own), which).log for own in names]
    try:
        for number, line in log_lines(paths, follow, tail):
            click.echo(f"[{names[number]}] {line}" if selector else line)
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # `| head` has enough
    except KeyboardInterrupt:
        raise SystemExit(130) from None


_with_pod_options(exec_)
_with_pod_options(logs)

"""`podwire image`: makes OCI images without a container engine, and manages those on the nodes of a cri cluster."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import click

from podwire_base.version import VERSION

from ..cluster import images
from ..cluster.config import ClusterConfig
from ..cluster.record import load as load_cluster
from ..deploy import image as builder
from .common import Failed, make_table, print_table
from .pods import cluster_option, find_cluster


@click.group()
def image() -> None:
    """Build images, and manage those on the nodes of a cluster with the runtime cri."""


@image.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("dist/podwire-image.tar"),
    show_default=True,
    help="The OCI archive to write.",
)
@click.option("--name", help="REPOSITORY:TAG [default: podwire.io/podwire:VERSION; needed with FOLDER]")
@click.option("--entrypoint", default="", metavar="WORDS", help="With FOLDER: the image's Entrypoint.")
@click.option("--cmd", default="", metavar="WORDS", help="With FOLDER: the image's Cmd.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="With FOLDER: a variable; repeatable.")
@click.option("--user", default="", help="With FOLDER: the image's user.")
@click.option(
    "--wheel",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Of podwire; default: built from the source tree in the current directory.",
)
@click.option("--suite", help="Debian or Ubuntu release whose Python is taken; default: this machine's.")
def build(
    folder: Path | None,
    output: Path,
    name: str | None,
    entrypoint: str,
    cmd: str,
    env: tuple[str, ...],
    user: str,
    wheel: Path | None,
    suite: str | None,
) -> None:
    """Build an image of the files in FOLDER. Without FOLDER: the image that deploy/ runs, of the source tree in the
    current directory (as root, with mmdebstrap).

    `podwire image load FILE` and `ctr --namespace k8s.io images import FILE` load it.
    """
    try:
        if folder is not None:
            if not name:
                raise Failed("--name: missing; it is the image's name, such as app:1")
            config = images.image_config(shlex.split(entrypoint), shlex.split(cmd), env, user)
            images.build(folder, output, name, config)
            click.echo(f"wrote {output}: {name}; `podwire image load {output}` loads it into a cluster")
            return
        if wheel is None and not Path("pyproject.toml").exists():
            raise Failed("--wheel: missing, and the current directory is not a source tree of podwire")
        builder.build(
            output,
            name or f"podwire.io/podwire:{VERSION}",
            wheel=wheel,
            checkout=Path.cwd(),
            suite=suite,
            say=click.echo,
        )
    except (builder.BuildFailed, OSError, ValueError, images.ImageFailed) as error:
        raise Failed(str(error)) from error


def _nodes(cluster: str | None, node: str | None) -> tuple[ClusterConfig, list[str]]:
    config = load_cluster(find_cluster(cluster))
    if config is None:
        raise Failed(f"no cluster {cluster!r} on this machine: `podwire list`")
    if config.runtime != "cri":
        raise Failed(f"cluster {config.name} has the runtime {config.runtime}, which has no images: `up --runtime cri`")
    if os.geteuid():
        raise Failed("this needs root: the cluster is root's")
    if node and node not in config.running_nodes():
        raise Failed(f"no node {node!r} that runs in cluster {config.name}: {', '.join(config.running_nodes())}")
    return config, [node] if node else config.running_nodes()


node_option = click.option("--node", help="One node; default: all of them.")


@image.command()
@click.argument("source", type=click.Path(path_type=Path, allow_dash=True, exists=True))
@node_option
@cluster_option
def load(source: Path, node: str | None, cluster: str | None) -> None:
    """Load images into the nodes: an archive of docker or OCI, a folder with an OCI layout, or - for standard input."""
    config, nodes = _nodes(cluster, node)
    try:
        for name in images.load(config, nodes, None if str(source) == "-" else source):
            click.echo(f"loaded {name} into {', '.join(nodes)}")
    except (images.ImageFailed, OSError) as error:
        raise Failed(str(error)) from error


@image.command()
@click.argument("name")
@node_option
@cluster_option
def pull(name: str, node: str | None, cluster: str | None) -> None:
    """Pull an image from its registry, to all nodes."""
    config, nodes = _nodes(cluster, node)
    try:
        images.pull(config, nodes, name)
    except images.ImageFailed as error:
        raise Failed(str(error)) from error
    click.echo(f"pulled {name} to {', '.join(nodes)}")


@image.command("list")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Output format.")
@node_option
@cluster_option
def list_(output: str | None, node: str | None, cluster: str | None) -> None:
    """List the images of the nodes."""
    config, nodes = _nodes(cluster, node)
    try:
        rows = images.listed(config, nodes)
    except images.ImageFailed as error:
        raise Failed(str(error)) from error
    if output == "json":
        json.dump({"images": rows}, sys.stdout, indent=2)
        click.echo()
        return
    grid = make_table("IMAGE", "ID", "SIZE", "NODES")
    for row in rows:
        grid.add_row(row["name"], row["id"].removeprefix("sha256:")[:12], _size(row["size"]), ",".join(row["nodes"]))
    print_table(grid)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


@image.command()
@click.argument("names", nargs=-1, required=True)
@node_option
@cluster_option
def rm(names: tuple[str, ...], node: str | None, cluster: str | None) -> None:
    """Remove images from the nodes."""
    config, nodes = _nodes(cluster, node)
    try:
        for name in names:
            images.remove(config, nodes, name)
            click.echo(f"removed {name} from {', '.join(nodes)}")
    except images.ImageFailed as error:
        raise Failed(str(error)) from error

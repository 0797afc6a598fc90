"""The images of a cluster's nodes (runtime cri): built from a folder, loaded, pulled, listed, removed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from podwire_cni import oci
from podwire_node.cri import plan
from podwire_node.podspec import Refused
from podwire_node.runtime import RuntimeFailed, read

from .config import ClusterConfig


class ImageFailed(Exception):
    """The message says what failed, on which node, and what to do."""


def image_config(entrypoint: Sequence[str], cmd: Sequence[str], env: Iterable[str], user: str) -> dict[str, Any]:
    """Return the `config` object of an OCI image. Raises ImageFailed."""
    config: dict[str, Any] = {}
    for row in env:
        if not re.match(r"[^=]+=", row):
            raise ImageFailed(f"--env: {row!r}: NAME=VALUE")
    if entrypoint:
        config["Entrypoint"] = list(entrypoint)
    if cmd:
        config["Cmd"] = list(cmd)
    if user:
        config["User"] = user
    config["Env"] = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", *env]
    return config


def build(folder: Path, output: Path, name: str, config: dict[str, Any]) -> None:
    """Write an OCI archive with the files of a folder. Raises ImageFailed, OSError and ValueError."""
    entries = []
    for path in sorted(folder.rglob("*")):
        own = str(path.relative_to(folder))
        if path.is_symlink():
            entries.append(oci.Entry(own, None, 0o777, str(path.readlink())))
        elif path.is_dir():
            entries.append(oci.Entry(own, None, path.stat().st_mode & 0o7777))
        elif path.is_file():
            entries.append(oci.Entry(own, path.read_bytes(), path.stat().st_mode & 0o7777))
        else:
            raise ImageFailed(f"{path}: neither a file nor a directory nor a link; an image has only these")
    if not entries:
        raise ImageFailed(f"{folder}: no files: an image needs at least its program")
    made = oci.archive([oci.tar(entries)], config, os.uname().machine, full_name(name))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(made)


def full_name(name: str) -> str:
    try:
        return plan.full_name(name)
    except Refused:
        raise ImageFailed(f"{name!r} is no name of an image: REPOSITORY:TAG, such as app:1") from None


def load(config: ClusterConfig, nodes: Sequence[str], source: Path | None) -> list[str]:
    """Load the images of an archive or an OCI layout into nodes, from standard input for None. Return their names.
    Raises ImageFailed and OSError.
    """
    with tempfile.NamedTemporaryFile(dir=config.data_dir, suffix=".tar") as kept:
        if source is None:
            shutil.copyfileobj(sys.stdin.buffer, kept)
        elif source.is_dir():
            _pack(source, kept)
        kept.flush()
        file = source if source is not None and not source.is_dir() else Path(kept.name)
        names: list[str] = []
        for node in nodes:
            names = _import(config, node, file)
    return names


def _pack(layout: Path, into: IO[bytes]) -> None:
    if not (layout / "index.json").exists():
        raise ImageFailed(f"{layout}: no index.json: not a folder with an OCI layout")
    with tarfile.open(fileobj=into, mode="w") as archive:
        for path in sorted(layout.iterdir()):
            archive.add(path, path.name)


def _import(config: ClusterConfig, node: str, file: Path) -> list[str]:
    record = read(config.node_dir(node) / "containerd.json")
    if record is None:
        raise ImageFailed(f"{node}: containerd does not run: {config.node_dir(node)}/log/containerd.log")
    ctr = ["ctr", "--address", str(config.node_dir(node) / "containerd.sock"), "--namespace", "k8s.io"]
    words = [*ctr, "images", "import", "--snapshotter", record["snapshotter"], str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageFailed(f"{node}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'ctr failed'}")
    found = [match[1] for match in re.finditer(r"^unpacking (\S+) \(", done.stdout, re.MULTILINE)]
    if not found:
        raise ImageFailed(f"{file}: no image with a name: an archive of `docker save`, or an OCI archive or layout")
    for own in found:
        _each(config, [node], "known", lambda client, own=own: _known(client, own))
    return found


async def _known(client: Any, name: str) -> None:
    """Wait until CRI has an image that was loaded beside it."""
    for _ in range(500):
        if (await client.call("ImageStatus", {"image": {"image": name}})).get("image"):
            return
        await asyncio.sleep(0.01)
    raise ImageFailed(f"containerd does not know {name} after it was loaded")


def _each(config: ClusterConfig, nodes: Sequence[str], what: str, work: Any) -> list[Any]:
    """Return what `work(client)` returns for each node, all at once. Raises ImageFailed."""
    from podwire_node.cri.client import Client

    async def one(node: str) -> Any:
        client = Client(config.node_dir(node) / "containerd.sock")
        try:
            return await work(client)
        except RuntimeFailed as err:
            raise ImageFailed(f"{node}: {what}: {err}") from None
        finally:
            await client.close()

    async def all_of_them() -> list[Any]:
        return list(await asyncio.gather(*(one(node) for node in nodes)))

    return asyncio.run(all_of_them())


def pull(config: ClusterConfig, nodes: Sequence[str], name: str) -> None:
    """Pull an image to nodes. Raises ImageFailed."""
    asked = {"image": {"image": full_name(name)}}
    _each(config, nodes, f"pull {name}", lambda client: client.call("PullImage", asked, 3600))


def listed(config: ClusterConfig, nodes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the images of nodes: name, id, size in bytes, nodes. Raises ImageFailed."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for node, found in zip(nodes, _each(config, nodes, "list", lambda c: c.call("ListImages")), strict=True):
        for image in found.get("images") or []:
            for name in image.get("repo_tags") or image.get("repo_digests") or ["<none>"]:
                row = {"name": name, "id": image["id"], "size": int(image.get("size", 0)), "nodes": []}
                rows.setdefault((name, image["id"]), row)["nodes"].append(node)
    return [rows[key] for key in sorted(rows)]


def remove(config: ClusterConfig, nodes: Sequence[str], name: str) -> None:
    """Remove an image. Raises ImageFailed, also if no node has it."""
    asked = {"image": {"image": full_name(name)}}
    had = _each(config, nodes, f"rm {name}", lambda client: client.call("ImageStatus", asked))
    if not any(found.get("image") for found in had):
        raise ImageFailed(f"no node has image {name}: `podwire image list`")
    _each(config, nodes, f"rm {name}", lambda client: client.call("RemoveImage", asked))

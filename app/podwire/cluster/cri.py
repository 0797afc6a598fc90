"""The traces that the runtime cri leaves outside of a cluster's run directory, and their removal: processes of images,
which do not carry the cluster's mark, cgroups, and the directory on disk.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import time
from pathlib import Path

from podwire_cni import native
from podwire_node.cri.bundles import initial_processes
from podwire_node.runtime import Process, read

from .config import DATA, ClusterConfig

_SECONDS = 5.0  # in which the kernel ends killed processes


def problems(config: ClusterConfig) -> list[str]:
    """Return what this machine lacks for the cluster's runtime: one line each."""
    if config.runtime != "cri":
        return []
    found = []
    for program, package in (("containerd", "containerd"), ("ctr", "containerd"), ("runc", "runc")):
        if not shutil.which(program):
            found.append(f"--runtime cri: {program} is missing: install the package {package}, or use --runtime netns")
    if not all(importlib.util.find_spec(module) for module in ("grpc", "cri_api")):
        found.append("--runtime cri: its Python packages are missing: pip install 'podwire[cri]'")
    if not native.is_compiled("podwire-cni", "podwire-pause"):
        found.append(
            "--runtime cri: podwire-cni or podwire-pause is not compiled: install a C compiler and podwire again"
        )
    return found


def kill(config: ClusterConfig, node: str = "*") -> None:
    """Kill the daemons, and then the first process of each container: all others of the container end with it."""
    for record in config.run_dir.glob(f"nodes/{node}/containerd.json"):
        found = read(record) or {}
        if found.get("pid"):
            Process(found["pid"], found["started"]).signal(signal.SIGKILL)
    pids = [pid for folder in config.data_dir.glob(f"nodes/{node}") for pid in initial_processes(folder / "state")]
    shims = {_parent(pid) for pid in pids}
    for pid in [*pids, *shims]:
        if pid > 1:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _parent(pid: int) -> int:
    """Return the pid of a container's shim, 0 if its parent is another program."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        if b"containerd-shim" in Path(f"/proc/{parent}/cmdline").read_bytes():
            return parent
    return 0


def remove(config: ClusterConfig, node: str = "") -> list[str]:
    """Remove the cgroups and the directory on disk, of the cluster or of one node. Return what stays, a line each."""
    place = config.cri_dir(node) if node else config.data_dir
    if not place.exists():
        return []
    stays = _cgroups(config.cri_cgroup(node).rstrip("/"))
    shutil.rmtree(place, ignore_errors=True)
    with contextlib.suppress(OSError):
        DATA.rmdir()
    return stays + ([f"{place}: `rm -r {place}`"] if place.exists() else [])


def remove_node(config: ClusterConfig, node: str) -> None:
    kill(config, node)
    remove(config, node)


def _cgroups(own: str) -> list[str]:
    """Remove a cgroup in every hierarchy. Return what stays."""
    root = Path("/sys/fs/cgroup")
    tops = [path for path in (root, *root.iterdir()) if (path / own.lstrip("/")).is_dir()] if root.is_dir() else []
    end, stays = time.monotonic() + _SECONDS, []
    for top in {path.resolve() for path in tops}:
        group = top / own.lstrip("/")
        while group.exists():
            for below in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    below.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            if time.monotonic() > end:
                stays.append(f"cgroup {group}: `rmdir {group}/* {group}`")
                break
            time.sleep(0.02)
    return stays

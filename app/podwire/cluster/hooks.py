"""What a cluster with the proxy backend ebpf needs: a cgroup for each node, and a bpffs.

Each node has a cgroup of its own, so its socket hooks see its own roles and pods and no other program of the machine.
The bpffs is in the cluster's run directory and ends with it (mounts.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from podwire_base.role import logs
from podwire_proxy.ebpf import places

from . import cgroups
from .config import ClusterConfig

log = logs.get("cluster")
NOWHERE = Path("/nonexistent")
BYPASS = "PODWIRE_EBPF_BYPASS"  # the environment variable that puts the proxy's --ebpf-bypass on


def wanted(config: ClusterConfig) -> bool:
    return config.proxy_backend == "ebpf"


def _cgroup(config: ClusterConfig, node: str) -> Path:
    """Return the node's cgroup. Without cgroup2 it does not exist, and the proxy says so: it must not take another."""
    return (cgroups.of_cluster(config.name) or NOWHERE) / node


def prepare(config: ClusterConfig, node: str) -> tuple[tuple[str, str, str], ...]:
    """Make the node's cgroup and the cluster's bpffs. Return the settings of the node's proxy."""
    pins, cgroup = config.run_dir / "bpf", _cgroup(config, node)
    with contextlib.suppress(OSError):
        if cgroups.root():
            cgroup.mkdir(parents=True, exist_ok=True)
    try:
        places.bpffs(str(pins))
    except OSError as err:
        log.warn("no bpffs for the socket hooks", error=str(err))
    made = ("proxy", "ebpf_cgroup", str(cgroup)), ("proxy", "ebpf_bpffs", str(pins))
    return (*made, ("proxy", "ebpf_bypass", "true")) if os.environ.get(BYPASS) == "1" else made


def join(config: ClusterConfig, node: str, work: Callable[[], None]) -> None:
    """Run the node's work in its cgroup: a socket keeps the cgroup that it was made in."""
    with contextlib.suppress(OSError):  # the proxy says what is missing
        (_cgroup(config, node) / "cgroup.procs").write_text("0")
    work()

"""The cgroups of a cluster's nodes in the unified hierarchy (cgroup2), for backends that hook sockets by cgroup."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

_GONE_SECONDS = 2.0  # in which the kernel forgets killed processes
_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


def root() -> Path | None:
    """Return the mount of cgroup2; None if there is none."""
    return next((path for path in _ROOTS if (path / "cgroup.procs").exists()), None)


def of_cluster(name: str) -> Path | None:
    """Return the path of the cluster's cgroup, which need not exist."""
    above = root()
    return above / f"podwire-{name}" if above else None


def remove(name: str) -> list[str]:
    """Remove the cgroups, whose processes have ended. Return what stays, a line each."""
    path = of_cluster(name)
    end = time.monotonic() + _GONE_SECONDS
    while path is not None and path.exists():
        with contextlib.suppress(OSError):
            for below in sorted(path.rglob("*/"), reverse=True):
                below.rmdir()
            path.rmdir()
            return []
        if time.monotonic() > end:
            return [f"cgroup {path}: `rmdir {path}/* {path}`"]
        time.sleep(0.02)
    return []

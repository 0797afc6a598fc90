"""containerd's files of the containers that run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def initial_processes(state: Path) -> Iterator[int]:
    """Yield the pids of the containers that run: of their first processes. A pid in the files of a container that
    ended may be another process's by now, which is in no cgroup of that container.
    """
    for file in state.glob("io.containerd.runtime.v2.task/*/*/init.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            if file.parent.name in Path(f"/proc/{pid}/cgroup").read_text():
                yield pid

"""Removes a cluster in any state: processes, namespaces, files. The removal is idempotent."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from podwire_node.runtime import running

from . import network
from .config import BASE, MARKER, ClusterConfig

_STOP_SECONDS = 8.0


def _processes(config: ClusterConfig) -> Iterator[int]:
    """Yield the pid of every process that has the cluster's marker in its environment. The shims of containers have the
    marker, and a container ends with its shim.
    """
    wanted = f"{MARKER}={config.run_dir}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:
            continue


def stop_supervisor(config: ClusterConfig) -> None:
    """Send SIGTERM to the process behind `podwire up` and wait for its end. This process removes the cluster."""
    try:
        pid = int(json.loads((config.run_dir / "supervisor.json").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return
    if pid == os.getpid() or pid not in _processes(config):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + _STOP_SECONDS
    while running(pid) and time.monotonic() < end:
        time.sleep(0.02)


def teardown(config: ClusterConfig, say: Callable[[str], None] = lambda _: None) -> None:
    """Kill the cluster's remaining processes, delete its namespaces, and remove its files."""
    ancestors = _ancestors()
    for _ in range(100):
        left = [pid for pid in _processes(config) if pid not in ancestors]
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    with contextlib.suppress(FileNotFoundError):
        for namespace in dict.fromkeys((config.run_dir / "netns").read_text().split()):
            if network.delete(namespace):
                say(f"namespace {namespace}")
    with contextlib.suppress(OSError):
        network.NETNS.rmdir()  # only if it is empty; `ip netns` creates it again when needed
    shutil.rmtree(config.run_dir, ignore_errors=True)
    with contextlib.suppress(OSError):
        BASE.rmdir()


def _ancestors() -> set[int]:
    """Return the pids of this process and its ancestors. `podwire down` must not kill the shell in which it runs, which
    may have the cluster's marker in its environment.
    """
    found, pid = {os.getpid()}, os.getppid()
    while pid > 1 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError, ValueError):
            break
    return found

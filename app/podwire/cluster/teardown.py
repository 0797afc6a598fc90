"""Removes a cluster in any state: processes, namespaces, files. The removal is idempotent. It goes on after every error
and returns what stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from podwire_base.kernel.netns import call_in
from podwire_node.runtime import running

from . import cgroups, cri, mounts, network
from .config import BASE, MARKER, NETNS, ClusterConfig

_STOP_SECONDS = 8.0
_KILL_SECONDS = 2.0
_ROLE_SECONDS = 5.0
_PROCESS = ("process.json", "supervisor.json")  # `podwire up` writes the first one, and its process the second one


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


def supervisor(config: ClusterConfig) -> int:
    """Return the pid of the process behind `podwire up`, 0 if it does not run."""
    for name in _PROCESS:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            pid = int(json.loads((config.run_dir / name).read_text())["pid"])
            if running(pid) and pid in _processes(config):
                return pid
    return 0


def stop_supervisor(config: ClusterConfig) -> None:
    """Send SIGTERM to the process behind `podwire up` and wait for its end. This process removes the cluster."""
    pid = supervisor(config)
    if pid in (0, os.getpid()):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGCONT)  # a stopped process does not see SIGTERM
    end = time.monotonic() + _STOP_SECONDS
    while running(pid) and time.monotonic() < end:
        time.sleep(0.02)


def teardown(config: ClusterConfig, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """Kill the cluster's remaining processes, delete its namespaces, and remove its files. Returns what stays: one line
    for each thing, with the reason and the command that removes it.
    """
    inside = _inside(config)
    cri.kill(config)
    stays = _kill(config)
    stays += cri.remove(config)
    stays += cgroups.remove(config.name)
    if (config.run_dir / "merged.json").exists():
        from . import merging  # and yaml, which takes long to import

        stays += merging.take_out(config)
    names = _recorded(config)

    def ours(entry: Path) -> bool:
        try:
            if entry.is_symlink():
                return entry.readlink().is_relative_to(config.run_dir)
            return entry.name in names or (not names and _was_ours(config, entry, inside))
        except OSError:
            return False

    stays += mounts.remove(config.run_dir, NETNS, ours, say)
    mounts.empty((NETNS, BASE))  # `ip netns` creates the first one again when needed
    return stays


def abandon(config: ClusterConfig) -> None:
    """End the process behind `podwire up` and all roles, and leave everything else: files, namespaces and pods. The
    cluster can be taken up again.
    """
    marked, pid = set(_processes(config)), supervisor(config)
    roles = {role for role in _roles(config) if role in marked} - {pid}
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # SIGTERM would remove the cluster; SIGKILL sends SIGTERM to its roles
    end = time.monotonic() + _ROLE_SECONDS
    for number in (signal.SIGTERM, signal.SIGCONT, signal.SIGKILL):
        for role in filter(running, roles):
            with contextlib.suppress(ProcessLookupError):
                os.kill(role, number)
        while number != signal.SIGTERM and any(map(running, roles)) and time.monotonic() < end:
            time.sleep(0.01)
    for path in (*(config.run_dir / name for name in _PROCESS), *config.run_dir.glob("nodes/*/agent.json")):
        path.unlink(missing_ok=True)


def _roles(config: ClusterConfig) -> Iterator[int]:
    """Yield the pids in the state files of the supervisors, which may have ended."""
    for path in (config.run_dir / "supervisor.json", *config.run_dir.glob("nodes/*/agent.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(path.read_text())
            yield from (int(pid) for pid in (state["pid"], *(row["pid"] for row in state["roles"].values())) if pid)


def keep_logs(config: ClusterConfig) -> None:
    """Move the logs to `failed_dir`, which takes the place of an earlier one. This works on a full disk."""
    shutil.rmtree(config.failed_dir, ignore_errors=True)
    for folder in (config.run_dir / "log", *config.run_dir.glob("nodes/*/log")):
        with contextlib.suppress(OSError):
            config.failed_dir.mkdir(exist_ok=True)
            own = "cluster" if folder.parent == config.run_dir else folder.parent.name
            folder.rename(config.failed_dir / own)


def _kill(config: ClusterConfig) -> list[str]:
    """Kill every process of the cluster, and return those that do not end."""
    ancestors, end = _ancestors(), time.monotonic() + _KILL_SECONDS
    while left := [pid for pid in _processes(config) if pid not in ancestors]:
        if time.monotonic() > end:
            return [f"process {pid}, which does not end: `kill -9 {pid}`" for pid in left]
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return []


# ---- clusters of podwire 0.2.0, whose namespaces are mounts in /run/netns


def _recorded(config: ClusterConfig) -> set[str]:
    try:
        return set((config.run_dir / "netns").read_text().split())
    except (OSError, UnicodeDecodeError):
        return set()


def _was_ours(config: ClusterConfig, entry: Path, inside: set[int]) -> bool:
    """Whether an entry of /run/netns is the cluster's, if the record is lost: one of its processes is in the namespace,
    or the namespace has the switch.
    """
    if entry.name == f"{config.name}-{network.SWITCH}":
        return network.BRIDGE in call_in(str(entry), lambda: [name for _, name in socket.if_nameindex()])
    return bool(re.fullmatch(re.escape(config.name) + r"-(node\d+|outside|dns)", entry.name)) and (
        entry.stat().st_ino in inside
    )


def _inside(config: ClusterConfig) -> set[int]:
    """Return the inode numbers of the network namespaces of the cluster's processes, without the machine's own."""
    found = set()
    for pid in _processes(config):
        with contextlib.suppress(OSError):
            found.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
    with contextlib.suppress(OSError):
        found.discard(os.stat("/proc/self/ns/net").st_ino)
    return found


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

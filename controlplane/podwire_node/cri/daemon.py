"""Starts a node's containerd and keeps it running. It goes on when the node agent ends, and the next one finds it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from podwire_base.patience import patient
from podwire_base.role import files, logs, rotate

from ..runtime import Process, read, running
from . import daemonconfig
from .bundles import initial_processes
from .client import Client, CriFailed
from .daemonconfig import Daemon

log = logs.get("node")
_START_SECONDS = 30.0
_CAP_SYS_RESOURCE = 24


class NotStarted(Exception):
    """containerd does not run. The message says why."""


def may_lower_oom_scores() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def snapshotter(data: Path) -> str:
    """Return overlayfs where the directory's file system takes overlay mounts, else native, which copies files."""
    place = data / "probe"
    for part in ("lower", "upper", "work", "merged"):
        (place / part).mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
    pid = os.fork()
    if not pid:  # in a mount namespace that ends with this child
        libc = ctypes.CDLL(None)
        private = not libc.unshare(0x20000) and not libc.mount(
            b"none", b"/", None, ctypes.c_ulong(1 << 18 | 16384), None
        )
        mounted = private and not libc.mount(
            b"overlay", f"{place}/merged".encode(), b"overlay", ctypes.c_ulong(0), options.encode()
        )
        os._exit(0 if mounted else 1)
    _, status = os.waitpid(pid, 0)
    shutil.rmtree(place, ignore_errors=True)
    return "native" if status else "overlayfs"


def _shim(state: Path) -> int:
    """Return the pid of a shim that runs, 0 if there is none."""
    for pid in initial_processes(state):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("PPid:")).split()[1])
    return 0


class Containerd:
    """One node's daemon. pause: the archive of the pause image."""

    def __init__(self, daemon: Daemon, pause: bytes) -> None:
        self.daemon, self.pause = daemon, pause
        self.client = Client(daemon.socket)
        self.version = ""
        self._record = daemon.run_dir / "containerd.json"
        self.log = daemon.run_dir / "log" / "containerd.log"

    def process(self) -> Process | None:
        found = read(self._record)
        process = Process(found["pid"], found["started"]) if found else None
        return process if process and process.alive else None

    def _prepare(self) -> None:
        daemon = self.daemon
        for folder in (daemon.data, daemon.plugins, daemon.hosts, self.log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        plugin = daemon.cni_bin / "podwire-cni"
        for own in ("podwire-cni", "loopback"):  # the binary has both
            link = daemon.plugins / own
            if not link.is_symlink() or link.readlink() != plugin:
                link.unlink(missing_ok=True)
                link.symlink_to(plugin)
        files.write(daemon.config, daemonconfig.text(daemon))
        rotate.cut(self.log)

    async def _spawn(self) -> None:
        program = shutil.which("containerd")
        if program is None:
            raise NotStarted("no containerd on PATH: install the packages containerd and runc")
        self._prepare()
        with self.log.open("ab") as sink:
            child = await asyncio.create_subprocess_exec(
                *daemonconfig.command(self.daemon, program, _shim(self.daemon.state)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        facts = {"pid": child.pid, "started": running(child.pid), "snapshotter": self.daemon.snapshotter}
        files.write(self._record, json.dumps(facts))
        log.info("containerd starts", pid=child.pid)

    async def ensure(self) -> None:
        """Start the daemon if it does not run, and wait until it serves. Raises NotStarted."""
        if self.process() is None:
            await self._spawn()
        end = time.monotonic() + patient(_START_SECONDS)
        while True:
            try:
                self.version = str((await self.client.call("Version", {}, 5.0, wait=False)).get("runtime_version", ""))
                await self.client.call("Status", {}, 5.0, wait=False)
                break
            except CriFailed as err:
                if self.process() is None:
                    raise NotStarted(f"containerd ended: {self.words()}") from None
                if time.monotonic() > end:
                    raise NotStarted(f"containerd does not serve: {err}") from None
            await asyncio.sleep(0.02)
        if not (await self.client.call("ImageStatus", {"image": {"image": daemonconfig.PAUSE}})).get("image"):
            await self.load(self.pause, daemonconfig.PAUSE)

    async def load(self, archive: bytes, name: str) -> None:
        """Load an image from the bytes of its archive, and wait until CRI has it. Raises NotStarted."""
        program = shutil.which("ctr")
        if program is None:
            raise NotStarted("no ctr on PATH: it comes with containerd")
        child = await asyncio.create_subprocess_exec(
            *daemonconfig.importing(self.daemon, program, "-"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await child.communicate(archive)
        if child.returncode:
            raise NotStarted(f"image {name} cannot be loaded: {said.decode(errors='replace').strip()[-300:]}")
        end = time.monotonic() + patient(_START_SECONDS)
        while not (await self.client.call("ImageStatus", {"image": {"image": name}})).get("image"):
            if time.monotonic() > end:
                raise NotStarted(f"containerd does not know image {name} after it was loaded")
            await asyncio.sleep(0.02)

    async def keep(self, started: Callable[[], None]) -> None:
        """Start the daemon whenever it ended. started: is called each time that it serves. Runs forever."""
        delay = 0.1
        while True:
            try:
                await self.ensure()
                started()
                delay = 0.1
                if process := self.process():
                    await process.ended()
                log.warn("containerd ended; its containers go on", error=self.words())
            except (NotStarted, CriFailed, OSError) as err:
                log.error("containerd does not run", error=str(err))
                await asyncio.sleep(delay)
                delay = min(delay * 2, 10.0)

    def words(self) -> str:
        """Return the last line of the daemon's log."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace")[-4000:].strip().splitlines()
            return lines[-1] if lines else ""
        return ""

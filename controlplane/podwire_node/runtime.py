"""The `netns` runtime: a sandbox is a pause process with its own namespaces, and a container is a process in these
namespaces.

All files of a pod are in `<run_dir>/pods/<uid>/`. They record the pids and the start times of the pod's processes. A
restarted node agent reads the files and leaves running pods unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podwire_base import native
from podwire_base.kube.meta import Object

from . import podspec, shim
from .launch import Launch
from .logfiles import Run

_START_TIMEOUT = 10.0
ECHO_IN_POD = "/usr/local/bin/podwire-echo"
NATIVE = Path(__file__).parent / "native"
ECHO_STANDIN = NATIVE / "echo.py"


class RuntimeFailed(Exception):
    """A sandbox or container did not start. The message has the reason."""


def running(pid: int) -> int:
    """Return the start time (clock ticks) of a running process, 0 if the process has ended or is a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


@dataclass(frozen=True, slots=True)
class Process:
    """A process, identified by pid and start time: a later process with the same pid has another start time."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return bool(self.pid) and running(self.pid) == self.started

    def signal(self, number: int) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def ended(self) -> None:
        """Wait until the process has ended. The process need not be a child of the caller (pidfd)."""
        if not self.pid:
            return
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.alive:
                return
            loop, done = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(fd, done.set)
            try:
                await done.wait()
            finally:
                loop.remove_reader(fd)
        finally:
            os.close(fd)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, os.WNOHANG)


def read(path: Path) -> dict[str, Any] | None:
    """Return the content of a shim's JSON file, None if the file is missing or incomplete."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    except (OSError, ValueError):
        return None


def echo_binary() -> Path | None:
    """Return the path of the compiled podwire-echo, None if it is not compiled."""
    return native.program(NATIVE, "podwire-echo")


def echo_command(at: str = "") -> list[str]:
    """Return the argv of podwire-echo: the compiled program, or else echo.py run by this interpreter. at: the program's
    path inside the pod.
    """
    compiled = echo_binary()
    if compiled:
        return [at or str(compiled)]
    # Resolve the venv's link to the interpreter: the venv may be in a directory that a pod cannot see.
    return [os.path.realpath(sys.executable), "-IS", at or str(ECHO_STANDIN)]


async def _spawn_shim(spec_file: Path, spec: dict[str, Any], state: Path) -> dict[str, Any]:
    """Start a shim, wait for its state file and return the content of this file. The shim's stderr goes to a file
    beside the spec. Raises RuntimeFailed.
    """
    shim.write(str(spec_file), spec)
    state.unlink(missing_ok=True)
    errors = spec_file.with_suffix(".err")
    with errors.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-ISE",
            shim.__file__,
            str(spec_file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    end = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < end:
        found = read(state)
        if found is not None:
            return found
        if process.returncode is not None:
            break
        await asyncio.sleep(0.002)
    text = errors.read_text(errors="replace").strip().splitlines()
    raise RuntimeFailed(text[-1] if text else f"the shim did not start within {_START_TIMEOUT:.0f} s")


class Sandbox:
    """One pod's directory, pause process and namespaces. kind: the scheme of its containers' ids."""

    kind = "podwire"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "sandbox.json"

    def process(self) -> Process | None:
        """Return the pause process, None if it is not running."""
        found = read(self.state)
        if found is None:
            return None
        process = Process(found["pid"], found["started"])
        return process if process.alive else None

    @property
    def id(self) -> str:
        """The sandbox's id for the CNI plugins, "" before the first start."""
        return str((read(self.directory / "pod.json") or {}).get("sandbox", ""))

    def container(self, name: str) -> Container:
        return Container(self, name)

    @property
    def disk(self) -> Path:
        """The directory of the volumes that the pod writes."""
        return self.directory / "empty"

    def describe(self, **fields: Any) -> None:
        """Store `fields` in the pod's pod.json, for a restarted node agent and for `podwire exec`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        shim.write(str(self.directory / "pod.json"), {**(read(self.directory / "pod.json") or {}), **fields})

    def facts(self) -> dict[str, Any]:
        return read(self.directory / "pod.json") or {}

    async def start(self, hostname: str, command: list[str], *, share_net: bool) -> Process:
        """Start a new pause process in new namespaces. share_net: use the node's network. Raises RuntimeFailed."""
        self.describe(sandbox=uuid.uuid4().hex)
        spec = {
            "kind": "sandbox",
            "hostname": hostname,
            "share_net": share_net,
            "command": command,
            "state": str(self.state),
        }
        found = await _spawn_shim(self.directory / "sandbox.spec", spec, self.state)
        return Process(found["pid"], found["started"])

    async def stop(self) -> None:
        process = self.process()
        if process:
            process.signal(signal.SIGKILL)
            await process.ended()
        self.state.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class Container:
    """One container of a sandbox, identified by name. Its files stay when the node agent ends."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self.directory = sandbox.directory / "containers" / name
        self.name, self._sandbox = name, sandbox

    def ident(self) -> str:
        """The container's id in the pod's status, without its scheme."""
        return f"{self._sandbox.id[:12]}-{self.name}"

    def image_ref(self) -> str:
        """The image's digest, "" where there is no image."""
        return ""

    async def look(self) -> None:
        """Learn how the container is. The shim's files tell it already."""

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def running(self) -> Process | None:
        """Return the shim of the running container, None if there is none. The shim ends after the container has ended
        and the exit status is on disk.
        """
        found = read(self.directory / "state.json")
        if found is None:
            return None
        process = Process(found["shim"], found["shim_started"])
        return process if process.alive else None

    def main_process(self) -> Process | None:
        found = read(self.directory / "state.json")
        return Process(found["pid"], found["started"]) if found else None

    def environment(self) -> dict[str, str]:
        """Return the environment of the container's last start, empty before the first one."""
        return dict((read(self.directory / "container.spec") or {}).get("env") or {})

    def since(self) -> float:
        return float((read(self.directory / "state.json") or {}).get("since", 0))

    def exit(self) -> dict[str, Any] | None:
        """Return {"code", "signal", "finished"} of the last run, None if no run has ended."""
        return read(self.directory / "exit.json")

    def last_words(self) -> str:
        """Return the last line of the container's log, "" if the log is empty or missing."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 4096))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].split(" ", 3)[-1][:300] if lines else ""

    def restarts(self) -> int:
        return int((read(self.directory / "restarts.json") or {}).get("count", 0))

    def set_restarts(self, count: int) -> None:
        """Store the number of restarts as the container starts, and when, which tells the runs in its log apart."""
        self.directory.mkdir(parents=True, exist_ok=True)
        before = read(self.directory / "restarts.json") or {}
        made = {"count": count, "began": time.time(), "before": before.get("began", -1.0)}
        shim.write(str(self.directory / "restarts.json"), made)

    def run(self, *, previous: bool = False) -> Run:
        """Return the run of now, or the one before it; that begins before 0 if there was none."""
        known = read(self.directory / "restarts.json") or {}
        began = float(known.get("began", 0.0))
        return Run(float(known.get("before", -1.0)), began) if previous else Run(began)

    async def launch(self, pod: Object, container: Object, launch: Launch, tell: Callable[[str], None]) -> Process:
        """Start the container as the pod's spec says. Return its shim. Raises Refused and RuntimeFailed."""
        pause = self._sandbox.process()
        if pause is None:
            raise RuntimeFailed("the pod's pause process has ended")
        env = {"PATH": podspec.PATH, "HOME": "/root", "HOSTNAME": podspec.hostname(pod), **launch.env}
        words = podspec.command(container, env, echo_command(ECHO_IN_POD))
        binds = [bind.words() for bind in launch.binds]
        cwd = container.get("workingDir") or "/"
        made = await self.start(pause, words, env, cwd, dict(launch.files), list(launch.tmpfs), binds)
        tell("Created")
        return made

    def entered(self, *, terminal: bool = False) -> list[str]:
        """Return the argv prefix that runs a command in the running container, as its first process runs. A container
        of containerd is entered by containerd, which knows its user, capabilities and seccomp filter. Raises
        RuntimeFailed.
        """
        process, known = self.main_process(), read(self.directory / "state.json") or {}
        if process is None or not process.alive:
            raise RuntimeFailed(f"container {self.name} is not running")
        if not known.get("id"):
            return enter_command(process.pid, terminal=terminal)
        node = self._sandbox.directory.parent.parent
        daemon = (read(node / "containerd.json") or {}).get("pid")
        ctr = ["ctr", "--address", str(node / "containerd.sock"), "--namespace", "k8s.io", "tasks", "exec"]
        more = ["--tty"] if terminal else []
        inside = ["nsenter", f"--mount=/proc/{daemon}/ns/mnt", "--"]
        return [*inside, *ctr, "--exec-id", f"podwire-{uuid.uuid4().hex[:12]}", *more, known["id"]]

    async def execute(self, words: list[str], _limit: float = 0.0) -> int:
        """Run a command in the container's namespaces, discard its output, and return its exit status. Return 126 if
        the container does not run or the command is empty.
        """
        process = self.main_process()
        if process is None or not process.alive or not words:
            return 126
        child = await asyncio.create_subprocess_exec(
            *enter_command(process.pid),
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=self.environment() or {"PATH": podspec.PATH},
        )
        try:
            return await child.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, 9)
            raise

    async def start(
        self,
        pause: Process,
        command: list[str],
        env: dict[str, str],
        cwd: str,
        files: dict[str, str],
        tmpfs: list[str],
        volumes: Sequence[Sequence[str]] = (),
    ) -> Process:
        """Start the container in the sandbox's namespaces. files: path in the container -> content. tmpfs: paths of new
        empty file systems. volumes: [directory of the node, path in the container, mode]. Raises RuntimeFailed.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "root").mkdir(exist_ok=True)
        (self.directory / "exit.json").unlink(missing_ok=True)
        binds = []
        for path, text in files.items():
            source = self.directory / path.strip("/").replace("/", "_")
            source.write_text(text)
            binds.append([str(source), path, "rw"])
        binds.append([str(echo_binary() or ECHO_STANDIN), ECHO_IN_POD, "ro"])
        binds += [list(volume) for volume in volumes]
        spec = {
            "kind": "container",
            "pause": pause.pid,
            "root": str(self.directory / "root"),
            "lower": "/",
            "command": command,
            "env": env,
            "cwd": cwd,
            "binds": binds,
            "tmpfs": tmpfs,
            "log": str(self.log),
            "state": str(self.directory / "state.json"),
            "exit": str(self.directory / "exit.json"),
        }
        found = await _spawn_shim(self.directory / "container.spec", spec, self.directory / "state.json")
        return Process(found["shim"], found["shim_started"])

    async def stop(self, grace: float) -> None:
        """Send SIGTERM, and SIGKILL after `grace` seconds. Return when the container has ended."""
        process, watcher = self.main_process(), self.running()
        if process is None or watcher is None:
            return
        if grace > 0:
            process.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):  # in Python 3.11, wait_for can swallow a cancellation
                    await watcher.ended()
        if process.alive:
            process.signal(signal.SIGKILL)
        await watcher.ended()


def enter_command(pid: int, *, terminal: bool = False) -> list[str]:
    """Return the argv prefix that runs a command in the container whose first process is `pid`: in its namespaces and
    root, with its capabilities. terminal: standard input becomes the terminal that controls it.
    """
    return [sys.executable, "-ISE", shim.__file__, "exec-tty" if terminal else "exec", str(pid)]

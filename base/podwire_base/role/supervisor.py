"""A process with a child per role: forks them, restarts them with back-off, stops them together.

Forking (not exec) means that a node's roles share the imported code, and that a restart takes milliseconds. A crashed
role never delays another; what it left in the kernel goes on working meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..kernel.netns import setns
from . import logs

log = logs.get("supervisor")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_STOP_SECONDS = 3.0
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ended, in place of PID 1 (PR_SET_CHILD_SUBREAPER)."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_all(seconds: float = _STOP_SECONDS) -> None:
    """Wait for every child and adopted orphan, so that none stays in the process list as defunct."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Role:
    """run: blocks until SIGTERM. netns: path of a network namespace to run in. after: roles to be ready before it."""

    name: str
    run: Callable[[], None]
    log: Path | None = None
    netns: str = ""


def backoff(failures: int) -> float:
    """Seconds before the next start: 0.1, 0.2, 0.4 ... 10."""
    return float(min(0.1 * 2 ** max(0, failures - 1), 10.0))


@dataclass(slots=True)
class _Child:
    role: Role
    pid: int = 0
    started: float = 0.0
    due: float = 0.0
    failures: int = 0
    restarts: int = 0


class Supervisor:
    """`run()` blocks until SIGTERM or SIGINT, or until `until_eof` (a descriptor) is closed at its other end."""

    def __init__(self, roles: Sequence[Role], state: Path, until_eof: int | None = None) -> None:
        self.children = [_Child(role) for role in roles]
        self.state, self.until_eof = state, until_eof
        self._stopping = False

    # ---- children

    def _start(self, child: _Child) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become(child.role, parent)
        child.pid, child.started, child.due = pid, time.monotonic(), 0.0
        self._write()

    def _become(self, role: Role, parent: int) -> None:
        """In the child: never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(0)
            if role.log:
                role.log.parent.mkdir(parents=True, exist_ok=True)
                fd = os.open(role.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                os.dup2(fd, 1)
                os.dup2(fd, 2)
                os.close(fd)
            if role.netns:
                fd = os.open(role.netns, os.O_RDONLY | os.O_CLOEXEC)
                setns(fd)
                os.close(fd)
            role.run()
            status = 0
        except KeyboardInterrupt:
            status = 0
        except SystemExit as err:
            status = int(err.code) if isinstance(err.code, int) else 1
        except BaseException as err:
            log.error("role failed", child=role.name, error=str(err) or repr(err), trace=traceback.format_exc(limit=-3))
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = next((c for c in self.children if c.pid == pid), None)
            if child is None:
                continue  # an orphan of a role (a pod's process) that ended
            child.pid = 0
            if self._stopping:
                continue
            lived = time.monotonic() - child.started
            child.failures = 1 if lived > 10 else child.failures + 1
            child.restarts += 1
            child.due = time.monotonic() + backoff(child.failures)
            log.warn(
                "role ended, starting it again",
                child=child.role.name,
                status=os.waitstatus_to_exitcode(status),
                lived_s=lived,
                wait_s=backoff(child.failures),
            )
            self._write()

    def _write(self) -> None:
        rows = {c.role.name: {"pid": c.pid, "restarts": c.restarts} for c in self.children}
        tmp = self.state.with_suffix(f".{os.getpid()}")
        tmp.write_text(json.dumps({"pid": os.getpid(), "roles": rows}))
        tmp.replace(self.state)

    # ---- the loop

    def run(self) -> None:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        watched = [reader] + ([self.until_eof] if self.until_eof is not None else [])
        try:
            for child in self.children:
                self._start(child)
            while not self._stopping:
                wait = [c.due - time.monotonic() for c in self.children if c.due]
                ready, _, _ = select.select(watched, [], [], max(0.0, min(wait)) if wait else None)
                if reader in ready:
                    os.read(reader, 4096)
                if self.until_eof in ready and self.until_eof is not None and not os.read(self.until_eof, 4096):
                    break
                self._reap()
                for child in self.children:
                    if child.due and child.due <= time.monotonic() and not self._stopping:
                        self._start(child)
        finally:
            self._stop_children()
            signal.set_wakeup_fd(-1)
            os.close(reader)
            os.close(writer)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _stop_children(self) -> None:
        """SIGTERM to all, then SIGKILL to those that are still there after three seconds."""
        self._stopping = True
        end = time.monotonic() + _STOP_SECONDS
        for number in (signal.SIGTERM, signal.SIGKILL):
            for child in self.children:
                if child.pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, number)
            while any(c.pid for c in self.children) and time.monotonic() < end:
                self._reap()
                time.sleep(0.01)
            end = time.monotonic() + _STOP_SECONDS
        self.state.unlink(missing_ok=True)


def read_state(path: Path) -> dict[str, dict[str, int]]:
    """role -> {"pid", "restarts"} as a supervisor last wrote it; {} where there is none."""
    try:
        found: dict[str, dict[str, int]] = json.loads(path.read_text())["roles"]
        return found
    except (OSError, ValueError, KeyError):
        return {}

"""A process with one child for each role. It forks the children, restarts them with back-off, and stops them together.

The children are forked without exec, so a node's roles share the imported code, and a restart takes milliseconds. A
crashed role does not delay the other roles, and the kernel continues to work with the crashed role's state. If the
supervisor itself is killed, the kernel sends SIGTERM to its children.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..kernel.netns import setns
from . import capture, files, logs
from .run import NOTIFY, STOP_SIGNALS, notify
from .title import set_title

log = logs.get("supervisor")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STOP_SECONDS = 3.0
GOOD_SECONDS = 10.0  # seconds that a role must run before its count of failures is reset
_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans() -> None:
    """Make this process, instead of PID 1, the new parent of descendants whose parent ended
    (PR_SET_CHILD_SUBREAPER).
    """
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_all(seconds: float = STOP_SECONDS) -> None:
    """Wait up to `seconds` for all children and adopted orphans to end, so that no defunct process stays in the process
    list.
    """
    end = time.monotonic() + seconds
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < end:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.005)


@dataclass(frozen=True, slots=True)
class Role:
    """One role. run: the role's function, which blocks until SIGTERM. log: the file for the role's output; None: the
    supervisor's output. netns: the path of the role's network namespace. title: the words that `ps` shows after
    "podwire" (default: the name). grace: returns the seconds between SIGTERM and SIGKILL; it is called when the role
    must stop.
    """

    name: str
    run: Callable[[], None]
    log: Path | None = None
    netns: str = ""
    title: tuple[str, ...] = ()
    grace: Callable[[], float] = lambda: STOP_SECONDS


def backoff(failures: int) -> float:
    """Returns the seconds before the next start: 0.1, 0.2, 0.4 ... 10."""
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
    """`run()` blocks until SIGTERM or SIGINT, or until `until_eof` (a descriptor) is closed at its other end.

    state: the file for the process id of each role; None: no file. passed_on: signals that are forwarded to every role,
    each with a function that the supervisor calls first. These signals are blocked when a role starts; the role
    unblocks them when it can handle them. in_turn: at the end, the next role gets SIGTERM only when the previous role
    has ended.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        state: Path | None,
        until_eof: int | None = None,
        *,
        passed_on: Mapping[signal.Signals, Callable[[], None]] | None = None,
        in_turn: bool = False,
    ) -> None:
        self.children = [_Child(role) for role in roles]
        self.state, self.until_eof, self.in_turn = state, until_eof, in_turn
        self.passed_on = passed_on or {}
        self._received: list[signal.Signals] = []
        self._stopping = False

    # ---- children

    def _start(self, child: _Child) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self.passed_on)
        pid = os.fork()
        if pid == 0:
            self._become(child.role, parent)
        child.pid, child.started, child.due = pid, time.monotonic(), 0.0
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._write()

    def _become(self, role: Role, parent: int) -> None:
        """Run the role in the new child process. Never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (*STOP_SIGNALS, signal.SIGCHLD, *self.passed_on):
                signal.signal(number, signal.SIG_DFL)
            os.environ.pop(NOTIFY, None)  # only the supervisor sends messages to the service manager
            set_title("podwire", *(role.title or (role.name,)))
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(0)
            if role.log:
                logs.to_file(role.log)
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
                continue  # an adopted orphan ended, for example a pod's process
            child.pid = 0
            if self._stopping:
                continue
            lived = time.monotonic() - child.started
            child.failures = 1 if lived > GOOD_SECONDS else child.failures + 1
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
        if self.state is not None:
            rows = {c.role.name: {"pid": c.pid, "restarts": c.restarts} for c in self.children}
            files.write(self.state, json.dumps({"pid": os.getpid(), "roles": rows}))

    # ---- the loop

    def run(self) -> None:
        capture.everything()
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, *self.passed_on):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        watched = [reader] + ([self.until_eof] if self.until_eof is not None else [])
        try:
            for child in self.children:
                self._start(child)
            notify("READY=1")
            while not self._stopping:
                wait = [c.due - time.monotonic() for c in self.children if c.due]
                ready, _, _ = select.select(watched, [], [], max(0.0, min(wait)) if wait else None)
                if reader in ready:
                    os.read(reader, 4096)
                if self.until_eof in ready and self.until_eof is not None and not os.read(self.until_eof, 4096):
                    break
                self._reap()
                self._pass_on()
                for child in self.children:
                    if child.due and child.due <= time.monotonic() and not self._stopping:
                        self._start(child)
        finally:
            self._stop_children()
            signal.set_wakeup_fd(-1)
            os.close(reader)
            os.close(writer)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number in STOP_SIGNALS:
            self._stopping = True
        else:
            self._received.append(signal.Signals(number))

    def _pass_on(self) -> None:
        while self._received:
            number = self._received.pop(0)
            self.passed_on[number]()
            _kill(self.children, number)

    def _stop_children(self) -> None:
        self._stopping = True
        notify("STOPPING=1")
        for group in [[child] for child in self.children] if self.in_turn else [self.children]:
            self._stop(group)
        if self.state is not None:
            self.state.unlink(missing_ok=True)

    def _stop(self, group: Sequence[_Child]) -> None:
        """Send SIGTERM to all children of the group, then SIGKILL to each child that still runs after its
        grace period.
        """
        end = time.monotonic() + max((child.role.grace() for child in group), default=0.0)
        for number in (signal.SIGTERM, signal.SIGKILL):
            _kill(group, number)
            while any(child.pid for child in group) and time.monotonic() < end:
                self._reap()
                time.sleep(0.01)
            end = time.monotonic() + STOP_SECONDS


def _kill(children: Sequence[_Child], number: signal.Signals) -> None:
    for child in children:
        if child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)


def read_state(path: Path) -> dict[str, dict[str, int]]:
    """Returns role -> {"pid", "restarts"} from the state file of a supervisor; {} if there is no state file."""
    try:
        found: dict[str, dict[str, int]] = json.loads(path.read_text())["roles"]
        return found
    except (OSError, ValueError, KeyError):
        return {}

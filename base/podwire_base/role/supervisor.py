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
from dataclasses import dataclass, field
from pathlib import Path

from ..kernel.netns import setns
from . import beat, capture, files, logs, rotate, watching
from .run import NOTIFY, STOP_SIGNALS, WATCHDOG, manager_seconds, notify
from .title import set_title
from .watchdog import Watch

log = logs.get("supervisor")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
STOP_SECONDS = 3.0
CUT_SECONDS = 60.0  # between two looks at the size of log files
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
    must stop. beat: the file of the role's beat; None: the role is not watched.
    """

    name: str
    run: Callable[[], None]
    log: Path | None = None
    netns: str = ""
    title: tuple[str, ...] = ()
    grace: Callable[[], float] = lambda: STOP_SECONDS
    beat: Path | None = None


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
    status: int = 0  # of the last end: as waitstatus_to_exitcode gives it
    watch: Watch = field(default_factory=Watch)
    killed: bool = False  # by the watchdog
    dropped: bool = False  # it is not started again


class Supervisor:
    """`run()` blocks until SIGTERM or SIGINT, or until `until_eof` (a descriptor) is closed at its other end.

    state: the file for the process id of each role; None: no file. passed_on: signals that are forwarded to every role,
    each with a function that the supervisor calls first. These signals are blocked when a role starts; the role
    unblocks them when it can handle them. calls: signals with a function that the supervisor calls in its loop;
    it may add and drop roles. in_turn: at the end, the next role gets SIGTERM only when the previous role
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
        calls: Mapping[signal.Signals, Callable[[Supervisor], None]] | None = None,
    ) -> None:
        self.children = [_Child(role, watch=Watch(watching.seconds())) for role in roles]
        self.state, self.until_eof, self.in_turn = state, until_eof, in_turn
        self.passed_on, self.calls = passed_on or {}, calls or {}
        self._received: list[signal.Signals] = []
        self._stopping = False
        self._seconds = watching.seconds()
        self._look_every = min(watching.LOOK, self._seconds / 4 or watching.LOOK)
        self._looked = self._cut = time.monotonic()

    # ---- children

    def _start(self, child: _Child) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        heart = self._heart(child.role)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self.passed_on)
        pid = os.fork()
        if pid == 0:
            self._become(child.role, parent, heart)
        if heart is not None:
            os.close(heart)
        child.pid, child.started, child.due = pid, time.monotonic(), 0.0
        child.watch.started(child.started)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._write()

    def _heart(self, role: Role) -> int | None:
        """Open the role's beat before the fork, so that a role without rights on files has it too."""
        if role.beat is None:
            return None
        try:
            return beat.opened(role.beat)
        except OSError as err:
            log.warn("the role is not watched, its beat cannot be written", child=role.name, error=str(err))
            return None

    def _become(self, role: Role, parent: int, heart: int | None) -> None:
        """Run the role in the new child process. Never returns."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (*STOP_SIGNALS, signal.SIGCHLD, *self.passed_on, *self.calls):
                signal.signal(number, signal.SIG_DFL)
            for name in (NOTIFY, WATCHDOG):  # only the supervisor sends messages to the service manager
                os.environ.pop(name, None)
            beat.begin(heart)
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
            if self._stopping or child.dropped:
                continue
            lived = time.monotonic() - child.started
            child.failures = 1 if lived > GOOD_SECONDS else child.failures + 1
            child.restarts += 1
            child.status = os.waitstatus_to_exitcode(status)
            child.watch.ended(time.monotonic(), by_watchdog=child.killed)
            child.killed = False
            child.due = time.monotonic() + backoff(child.failures)
            log.warn(
                "role ended, starting it again",
                child=child.role.name,
                status=child.status,
                lived_s=lived,
                wait_s=backoff(child.failures),
            )
            self._write()

    def _write(self) -> None:
        if self.state is not None:
            rows = {c.role.name: {"pid": c.pid, "restarts": c.restarts, "status": c.status} for c in self.children}
            try:
                files.write(self.state, json.dumps({"pid": os.getpid(), "roles": rows}))
            except OSError as err:  # a full disk must not end the roles
                log.warn("the process ids of the roles cannot be written", path=str(self.state), error=str(err))

    def names(self) -> list[str]:
        return [child.role.name for child in self.children]

    def add(self, role: Role) -> None:
        """Start one more role. For functions of `calls`."""
        child = _Child(role, watch=Watch(self._seconds))
        self.children.append(child)
        self._start(child)

    def drop(self, name: str) -> None:
        """Stop a role for good, and wait for its end. For functions of `calls`."""
        gone = [child for child in self.children if child.role.name == name]
        for child in gone:
            child.dropped, child.due = True, 0.0
        self._stop(gone)
        self.children = [child for child in self.children if child not in gone]
        self._write()

    # ---- the loop

    def run(self) -> None:
        capture.everything()
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, *self.passed_on, *self.calls):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        watched = [reader] + ([self.until_eof] if self.until_eof is not None else [])
        try:
            for role in watching.end_stopped(_left(self.state)):
                log.warn("a stopped role of an earlier supervisor was killed", child=role)
            for child in self.children:
                self._start(child)
            notify("READY=1")
            manager = manager_seconds()
            while not self._stopping:
                wait = [c.due - time.monotonic() for c in self.children if c.due]
                wait += [self._looked + self._look_every - time.monotonic(), manager or self._look_every]
                ready, _, _ = select.select(watched, [], [], max(0.0, min(wait)))
                if manager:
                    notify("WATCHDOG=1")
                if reader in ready:
                    os.read(reader, 4096)
                if self.until_eof in ready and self.until_eof is not None and not os.read(self.until_eof, 4096):
                    break
                self._reap()
                self._pass_on()
                for child in self.children:
                    if child.due and child.due <= time.monotonic() and not self._stopping:
                        self._start(child)
                self._look()
        finally:
            self._stop_children()
            signal.set_wakeup_fd(-1)
            os.close(reader)
            os.close(writer)

    def _look(self) -> None:
        """Kill the roles that make no progress, and tell the own beat. SIGTERM does not reach a stopped process."""
        now = time.monotonic()
        if now - self._looked < self._look_every:
            beat.tick()
            return
        slow, self._looked = now - self._looked > 3 * self._look_every, now
        beats = {}
        for child in self.children:
            if child.role.beat is None:
                continue
            found = beats[child.role.name] = watching.reading(child.role.beat, child.pid)
            if not child.pid or not self._seconds or child.killed:
                continue
            if slow:  # this process did not run either: the machine or the whole cluster was stopped
                child.watch.excused(now)
            elif child.watch.overdue(now, found.at if found else None):
                if watching.traced(child.pid):
                    child.watch.excused(now)
                    continue
                since = now - (found.at if found else child.started)
                did = found.did if found else "nothing"
                log.error("role makes no progress, killing it", child=child.role.name, seconds=since, last_did=did)
                child.killed = True
                _kill([child], signal.SIGKILL)
        waiting = [name for name, found in beats.items() if found is None or not found.ready]
        beat.tell(not waiting, f"waits for {', '.join(waiting)}" if waiting else f"{len(beats)} roles are ready")
        if now - self._cut > CUT_SECONDS:
            self._cut = now
            for child in self.children:
                if child.role.log is not None and rotate.cut(child.role.log):
                    log.warn("a log was cut, its role does not write by the logger", child=child.role.name)

    def _on_signal(self, number: int, _frame: object) -> None:
        if number in STOP_SIGNALS:
            self._stopping = True
        else:
            self._received.append(signal.Signals(number))

    def _pass_on(self) -> None:
        while self._received:
            number = self._received.pop(0)
            if number in self.calls:
                self.calls[number](self)
                continue
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


def _left(state: Path | None) -> dict[str, int]:
    return {} if state is None else {role: row["pid"] for role, row in read_state(state).items()}


def read_state(path: Path) -> dict[str, dict[str, int]]:
    """Returns role -> {"pid", "restarts", "status"} from a supervisor's state file; {} if there is none."""
    try:
        found: dict[str, dict[str, int]] = json.loads(path.read_text())["roles"]
        return found
    except (OSError, ValueError, KeyError):
        return {}

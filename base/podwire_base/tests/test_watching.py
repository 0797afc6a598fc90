"""The watchdog in real processes."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podwire_base.role import beat, watching
from podwire_base.role.supervisor import read_state
from podwire_base.tests.test_supervisor import alive, until

PROGRAM = """
import asyncio, os, signal, sys, threading, time
from pathlib import Path
from podwire_base.role import beat
from podwire_base.role.run import main
from podwire_base.role.supervisor import Role, Supervisor

root = Path(sys.argv[1])

def role(name):
    def run():
        with open(root / name, "a") as file:
            file.write(f"{os.getpid()}\\n")
        main(name, work(name))
    return run

async def work(name):
    beat.tell(True, "well")
    if name == "spinning":
        while True:
            pass
    if name == "hanging":
        asyncio.get_running_loop().run_in_executor(None, hang)
    await asyncio.Event().wait()

def hang():
    with beat.work("sync"):
        threading.Event().wait()

beat.ensure(beat.path_of(root, "agent"))
roles = [Role(n, role(n), root / f"{n}.log", beat=beat.path_of(root, n)) for n in sys.argv[2].split(",")]
Supervisor(roles, root / "state.json").run()
"""
PTRACE_SEIZE, WALL = 0x4206, 0x40000000


def state(pid: int) -> str:
    """Returns the state of a process as in ps; "" if there is none. An orphan may stay a zombie for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


class Running:
    def __init__(self, root: Path, roles: str, seconds: str = "0.6", **more: str) -> None:
        self.root = root
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(root), roles],
            env={**os.environ, watching.VARIABLE: seconds, **more},
            stderr=(root / "supervisor.log").open("a"),
        )

    def started(self, role: str) -> list[int]:
        path = self.root / role
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self) -> str:
        return (self.root / "supervisor.log").read_text()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(roles: str, *more: str, **environment: str) -> Running:
        made.append(Running(tmp_path, roles, *more, **environment))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)
            one.process.terminate()
            try:
                one.process.wait(20)
            finally:
                one.process.kill()
                one.process.wait()


def test_a_stopped_role_is_killed_and_comes_back(start: Callable[..., Running]) -> None:
    """A beat is written once a second, so the limit of this test is a little more."""
    one = start("steady,other", "2")
    until(lambda: len(one.started("steady")) == len(one.started("other")) == 1)
    (pid,) = one.started("steady")
    os.kill(pid, signal.SIGSTOP)
    until(lambda: len(one.started("steady")) == 2)
    assert not alive(pid) and len(one.started("other")) == 1
    until(lambda: read_state(one.root / "state.json")["steady"]["restarts"] == 1)
    assert 'error supervisor "role makes no progress, killing it" child=steady' in one.log()
    assert "last_did=well" in one.log()


@pytest.mark.parametrize("role", ["spinning", "hanging"])
def test_a_role_that_hangs_is_killed(start: Callable[..., Running], role: str) -> None:
    one = start(role, "1.5")
    until(lambda: len(one.started(role)) >= 2)


def test_it_stays_where_the_watchdog_is_off_or_a_debugger_is_attached(start: Callable[..., Running]) -> None:
    one = start("steady", "0.8")
    until(lambda: len(one.started("steady")) == 1)
    (pid,) = one.started("steady")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_SEIZE, pid, None, None):
        pytest.skip(f"ptrace: {os.strerror(ctypes.get_errno())}")
    os.kill(pid, signal.SIGSTOP)
    assert watching.traced(pid)
    time.sleep(2.5)
    assert one.started("steady") == [pid] and alive(pid)
    assert watching.traced(pid)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, WALL)  # until the debugger has seen the end, nobody else does


def test_without_a_watchdog(start: Callable[..., Running]) -> None:
    one = start("steady", "0")
    until(lambda: len(one.started("steady")) == 1)
    os.kill(one.started("steady")[0], signal.SIGSTOP)
    time.sleep(1.5)
    assert len(one.started("steady")) == 1
    os.kill(one.started("steady")[0], signal.SIGKILL)


def test_a_whole_tree_that_was_stopped_goes_on(start: Callable[..., Running]) -> None:
    """After a pause of the machine the supervisor finds old beats only, and must not kill everybody."""
    one = start("steady", "2")
    until(lambda: len(one.started("steady")) == 1)
    (pid,) = one.started("steady")
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in (one.process.pid, pid):
            os.kill(process, number)
        time.sleep(4 if number == signal.SIGSTOP else 1)
    assert one.started("steady") == [pid]


def test_the_agents_beat_tells_whether_its_roles_are_ready(start: Callable[..., Running]) -> None:
    one = start("steady,other", "2")
    agent = beat.path_of(one.root, "agent")
    until(lambda: (found := beat.read(agent)) is not None and found.ready)
    assert (found := beat.read(agent)) and found.did == "2 roles are ready" and found.pid == one.process.pid
    os.kill(one.started("other")[0], signal.SIGKILL)


def test_systemd_hears_of_the_supervisor(start: Callable[..., Running], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        one = start("steady", "2", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="400000")
        heard = [manager.recv(100) for _ in range(6)]
        assert heard.count(b"WATCHDOG=1") >= 4
        until(lambda: len(one.started("steady")) == 1)
        os.kill(one.process.pid, signal.SIGSTOP)
        time.sleep(0.1)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                manager.recv(100)
        time.sleep(0.7)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_a_supervisor_that_follows_a_killed_one_ends_its_stopped_roles(start: Callable[..., Running]) -> None:
    one = start("steady,other", "0")
    until(lambda: len(one.started("steady")) == len(one.started("other")) == 1)
    (stopped,), (free,) = one.started("steady"), one.started("other")
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: state(stopped) == "T")
    one.process.kill()
    one.process.wait()
    until(lambda: state(free) in "Z")
    assert state(stopped) == "T", "SIGTERM does not reach it"
    two = start("steady,other", "0")
    until(lambda: len(two.started("steady")) == 2)
    until(lambda: state(stopped) in "Z")
    assert "a stopped role of an earlier supervisor was killed" in two.log()

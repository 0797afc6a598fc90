"""The supervisor in a process of its own: it restarts with back-off, stops all together, and ends with its parent's
pipe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podwire_base.patience import patient
from podwire_base.role.supervisor import backoff, read_state

_PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from podwire_base.role.supervisor import Role, Supervisor

root = Path(sys.argv[1])

def write(name):
    with open(root / name, "a") as file:
        file.write(f"{os.getpid()}\\n")

def steady():
    write("steady")
    signal.pause()

def crashing():
    write("crashing")
    raise ValueError("boom")

def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    write("stubborn")
    while True:
        signal.pause()

roles = {"steady": steady, "crashing": crashing, "stubborn": stubborn}
eof = int(sys.argv[3]) if len(sys.argv) > 3 else None
Supervisor([Role(n, roles[n], root / f"{n}.log") for n in sys.argv[2].split(",")], root / "state.json", eof).run()
"""


class Running:
    def __init__(self, root: Path, roles: str, pipe: bool = False) -> None:
        self.root = root
        reader, self.writer = os.pipe() if pipe else (-1, -1)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(root), roles, *([str(reader)] if pipe else [])],
            pass_fds=[reader] if pipe else [],
        )
        if pipe:
            os.close(reader)

    def started(self, role: str) -> list[int]:
        path = self.root / role
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(holds: Callable[[], bool]) -> None:
    for _ in range(1500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to that")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    made: list[Running] = []

    def make(roles: str, pipe: bool = False) -> Running:
        made.append(Running(tmp_path, roles, pipe))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_backoff_doubles_to_ten_seconds() -> None:
    waits = [backoff(n) for n in range(12)]
    assert waits[:4] == [0.1, 0.1, 0.2, 0.4] and waits[-1] == 10.0 and waits == sorted(waits)


def test_a_killed_role_comes_back_and_the_others_stay(start: Callable[..., Running]) -> None:
    one = start("steady,crashing")
    until(lambda: len(one.started("steady")) == 1 and len(one.started("crashing")) >= 3)
    (first,) = one.started("steady")
    assert Path(f"/proc/{first}/comm").read_text() == "podwire-steady\n"
    assert Path(f"/proc/{first}/cmdline").read_bytes().rstrip(b"\0") == b"podwire\0steady"
    os.kill(first, signal.SIGKILL)
    until(lambda: len(one.started("steady")) == 2)
    expected = {
        "pid": one.started("steady")[1],
        "restarts": 1,
        "status": -9,
    }  # written after the fork, so maybe not yet
    until(lambda: read_state(one.root / "state.json")["steady"] == expected)
    assert read_state(one.root / "state.json")["crashing"]["restarts"] >= 2
    assert "boom" in (one.root / "crashing.log").read_text()
    one.process.terminate()
    assert one.process.wait(patient(30)) == 0
    assert not any(alive(pid) for pid in (*one.started("steady"), *one.started("crashing")))
    assert read_state(one.root / "state.json") == {}


def test_it_ends_with_the_other_end_of_its_pipe(start: Callable[..., Running]) -> None:
    one = start("steady", pipe=True)
    until(lambda: bool(one.started("steady")))
    os.close(one.writer)
    assert one.process.wait(patient(30)) == 0 and not alive(one.started("steady")[0])


def test_a_role_that_ignores_sigterm_is_killed(start: Callable[..., Running]) -> None:
    one = start("stubborn")
    until(lambda: bool(one.started("stubborn")))
    one.process.terminate()
    assert one.process.wait(patient(30)) == 0 and not alive(one.started("stubborn")[0])


def test_roles_end_when_the_supervisor_is_killed(start: Callable[..., Running]) -> None:
    one = start("steady")
    until(lambda: bool(one.started("steady")))
    one.process.kill()
    one.process.wait()
    until(lambda: not alive(one.started("steady")[0]))


def test_roles_end_in_turn_and_hear_the_signals_that_are_passed_on(tmp_path: Path) -> None:
    """Like feeder and server of the DNS: the server still has the feeder while it answers after SIGTERM."""
    program = """
import os, signal, sys, time
from pathlib import Path
from podwire_base.role.supervisor import Role, Supervisor

root, events = Path(sys.argv[1]), Path(sys.argv[1]) / "events"

def write(text):
    with events.open("a") as file:
        file.write(text + "\\n")

def role(name, lingers):
    def end(*_):
        time.sleep(lingers)
        write(f"{name} ended")
        os._exit(0)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, lambda *_: write(f"{name} hangup"))
    write(f"{name} started")
    time.sleep(0.2)  # a signal that comes meanwhile must neither end it nor be lost
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    while True:
        signal.pause()

grace = lambda: 20.0
roles = [Role("first", lambda: role("first", 0.3), grace=grace), Role("second", lambda: role("second", 0), grace=grace)]
Supervisor(roles, None, passed_on={signal.SIGHUP: lambda: write("asked")}, in_turn=True).run()
write("all ended")
"""
    one = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    events = tmp_path / "events"

    def said(*wanted: str) -> Callable[[], bool]:
        return lambda: events.exists() and set(wanted) <= set(events.read_text().splitlines())

    try:
        until(said("first started", "second started"))
        one.send_signal(signal.SIGHUP)
        until(said("asked", "first hangup", "second hangup"))
        one.terminate()
        assert one.wait(patient(30)) == 0
        assert events.read_text().splitlines()[-3:] == ["first ended", "second ended", "all ended"]
    finally:
        one.kill()
        one.wait()


_CHANGING = """
import signal, sys
from pathlib import Path
from podwire_base.role.supervisor import Role, Supervisor

root = Path(sys.argv[1])

def follow(roles):
    wanted = set((root / "wanted").read_text().split())
    for name in set(roles.names()) - wanted:
        roles.drop(name)
    for name in wanted - set(roles.names()):
        roles.add(Role(name, signal.pause, root / f"{name}.log"))

Supervisor([Role("first", signal.pause)], root / "state.json", calls={signal.SIGHUP: follow}).run()
"""


def test_roles_come_and_go_while_it_runs(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _CHANGING, str(tmp_path)])

    def pids() -> dict[str, int]:
        return {name: row["pid"] for name, row in read_state(tmp_path / "state.json").items()}

    def wait_for(names: set[str]) -> dict[str, int]:
        end = time.monotonic() + patient(10)
        while set(pids()) != names and time.monotonic() < end:
            time.sleep(0.01)
        assert set(pids()) == names
        return pids()

    try:
        first = wait_for({"first"})["first"]
        for names in ({"first", "second"}, {"second"}, {"third"}):
            (tmp_path / "wanted").write_text(" ".join(names))
            process.send_signal(signal.SIGHUP)
            found = wait_for(names)
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        os.kill(found["third"], signal.SIGKILL)  # a role that was added is started again like the others
        end = time.monotonic() + patient(10)
        while pids()["third"] in (0, found["third"]) and time.monotonic() < end:
            time.sleep(0.01)
        assert pids()["third"] not in (0, found["third"])
    finally:
        process.terminate()
        assert process.wait(patient(10)) == 0

"""The beat of a role, and when a role without progress is killed."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base import progress
from podwire_base.role import beat, run, watching
from podwire_base.role.beat import line, read
from podwire_base.role.native import beat_program
from podwire_base.role.status import RoleStatus, repairs
from podwire_base.role.watchdog import GREATEST, SECONDS, WELL, Watch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr("podwire_base.role.beat.time.monotonic", lambda: now[0])
    yield now
    beat.begin(None)


def test_a_beat_is_written_once_a_second(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    writes, pwrite = list[int](), os.pwrite

    def counted(fd: int, data: bytes, at: int) -> int:
        writes.append(len(data))
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", counted)
    path = beat.path_of(tmp_path, "proxy")
    beat.begin(beat.opened(path))
    for number in range(1000):
        clock[0] += 0.01
        beat.tick(f"synced {number} Services", str(number))
    assert writes in ([beat.SIZE] * 10, [beat.SIZE] * 11)
    found = read(path)
    assert found is not None and found.at > 1008.9 and found.pid == os.getpid()
    assert found.did.startswith("synced 9") and int(found.revision) > 890 and not found.ready


def test_readiness_is_written_at_once_and_a_status_is_a_beat(tmp_path: Path, clock: list[float]) -> None:
    status = RoleStatus(tmp_path, "lb")
    assert (found := read(tmp_path / "status" / "lb.beat")) and not found.ready
    status.update(ready=True, message="3 addresses")
    assert (found := read(tmp_path / "status" / "lb.beat")) and found.ready and found.did == "3 addresses"
    status.update(ready=False, message="away")
    assert (found := read(tmp_path / "status" / "lb.beat")) and not found.ready


def test_how_often_each_role_mended_something(tmp_path: Path) -> None:
    RoleStatus(tmp_path, "wiring").update(ready=True, message="", repairs=3, repaired="a route, then")
    RoleStatus(tmp_path, "dns").update(ready=True, message="")
    (tmp_path / "status" / "lb.json").write_text("half")
    (tmp_path / "status" / "x.json").write_text('{"figures": {"repairs": "many"}}')
    assert repairs(tmp_path) == {"wiring": 3, "dns": 0}


def test_a_thread_that_hangs_is_not_hidden_by_the_event_loop(tmp_path: Path, clock: list[float]) -> None:
    path, inside, go = tmp_path / "b", threading.Event(), threading.Event()
    beat.begin(beat.opened(path))

    def hang() -> None:
        with beat.work("sync"):
            inside.set()
            go.wait(20)
            beat.tick("routes")
            inside.set()
            go.wait(20)

    thread = threading.Thread(target=hang)
    thread.start()
    inside.wait(20)
    for _ in range(5):
        clock[0] += 5
        beat.tick()
    assert (found := read(path)) and found.at == 1000
    inside.clear()
    go.set()
    thread.join()
    beat.tick()
    clock[0] += 2
    beat.tick()
    assert (found := read(path)) and found.at == clock[0]


def test_pure_work_ticks_after_each_batch(tmp_path: Path, clock: list[float]) -> None:
    path = tmp_path / "b"
    beat.begin(beat.opened(path))
    for _ in progress.every(range(10 * progress.BATCH)):
        clock[0] += 0.01
    assert (found := read(path)) and found.at > clock[0] - 6


@given(st.floats(0, 1e9), st.integers(1, 2**22), st.booleans(), st.text(max_size=400), st.text(max_size=400))
def test_every_beat_has_one_size_and_is_read_back(at: float, pid: int, ready: bool, revision: str, did: str) -> None:
    data = line(at, pid, ready, revision, did)
    assert len(data) == beat.SIZE and data.endswith(b"\n") and data.count(b"\n") == 1 and data.isascii()
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"podwire-beat-test-{os.getpid()}"
    path.write_bytes(data)
    found = read(path)
    path.unlink()
    assert found is not None and (found.pid, found.ready) == (pid, ready) and abs(found.at - at) <= 0.01


@pytest.mark.parametrize("data", [b"", b"podwire-beat/1 at=x pid=1", b"podwire-beat/2 at=1 pid=1", b"\xff" * 200, b'"'])
def test_what_is_not_a_beat(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "b").write_bytes(data)
    assert read(tmp_path / "b") is None and read(tmp_path / "none") is None


# ---- the decision


def looks(watch: Watch, begin: float, seconds: float, at: float | None) -> list[float]:
    """Look every two seconds. Returns the times at which the role must be killed."""
    times = [begin + i for i in range(0, int(seconds), 2)]
    return [now for now in times if watch.overdue(now, at)]


def test_thirty_seconds_without_progress_and_two_looks() -> None:
    watch = Watch()
    watch.started(100)
    assert looks(watch, 100, 40, 105)[:1] == [138]  # the first look that is too late is that at 136
    watch.started(100)
    assert looks(watch, 100, 40, None)[:1] == [132]


def test_one_torn_reading_kills_nobody() -> None:
    watch = Watch()
    watch.started(0)
    for now in range(40, 400, 2):
        assert not watch.overdue(now, 3 if now % 4 else now - 0.5)
    assert not watch.overdue(400, 399) and not watch.overdue(431, 5000) and not watch.overdue(433, 432.5)


def test_a_role_that_is_excused_has_its_whole_time_again() -> None:
    watch = Watch()
    watch.started(0)
    assert not watch.overdue(100, 1)
    watch.excused(100)
    assert looks(watch, 100, 60, 1)[:1] == [132]


def test_three_ends_in_a_row_double_the_time() -> None:
    watch, limits = Watch(), []
    for _ in range(20):
        watch.started(0)
        limits.append(watch.limit)
        watch.ended(watch.limit + 5, by_watchdog=True)
    assert limits[:9] == [30, 30, 30, 60, 60, 60, 120, 120, 120]
    assert max(limits) == GREATEST
    watch.ended(10, by_watchdog=False)
    assert watch.limit == SECONDS
    for _ in range(3):
        watch.started(0)
        watch.ended(40, by_watchdog=True)
    watch.started(0)
    watch.ended(WELL + 100, by_watchdog=True)  # it did well for long
    assert (watch.ends, watch.limit) == (1, SECONDS)


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=60))
def test_a_role_that_ticks_within_the_limit_is_never_killed(steps: list[tuple[float, bool]]) -> None:
    now, at, watch = 0.0, 0.0, Watch()
    watch.started(0)
    for wait, ticks in steps:
        now += wait
        at = now if ticks else at
        assert not watch.overdue(now, at) or now - max(at, watch.base) >= SECONDS


# ---- around it


@pytest.mark.parametrize(("given", "seconds"), [("", 30), ("0", 0), ("5", 5), ("0.5", 0.5), ("-1", 0), ("off", 30)])
def test_the_setting(monkeypatch: pytest.MonkeyPatch, given: str, seconds: float) -> None:
    monkeypatch.setenv(watching.VARIABLE, given)
    assert watching.seconds() == seconds


@pytest.mark.parametrize(
    ("limit", "pid", "seconds"),
    [
        ("", "", None),
        ("30000000", "", 15),
        ("30000000", "self", 15),
        ("30000000", "1", None),
        ("x", "", None),
        ("0", "", None),
    ],
)
def test_the_service_managers_watchdog(
    monkeypatch: pytest.MonkeyPatch, limit: str, pid: str, seconds: float | None
) -> None:
    monkeypatch.setenv(run.WATCHDOG, limit)
    monkeypatch.setenv(run.WATCHDOG_PID, str(os.getpid()) if pid == "self" else pid)
    assert run.manager_seconds() == seconds


def test_only_the_beat_of_this_process_counts(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(line(time.monotonic(), 4711, True, "", ""))
    assert watching.reading(tmp_path / "b", 4711)
    assert watching.reading(tmp_path / "b", 4712) is None


def test_a_process_that_is_not_traced() -> None:
    assert not watching.traced(os.getpid()) and not watching.traced(2**22 + 1)


# ---- the program of the probes


def probe(*words: str) -> tuple[int, str]:
    program = beat_program()
    if program is None:
        pytest.skip("podwire-beat is not compiled")
    done = subprocess.run([str(program), *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("age", "ready", "live", "is_ready"),
    [(0.0, True, 0, 0), (0.0, False, 0, 1), (59.0, True, 0, 0), (61.0, True, 1, 1), (-1000.0, True, 1, 1)],
)
def test_the_probe(tmp_path: Path, age: float, ready: bool, live: int, is_ready: int) -> None:
    path = tmp_path / "agent.beat"
    path.write_bytes(line(time.monotonic() - age, 7, ready, "", "waits for proxy"))
    assert probe("live", str(path), "60")[0] == live
    code, said = probe("ready", str(path), "60")
    assert code == is_ready and ("waits for proxy" in said) == bool(code)


@pytest.mark.parametrize("content", [None, b"", b"podwire-beat/2 at=1 pid=1 ready=1 ", b"x" * 4000])
def test_the_probe_of_what_is_not_a_beat(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "b"
    if content is not None:
        path.write_bytes(content)
    assert probe("live", str(path), "60")[0] == 1


@pytest.mark.parametrize("words", [(), ("live",), ("alive", "f", "60"), ("live", "f", "x"), ("live", "f", "0")])
def test_the_probes_command_line(words: tuple[str, ...]) -> None:
    assert probe(*words)[0] == 2
    assert probe("--version") == (0, "podwire-beat 0.2.0\n")


def test_the_probe_reads_what_a_role_writes(tmp_path: Path) -> None:
    path = beat.path_of(tmp_path, "lb")
    beat.begin(beat.opened(path))
    assert probe("live", str(path), "5")[0] == 0 and probe("ready", str(path), "5")[0] == 1
    beat.tell(True, "well")
    assert probe("ready", str(path), "5") == (0, "")
    beat.begin(None)

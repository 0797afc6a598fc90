"""The end of a role's process, and its messages to a service manager; atomic files."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from podwire_base.kube.times import micro_timestamp, parse_time, timestamp
from podwire_base.role import files, waits
from podwire_base.role.run import notify, stop_event, until_stopped
from podwire_base.role.status import RoleStatus


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket on which systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_work_after_leaving(number: signal.Signals, manager: socket.socket) -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            done.append("work ended")

    async def main() -> bool:
        return await until_stopped(stop_event(), work(), lambda: done.append("left"))

    assert asyncio.run(main())
    assert done == ["left", "work ended"]
    assert manager.recv(100) == b"STOPPING=1"


def test_an_error_of_the_work_is_raised_and_an_end_is_told() -> None:
    async def work(error: Exception | None) -> None:
        if error:
            raise error

    async def main(error: Exception | None) -> bool:
        return await until_stopped(stop_event(), work(error), pytest.fail)

    assert not asyncio.run(main(None))
    with pytest.raises(KeyError, match="ours"):
        asyncio.run(main(KeyError("ours")))


def test_in_another_thread_only_the_event_stops_the_work() -> None:
    found: list[bool] = []

    async def main() -> None:
        stop = stop_event()
        asyncio.get_running_loop().call_soon(stop.set)
        found.append(await until_stopped(stop, asyncio.sleep(60)))

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    thread.join()
    assert found == [True]


def test_a_service_manager_hears_once_that_a_role_is_ready(tmp_path: Path, manager: socket.socket) -> None:
    status = RoleStatus(tmp_path, "proxy")
    status.update(ready=False, message="starting")
    status.update(ready=True, message="1 Service")
    status.update(ready=True, message="2 Services")
    assert manager.recv(100) == b"READY=1"
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_notify_with_an_abstract_address_and_with_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0podwire-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@podwire-test-{os.getpid()}")
        notify("READY=1")
        assert sock.recv(100) == b"READY=1"
    notify("READY=1")  # nothing listens any more: no error


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    files.write(path, "first")
    before = os.umask(0o077)
    try:
        with path.open() as open_before:
            files.write(path, b"second", mode=0o755, sync=True)
            assert open_before.read() == "first"
    finally:
        os.umask(before)
    assert (path.read_text(), path.stat().st_mode & 0o7777) == ("second", 0o755)
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file" / "below").mkdir(parents=True)
    with pytest.raises(OSError):
        files.write(tmp_path / "file", "a directory is in the way")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_takes_only_a_part_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write(tmp_path / "file", "as it was")
    monkeypatch.setattr(os, "write", lambda fd, data: len(data) - 1)
    with pytest.raises(OSError, match="No space left"):
        files.write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "as it was"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_times_of_the_api() -> None:
    assert timestamp(1.9) == "1970-01-01T00:00:01Z"
    assert micro_timestamp(1.25) == "1970-01-01T00:00:01.250000Z"
    assert parse_time("1970-01-01T00:00:01.25Z").timestamp() == 1.25
    assert parse_time("1970-01-01T01:00:01.123456789+01:00").timestamp() == 1.123456


@pytest.mark.parametrize("turns", range(4))
def test_a_cancellation_in_the_moment_of_the_event_is_not_lost(turns: int) -> None:
    """asyncio.wait_for of Python 3.11 loses it: a role's loop went on after SIGTERM."""

    async def endless(event: asyncio.Event, wait: Callable[[asyncio.Event], Awaitable[object]]) -> None:
        while True:
            event.clear()
            await wait(event)

    async def ends(wait: Callable[[asyncio.Event], Awaitable[object]]) -> bool:
        event = asyncio.Event()
        task = asyncio.create_task(endless(event, wait))
        await asyncio.sleep(0.01)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=1)
        return task.done() or not task.cancel()

    assert asyncio.run(ends(lambda event: waits.until_set(event, 60)))
    assert asyncio.run(ends(lambda event: waits.within(event.wait(), 60)))


def test_waits_have_limits() -> None:
    async def work() -> None:
        event = asyncio.Event()
        assert not await waits.until_set(event, 0.01)
        with pytest.raises(TimeoutError):
            await waits.within(event.wait(), 0.01)
        event.set()
        assert await waits.until_set(event, 0)
        assert await waits.until_set(event, None)
        assert await waits.within(asyncio.sleep(0, "done"), 10) == "done"

    asyncio.run(work())

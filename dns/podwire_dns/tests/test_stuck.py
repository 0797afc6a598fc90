"""A thread that hangs is seen: the beat of the role stands still, and the supervisor starts it again."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import dns.message
import pytest

from podwire_base.patience import patient
from podwire_base.role import beat
from podwire_base.testing.ports import free_port
from podwire_dns import server as module
from podwire_dns.server import Server
from podwire_dns.testing import builders
from podwire_dns.tests.test_server import ask


@pytest.mark.parametrize("batches", [True, False])
def test_a_thread_that_hangs_stops_the_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: bool) -> None:
    monkeypatch.setattr(module, "STUCK_SECONDS", 0.3)
    monkeypatch.setattr(beat, "SECONDS", 0.05)
    go_on, path = threading.Event(), beat.path_of(tmp_path, "dns")
    config = replace(
        builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port(), batches=batches, upstreams=()
    )

    def age() -> float:
        """seconds since the progress that the beat tells of"""
        found = beat.read(path)
        return time.monotonic() - found.at if found is not None else 0.0

    async def until(holds: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + patient(10)
        while not holds():
            assert time.monotonic() < end, what
            beat.tick()  # the event loop does what it should
            await asyncio.sleep(0.05)

    async def body() -> None:
        async with Server(config) as server:
            handle = server.answerer.handle

            def hanging(data: bytes, *, udp: bool) -> object:
                if b"hang" in data:
                    go_on.wait(patient(20))
                return handle(data, udp=udp)

            monkeypatch.setattr(type(server.answerer), "handle", lambda _, data, udp: hanging(data, udp=udp))
            await ask(config, "fine.example.")
            await until(lambda: age() < 0.3, "a thread that waits for queries is no hanging one")
            await asyncio.sleep(0.6)
            await until(lambda: age() < 0.3, "also after a while without any")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(dns.message.make_query("hang.example.", "A").to_wire(), ("127.0.0.1", config.port))
                await until(lambda: age() > 1, "the beat stands still")
                assert server.stuck(time.monotonic()) > 1
                go_on.set()
                await until(lambda: age() < 0.3, "the beat goes on with the thread")
            await ask(config, "fine.example.")

    beat.begin(beat.opened(path))
    try:
        asyncio.run(body())
    finally:
        go_on.set()
        beat.begin(None)

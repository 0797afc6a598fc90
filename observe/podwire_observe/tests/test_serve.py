"""Readers at the socket: questions, followers, readers that are slow, leave or ask nonsense."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from .. import serve
from ..fold import Fold
from ..query import BadQuery, Query, parse
from ..record import REFUSED, VERSION
from ..serve import Follower, Server, listen
from .truth import BEGAN, NS, Connection, ends


def filled() -> Fold:
    fold = Fold("node1", ends, BEGAN - 1)
    for number, outcome in enumerate(("closed", "refused", "silent")):
        one = Connection(number, 40000 + number, number * NS, NS, outcome)
        fold.event(one.message("new"), BEGAN + number)
        fold.event(one.message("destroy"), BEGAN + number)
    return fold


def served(tmp_path: Path, work: Callable[[Server, Path], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        server, path = Server(filled(), "always"), tmp_path / "s"
        listening = listen(server, path)
        try:
            async with asyncio.timeout(20):
                await work(server, path)
        finally:
            listening.close()

    asyncio.run(body())


async def ask(path: Path, request: object) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write((request if isinstance(request, bytes) else json.dumps(request).encode()) + b"\n")
    lines = [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    return lines


def test_questions_and_answers(tmp_path: Path) -> None:
    async def work(server: Server, path: Path) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        head, *flows, end = await ask(path, Query().to_json())
        assert (head["head"]["node"], head["head"]["lost"], end) == ("node1", 0, {"end": True})
        assert [line["flow"]["verdict"] for line in flows] == ["forwarded", "refused", "unanswered"]
        _, only, _ = await ask(path, {"version": VERSION, "filters": {"allow": {"verdict": ["refused"]}}})
        assert (only["flow"]["verdict"], only["flow"]["reason"]) == ("refused", "closed-port")
        _, last, _ = await ask(path, Query(last=1).to_json())
        assert last["flow"]["verdict"] == "unanswered"
        rows = (await ask(path, Query("sums", until=BEGAN + 60).to_json()))[1:-1]
        assert sum(line["row"]["opened"] for line in rows) == 3
        assert server.readers == 0

    served(tmp_path, work)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (b"{", "Expecting property name"),
        (b"[]", "the request is not a JSON object"),
        (b'{"version": 9}', "version 9: this node answers version 1"),
        (b'{"version": 1, "what": "pods"}', "what: 'pods': flows, sums or slots"),
        (b'{"version": 1, "last": "x"}', "last, since, until"),
        (b'{"version": 1, "filters": {"allow": {"color": ["red"]}}}', "color: no such filter"),
        (b'{"version": 1, "what": "sums", "filters": {"allow": {"ip": ["10.0.0.1"]}}}', "ip: sums do not have it"),
    ],
)
def test_nonsense_is_named(tmp_path: Path, request_: bytes, why: str) -> None:
    async def work(_: Server, path: Path) -> None:
        (line,) = await ask(path, request_)
        assert line["error"].startswith(why)

    served(tmp_path, work)


def test_a_query_survives_its_json() -> None:
    wanted = Query("sums", 5, 1.0, 2.0, follow=False)
    assert parse(json.loads(json.dumps(wanted.to_json()))) == wanted
    with pytest.raises(BadQuery):
        parse(None)


def test_a_follower_gets_what_comes_and_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "BEAT", 0.05)

    async def work(server: Server, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(json.dumps(Query(last=0, follow=True).to_json()).encode() + b"\n")
        assert "head" in json.loads(await reader.readline())
        assert "beat" in json.loads(await reader.readline())
        server.fold.take()
        server.fold.event(Connection(9, 9, 0, NS, "refused").message("destroy"), BEGAN + 9)
        server.publish(server.fold.take())
        while "beat" in (line := json.loads(await reader.readline())):
            pass
        assert line["flow"]["verdict"] == REFUSED
        assert len(server.followers) == 1
        writer.close()
        while server.followers or server.readers:
            await asyncio.sleep(0.01)

    served(tmp_path, work)


def test_a_follower_that_says_nothing_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "SILENT", 0.1)

    async def work(server: Server, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(json.dumps(Query(follow=True).to_json()).encode() + b"\n")
        assert await reader.read(), "the answer, and then the end"
        writer.close()
        while server.readers:
            await asyncio.sleep(0.01)

    served(tmp_path, work)


def test_a_slow_follower_is_told_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "MOST_WAITING", 3)
    follower = Follower(Query(follow=True))
    for number in range(5):
        follower.offer({"number": number})
    follower.lines.get_nowait()
    follower.lines.get_nowait()
    follower.offer({"number": 5})
    rest = [follower.lines.get_nowait() for _ in range(3)]
    assert rest == [{"number": 2}, {"missed": 2}, {"number": 5}]


def test_readers_are_counted_for_on_demand(tmp_path: Path) -> None:
    async def work(server: Server, path: Path) -> None:
        said: list[bool] = []
        server.on_readers = said.append
        await ask(path, Query().to_json())
        assert said == [True, False]

    served(tmp_path, work)

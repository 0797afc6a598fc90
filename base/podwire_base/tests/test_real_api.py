"""Informers with the answers of a real API server: streams cut at any byte, 410, 429, pages."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.client import informer as informer_module
from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.client.informer import Informer
from podwire_base.kube.meta import Object, name
from podwire_base.patience import patient

from ..testing import recorded
from ..testing.builders import run
from ..testing.following import DB, SERVICES, VERSION, WEB, hold, kinds, scene
from ..testing.scripted import Link, Request, Scripted


def test_the_first_state_comes_as_a_stream() -> None:
    """WatchList: the informer uses nothing before the bookmark, and the stream continues as the watch."""
    more = recorded.service("more", "10.96.7.7", VERSION + 3)

    async def handler(asked: Request, link: Link) -> None:
        assert asked.query["resourceVersionMatch"] == "NotOlderThan" and "resourceVersion" not in asked.query
        await hold(
            link,
            recorded.frame("ADDED", WEB),
            recorded.frame("ADDED", DB),
            recorded.bookmark(VERSION, end=True),
            recorded.frame("ADDED", more),
            recorded.frame("DELETED", {**DB, "metadata": {**DB["metadata"], "resourceVersion": str(VERSION + 4)}}),
        )

    events = run(scene(handler, {"web", "more"}, ["stream"]))
    assert kinds(events) == [("ADDED", "web"), ("ADDED", "db"), ("ADDED", "more"), ("DELETED", "db")]


def test_a_stream_that_breaks_off_has_told_nothing() -> None:
    async def handler(asked: Request, link: Link) -> None:
        # append's None
        if handler_calls.append(asked.kind) or len(handler_calls) == 1:  # type: ignore[func-returns-value]
            await link.chunks(recorded.frame("ADDED", WEB), end=False)
            link.writer.transport.abort()
            return
        await hold(link, recorded.frame("ADDED", DB), recorded.bookmark(VERSION, end=True))

    handler_calls: list[str] = []
    assert kinds(run(scene(handler, {"db"}, ["stream", "stream"]))) == [("ADDED", "db")]


@pytest.mark.parametrize("how", ["refused", "ended", "silent"])
def test_without_watchlist_lists_come_in_pages(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that refuse WatchList, that ignore it and end the stream, and that ignore it and stay silent."""
    monkeypatch.setattr(informer_module, "STREAM_SILENCE", 0.2)

    async def handler(asked: Request, link: Link) -> None:
        if asked.kind == "stream":
            if how == "refused":
                await link.answer(422, recorded.NO_WATCHLIST)
            elif how == "ended":
                await link.chunks(recorded.frame("ADDED", WEB))
            else:
                await hold(link, recorded.frame("ADDED", WEB))
        elif asked.kind == "list":
            assert asked.query["limit"] == "500"
            page = {"": ([WEB], "abc=="), "abc==": ([DB], "")}[asked.query.get("continue", "")]
            await link.answer(200, recorded.listed("Service", page[0], VERSION, page[1], 1))
        else:
            assert asked.query["resourceVersion"] == str(VERSION)
            await hold(link)

    events = run(scene(handler, {"web", "db"}, ["stream", "list", "list", "watch"]))
    assert kinds(events) == [("ADDED", "web"), ("ADDED", "db")]


def test_a_page_that_came_too_late_begins_the_list_anew() -> None:
    late: list[str] = []

    async def handler(asked: Request, link: Link) -> None:
        if asked.kind != "list":
            await hold(link)
        elif "continue" not in asked.query:
            await link.answer(200, recorded.listed("Service", [WEB], VERSION, "" if late else "old", 4))
        else:
            late.append("")
            await link.answer(
                410,
                recorded.status(
                    410, "Expired", "The provided continue parameter is too old to display a consistent list result."
                ),
            )

    assert kinds(run(scene(handler, {"web"}, ["list", "list", "list", "watch"], stream=False))) == [("ADDED", "web")]


@pytest.mark.parametrize("where", ["answer", "frame"])
def test_gone_lists_again_and_tells_only_the_difference(where: str) -> None:
    lists = [[WEB, DB], [WEB, recorded.service("new", "10.96.7.9", VERSION + 900)]]
    watched: list[str] = []

    async def handler(asked: Request, link: Link) -> None:
        if asked.kind == "list":
            await link.answer(200, recorded.listed("Service", lists[len(watched)], VERSION + 1000 * len(watched)))
        elif not watched:
            watched.append("")
            if where == "answer":
                await link.answer(410, recorded.GONE)
            else:
                await link.chunks(recorded.frame("ERROR", recorded.GONE))
        else:
            await hold(link)

    events = run(scene(handler, {"web", "new"}, ["list", "watch", "list", "watch"], stream=False))
    assert kinds(events) == [("ADDED", "web"), ("ADDED", "db"), ("DELETED", "db"), ("ADDED", "new")]


def test_bookmarks_carry_the_version_over_an_idle_time() -> None:
    async def handler(asked: Request, link: Link) -> None:
        if asked.kind == "list":
            await link.answer(200, recorded.listed("Service", [WEB], VERSION))
        elif asked.query["resourceVersion"] == str(VERSION):
            await link.chunks(recorded.bookmark(VERSION + 50_000))
        else:
            assert asked.query["resourceVersion"] == str(VERSION + 50_000)
            await hold(link)

    assert kinds(run(scene(handler, {"web"}, ["list", "watch", "watch"], stream=False))) == [("ADDED", "web")]


@pytest.mark.parametrize("header", [True, False])
def test_too_many_requests_waits_as_long_as_it_is_told(header: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def slept(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    async def handler(asked: Request, link: Link) -> None:
        if len(tries) < 3:
            tries.append(asked.kind)
            status = {**recorded.BUSY, "details": {"retryAfterSeconds": 7}}
            await link.answer(429, b"slow down" if header else status, {"Retry-After": "7"} if header else {})
        elif asked.kind == "list":
            await link.answer(200, recorded.listed("Service", [WEB], VERSION))
        else:
            await hold(link)

    tries: list[str] = []
    monkeypatch.setattr("podwire_base.kube.client.informer.asyncio.sleep", slept)
    run(scene(handler, {"web"}, ["list"] * 4, stream=False))
    asked_to_wait = [w for w in waits if w >= 7]
    assert len(asked_to_wait) == 3 and max(asked_to_wait) <= 7 * 1.6 and len(set(asked_to_wait)) == 3, "with jitter"


def test_back_off_grows_to_its_end_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[float, float]] = []

    class Enough(Exception):
        pass

    async def paused(_api: ApiClient, least: float, most: float) -> None:
        waits.append((least, most))
        if len(waits) == 12:
            raise Enough

    async def body() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            async with ApiClient(ClientConfig(f"http://127.0.0.1:{closed.getsockname()[1]}")) as api:
                monkeypatch.setattr(ApiClient, "pause", paused)
                with pytest.raises(Enough):
                    await Informer(api, SERVICES).run()

    run(body())
    for n, (least, most) in enumerate(waits):
        assert min(0.05 * 2**n, 5) <= most <= min(0.05 * 2**n, 5) * 1.6
        assert least == max(0.05, most / 8)


def test_a_server_that_answers_one_request_is_asked_again_by_all() -> None:
    """It also wakes an informer whose back-off has grown: its minute here would outlast the test."""

    async def handler(_asked: Request, link: Link) -> None:
        await link.answer(200, recorded.service("web", "10.96.0.9", VERSION))

    async def body() -> None:
        async with Scripted(handler) as server, ApiClient(server.config()) as api:
            waiting = asyncio.create_task(api.pause(0.01, 60))
            done, _ = await asyncio.wait((waiting,), timeout=0.1)
            assert not done, "nobody was answered"
            await api.get(SERVICES)
            await asyncio.wait_for(waiting, patient(10))
            await api.pause(0.01, 0.02)  # and it ends by itself

    run(body())


@given(st.integers(0, 2**32))
def test_a_stream_may_be_cut_anywhere(seed: int) -> None:
    """HTTP chunks do not end where lines end; a line may be empty (servers send empty lines to keep proxies awake)."""
    chance = random.Random(seed)
    names = [f"s{n}" for n in range(chance.randint(0, 6))]
    frames = [recorded.frame("ADDED", recorded.service(own, "10.96.0.9", VERSION + n)) for n, own in enumerate(names)]
    text = b"".join(frame + chance.choice([b"", b"", b"\n"]) for frame in frames) + recorded.bookmark(VERSION + 99)
    cuts = sorted(chance.randint(0, len(text)) for _ in range(chance.randint(0, 12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) if a < b]

    async def handler(_asked: Request, link: Link) -> None:
        await link.chunks(*pieces)

    async def body() -> list[Object]:
        async with Scripted(handler) as server, ApiClient(server.config()) as api:
            return [frame async for frame in api.watch(SERVICES, {})]

    got = run(body())
    assert [name(frame["object"]) for frame in got[:-1]] == names and got[-1]["type"] == "BOOKMARK"


def test_garbage_in_a_stream_is_an_error_not_an_end() -> None:
    async def handler(asked: Request, link: Link) -> None:
        if asked.kind == "list":
            await link.answer(200, recorded.listed("Service", [WEB], VERSION))
        elif len([k for k in seen if k == "watch"]) == 0:
            seen.append("watch")
            await link.chunks(b"<html>502 Bad Gateway</html>\n")
        else:
            await hold(link, recorded.frame("ADDED", recorded.service("db", "10.96.7.6", VERSION + 1)))

    seen: list[str] = []
    assert kinds(run(scene(handler, {"web", "db"}, ["list", "watch", "watch"], stream=False)))[-1] == ("ADDED", "db")

"""The page of `podwire ui` without a browser: snapshots, words, what its server answers and what it refuses."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pwd
import re
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from podwire.page import guard, launch, link, server, words
from podwire.page.view import Heard, Objects, Told, View
from podwire_observe.fold import Fold
from podwire_observe.query import Query, answer
from podwire_observe.record import End, Ends, Flow, Service

from . import page_world
from .page_world import AT, Source, World

KEY = "k" * 43


# ---- snapshots


def pairs(snapshot: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{one['from']} {one['to']} {one['verdict']}": one for one in snapshot["pairs"]}


def test_a_snapshot_of_what_a_nodes_fold_tells() -> None:
    fold = Fold("node1", lambda _seen, _when: None, AT - 100)
    ends = Ends(End("pod", "shop", "web-1", "node1"), End("service", "shop", "db"), Service("shop", "db", "sql"))
    for port, at in ((40002, AT - 200), (40001, AT - 30), (40000, AT - 1)):
        refused = Flow(
            0, "node1", at, at, "tcp", "10.0.0.1", port, "10.96.0.1", 5432, "10.96.0.1", 5432, ends,
            "refused", "no-endpoints", 1,
        )  # fmt: skip
        fold.drop(refused, at)
    lines = list(answer(fold, Query("slots", since=AT - 60), "always", AT))
    told = [Told("node1", line["slot"], line["row"]) for line in lines if "row" in line]
    objects = Objects(services={"shop/db": {"metadata": {"namespace": "shop", "name": "db"}}})
    (one,) = View().snapshot(told, [Heard("node1", "", lines[0]["head"])], objects, AT)["pairs"]
    assert (one["from"], one["to"], one["port"]) == ("shop/web-1", "service shop/db", "sql")
    assert (one["verdict"], one["reason"], one["opened"], one["failed"]) == ("refused", "no-endpoints", 2, 2)
    assert one["failing"] == round(1 / 15, 2)  # one in the ten seconds before and the five that run
    assert sum(one["bars"]) == 2


def test_pods_of_a_workload_are_one_caller_and_failures_are_pairs_of_their_own() -> None:
    found = World(2, 3, failing=1).snapshot()
    assert "infra/app0" in found["callers"] and not any("7d4b9c6f5" in one for one in found["callers"])
    assert len([one for one in found["pairs"] if one["failed"]]) == 1
    assert [one["bad"] for one in found["nodes"]] == ["", "", "NotReady, silent: no answer"]
    assert found["nodes"][1]["lost"] == 412 and found["nodes"][2]["rate"] is None  # nobody knows: not 0
    shop = next(row for row in found["spaces"][0]["rows"] if row["name"] == "app2")
    assert sum(cell[1] for cell in shop["pods"]) == 3 and sum(cell[0] for cell in shop["pods"]) == 2


def test_probes_are_left_out_and_what_is_no_service_has_a_row() -> None:
    view, at = View(), int(AT // 10)
    pod, outside = page_world.end("pod", "a", "p"), page_world.end("outside", "", "192.0.2.1")
    node, nobody = page_world.end("node", "", "n1"), page_world.end("", "", "")
    rows = [
        page_world.row(node, pod, None, probe=True),
        page_world.row(pod, outside, None),
        page_world.row(pod, node, None),
        page_world.row(pod, nobody, None),
        page_world.row(outside, pod, None),
        page_world.row(pod, pod, ("a", "old", "80")),
    ]
    found = view.snapshot([Told("n1", at, one) for one in rows], [], Objects(), AT)
    assert set(pairs(found)) == {
        "a/p outside ", "a/p node n1 ", "a/p unknown ", "outside pod a/p ", "a/p gone a/old ",
    }  # fmt: skip
    assert [space["name"] for space in found["spaces"]] == ["a", "outside the cluster", "nodes", "not known"]
    # they stay while the nodes remember, so that nothing moves, and go then
    later = view.snapshot([], [], Objects(), AT + 800)
    assert later["spaces"] == found["spaces"] and later["callers"] == found["callers"] and not later["pairs"]
    assert view.snapshot([], [], Objects(), AT + 1000)["spaces"] == [] and not view.samples


def test_ids_are_the_same_in_every_snapshot_and_for_every_reader() -> None:
    one, two = World(3, 4), World(3, 4)
    ids = {pair["id"] for pair in one.snapshot()["pairs"]}
    two.rows.reverse()
    assert ids == {pair["id"] for pair in two.snapshot()["pairs"]} and len(ids) == 17


def test_a_snapshot_of_30_services_is_small() -> None:
    found = World(5, 6).snapshot()
    assert sum(len(one["rows"]) for one in found["spaces"]) == 30
    assert len(gzip.compress(json.dumps(found, separators=(",", ":")).encode())) <= 3000


# ---- words


def sample(world: Any, verdict: str) -> Any:
    return next(one for _, one in world.view.samples.values() if one.verdict == verdict)


def test_the_words_of_explain_and_flows() -> None:
    world = World(4, 6)
    world.snapshot()
    refused = sample(world, "refused")
    asked = words.question(refused)
    assert asked.filters.allow["verdict"] == ("refused",) and asked.last == 1
    explained = words.explaining(refused, None)
    assert explained == ("--", f"infra/{refused.source['name']}", f"{refused.service['namespace']}/app1:80")
    first, second = words.commands(refused, explained, ("--name", "x"))
    assert first == f"podwire explain --name x {explained[1]} {explained[2]}"
    assert "--from-pod infra/app0 --to-service" in second and second.endswith("--verdict refused")
    outside = sample(world, "dropped")
    flow = {"source_ip": "203.0.113.9", "ip": "192.168.1.1", "port": 30080}
    assert words.explaining(outside, flow)[:3] == ("--from-node", "node1", "--")  # type: ignore[index]  # it is found


def test_a_hostile_name_is_one_word_of_a_command() -> None:
    world = World(1, 1, hostile=True)
    world.snapshot()
    one = sample(world, "")
    for line in words.commands(one, words.explaining(one, None)):
        assert "'infra/<img src=x onerror=alert(1)>" in line or "<" not in line
    hostile = page_world.end("pod", "a", "x\x1b[2J; rm -rf /")
    bad = type(one)("n", "a/x", hostile, hostile, None, "tcp", "refused", "")
    assert all("\x1b" not in line for line in words.commands(bad, words.explaining(bad, None)))


# ---- what the server refuses

GOOD = {"Host": "127.0.0.1:80", "Authorization": f"Bearer {KEY}", "Sec-Fetch-Site": "same-origin"}
REFUSED: list[tuple[str, str, dict[str, str], int]] = [
    ("GET", "/api/at", {}, 0),
    ("GET", "/api/at", {"Host": "[::1]:80"}, 0),
    ("GET", "/api/at", {"Host": "LOCALHOST:80", "Origin": "http://localhost:80"}, 0),
    ("GET", "/api/at", {"Host": "evil.example:80"}, 421),
    ("GET", "/", {"Host": "evil.example:80"}, 421),
    ("GET", "/api/at", {"Host": "127.0.0.1:81"}, 421),
    ("GET", "/api/at", {"Host": "127.0.0.1"}, 421),
    ("GET", "/api/at", {"Host": ""}, 421),
    ("GET", "/api/at", {"Origin": "http://evil.example"}, 403),
    ("GET", "/api/at", {"Origin": "null"}, 403),
    ("GET", "/api/at", {"Origin": "https://127.0.0.1:80"}, 403),
    ("GET", "/api/at", {"Origin": "http://127.0.0.1:8080"}, 403),
    ("GET", "/api/at", {"Sec-Fetch-Site": "cross-site"}, 403),
    ("GET", "/api/at", {"Sec-Fetch-Site": "same-site"}, 403),
    ("GET", "/page.js", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "script"}, 403),
    ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 0),
    ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
    ("GET", "/", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "iframe"}, 403),
    ("GET", "/api/at", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ("GET", "/", {"Authorization": ""}, 0),
    ("GET", "/page.js", {"Authorization": ""}, 0),
    ("GET", "/api/at", {"Authorization": ""}, 401),
    ("GET", "/api/stream", {"Authorization": "Bearer wrong"}, 401),
    ("GET", "/api/explain", {"Authorization": f"Basic {KEY}"}, 401),
    ("GET", "/api/at", {"Authorization": "Bearer "}, 401),
    ("GET", "/api/at", {"Authorization": "Bearer ü"}, 401),
    ("GET", "/api/at", {"Authorization": "", "Cookie": f"key={KEY}"}, 401),
    ("POST", "/api/at", {}, 405),
    ("OPTIONS", "/api/at", {}, 405),
    ("HEAD", "/", {}, 405),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "change", "status"), REFUSED)
def test_what_is_refused(method: str, path: str, change: dict[str, str], status: int) -> None:
    found = guard.refused(method, path, {**GOOD, **change}, 80, KEY)
    assert (found.status if found else 0) == status


Body = Callable[[aiohttp.ClientSession, str, Any], Coroutine[Any, Any, None]]


def served(body: Body, source: Any = None) -> None:
    async def work() -> None:
        sockets = server.listen(0)
        port = sockets[0].getsockname()[1]
        given = source or Source(World(2, 3))
        page = server.Page(given, KEY, port, server.files())
        async with server.serving(page, sockets), aiohttp.ClientSession(auto_decompress=False) as session:
            await asyncio.wait_for(body(session, f"http://127.0.0.1:{port}", given), 20)

    asyncio.run(work())


ASK = {"Authorization": f"Bearer {KEY}"}


def test_every_answer_has_the_headers_and_sets_no_cookie() -> None:
    async def body(session: aiohttp.ClientSession, url: str, _: Any) -> None:
        for path, status in (
            ("/", 200), ("/page.js", 200), ("/page.css", 200), ("/api/at?ago=0", 401), ("/none.js", 404),
            ("/favicon.ico", 204), ("/../page.py", 404), ("/api/", 401), ("/a/b", 404),
        ):  # fmt: skip
            async with session.get(url + path) as got:
                assert got.status == status, path
                for name, value in guard.HEADERS.items():
                    assert got.headers[name] == value, path
                assert "Set-Cookie" not in got.headers and "Access-Control-Allow-Origin" not in got.headers
        async with session.get(url, headers={"Host": "evil.example"}) as got:
            assert got.status == 421

    served(body)


def test_only_pairs_of_a_snapshot_are_explained() -> None:
    async def body(session: aiohttp.ClientSession, url: str, source: Any) -> None:
        known = next(iter(source.world.view.samples))
        for query, status in ((known, 200), ("nonsense", 404), ("", 404), ("infra/app0%20x:1", 404)):
            async with session.get(f"{url}/api/explain?pair={query}", headers=ASK) as got:
                assert got.status == status
        for ago, status in (("0", 200), ("900", 200), ("901", 400), ("-1", 400), ("nan", 400), ("x", 400)):
            async with session.get(f"{url}/api/at?ago={ago}", headers={**ASK, "Accept-Encoding": "identity"}) as got:
                assert got.status == status, ago

    served(body)


def test_a_stream_is_packed_as_a_whole_and_a_further_snapshot_costs_little() -> None:
    async def body(session: aiohttp.ClientSession, url: str, source: Any) -> None:
        unpack = zlib.decompressobj(wbits=31)
        async with session.get(f"{url}/api/stream", headers={**ASK, "Accept-Encoding": "gzip"}) as got:
            text, sizes, count = b"", [], 0
            while count < 3:
                chunk = await got.content.readany()
                text += unpack.decompress(chunk)
                sizes.append(len(chunk))
                if text.count(b"data: ") > count:
                    count += 1
                    source.tell()
        rows = [json.loads(part.removeprefix(b"data: ")) for part in text.split(b"\n\n")[:3]]
        assert rows[0] == rows[2] and sum(sizes) < 3000
        for _ in range(100):  # the reader has gone
            if not source.queues:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the stream goes on for nobody")

    served(body, Source(World(5, 6)))


def test_it_listens_on_loopback_alone() -> None:
    sockets = server.listen(0)
    try:
        assert [sock.getsockname()[0] for sock in sockets] in (["127.0.0.1", "::1"], ["127.0.0.1"])
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        with pytest.raises(OSError, match="in use"):
            server.listen(sockets[0].getsockname()[1])
    finally:
        for sock in sockets:
            sock.close()


def test_the_files_ask_nobody_else_and_have_nothing_inline() -> None:
    for path, (_, content) in server.files().items():
        text = content.decode()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        if path == "/":
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*src=)", text)


# ---- two processes


def test_the_line_between_the_processes() -> None:
    async def work() -> None:
        ours, its = socket.socketpair()
        sends: list[Any] = []
        watched: list[Any] = []

        async def told(what: str, value: Any) -> dict[str, Any]:
            if what == "watch":
                watched.append(value)
                if value:
                    sends[0]({"snapshot": {"at": 1}})
            return {"what": what, "value": value}

        keeping = asyncio.ensure_future(link.serve(ours, told, sends.append))
        teller = link.Teller(its)
        running = asyncio.ensure_future(teller.run())
        await asyncio.sleep(0)
        while teller._writer is None:
            await asyncio.sleep(0.01)
        assert await teller.ask("at", 5) == {"what": "at", "value": 5}
        snapshots = teller.snapshots()
        assert await anext(snapshots) == {"at": 1}
        await snapshots.aclose()
        while len(watched) < 2:
            await asyncio.sleep(0.01)
        assert watched == [True, False]  # nobody looks any more
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await running
        with pytest.raises(link.Gone):
            await teller.ask("at", 1)

    asyncio.run(asyncio.wait_for(work(), 20))


def test_who_serves() -> None:
    me = pwd.getpwuid(1)
    given = {"SUDO_UID": "1", "SUDO_GID": "1"}
    assert launch.caller(given, 0, 0) == launch.Caller(1, 1, me.pw_name, me.pw_dir)
    assert launch.caller({}, 0, 0).uid == launch.NOBODY
    assert launch.caller({"SUDO_UID": "0", "SUDO_GID": "0"}, 0, 0).uid == launch.NOBODY
    assert launch.caller(given, 1000, 1000).uid == 1000  # who is no root stays who he is
    env = launch.environment({"SUDO_UID": "1", "HOME": "/root", "DISPLAY": ":0"}, launch.caller(given, 0, 0))
    assert env["HOME"] == me.pw_dir and env["DISPLAY"] == ":0" and "SUDO_UID" not in env
    assert "url=http://127.0.0.1:1/#a&quot;b" in launch.redirect('http://127.0.0.1:1/#a"b')


STARTER = """
import os, sys
from podwire.page import launch
from podwire.page.keeper import Keeper
launch.OPENER = sys.argv[1]
launch.start(lambda: Keeper(lambda: [], None), 0, launch.caller(os.environ, 0, 0), browser=True)
"""


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that another user may use; those of pytest are its user's alone."""
    with tempfile.TemporaryDirectory(prefix="podwire-page-") as made:
        Path(made).chmod(0o777)
        yield Path(made)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_under_sudo_the_server_and_the_browser_are_the_callers(everybodys: Path) -> None:
    seen, opener = everybodys / "seen", everybodys / "opener"
    told = 'id -u; id -G; tr "\\0" " " </proc/$$/cmdline; echo; cat "$1"'
    opener.write_text(f"#!/bin/sh\n{{ {told}; }} >{seen}.part; mv {seen}.part {seen}\n")
    opener.chmod(0o755)
    env = {**os.environ, "SUDO_UID": "1", "SUDO_GID": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(opener)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            address = child.stdout.readline().strip()
            (page,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()[:1]
            for _ in range(500):
                if seen.exists():
                    break
                subprocess.run(["sleep", "0.02"], check=True)
            status = Path(f"/proc/{page}/status").read_text()
            assert re.search(r"Uid:\s+1\s+1\s+1\s+1\n", status) and re.search(r"CapEff:\s+0+\n", status)
            uid, groups, argv, *content = seen.read_text().splitlines()
            key = address.partition("#")[2]
            assert uid == "1" and "0" not in groups.split() and key not in argv and key in "".join(content)
            file = Path(argv.split()[-1])
            assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_uid == 1
            assert key not in Path(f"/proc/{child.pid}/cmdline").read_text()
        finally:
            child.terminate()
            child.wait(20)
    assert not file.exists()  # and its folder is gone
    assert not Path(f"/proc/{page}").exists()

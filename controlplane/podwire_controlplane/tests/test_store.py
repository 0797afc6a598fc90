"""One suite for both stores: compare-and-swap, revisions, history, and survival of a kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from podwire_base.role.layout import NewerLayout
from podwire_base.testing.builders import run
from podwire_base.testing.counts import examples
from podwire_controlplane.store import memory
from podwire_controlplane.store.base import Compacted, Conflict, Item, StoredChange
from podwire_controlplane.store.memory import MemoryStore, cost
from podwire_controlplane.store.sqlite import SqliteStore, StoreInUse

Make = Callable[..., MemoryStore]


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return a function that opens a store. For SQLite each call opens the same file."""
    if request.param == "memory":
        return MemoryStore
    return lambda **more: SqliteStore(tmp_path / "store.db", **more)


def test_compare_and_swap(make: Make) -> None:
    async def body() -> None:
        store = make()
        one = await store.put("/a", b"1", expect=0)
        assert one == Item("/a", 1, b"1") and await store.get("/a") == one
        for expect in (0, 2):
            with pytest.raises(Conflict) as caught:
                await store.put("/a", b"x", expect=expect)
            assert caught.value.actual == one
        two = await store.put("/a", b"2", expect=1)
        assert two.revision == 2
        with pytest.raises(Conflict):
            await store.delete("/a", expect=1)
        with pytest.raises(Conflict) as caught:
            await store.put("/b", b"x", expect=1)
        assert caught.value.actual is None
        gone = await store.delete("/a", expect=2)
        assert gone == StoredChange(3, "/a", None, two) and await store.get("/a") is None
        with pytest.raises(Conflict):
            await store.delete("/a")
        assert await store.revision() == 3, "a refused write uses no revision"
        await store.close()

    run(body())


def test_scan_is_in_key_order_and_by_prefix(make: Make) -> None:
    async def body() -> None:
        store = make()
        for key in ("/pods/b", "/pods/a", "/podsx/c", "/pods/é", "/pods/", "/poda"):
            await store.put(key, b"")
        assert [i.key for i in await store.scan("/pods/")] == ["/pods/", "/pods/a", "/pods/b", "/pods/é"]
        assert len(await store.scan("")) == 6 and await store.scan("/none") == []
        await store.close()

    run(body())


def test_scan_at_an_old_revision(make: Make) -> None:
    async def body() -> None:
        store = make()
        await store.put("/a", b"1")
        await store.put("/b", b"1")
        then = await store.revision()
        await store.put("/a", b"2")
        await store.delete("/b")
        await store.put("/c", b"1")
        await store.put("/b", b"again")
        assert [(i.key, i.value, i.revision) for i in await store.scan("/", at=then)] == [
            ("/a", b"1", 1),
            ("/b", b"1", 2),
        ]
        assert [i.key for i in await store.scan("/", at=99)] == ["/a", "/b", "/c"]
        assert await store.scan("/", at=0) == []
        await store.close()

    run(body())


def test_history_is_bounded(make: Make) -> None:
    async def body() -> None:
        store = make(history=3)
        for n in range(1, 6):
            await store.put(f"/{n}", b"")
        assert [c.revision for c in await store.since("/", 2)] == [3, 4, 5]
        assert await store.since("/", 5) == [] and [c.key for c in await store.since("/4", 2)] == ["/4"]
        for work in (store.since("/", 1), store.scan("/", at=1)):
            with pytest.raises(Compacted) as caught:
                await work
            assert caught.value.oldest == 2
        assert len(await store.scan("/", at=2)) == 2
        await store.close()

    run(body())


def test_history_is_bounded_by_bytes(make: Make, tmp_path: Path) -> None:
    """300 small changes of an object of 90 kB: the history and the file stay small, and the last change stays."""

    async def body() -> None:
        store = make(history_bytes=1_000_000)
        for n in range(300):
            await store.put("/big", b"%d" % n + b"x" * 90_000)
        changes = await store.since("", store._compacted)
        assert sum(map(cost, changes)) <= 1_000_000 and [c.revision for c in changes] == list(range(296, 301))
        await store.put("/big", b"y" * 2_000_000)
        assert len(await store.since("", 300)) == 1
        await store.close()
        if isinstance(store, SqliteStore):
            size = sum(p.stat().st_size for p in tmp_path.iterdir())
            assert size < 20_000_000, "it was 54 MB without a bound"
            again = make(history_bytes=1_000_000)
            assert await again.revision() == 301 and sum(map(cost, await again.since("", again._compacted))) < 2_100_000
            await again.close()

    run(body())


def test_a_watch_tells_everything_once(make: Make) -> None:
    async def body() -> None:
        store = make()
        await store.put("/a/1", b"1")
        await store.put("/b/1", b"1")
        seen: list[tuple[int, str]] = []

        async def follow() -> None:
            async for change in store.watch("/a/", 0):
                seen.append((change.revision, change.key))

        task = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await asyncio.gather(*(store.put(f"/a/{n}", b"") for n in range(5)), store.put("/b/2", b""))
        await store.delete("/a/1")
        await store.close()
        await asyncio.wait_for(task, 5)
        assert [r for r, _ in seen] == sorted({r for r, _ in seen}) and len(seen) == 7
        assert {key[:3] for _, key in seen} == {"/a/"}

    run(body())


def test_a_watch_from_a_revision_that_is_gone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        store = make(history=2)
        for n in range(5):
            await store.put(f"/{n}", b"")
        with pytest.raises(Compacted):
            await anext(aiter(store.watch("/", 1)))
        monkeypatch.setattr(memory, "LAG", 3)
        slow = aiter(store.watch("/", 4))
        await anext(slow)
        await asyncio.gather(*(store.put(f"/{n}", b"") for n in range(9)))
        with pytest.raises(Compacted):
            for _ in range(9):
                await anext(slow)
        await store.close()

    run(body())


def test_writers_of_one_moment_see_each_other(make: Make) -> None:
    """Of several writers that create one key at the same time, one wins; revisions have no gaps."""

    async def body() -> None:
        store = make()
        found = await asyncio.gather(*(store.put("/x", b"%d" % n, expect=0) for n in range(8)), return_exceptions=True)
        won = [item for item in found if isinstance(item, Item)]
        assert len(won) == 1 and all(isinstance(e, Conflict) and e.actual == won[0] for e in found if e is not won[0])
        await asyncio.gather(*(store.put(f"/{n}", b"") for n in range(20)))
        assert [c.revision for c in await store.since("", 0)] == list(range(1, 22))
        await store.close()

    run(body())


def test_listeners_hear_every_write_in_order_until_they_leave(make: Make) -> None:
    async def body() -> None:
        store = make()
        heard: list[StoredChange] = []
        leave = store.subscribe(heard.append)
        await asyncio.gather(*(store.put(f"/{n % 3}", str(n).encode()) for n in range(10)))
        await store.delete("/1")
        assert heard == await store.since("", 0) and [c.revision for c in heard] == list(range(1, 12))
        leave()
        await store.put("/x", b"")
        assert len(heard) == 11
        late = store.subscribe(heard.append)
        await store.close()
        late()  # a watch that ends with the server

    run(body())


def test_a_listener_may_leave_while_it_is_called(make: Make) -> None:
    async def body() -> None:
        store = make()
        heard: list[str] = []
        leaves: list[Callable[[], None]] = []
        for own in ("one", "two"):

            def listener(_change: StoredChange, own: str = own) -> None:
                heard.append(own)
                leaves[0 if own == "one" else 1]()

            leaves.append(store.subscribe(listener))
        await store.put("/a", b"")
        await store.put("/a", b"")
        assert heard == ["one", "two"]
        await store.close()

    run(body())


class StoreMachine(RuleBasedStateMachine):
    """Random writes, compared with a plain model; SQLite is closed and reopened in between."""

    keys = st.sampled_from(["/a/1", "/a/2", "/b/1", "/b/2"])
    HISTORY = 6

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        self.log: list[tuple[int, str, bytes | None]] = []

    @initialize(sqlite=st.booleans())
    def open(self, sqlite: bool) -> None:
        self.sqlite = sqlite
        self.store: MemoryStore = self._make()

    def _make(self) -> MemoryStore:
        return SqliteStore(Path(self.folder.name) / "s.db", self.HISTORY) if self.sqlite else MemoryStore(self.HISTORY)

    def do(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def model(self, at: int | None = None) -> dict[str, tuple[int, bytes]]:
        state: dict[str, tuple[int, bytes]] = {}
        for revision, key, value in self.log:
            if at is not None and revision > at:
                break
            if value is None:
                del state[key]
            else:
                state[key] = (revision, value)
        return state

    @rule(key=keys, value=st.binary(max_size=3), expect=st.sampled_from(["none", "right", "zero", "wrong"]))
    def put(self, key: str, value: bytes, expect: str) -> None:
        now = self.model().get(key, (0, b""))[0]
        wanted = {"none": None, "right": now, "zero": 0, "wrong": now + 1}[expect]
        try:
            item = self.do(self.store.put(key, value, wanted))
        except Conflict as err:
            assert wanted is not None and wanted != now and (err.actual.revision if err.actual else 0) == now
        else:
            assert wanted in (None, now) and item.revision == len(self.log) + 1
            self.log.append((item.revision, key, value))

    @rule(key=keys, right=st.booleans())
    def delete(self, key: str, right: bool) -> None:
        now = self.model().get(key, (0, b""))[0]
        try:
            change = self.do(self.store.delete(key, None if right else now + 1))
        except Conflict:
            assert not now or not right
        else:
            assert now and right
            self.log.append((change.revision, key, None))

    @rule(writes=st.lists(st.tuples(keys, st.binary(max_size=3)), min_size=2, max_size=5))
    def put_at_once(self, writes: list[tuple[str, bytes]]) -> None:
        async def together() -> list[Item]:
            return await asyncio.gather(*(self.store.put(key, value) for key, value in writes))

        found = sorted(self.do(together()), key=lambda item: item.revision)
        assert sorted((i.key, i.value) for i in found) == sorted(writes)
        assert [i.revision for i in found] == list(range(len(self.log) + 1, len(self.log) + len(writes) + 1))
        self.log += [(i.revision, i.key, i.value) for i in found]

    @rule(back=st.integers(1, HISTORY))
    def follow(self, back: int) -> None:
        start = max(0, len(self.log) - back)

        async def watched() -> list[tuple[int, str, bytes | None]]:
            seen: list[tuple[int, str, bytes | None]] = []
            async with contextlib.aclosing(self.store.watch("", start)) as watch:
                while len(seen) < len(self.log) - start:
                    change = await anext(watch)
                    seen.append((change.revision, change.key, change.item.value if change.item else None))
            return seen

        assert self.do(watched()) == self.log[start:]

    @rule()
    def reopen(self) -> None:
        if self.sqlite:
            self.do(self.store.close())
            self.store = self._make()

    @invariant()
    def same_as_model(self) -> None:
        if not hasattr(self, "store"):
            return
        last = len(self.log)
        assert self.do(self.store.revision()) == last
        for at in range(max(0, last - self.HISTORY), last + 1):
            found = {i.key: (i.revision, i.value) for i in self.do(self.store.scan("/", at=at))}
            assert found == self.model(at)
            changes = [(c.revision, c.key, c.item and c.item.value) for c in self.do(self.store.since("/a", at))]
            assert changes == [row for row in self.log[at:] if row[1].startswith("/a")]
        if last > self.HISTORY:
            with pytest.raises(Compacted):
                self.do(self.store.since("/", last - self.HISTORY - 1))

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.do(self.store.close())
        self.loop.close()
        self.folder.cleanup()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=examples(10, 100), stateful_step_count=20)


# ---- SQLite only


def test_writes_of_one_moment_share_a_commit(tmp_path: Path) -> None:
    async def body() -> None:
        store = SqliteStore(tmp_path / "s.db")
        await asyncio.gather(*(store.put(f"/{n}", b"") for n in range(100)))
        assert store.commits == 1
        done = asyncio.ensure_future(store.put("/a", b""))
        await asyncio.sleep(0)
        done.cancel()  # a client that leaves
        await store.close()
        again = SqliteStore(tmp_path / "s.db")
        assert [i.key for i in await again.scan("/a")] == ["/a"]
        await again.close()

    run(body())


def test_a_failed_commit_fails_its_writes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        store = SqliteStore(tmp_path / "s.db")
        heard: list[StoredChange] = []
        store.subscribe(heard.append)
        whole = store._persist

        def full(changes: list[StoredChange]) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(store, "_persist", full)
        found = await asyncio.gather(store.put("/a", b""), store.put("/b", b""), return_exceptions=True)
        assert all(isinstance(e, sqlite3.OperationalError) for e in found)
        assert heard == [] and await store.revision() == 0 and await store.scan("") == []
        monkeypatch.setattr(store, "_persist", whole)
        assert (await store.put("/a", b"")).revision == 1
        await store.close()

    run(body())


def test_a_listener_that_fails_stops_no_write(tmp_path: Path) -> None:
    async def body() -> None:
        store = SqliteStore(tmp_path / "s.db")

        def bad(change: StoredChange) -> None:
            raise RuntimeError("a bug")

        store.subscribe(bad)
        for n in range(3):
            assert (await store.put("/a", b"")).revision == n + 1
        await store.close()

    run(body())


def test_second_opener_is_told(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    with pytest.raises(StoreInUse, match="another API server"):
        SqliteStore(tmp_path / "s.db")
    run(store.close())
    run(SqliteStore(tmp_path / "s.db").close())


@pytest.mark.parametrize("user_version", [0, 1, 2, 1 << 30])
def test_a_file_tells_its_layout(tmp_path: Path, user_version: int) -> None:
    """A file of version 0.2 tells none and is taken over. A file of a later version stays as it is, byte by byte."""
    path = tmp_path / "s.db"
    store = SqliteStore(path)
    run(store.put("/k", b"value"))
    run(store.close())
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={user_version}")
        if user_version > 1:
            db.execute("DROP TABLE changes")
            db.commit()
    before = path.read_bytes()
    if user_version > 1:
        with pytest.raises(
            NewerLayout, match=f"s.db: a later version of podwire wrote this with layout {user_version}"
        ):
            SqliteStore(path)
        assert path.read_bytes() == before
        return
    store = SqliteStore(path)
    item = run(store.get("/k"))
    assert item is not None and item.value == b"value"
    run(store.close())
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchall() == [(1,)]


_WRITER = """
import asyncio, sys
from pathlib import Path
from podwire_controlplane.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]), history=50)
    n = 0
    while True:
        n += 1
        item = await store.put(f"/k/{n % 7}", str(n).encode() * 50)
        print(item.revision, item.key, n, flush=True)
        if n % 5 == 0:
            change = await store.delete(f"/k/{n % 7}")
            print(change.revision, change.key, -1, flush=True)

asyncio.run(main())
"""


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    path, last = tmp_path / "s.db", 0
    expected: dict[str, int] = {}
    for lines in (1, 40, 150):
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert child.stdout
        acknowledged = [child.stdout.readline() for _ in range(lines)]
        child.send_signal(signal.SIGKILL)
        acknowledged += child.stdout.read().splitlines(keepends=True)
        child.wait()
        for line in (a for a in acknowledged if a.endswith("\n")):
            revision, key, n = line.split()
            assert int(revision) > last
            last = int(revision)
            expected.pop(key, None)
            if int(n) > 0:
                expected[key] = int(n)

        async def check(last: int = last, expected: dict[str, int] = expected) -> int:
            store = SqliteStore(path, history=50)
            revision = await store.revision()
            found = {i.key: i.value for i in await store.scan("/k/", at=last)}
            assert found == {key: str(n).encode() * 50 for key, n in expected.items()}
            await store.close()
            return revision

        now = run(check())
        assert last <= now <= last + 1, "at most the one write whose answer was not printed"
        if now > last:  # that write counts from here on

            async def resync() -> dict[str, int]:
                store = SqliteStore(path, history=50)
                items = await store.scan("/k/")
                await store.close()
                return {i.key: int(i.value[: len(i.value) // 50]) for i in items}

            last, expected = now, run(resync())

"""The loop that mends what others change in the kernel: when it looks, when it reads everything, what it tells."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest

from podwire_base.role import logs, upkeep
from podwire_base.role.counts import Counts
from podwire_base.role.upkeep import MENDED, Mendings, Upkeep, Watch


class Kernel:
    """What a role and others change. reads: how often somebody looked at the figures."""

    def __init__(self) -> None:
        self.generation = self.own = self.reads = 0
        self.rules = 3

    def foreign(self, rules: int) -> None:
        self.rules, self.generation = rules, self.generation + 1

    def ours(self, rules: int) -> None:
        self.rules, self.own = rules, self.own + 1

    def figures(self) -> int:
        self.reads += 1
        return self.rules

    def counts(self) -> Counts:
        return Counts(self.figures, lambda: self.generation, lambda: self.own)


class Wire:
    """A watch: `tell` makes it readable."""

    def __init__(self, sure: bool) -> None:
        self._sure = sure
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)

    def tell(self) -> None:
        self._far.send(b"x")

    def fileno(self) -> int:
        return self._near.fileno()

    def changed(self) -> bool:
        self._near.recv(100)
        return self._sure

    def close(self) -> None:
        self._near.close()
        self._far.close()


def test_a_look_at_an_idle_kernel_reads_one_number() -> None:
    kernel = Kernel()
    counts = kernel.counts()
    counts.settled()
    assert kernel.reads == 1
    assert not any(counts.differs() for _ in range(1000))
    assert kernel.reads == 1, "the generation stands still, so nobody reads the figures"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda k: k.foreign(2), True),
        (lambda k: k.foreign(4), True),
        (lambda k: k.foreign(3), False),  # a commit in another program's table
        (lambda k: k.ours(7), False),
        (lambda k: (k.ours(7), k.foreign(7)), False),
    ],
)
def test_what_counts_as_a_change_by_another_program(change: Callable[[Kernel], Any], found: bool) -> None:
    kernel = Kernel()
    counts = kernel.counts()
    assert not counts.differs(), "the first look has nothing to compare with"
    change(kernel)
    assert counts.differs() is found
    assert not counts.differs(), "each difference is told once"
    kernel.foreign(1)
    assert counts.differs()


def test_without_a_generation_the_figures_are_read_at_each_look() -> None:
    kernel = Kernel()
    counts = Counts(kernel.figures)
    counts.settled()
    kernel.rules = 2
    assert counts.differs() and not counts.differs()
    assert kernel.reads == 3


def test_a_change_that_comes_while_the_role_reads_is_found_by_the_next_look() -> None:
    kernel = Kernel()
    counts = Counts(kernel.figures)
    counts.reading()
    kernel.rules = 2  # after the role read them, before it says so
    counts.settled()
    assert counts.differs() and not counts.differs()


def test_a_role_that_does_not_say_that_it_reads_loses_nothing_either() -> None:
    kernel = Kernel()
    counts = Counts(kernel.figures)
    counts.settled()
    kernel.rules = 2
    counts.settled()
    assert counts.differs() and not counts.differs()


def test_what_the_role_itself_changes_costs_one_more_reading_and_no_second() -> None:
    kernel = Kernel()
    counts = Counts(kernel.figures)
    for rules, found in ((4, True), (4, False), (4, False)):
        counts.reading()
        kernel.rules = rules
        counts.settled()
        assert counts.differs() is found


def test_with_a_generation_the_own_commits_while_reading_are_no_difference() -> None:
    kernel = Kernel()
    counts = kernel.counts()
    counts.reading()
    kernel.ours(7)
    counts.settled()
    assert not counts.differs()


@pytest.mark.parametrize("own", [False, True])
def test_with_a_generation_a_commit_of_others_while_reading_is_found_by_the_next_look(own: bool) -> None:
    """A notification may have told of it, and the look that follows compares with what `settled` found."""
    kernel = Kernel()
    counts = kernel.counts()
    for foreign, found in ((2, True), (3, True), (3, False)):
        counts.reading()
        if own:
            kernel.own, kernel.generation = kernel.own + 1, kernel.generation + 1
        kernel.foreign(foreign)  # after the role read, before it says so; last, in another program's table
        counts.settled()
        assert counts.differs() is found
        assert not counts.differs(), "each difference is told once"


def running(
    kernel: Kernel, work: Callable[[Upkeep, list[float]], Awaitable[None]], *watches: Watch, **more: Any
) -> Upkeep:
    """Run the loop beside `work`, which gets it and the times of its mendings. Returns the loop."""
    mended: list[float] = []

    async def both() -> Upkeep:
        async def mend() -> None:
            mended.append(time.monotonic())
            loop.settled()

        loop = Upkeep([kernel.counts()], mend, **{"every": 0.01, "gather": 0.0, "again": 0.0, **more})
        loop.settled()
        task = asyncio.create_task(loop.run(watches))
        try:
            await asyncio.wait_for(work(loop, mended), 20)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return loop

    try:
        return asyncio.run(both())
    finally:
        for watch in watches:
            watch.close()


async def until(what: Callable[[], bool]) -> None:
    while not what():
        await asyncio.sleep(0.002)


def test_looks_read_everything_only_where_the_counts_differ() -> None:
    kernel = Kernel()

    async def work(loop: Upkeep, mended: list[float]) -> None:
        await until(lambda: loop.looks >= 20)
        assert (loop.whole, kernel.reads) == (0, 1), "twenty looks, and no full reading"
        kernel.foreign(1)
        await until(lambda: len(mended) == 1)
        looks = loop.looks
        await until(lambda: loop.looks >= looks + 10)
        assert loop.whole == 1

    running(kernel, work)


def test_a_notification_is_followed_at_once_and_a_hint_by_a_look_at_counts() -> None:
    sure, hint, kernel = Wire(True), Wire(False), Kernel()

    async def work(loop: Upkeep, mended: list[float]) -> None:
        sure.tell()
        await until(lambda: len(mended) == 1)
        hint.tell()
        await until(lambda: loop.looks == 1)
        assert len(mended) == 1
        kernel.foreign(0)
        hint.tell()
        await until(lambda: len(mended) == 2)

    running(kernel, work, sure, hint, every=3600.0)


def test_a_program_that_fights_does_not_keep_the_role_busy() -> None:
    sure, kernel = Wire(True), Kernel()

    async def work(_loop: Upkeep, mended: list[float]) -> None:
        while len(mended) < 3:
            sure.tell()
            await asyncio.sleep(0.01)
        assert all(later - first >= 0.19 for first, later in pairwise(mended))

    running(kernel, work, sure, every=3600.0, again=0.2)


def test_what_no_count_shows_is_read_now_and_then_and_while_the_role_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(_loop: Upkeep, mended: list[float]) -> None:
        await until(lambda: len(mended) >= 2)

    waiting = running(Kernel(), work, unsettled=lambda: True)
    assert waiting.looks == 0
    monkeypatch.setattr(upkeep, "WHOLE", 0.05)
    running(Kernel(), work)


def test_a_look_that_fails_is_told_and_everything_is_read() -> None:
    kernel, told = Kernel(), list[OSError]()

    def broken() -> int:
        raise OSError(1, "no")

    async def work(_loop: Upkeep, mended: list[float]) -> None:
        kernel.figures = broken  # type: ignore[method-assign]  # for the looks that follow
        kernel.generation += 1
        await until(lambda: len(mended) >= 1)

    loop = Upkeep([Counts(broken)], lambda: asyncio.sleep(0), failed=told.append)
    assert loop.differs() and len(told) == 1
    running(Kernel(), lambda *_: asyncio.sleep(0))


def test_a_mending_is_told_in_log_status_counter_and_event(capsys: pytest.CaptureFixture[str]) -> None:
    mendings = Mendings(logs.get("dns"), "dns", "node1")
    assert (mendings.words(), mendings.figures(), mendings.events()) == ("", {}, [])
    mendings.tell([])
    assert mendings.count == 0
    what = ["address 10.96.0.10 on lo", *(f"rule {n}" for n in range(5))]
    mendings.tell(what)
    text = "address 10.96.0.10 on lo, rule 0, rule 1 and 3 more"
    assert mendings.words().startswith(f"; mended: {text}, 20")
    assert mendings.figures()["repairs"] == 1 and mendings.figures()["repaired"].startswith(text)
    assert text in capsys.readouterr().err
    (made,) = mendings.events()
    assert made["involvedObject"] == {"apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "node1"}
    assert (made["metadata"]["namespace"], made["reason"], made["type"]) == ("default", MENDED, "Warning")
    assert made["source"] == {"component": "podwire-dns", "host": "node1"} and text in made["message"]
    mendings.tell(what)
    mendings.tell(["another"])
    assert mendings.count == 3
    assert ["another" in one["message"] for one in mendings.events()] == [True], "the same again is one Event a minute"


def test_hints_do_not_put_the_periodic_look_off() -> None:
    """A kernel that commits all the time, and a change that only a periodic look can find."""
    hint, kernel, links = Wire(False), Kernel(), Kernel()

    async def work(loop: Upkeep, mended: list[float]) -> None:
        reads = links.reads
        hint.tell()
        await until(lambda: loop.looks == 1)
        assert links.reads == reads, "a hint is about the tables alone"
        links.rules = 0
        while not mended:
            hint.tell()
            await asyncio.sleep(0.005)

    async def both() -> None:
        mended: list[float] = []

        async def mend() -> None:
            mended.append(time.monotonic())

        loop = Upkeep([kernel.counts(), Counts(links.figures)], mend, every=0.3, gather=0.0, again=0.0)
        loop.settled()
        task = asyncio.create_task(loop.run([hint]))
        try:
            await asyncio.wait_for(work(loop, mended), 20)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            hint.close()

    asyncio.run(both())

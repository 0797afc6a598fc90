"""The sweeper works as long as something is left behind, off the event loop, and reports a failure."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from podwire_base.patience import patient
from podwire_proxy import sweeper
from podwire_proxy.flows import Swept


class Leftovers:
    """The part of a Proxier that the sweeper uses. looks: the result, or the error, of each check of the flows."""

    def __init__(self, *looks: Swept | OSError, rules: OSError | None = None) -> None:
        self.unswept, self.flows, self.threads, self.swept = True, self, set[int](), 0
        self._looks, self._rules = list(looks), rules

    @property
    def pending(self) -> bool:
        return bool(self._looks)

    def look(self) -> Any:
        return SimpleNamespace(run=self._run)

    def _run(self) -> Swept:
        self.threads.add(threading.get_ident())
        found = self._looks.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    def sweep_rules(self) -> None:
        self.swept += 1
        self.unswept = False
        if self._rules:
            raise self._rules


def swept(leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Swept], list[OSError]]:
    monkeypatch.setattr(sweeper, "SWEEP_AFTER", 0.001)
    done: list[Swept] = []
    failed: list[OSError] = []

    async def work() -> None:
        made = sweeper.Sweeper(leftovers, done.append, failed.append)  # type: ignore[arg-type]  # as much as it uses
        made.after_sync()
        made.after_sync()
        while leftovers.unswept or (leftovers.pending and not failed):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        made.close()

    asyncio.run(asyncio.wait_for(work(), patient(10)))
    return done, failed


def test_it_looks_until_nothing_is_noted_and_never_in_the_loops_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    leftovers = Leftovers(Swept(udp=1), Swept(opening=2))
    assert swept(leftovers, monkeypatch) == ([Swept(udp=1), Swept(opening=2)], [])
    assert leftovers.swept == 1
    assert len(leftovers.threads) == 1
    assert threading.get_ident() not in leftovers.threads


def test_failures_are_told_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    flows, rules = OSError("conntrack"), OSError("rules")
    assert swept(Leftovers(flows, Swept(), rules=rules), monkeypatch)[1] in ([flows, rules], [rules, flows])


def test_it_rests_by_its_work_however_long_others_kept_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real = asyncio.sleep

    async def nap(seconds: float) -> None:
        pauses.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", nap)
    swept(Leftovers(Swept(seconds=100.0, busy=2.0), Swept(seconds=100.0, busy=0.0), Swept()), monkeypatch)
    assert {pause for pause in pauses if pause > 0.01} == {sweeper.SHARE * 2.0}

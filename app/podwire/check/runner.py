"""Makes the checks of the table on a cluster: the probes, each row, reasons for what failed, the removal."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError
from podwire_base.patience import patient

from .rows import Finding, LeftOut, Result, result_of
from .table import Check
from .world import CannotCheck, Options, Say, World

SETTLE_SECONDS = 5.0  # in which a row is tried again: a node may learn of a Service a moment after the API has it
EXPLAINED = 2  # failures of one row that `explain` looks at


@asynccontextmanager
async def world(api: ApiClient, options: Options, say: Say = lambda _: None) -> AsyncIterator[World]:
    """Make the probes, and remove everything at the end, however it ends."""
    made = World(api, options, say)
    try:
        await made.begin()
        yield made
    finally:
        say(f"removing namespace {made.space}")
        await asyncio.shield(asyncio.ensure_future(made.end()))


async def _findings(check: Check, made: World) -> list[Finding]:
    assert check.probes is not None
    return [found async for found in check.probes(made)]


async def one(check: Check, made: World, explain: Callable[[World, Finding], Iterable[str]] | None = None) -> Result:
    """Make one row. What fails is tried again for a while."""
    begin = time.monotonic()
    while True:
        try:
            found = await _findings(check, made)
        except LeftOut as why:
            return Result(check.name, check.says, "left out", "", str(why), time.monotonic() - begin)
        except (ApiError, CannotCheck) as err:
            detail = err.message if isinstance(err, ApiError) else str(err)
            return Result(check.name, check.says, "failed", "it broke off", detail, time.monotonic() - begin)
        bad = [f for f in found if not f.ok]
        if not bad or time.monotonic() - begin > patient(SETTLE_SECONDS):
            break
        await asyncio.sleep(0.5)
    reasons: list[str] = []
    for failure in bad[:EXPLAINED] if explain else ():
        assert explain is not None
        reasons += await asyncio.to_thread(lambda f=failure: list(explain(made, f)))  # type: ignore[misc]  # a default
    return result_of(check.name, check.says, found, time.monotonic() - begin, tuple(reasons))


def explained(options: list[str]) -> Callable[[World, Finding], list[str]]:
    """Return a function that asks `podwire explain` why a packet did not get there. options: they name the cluster."""

    def ask(made: World, failure: Finding) -> list[str]:
        if failure.to is None:
            return []
        address, port, protocol = failure.to
        host = f"[{address}]" if ":" in address else address
        words = [f"{made.space}/{failure.source}", f"{host}:{port}/{protocol}"]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "podwire.main", "explain", "--json", *words, *options],
                capture_output=True,
                text=True,
                timeout=patient(20),
                check=False,
            )
            found = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError):  # it could not look: the row itself says what failed
            return []
        reason = " ".join(str(found.get("cause") or found.get("verdict") or "").split())
        return [f"{failure.source} -> {host}:{port}/{protocol}: {reason}"] if reason else []

    return ask

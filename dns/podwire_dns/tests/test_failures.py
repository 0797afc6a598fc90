"""Failures of upstreams are kept for some seconds and cost each upstream one query (RFC 9520)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import dns.message
import pytest

from podwire_base.patience import patient
from podwire_base.testing.ports import free_port
from podwire_dns import cache, corefile
from podwire_dns.cache import Cache, Upstreamed
from podwire_dns.config import BadConfig, DnsConfig
from podwire_dns.forward import Route
from podwire_dns.server import Server
from podwire_dns.testing import builders
from podwire_dns.tests.fake_upstream import Reply, Upstream, answer, question, upstream
from podwire_dns.tests.test_faults import run as run_server
from podwire_dns.tests.test_server import ask
from podwire_dns.upstream import Forwarder
from podwire_dns.wire import EMPTY, NOERROR, NXDOMAIN, REFUSED, SERVFAIL

GOOD = "60 A 198.51.100.7"
AAAA = b"\0\x1c"


def failing(rcode: int) -> Reply:
    return lambda query: answer(query, rcode=rcode)


def good(query: dns.message.Message) -> dns.message.Message:
    return answer(query, GOOD)


def run(replies: list[Reply], work: Callable[[Forwarder, list[Upstream]], Awaitable[None]], **more: float) -> None:
    async def body() -> None:
        async with asyncio.timeout(patient(30)), upstream(replies[0]) as first, upstream(replies[-1]) as second:
            made = [first, second][: len(replies)]
            forwarder = Forwarder({b"\0": Route(tuple(each.address for each in made), **more)}, Cache())  # type: ignore[arg-type]  # numbers fit
            await work(forwarder, made)
            forwarder.close()

    asyncio.run(body())


async def rcode(forwarder: Forwarder, name: str = "a.test.", rtype: bytes = b"\0\1") -> int:
    found = await forwarder.resolve(question(name, rtype))
    assert found is not None
    return found.rcode


@pytest.mark.parametrize("failure", [SERVFAIL, REFUSED, 9])
def test_a_failure_costs_one_query_and_is_kept(failure: int) -> None:
    async def work(forwarder: Forwarder, made: list[Upstream]) -> None:
        assert [await rcode(forwarder) for _ in range(20)] == [failure] * 20
        assert len(made[0].asked) == 1
        assert await rcode(forwarder, rtype=AAAA) == failure
        assert await rcode(forwarder, "b.test.") == failure
        assert len(made[0].asked) == 3, "another type and another name are other questions"

    run([failing(failure)], work)


def test_each_upstream_is_asked_once() -> None:
    async def work(forwarder: Forwarder, made: list[Upstream]) -> None:
        assert [await rcode(forwarder) for _ in range(5)] == [SERVFAIL] * 5
        assert [len(each.asked) for each in made] == [1, 1]

    run([failing(SERVFAIL), failing(REFUSED)], work)


def test_an_answer_of_the_next_upstream_is_no_failure() -> None:
    async def work(forwarder: Forwarder, made: list[Upstream]) -> None:
        assert await rcode(forwarder) == NOERROR
        assert [len(each.asked) for each in made] == [1, 1]
        assert not forwarder.cache.failures

    run([failing(SERVFAIL), good], work)


def test_a_failure_ends() -> None:
    replies = iter([failing(SERVFAIL), good])

    def reply(query: dns.message.Message) -> dns.message.Message | bytes | None:
        return next(replies)(query)

    async def work(forwarder: Forwarder, _: list[Upstream]) -> None:
        assert await rcode(forwarder) == await rcode(forwarder) == SERVFAIL
        await asyncio.sleep(0.3)
        assert await rcode(forwarder) == NOERROR
        assert not forwarder.cache.failures

    run([reply], work, failure_cap=0.25)


def test_five_seconds() -> None:
    kept = Cache()
    assert (Route(()).failure_cap, cache.FAILURE_SECONDS) == (5, 5)
    kept.fail(question("a.test."), Upstreamed(SERVFAIL, EMPTY), 100.0, 5.0)
    assert [kept.failed(question("a.test."), 100.0 + after) for after in (0, 4.9)] == [Upstreamed(SERVFAIL, EMPTY)] * 2
    assert kept.failed(question("a.test."), 105.0) is None
    assert not kept.failures
    for index in range(cache.FAILURES + 10):
        kept.fail(question(f"n{index}.test."), Upstreamed(SERVFAIL, EMPTY), 0.0, 5.0)
    assert len(kept.failures) == cache.FAILURES
    kept.put(question(f"n{index}.test."), Upstreamed(NXDOMAIN, EMPTY), 1.0)
    assert kept.failed(question(f"n{index}.test."), 1.0) is None, "an answer ends it"


def test_nobody_who_answers_is_a_failure_too() -> None:
    async def work() -> None:
        forwarder = Forwarder({b"\0": Route((f"127.0.0.1#{free_port()}",))}, Cache())
        assert await forwarder.resolve(question("a.test.")) is None
        before = forwarder.asked
        assert await forwarder.resolve(question("a.test.")) == Upstreamed(SERVFAIL, EMPTY)
        assert forwarder.asked == before
        forwarder.close()

    asyncio.run(work())


def test_what_is_no_failure_of_the_upstream_is_not_kept() -> None:
    async def work(forwarder: Forwarder, made: list[Upstream]) -> None:
        forwarder.most = 0
        assert await forwarder.resolve(question("a.test.")) is None
        waiting = asyncio.create_task(forwarder.resolve(question("b.test.")))
        await asyncio.sleep(0)
        forwarder.close()
        assert await waiting is None
        assert not forwarder.cache.failures
        assert not made[0].asked

    run([good], work)


def test_an_expired_answer_is_better_than_a_failure() -> None:
    async def work(forwarder: Forwarder, made: list[Upstream]) -> None:
        forwarder.cache.keep_stale = 60.0
        stale = Upstreamed(NOERROR, b"\0\1\0\0\0\0\xc0\x0c\0\1\0\1\0\0\0\1\0\4abcd")
        forwarder.cache.put(question("a.test."), stale, asyncio.get_running_loop().time() - 10)
        for _ in range(3):
            assert await rcode(forwarder) == NOERROR
        assert len(made[0].asked) == 1

    run([failing(SERVFAIL)], work)


@pytest.mark.parametrize(("line", "seconds"), [("cache", 5), ("cache {\n servfail 10s\n }", 10), ("errors", 5)])
def test_the_option_servfail(line: str, seconds: float) -> None:
    config, notes = corefile.apply(f". {{\n {line}\n forward . 192.0.2.1\n}}\n", builders.CONFIG)
    assert notes == []
    assert config.routes()[b"\0"].failure_cap == seconds


@pytest.mark.parametrize(("value", "why"), [("6m", "at most 5m"), ("soon", "is not a duration"), ("", "needs a value")])
def test_a_bad_servfail(value: str, why: str) -> None:
    with pytest.raises(BadConfig, match=f"Corefile line 3: .*{why}"):
        corefile.apply(f". {{\n cache {{\n  servfail {value}\n }}\n}}\n", builders.CONFIG)


def test_clients_get_the_kept_failure_until_the_settings_change(tmp_path: Path) -> None:
    async def work(config: DnsConfig, server: Server) -> None:
        async with upstream(failing(SERVFAIL)) as bad, upstream(good) as better:
            for each, wanted in ((bad, SERVFAIL), (better, NOERROR)):
                fresh, _ = corefile.apply(f". {{\n forward . 127.0.0.1:{each.port}\n}}\n", config)
                await server.reload(fresh)
                for tcp in (False, True, False):
                    assert (await ask(fresh, "a.test.", tcp=tcp)).rcode() == wanted
            assert sum(query.question[0].name.to_text() == "a.test." for query in bad.asked) == 1

    run_server(tmp_path, work)

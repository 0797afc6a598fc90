"""Upstreams that do not know EDNS, or know it badly (RFC 6891 sections 6.1.3 and 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import dns.flags
import dns.message
import pytest

from podwire_base.patience import patient
from podwire_dns import forward
from podwire_dns.cache import Cache, Upstreamed
from podwire_dns.forward import Route
from podwire_dns.tests.fake_upstream import Reply, Upstream, answer, question, upstream
from podwire_dns.upstream import Forwarder
from podwire_dns.wire import EMPTY, FORMERR, NOTIMP, NXDOMAIN, SERVFAIL, Malformed

GOOD = "60 A 198.51.100.7"
OPT = b"\0\0\x29\x04\xd0\0\0\0\0\0\0"


def with_opt(query: dns.message.Message, how: str) -> dns.message.Message | bytes:
    """What different servers say to a query with OPT."""
    plain = answer(query, rcode=NOTIMP if how.startswith("NOTIMP") else FORMERR, edns=False).to_wire()
    if how.endswith("and the OPT of the query"):
        return plain[:10] + b"\0\1" + plain[12:] + OPT
    if how.endswith("header only"):
        return plain[:4] + bytes(8)
    if how.endswith("the counts of the query"):
        return plain[:4] + b"\0\1\0\0\0\0\0\1"
    if how.endswith("the question, but not the OPT"):
        return plain[:10] + b"\0\1" + plain[12:]
    if how.startswith("BADVERS"):
        made, bad = answer(query, edns=False).to_wire(), OPT[:5] + b"\1" + OPT[6:]
        if how.endswith("without the question"):
            return made[:4] + bytes(7) + b"\1" + bad
        return made[:10] + b"\0\1" + made[12:] + bad
    return plain


HOW = (
    "FORMERR",
    "FORMERR and the OPT of the query",
    "FORMERR, header only",
    "FORMERR, header with the counts of the query",
    "FORMERR with the question, but not the OPT",
    "NOTIMP",
    "NOTIMP, header only",
    "BADVERS",
    "BADVERS without the question",
)


def run(
    reply: Reply,
    work: Callable[[Forwarder, Upstream], Awaitable[None]],
    *others: Reply,
    batches: bool = True,
    tcp: bool = False,
) -> None:
    async def body() -> None:
        async with asyncio.timeout(patient(30)), upstream(reply) as first:
            if others:
                async with upstream(others[0]) as second:
                    await ask(first, (first.address, second.address))
            else:
                await ask(first, (first.address,))

    async def ask(first: Upstream, addresses: tuple[str, ...]) -> None:
        forwarder = Forwarder({b"\0": Route(addresses, force_tcp=tcp)}, Cache(), batches=batches)
        await work(forwarder, first)
        forwarder.close()

    asyncio.run(body())


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("over", ["udp", "tcp", "plain sockets"])
def test_an_upstream_that_refuses_opt_is_asked_without(how: str, over: str) -> None:
    async def work(forwarder: Forwarder, first: Upstream) -> None:
        for name in ("a.test.", "b.test."):
            found = await forwarder.resolve(question(name))
            assert found is not None
            assert (found.rcode, found.value[-4:]) == (0, bytes((198, 51, 100, 7)))
        assert first.opts == [True, False, False], "it is remembered"
        assert not forwarder.failures
        forwarder.routes[b"\0"]._health[first.address].plain_until = 0.0
        await forwarder.resolve(question("c.test."))
        assert first.opts[3:] == [True, False]

    def reply(query: dns.message.Message) -> dns.message.Message | bytes:
        return with_opt(query, how) if query.edns >= 0 else answer(query, GOOD)

    run(reply, work, batches=over != "plain sockets", tcp=over == "tcp")


@pytest.mark.parametrize("rcode", [0, NXDOMAIN])
def test_an_answer_without_opt_is_believed_and_remembered(rcode: int) -> None:
    async def work(forwarder: Forwarder, first: Upstream) -> None:
        for name in ("a.test.", "b.test."):
            found = await forwarder.resolve(question(name))
            assert found is not None
            assert found.rcode == rcode
        assert first.opts == [True, False]

    run(lambda query: answer(query, GOOD, rcode=rcode, edns=False), work)


def test_errors_without_opt_say_nothing_about_edns() -> None:
    async def work(forwarder: Forwarder, first: Upstream) -> None:
        for name in ("a.test.", "b.test."):
            found = await forwarder.resolve(question(name))
            assert found is not None
            assert found.rcode == SERVFAIL
        assert all(first.opts)

    run(lambda query: answer(query, rcode=SERVFAIL, edns=False), work)


def test_a_question_that_is_refused_either_way_is_not_about_edns() -> None:
    async def work(forwarder: Forwarder, first: Upstream) -> None:
        found = await forwarder.resolve(question("bad.test."))
        assert found is not None
        assert found.rcode == FORMERR
        before = len(first.asked)
        assert await forwarder.resolve(question("a.test.")) is not None
        assert first.opts[:2] == [True, False]
        assert first.opts[before:] == [True]

    def reply(query: dns.message.Message) -> dns.message.Message:
        bad = query.question[0].name.to_text() == "bad.test."
        return answer(query, *(() if bad else (GOOD,)), rcode=FORMERR if bad else 0)

    run(reply, work)


def test_silence_means_the_next_upstream() -> None:
    async def work(forwarder: Forwarder, first: Upstream) -> None:
        for name in ("a.test.", "b.test."):
            found = await forwarder.resolve(question(name))
            assert found is not None
            assert found.value[-4:] == bytes((198, 51, 100, 7))
        assert first.asked
        assert all(first.opts)

    run(lambda query: None, work, lambda query: answer(query, GOOD))


def test_clients_never_see_badvers() -> None:
    async def work(forwarder: Forwarder, _: Upstream) -> None:
        assert await forwarder.resolve(question("a.test.")) == Upstreamed(SERVFAIL, EMPTY)

    run(lambda query: with_opt(query, "BADVERS"), work)


def test_large_answers_of_an_upstream_without_edns_come_over_tcp() -> None:
    many = [f"60 A 198.51.100.{i}" for i in range(1, 101)]

    async def work(forwarder: Forwarder, first: Upstream) -> None:
        found = await forwarder.resolve(question("a.test."))
        assert found is not None
        assert found.value[:2] == (100).to_bytes(2)
        assert list(zip(first.over, first.opts, strict=True)) == [("udp", True), ("udp", False), ("tcp", False)]

    seen = list[bool]()

    def reply(query: dns.message.Message) -> dns.message.Message | bytes:
        if query.edns >= 0:
            return with_opt(query, "FORMERR")
        seen.append(True)
        made = answer(query, *(many if len(seen) > 1 else ()))
        made.flags |= dns.flags.TC if len(seen) == 1 else dns.flags.Flag(0)
        return made

    run(reply, work)


def test_15_minutes() -> None:
    made = forward.Upstreams(Route(("192.0.2.1#53",)))
    made.lacks_edns("192.0.2.1#53", 100.0)
    assert [made.knows_edns("192.0.2.1#53", 100.0 + after) for after in (0, 899, 900)] == [False, False, True]


def test_other_extended_errors_are_servfail_and_garbage_stays_garbage() -> None:
    key = question("a.test.")[0]
    head = b"\0\7\x81\x80\0\1\0\0\0\0\0\1"
    bad_cookie = head[:3] + b"\x87" + head[4:] + key + b"\0\0\x29\x04\xd0\x01\0\0\0\0\0"
    found = forward.read_answer(key, 7, bad_cookie)
    assert found == Upstreamed(SERVFAIL, EMPTY)
    for data in (head + key, head[:4] + bytes(8), head[:4] + bytes(7) + b"\1" + OPT):
        with pytest.raises(Malformed):
            forward.read_answer(key, 7, data)

"""Mutated packets never cause an exception, an answer to an answer, or an answer larger than allowed."""

from __future__ import annotations

import random

import dns.message
import dns.rrset
import pytest

from podwire_dns import forward, wire
from podwire_dns.answer import Answerer, Pending
from podwire_dns.cache import Upstreamed
from podwire_dns.testing import builders, cases
from podwire_dns.testing.fuzz import mutate, seeds

SOME, ALL = 5_000, 200_000


def allowed(data: bytes) -> int:
    """The largest UDP answer that this message may get, computed without the code under test."""
    try:
        message = dns.message.from_wire(data)
    except Exception:  # dnspython raises a dozen types; unreadable messages get a bare header
        return wire.UDP_SIZE
    return wire.UDP_MINIMUM if message.edns < 0 else max(512, min(message.payload, wire.UDP_SIZE))


def check(answerer: Answerer, data: bytes) -> None:
    for udp in (True, False):
        got = answerer.handle(data, udp=udp)
        if isinstance(got, Pending):
            got = answerer.finish(got, Upstreamed(0, b"\0\1\0\0\0\0\xc0\x0c\0\1\0\1\0\0\0\5\0\4\1\2\3\4"))
        if len(data) < 12 or data[2] & 0x80:
            assert got is None
            continue
        assert isinstance(got, bytes)
        assert got[:2] == data[:2]
        assert got[2] & 0x80
        assert len(got) <= (allowed(data) if udp else wire.TCP_SIZE)
        dns.message.from_wire(got, question_only=got[3] & 0xF == wire.FORMERR)


def run(count: int, seed: int) -> None:
    rand, start = random.Random(seed), seeds()
    zone = builders.conformance_zone()
    answerer = builders.answerer(zone, recursion=True)
    for _ in range(count):
        data = mutate(rand.choice(start), rand)
        try:
            check(answerer, data)
        except BaseException:
            print(f"packet: {data.hex()}")
            raise


def test_mutated_queries() -> None:
    run(SOME, seed=1)


@pytest.mark.long
def test_mutated_queries_whole() -> None:
    run(ALL, seed=2)


def test_mutated_upstream_answers() -> None:
    """An upstream may send anything: either it is refused as Malformed, or it becomes an answer that a client can
    read.
    """
    rand = random.Random(3)
    query = dns.message.make_query("www.example.com.", "A")
    response = dns.message.make_response(query)
    response.use_edns(0)
    response.answer.append(dns.rrset.from_text("www.example.com.", 60, "IN", "CNAME", "a.example.com."))
    response.answer.append(dns.rrset.from_text("a.example.com.", 60, "IN", "A", "198.51.100.1", "198.51.100.2"))
    answerer = builders.answerer(builders.conformance_zone(), recursion=True)
    direct = answerer.handle(query.to_wire(), udp=True)
    chased = answerer.handle(dns.message.make_query(f"ext.{cases.SVC}", "A").to_wire(), udp=True)
    assert isinstance(direct, Pending)
    assert isinstance(chased, Pending)
    taken = 0
    for _ in range(SOME // 2):
        try:
            answer = forward.read_answer(direct.ask, query.id, mutate(response.to_wire(), rand))
        except wire.Malformed:
            continue
        if answer is None:
            continue
        taken += 1
        answerer.cache.put(direct.cache_key, answer, 0)
        for pending in (direct, chased):
            out = answerer.finish(pending, answer)
            assert len(out) <= wire.UDP_MINIMUM
            assert out[2] & 0x80
    assert taken, "no mutation was readable: the test proves nothing"

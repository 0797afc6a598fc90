"""Which upstream gets a query, which answers are believed and how long they are kept, and aliases to names outside."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from podwire_dns import forward, wire
from podwire_dns.answer import Answerer, Pending
from podwire_dns.cache import NEGATIVE_CAP, Cache, CacheKey, Upstreamed
from podwire_dns.testing import builders, judge
from podwire_dns.testing.cases import SVC

NAME = "www.example.com."
KEY = dns.message.make_query(NAME, "A").to_wire()[12:]
IDENT = 4242


def upstream_says(
    *records: str, rcode: int = 0, flags: int = 0, question: str = NAME, edns: bool = True, soa: str = ""
) -> bytes:
    """An upstream's message for KEY; records as "name ttl type data"."""
    query = dns.message.make_query(question, "A", id=IDENT)
    response = dns.message.make_response(query, recursion_available=True)
    if edns:
        response.use_edns(0, payload=1232)
    response.flags |= dns.flags.Flag(flags)
    response.set_rcode(dns.rcode.Rcode(rcode))
    for record in records:
        name, ttl, rtype, data = record.split(" ", 3)
        response.answer.append(dns.rrset.from_text(name, int(ttl), "IN", rtype, data))
    if soa:
        response.authority.append(dns.rrset.from_text("example.com.", 300, "IN", "SOA", f"ns. me. 1 2 3 4 {soa}"))
    return response.to_wire(max_size=65535)


def taken(*records: str, rcode: int = 0, soa: str = "") -> Upstreamed:
    answer = forward.read_answer(KEY, IDENT, upstream_says(*records, rcode=rcode, soa=soa))
    assert answer is not None
    return answer


@pytest.fixture
def clock() -> list[float]:
    return [100.0]


@pytest.fixture
def answerer(clock: list[float]) -> Answerer:
    return builders.answerer(builders.conformance_zone(), recursion=True, clock=lambda: clock[0])


def pending(answerer: Answerer, query: dns.message.Message) -> Pending:
    found = answerer.handle(query.to_wire(), udp=True)
    assert isinstance(found, Pending)
    return found


def test_the_question_that_goes_upstream() -> None:
    sent = dns.message.from_wire(forward.build_ask(KEY, 7, dnssec_ok=True, checking_disabled=True))
    assert sent.id == 7
    assert sent.question[0].to_text() == f"{NAME} IN A"
    assert sent.flags == dns.flags.RD | dns.flags.CD
    assert (sent.edns, sent.payload, sent.ednsflags & dns.flags.DO) == (0, 1232, dns.flags.DO)


@pytest.mark.parametrize("edns", [-1, 0])
@pytest.mark.parametrize("payload", [400, 1232, 4096])
def test_a_plain_miss_needs_no_parsing_and_is_the_same(answerer: Answerer, edns: int, payload: int) -> None:
    query = dns.message.make_query("WwW.example.COM.", "A", use_edns=edns, payload=payload)
    data = query.to_wire()
    assert answerer.missed(data, KEY) == answerer.handle(data, udp=True) == pending(answerer, query)
    inside = dns.message.make_query("1.0.96.10.in-addr.arpa.", "PTR").to_wire()
    assert answerer.missed(inside, wire.lower(inside[12:])) is None, "a reverse zone is ours"
    refused = dns.message.make_query(NAME, "ANY").to_wire()
    assert answerer.missed(refused, wire.lower(refused[12:])) is None
    answerer.cache.put((KEY, False, False), taken("www.example.com. 60 A 198.51.100.1"), 100.0)
    assert answerer.missed(data, KEY) is None, "the cache has it"


def test_an_answer_comes_back_as_it_was(answerer: Answerer) -> None:
    query = dns.message.make_query("WwW.example.COM.", "A")
    wait = pending(answerer, query)
    assert wait.ask == KEY
    answer = taken("www.example.com. 60 CNAME a.example.com.", "a.example.com. 30 A 198.51.100.1")
    data = answerer.finish(wait, answer)
    rcode, (records, authority, additional) = judge.read(data)
    assert (rcode, authority, additional) == ("NOERROR", set(), set())
    assert records == {"www.example.com. 60 cname a.example.com.", "a.example.com. 30 a 198.51.100.1"}
    message = dns.message.from_wire(data)
    assert message.id == query.id
    assert message.flags & ~0xF == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert b"WwW" in data
    assert message.edns == -1, "the upstream's OPT is not the client's"


@pytest.mark.parametrize(
    "data",
    [
        upstream_says("www.example.com. 60 A 203.0.113.66", question="evil.example.com."),
        b"\0\1" + upstream_says()[2:],
        upstream_says()[:2] + b"\1" + upstream_says()[3:],
        upstream_says()[:20],
        b"",
        upstream_says("www.example.com. 60 A 203.0.113.66")[:-20],
    ],
    ids=["another question", "another id", "a query", "truncated in the question", "empty", "truncated in a record"],
)
def test_what_is_no_answer_to_our_question_is_not_believed(data: bytes) -> None:
    with pytest.raises(wire.Malformed):
        forward.read_answer(KEY, IDENT, data)


def test_a_cut_answer_must_be_asked_over_tcp() -> None:
    assert forward.read_answer(KEY, IDENT, upstream_says(flags=dns.flags.TC)) is None


@pytest.mark.parametrize("name", [NAME, f"ext.{SVC}"])
def test_no_upstream_answered_is_servfail(answerer: Answerer, name: str) -> None:
    data = answerer.finish(pending(answerer, dns.message.make_query(name, "A")), None)
    assert judge.read(data) == ("SERVFAIL", [set(), set(), set()])


def test_ad_is_passed_on_only_to_those_who_ask_for_it(answerer: Answerer) -> None:
    answer = forward.read_answer(KEY, IDENT, upstream_says("www.example.com. 60 A 198.51.100.1", flags=dns.flags.AD))
    for asked, expected in ((0, 0), (dns.flags.AD, dns.flags.AD)):
        query = dns.message.make_query(NAME, "A")
        query.flags |= dns.flags.Flag(asked)
        data = answerer.finish(pending(answerer, query), answer)
        assert dns.message.from_wire(data).flags & dns.flags.AD == expected


def test_an_alias_to_the_outside_is_chased(answerer: Answerer) -> None:
    wait = pending(answerer, dns.message.make_query(f"ext.{SVC}", "A"))
    assert wait.ask == KEY
    answer = taken("www.example.com. 60 CNAME a.example.com.", "a.example.com. 30 A 198.51.100.1")
    rcode, (records, _, _) = judge.read(answerer.finish(wait, answer))
    assert rcode == "NOERROR"
    assert records == {
        f"ext.{SVC} 5 cname www.example.com.",
        "www.example.com. 60 cname a.example.com.",
        "a.example.com. 30 a 198.51.100.1",
    }


@pytest.mark.parametrize("rcode", [0, dns.rcode.NXDOMAIN])
def test_an_alias_whose_target_is_nothing_stands_alone(answerer: Answerer, rcode: int) -> None:
    wait = pending(answerer, dns.message.make_query(f"ext.{SVC}", "A"))
    data = answerer.finish(wait, taken(rcode=rcode, soa="30"))
    assert judge.read(data) == ("NOERROR", [{f"ext.{SVC} 5 cname www.example.com."}, set(), set()])


def test_without_upstreams_an_alias_stands_alone() -> None:
    alone = builders.answerer(builders.conformance_zone())
    data = alone.handle(dns.message.make_query(f"ext.{SVC}", "A").to_wire(), udp=True)
    assert isinstance(data, bytes)
    assert judge.read(data) == ("NOERROR", [{f"ext.{SVC} 5 cname www.example.com."}, set(), set()])


def test_a_cached_answer_counts_its_ttl_down(answerer: Answerer, clock: list[float]) -> None:
    query = dns.message.make_query(NAME, "A")
    wait = pending(answerer, query)
    answerer.cache.put(wait.cache_key, taken("www.example.com. 60 A 198.51.100.1"), clock[0])
    for passed, ttl in ((0.0, 60), (0.9, 60), (10.2, 50), (59.5, 1)):
        clock[0] = 100.0 + passed
        data = answerer.handle(query.to_wire(), udp=True)
        assert isinstance(data, bytes)
        assert judge.read(data)[1][0] == {f"www.example.com. {ttl} a 198.51.100.1"}
    clock[0] = 160.0
    assert isinstance(answerer.handle(query.to_wire(), udp=True), Pending)


def read(value: Upstreamed) -> list[set[str]]:
    """The sections of an answer to KEY."""
    return judge.read(wire.HEADER.pack(1, wire.QR, 1, *wire.COUNTS.unpack_from(value.value)) + KEY + value.value[6:])[1]


def test_the_caps_bound_what_a_client_sees() -> None:
    cache, key = Cache(), (KEY, False, False)
    long = taken("www.example.com. 300 CNAME a.example.com.", "a.example.com. 20 A 198.51.100.1")
    capped = cache.put(key, long, 0.0, 30.0, 7.0)
    wanted = [{"www.example.com. 30 cname a.example.com.", "a.example.com. 20 a 198.51.100.1"}, set(), set()]
    assert read(capped) == wanted
    assert cache.get(key, 0.0) == capped
    later = cache.get(key, 15.0)
    assert later is not None
    assert read(later)[0] == {"www.example.com. 15 cname a.example.com.", "a.example.com. 5 a 198.51.100.1"}
    for rcode in (dns.rcode.NXDOMAIN, dns.rcode.NOERROR):
        (soa,) = read(cache.put(key, taken(rcode=rcode, soa="600"), 0.0, 30.0, 7.0))[1]
        assert soa.split()[1] == "7", "denial has a bound of its own"
    assert cache.put(key, long, 0.0, 0.0, 0.0) == long, "without `cache` nothing is bounded"
    failed = taken("www.example.com. 300 A 198.51.100.1", rcode=dns.rcode.SERVFAIL)
    assert cache.put(key, failed, 0.0, 30.0, 7.0) == failed


def test_what_the_cache_keeps_and_how_long() -> None:
    cache = Cache(capacity=3)

    def kept(answer: Upstreamed, seconds: float) -> bool:
        cache.put((b"k", False, False), answer, 0.0)
        return cache.get((b"k", False, False), seconds) is not None

    negative = taken(rcode=dns.rcode.NXDOMAIN, soa="20")
    assert kept(negative, 19.9)
    assert not kept(negative, 20)
    assert not kept(taken(rcode=dns.rcode.NXDOMAIN, soa="9999"), NEGATIVE_CAP)
    assert not kept(taken(rcode=dns.rcode.NXDOMAIN), 0), "a negative answer without SOA"
    assert not kept(taken(rcode=dns.rcode.SERVFAIL, soa="30"), 0)
    assert not kept(taken("www.example.com. 0 A 198.51.100.1"), 0)
    assert not kept(taken(*(f"www.example.com. 60 A 198.51.{i >> 8}.{i & 255}" for i in range(600))), 0), "too large"
    positive = taken("www.example.com. 60 A 198.51.100.1")
    for index in range(10):
        cache.put((bytes((index,)), False, False), positive, 0.0)
    assert len(cache.entries) == 3
    assert cache.get((b"\x09", False, False), 1.0)
    assert not cache.get((b"\x09", True, False), 1.0), "an answer with DO set is another answer"


A, B = "192.0.2.1#53", "192.0.2.2#53"


def order(upstreams: forward.Upstreams, now: float) -> list[str]:
    return [address for address, _ in upstreams.attempts(now)]


def test_a_reader_that_takes_an_answer_out_while_room_is_made() -> None:
    class Racing(OrderedDict[CacheKey, Any]):
        def popitem(self, last: bool = True) -> tuple[CacheKey, Any]:
            self.clear()
            raise KeyError("dictionary is empty")

    cache = Cache(capacity=1)
    answer = Upstreamed(0, wire.COUNTS.pack(1, 0, 0) + b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04abcd")
    for name in (b"\x01a\0\0\x01\0\x01", b"\x01b\0\0\x01\0\x01"):
        cache.put((name, False, False), answer, 0.0)
        cache.entries = Racing(cache.entries)
    assert list(cache.entries) == [(b"\x01b\0\0\x01\0\x01", False, False)]


def test_upstreams_in_order_each_twice() -> None:
    assert order(forward.Upstreams(forward.Route((A, B))), 0.0) == [A, B, A, B]


def test_a_silent_upstream_goes_last_is_probed_and_comes_back() -> None:
    upstreams = forward.Upstreams(forward.Route((A, B)))
    upstreams.silent(A)
    assert order(upstreams, 0.0) == [A, B, A, B]
    upstreams.silent(A)
    assert upstreams.is_down(A)
    plan = upstreams.attempts(0.0)
    assert plan[0] == (A, 0.0), "a probe beside the query, and no wait for it"
    assert [address for address, _ in plan[1:]] == [B, A, B, A]
    assert order(upstreams, 0.5) == [B, A, B, A], "a probe now and then, not with each query"
    assert order(upstreams, 1.5)[0] == A
    upstreams.answered(A, 0.001)
    assert order(upstreams, 1.6) == [A, B, A, B]


def test_all_down_are_still_asked() -> None:
    upstreams = forward.Upstreams(forward.Route((A, B)))
    for address in (A, A, B, B):
        upstreams.silent(address)
    assert order(upstreams, 0.0) == [A, B, A, B]


def test_patience_follows_the_usual_answer_time() -> None:
    upstreams = forward.Upstreams(forward.Route((A,)))
    assert upstreams.patience(A) == forward.PATIENCE_FIRST
    upstreams.answered(A, 0.001)
    assert upstreams.patience(A) == forward.PATIENCE_LEAST
    for _ in range(30):
        upstreams.answered(A, 0.2)
    assert upstreams.patience(A) == pytest.approx(0.8, rel=0.01)
    for _ in range(30):
        upstreams.answered(A, 3.0)
    assert upstreams.patience(A) == forward.PATIENCE_MOST

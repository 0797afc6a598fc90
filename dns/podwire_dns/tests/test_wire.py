"""The message: flags, EDNS, sizes, errors, and queries that get no response."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from podwire_dns import wire
from podwire_dns.answer import Answerer
from podwire_dns.testing import builders, cases, judge
from podwire_dns.testing.cases import SVC, ZONE

MANY = [f"10.244.{i // 200}.{i % 200 + 1}" for i in range(400)]


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    zone = builders.fed(
        builders.builder(
            [*cases.SERVICES, *(cases.service(name, ip="None") for name in ("many", "few", "seven"))],
            [
                *cases.SLICES,
                cases.endpoint_slice("many", [cases.endpoint(a) for a in MANY]),
                cases.endpoint_slice("few", [cases.endpoint(a) for a in MANY[:20]]),
                cases.endpoint_slice("seven", [cases.endpoint(a) for a in MANY[:7]]),
            ],
            cases.NAMESPACES,
        )
    )
    return builders.answerer(zone)


def ask(answerer: Answerer, query: dns.message.Message, *, udp: bool = True) -> dns.message.Message:
    data = answerer.handle(query.to_wire(), udp=udp)
    assert isinstance(data, bytes)
    judge.read(data)
    return dns.message.from_wire(data)


def header(data: bytes) -> tuple[int, ...]:
    found: tuple[int, ...] = wire.HEADER.unpack_from(data)
    return found


@pytest.mark.parametrize("name", [f"svc1.{SVC}", f"missing.{SVC}"])
def test_case_of_the_question_comes_back(answerer: Answerer, name: str) -> None:
    odd = "".join(c.upper() if i % 2 else c for i, c in enumerate(name))
    data = answerer.handle(dns.message.make_query(odd, "A").to_wire(), udp=True)
    assert isinstance(data, bytes)
    assert odd.split(".")[0].encode() in data


@pytest.mark.parametrize("name", [f"svc1.{SVC}", f"missing.{SVC}"])
@pytest.mark.parametrize("recursion", [True, False])
def test_flags(answerer: Answerer, name: str, recursion: bool) -> None:
    mine = builders.answerer(answerer.data, recursion=recursion)
    for asked in (0, dns.flags.RD, dns.flags.CD, dns.flags.RD | dns.flags.CD | dns.flags.AD):
        query = dns.message.make_query(name, "A")
        query.flags = dns.flags.Flag(asked)
        answer = ask(mine, query)
        expected = (
            dns.flags.QR | dns.flags.AA | asked & (dns.flags.RD | dns.flags.CD) | (dns.flags.RA if recursion else 0)
        )
        assert answer.flags & ~0xF == expected
        assert answer.id == query.id


@pytest.mark.parametrize("name", [f"svc1.{SVC}", f"missing.{SVC}"])
@pytest.mark.parametrize("dnssec_ok", [True, False])
def test_edns_is_answered_in_kind(answerer: Answerer, name: str, dnssec_ok: bool) -> None:
    plain = ask(answerer, dns.message.make_query(name, "A"))
    assert plain.edns == -1
    query = dns.message.make_query(name, "A", want_dnssec=dnssec_ok)
    query.use_edns(0, ednsflags=dns.flags.DO if dnssec_ok else 0, payload=4096)
    answer = ask(answerer, query)
    assert (answer.edns, answer.payload, bool(answer.ednsflags & dns.flags.DO)) == (0, wire.UDP_SIZE, dnssec_ok)


def test_a_client_cookie_is_echoed(answerer: Answerer) -> None:
    cookie = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"01234567")
    answer = ask(answerer, dns.message.make_query(f"svc1.{SVC}", "A", use_edns=0, options=[cookie]))
    assert [o.to_wire() for o in answer.options] == [b"01234567"]
    assert answer.answer


def test_edns_version_1_is_badvers(answerer: Answerer) -> None:
    answer = ask(answerer, dns.message.make_query(f"svc1.{SVC}", "A", use_edns=1))
    assert answer.rcode() == dns.rcode.BADVERS
    assert answer.edns == 0
    assert not answer.answer


@pytest.mark.parametrize(("size", "limit"), [(0, 512), (100, 512), (512, 512), (800, 800), (1232, 1232), (4096, 1232)])
def test_udp_answers_fit_and_say_that_they_were_cut(answerer: Answerer, size: int, limit: int) -> None:
    query = dns.message.make_query(f"many.{SVC}", "A")
    if size:
        query.use_edns(0, payload=size)
    data = answerer.handle(query.to_wire(), udp=True)
    assert isinstance(data, bytes)
    assert len(data) <= limit
    answer = dns.message.from_wire(data)
    assert answer.flags & dns.flags.TC
    got = [r.address for r in answer.answer[0]]
    assert set(got) <= set(MANY)
    assert len(data) + 16 > limit, "another record would have fitted"


def test_tcp_answers_are_whole(answerer: Answerer) -> None:
    answer = ask(answerer, dns.message.make_query(f"many.{SVC}", "A"), udp=False)
    assert not answer.flags & dns.flags.TC
    assert {r.address for r in answer.answer[0]} == set(MANY)


def test_what_is_larger_than_tcp_allows_is_cut_too() -> None:
    addresses = [f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(5000)]
    slices = [cases.endpoint_slice("huge", [cases.endpoint(a) for a in addresses])]
    mine = builders.answerer(builders.fed(builders.builder([cases.service("huge", ip="None")], slices)))
    data = mine.handle(dns.message.make_query(f"huge.{SVC}", "A").to_wire(), udp=False)
    assert isinstance(data, bytes)
    assert 65535 - 16 < len(data) <= 65535
    assert dns.message.from_wire(data).flags & dns.flags.TC


def test_additional_records_go_first_and_without_tc(answerer: Answerer) -> None:
    query = dns.message.make_query(f"_http._tcp.seven.{SVC}", "SRV")
    whole = ask(answerer, query, udp=False)
    data = answerer.handle(query.to_wire(), udp=True)
    assert isinstance(data, bytes)
    assert len(data) <= 512
    cut = dns.message.from_wire(data)
    assert sum(map(len, cut.answer)) == sum(map(len, whole.answer))
    assert sum(map(len, cut.additional)) < sum(map(len, whole.additional))
    assert not cut.flags & dns.flags.TC


def test_addresses_begin_anywhere_with_equal_chance(answerer: Answerer) -> None:
    turns = iter(range(20))
    mine = builders.answerer(answerer.data, rand=lambda n: next(turns) % n)
    query = dns.message.make_query(f"few.{SVC}", "A", use_edns=0, payload=1232)
    answers = [[r.address for r in ask(mine, query).answer[0]] for _ in range(20)]
    assert {a[0] for a in answers} == set(MANY[:20])
    assert all(sorted(a) == sorted(MANY[:20]) for a in answers)


@pytest.mark.parametrize(
    ("rtype", "rclass", "rcode"),
    [
        ("ANY", "IN", "REFUSED"),
        ("AXFR", "IN", "REFUSED"),
        ("IXFR", "IN", "REFUSED"),
        ("A", "ANY", "REFUSED"),
        ("A", "CH", "REFUSED"),
        ("TYPE65", "IN", "NOERROR"),
        ("TYPE65280", "IN", "NOERROR"),
    ],
)
def test_types_and_classes_that_are_not_served(answerer: Answerer, rtype: str, rclass: str, rcode: str) -> None:
    answer = ask(answerer, dns.message.make_query(f"svc1.{SVC}", rtype, rclass))
    assert dns.rcode.to_text(answer.rcode()) == rcode
    assert not answer.answer


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_opcodes_are_not_implemented(answerer: Answerer, opcode: int) -> None:
    raw = bytearray(dns.message.make_query(f"svc1.{SVC}", "A").to_wire())
    raw[2] |= opcode << 3
    data = answerer.handle(bytes(raw), udp=True)
    assert isinstance(data, bytes)
    assert header(data)[1] == 0x8000 | opcode << 11 | 0x0100 | wire.NOTIMP


GOOD = dns.message.make_query(f"svc1.{SVC}", "A").to_wire()


def _with(at: int, value: bytes) -> bytes:
    return GOOD[:at] + value + GOOD[at + len(value) :]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_with(4, b"\0\0"), id="no question"),
        pytest.param(_with(4, b"\0\2"), id="two questions"),
        pytest.param(_with(6, b"\0\1"), id="an answer in a query"),
        pytest.param(_with(10, b"\0\1"), id="promised OPT missing"),
        pytest.param(GOOD[:-1], id="question cut off"),
        pytest.param(GOOD[:12], id="header alone"),
        pytest.param(_with(12, b"\xc0\x0c"), id="pointer to itself"),
        pytest.param(_with(12, b"\x40"), id="label type 01"),
        pytest.param(GOOD + b"\0", id="a byte too many"),
        pytest.param(GOOD[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", id="name over 255 bytes"),
        pytest.param(_with(10, b"\0\2") + b"\0\0\x29\4\xd0\0\0\0\0\0\0" * 2, id="two OPT"),
        pytest.param(_with(10, b"\0\1") + b"\1x\0\0\x29\4\xd0\0\0\0\0\0\0", id="OPT with a name"),
        pytest.param(_with(10, b"\0\1") + b"\0\0\x29\4\xd0\0\0\0\0\0\4\0\x0a\0\x09", id="EDNS option too long"),
        pytest.param(_with(10, b"\0\1") + b"\0\0\x29\4\xd0\0\0\0\0\0\3\0\x0a\0", id="truncated EDNS option"),
    ],
)
def test_malformed_queries_get_formerr(answerer: Answerer, data: bytes) -> None:
    for udp in (True, False):
        response = answerer.handle(data, udp=udp)
        assert isinstance(response, bytes)
        assert response[:2] == data[:2]
        assert header(response)[1] & 0x800F == 0x8000 | wire.FORMERR
        assert len(response) == 12


@pytest.mark.parametrize(
    "data",
    [b"", b"x", GOOD[:11], _with(2, b"\x81"), _with(2, b"\x84\x80")],
    ids=["empty", "one byte", "eleven bytes", "an answer", "an authoritative answer"],
)
def test_what_is_no_query_gets_no_answer(answerer: Answerer, data: bytes) -> None:
    assert answerer.handle(data, udp=True) is None


def test_before_the_first_whole_zone_our_names_are_servfail() -> None:
    from podwire_dns.zone import ZoneData

    mine = builders.answerer(ZoneData(builders.CONFIG.zones()))
    for name in (f"svc1.{SVC}", ZONE, f"nobody.{ZONE}", "1.0.96.10.in-addr.arpa."):
        assert ask(mine, dns.message.make_query(name, "A")).rcode() == dns.rcode.SERVFAIL
    assert ask(mine, dns.message.make_query("example.com.", "A")).rcode() == dns.rcode.REFUSED


def test_names_of_others_are_refused_without_upstreams(answerer: Answerer) -> None:
    for name in ("example.com.", ".", "local.", "9.9.9.9.in-addr.arpa.", "notcluster.local."):
        answer = ask(answerer, dns.message.make_query(name, "A"))
        assert answer.rcode() == dns.rcode.REFUSED
        assert not answer.flags & (dns.flags.AA | dns.flags.RA)

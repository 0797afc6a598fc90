"""Search paths completed in one answer (autopath), stub domains, upstream policies, stale answers and prefetching."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import dns.message
import pytest

from podwire_dns import forward, wire
from podwire_dns.answer import Answerer, Pending
from podwire_dns.cache import POPULAR, Cache, Upstreamed
from podwire_dns.config import BadConfig
from podwire_dns.names import to_wire
from podwire_dns.testing import builders, judge
from podwire_dns.testing.cases import SVC, ZONE
from podwire_dns.upstream import Forwarder

RECORD = b"\0\1\0\0\0\0\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc6\x33\x64\x07"  # A 198.51.100.7, TTL 60


def completing(*, recursion: bool = True) -> Answerer:
    made = builders.answerer(builders.conformance_zone(), recursion=recursion)
    made.autopath = True
    return made


def handled(answerer: Answerer, name: str, rtype: str = "A") -> bytes | Pending | None:
    return answerer.handle(dns.message.make_query(name, rtype).to_wire(), udp=True)


def test_the_first_name_of_a_search_path_is_answered_with_an_alias() -> None:
    answerer = completing()
    pending = handled(answerer, f"www.example.com.{SVC}")
    assert isinstance(pending, Pending)
    assert pending.ask == to_wire("www.example.com.") + b"\0\1\0\1"
    rcode, (answer, _, _) = judge.read(answerer.finish(pending, Upstreamed(0, RECORD)))
    assert rcode == "NOERROR"
    assert answer == {f"www.example.com.{SVC} 5 cname www.example.com.", "www.example.com. 60 a 198.51.100.7"}
    rcode, (answer, (soa,), _) = judge.read(answerer.finish(pending, Upstreamed(3, b"\0" * 6)))
    assert (rcode, answer) == ("NXDOMAIN", set())
    assert soa.startswith(f"{ZONE} 5 soa")
    rcode, (answer, _, _) = judge.read(answerer.finish(pending, Upstreamed(0, b"\0" * 6)))
    assert (rcode, answer) == ("NOERROR", {f"www.example.com.{SVC} 5 cname www.example.com."})
    assert judge.read(answerer.finish(pending, None))[0] == "SERVFAIL"


def test_a_service_of_another_namespace_is_found_on_the_way() -> None:
    answerer = completing()
    data = handled(answerer, f"svc1.testns.empty.svc.{ZONE}")
    assert isinstance(data, bytes)
    assert judge.read(data)[1][0] == {f"svc1.testns.empty.svc.{ZONE} 5 cname svc1.{SVC}", f"svc1.{SVC} 5 a 10.96.0.1"}
    data = handled(answerer, f"svc1.testns.svc.empty.svc.{ZONE}", "AAAA")
    assert isinstance(data, bytes)
    assert judge.read(data)[1][0] == {f"svc1.testns.svc.empty.svc.{ZONE} 5 cname svc1.{SVC}"}


@pytest.mark.parametrize(
    "name",
    [
        f"nobody-here.{SVC}",
        f"missing.hdls.{SVC}",
        f"a.b.nons.svc.{ZONE}",
        f"a.b.{ZONE}",
        f"a.b.svc.{ZONE}",
        f"10-0-0-1.nons.pod.{ZONE}",
    ],
)
def test_what_is_no_search_paths_name_stays_missing(name: str) -> None:
    data = handled(completing(), name)
    assert isinstance(data, bytes)
    assert judge.read(data)[0] == "NXDOMAIN"


def test_without_upstreams_a_search_path_ends_in_nxdomain() -> None:
    data = handled(completing(recursion=False), f"www.example.com.{SVC}")
    assert isinstance(data, bytes)
    assert judge.read(data)[0] == "NXDOMAIN"


def test_stub_domains_go_to_their_own_upstreams() -> None:
    config = dataclasses.replace(
        builders.CONFIG,
        upstreams=("192.0.2.1",),
        stubs=("corp.example=192.0.2.2,192.0.2.3#5353", "lab.corp.example.=192.0.2.4"),
    )
    forwarder = Forwarder(config.routes(), Cache())

    def asked(name: str) -> tuple[str, ...]:
        found = forwarder.route(to_wire(name) + b"\0\1\0\1")
        return found.addresses if found else ()

    assert asked("www.example.com.") == ("192.0.2.1#53",)
    assert asked("a.corp.example.") == asked("corp.example.") == ("192.0.2.2#53", "192.0.2.3#5353")
    assert asked("x.lab.corp.example.") == ("192.0.2.4#53",)
    assert asked("notcorp.example.") == ("192.0.2.1#53",)
    only = Forwarder(dataclasses.replace(config, upstreams=()).routes(), Cache())
    assert only.route(to_wire("www.example.com.") + b"\0\1\0\1") is None
    refused = asyncio.run(only.resolve((to_wire("www.example.com.") + b"\0\1\0\1", False, False)))
    assert refused is not None
    assert refused.rcode == wire.REFUSED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stubs": ("corp.example",)}, "stubs: 'corp.example' must be written"),
        ({"stubs": ("corp.example=nowhere",)}, "upstream: 'nowhere' is not an IP address"),
        ({"stubs": ("corp.example=192.0.2.1#²",)}, "has a bad port"),
        ({"stubs": (f"x.{ZONE}=192.0.2.1",)}, "lies in a zone that is answered here"),
        ({"stubs": ("corp.example=10.96.0.10",)}, "is this DNS itself"),
        ({"policy": "best"}, "policy is 'best'; it must be one of sequential"),
    ],
)
def test_bad_settings_name_the_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadConfig, match=r"stubs|policy|upstream|forward") as caught:
        dataclasses.replace(builders.CONFIG, **change).routes()
    assert said in str(caught.value)


def test_policies() -> None:
    addresses = ("a", "b", "c")

    def firsts(policy: str, count: int = 6) -> list[str]:
        draws = iter([2, 0, 1, 2, 2, 0])
        upstreams = forward.Upstreams(forward.Route(addresses, policy), lambda n: next(draws) % n)
        return [upstreams.attempts(0)[0][0] for _ in range(count)]

    assert firsts("sequential") == ["a"] * 6
    assert firsts("round_robin") == ["a", "b", "c", "a", "b", "c"]
    assert firsts("random") == ["c", "a", "b", "c", "c", "a"]
    upstreams = forward.Upstreams(forward.Route(addresses, "round_robin"))
    for _ in range(forward.DOWN_AFTER):
        upstreams.silent("b")
    upstreams.attempts(0)  # sends the probe
    assert {upstreams.attempts(0.1)[0][0] for _ in range(6)} == {"a", "c"}


def test_expired_answers_are_given_while_no_upstream_answers() -> None:
    key = (to_wire("www.example.com.") + b"\0\1\0\1", False, False)
    cache = Cache(keep_stale=100)
    cache.put(key, Upstreamed(0, RECORD), 0)
    assert cache.get(key, 61) is None
    stale = cache.stale(key, 61)
    assert stale is not None
    assert stale.value == RECORD.replace(b"\0\0\0\x3c", b"\0\0\0\0")
    assert cache.stale(key, 161) is None
    assert cache.get(key, 161) is None
    assert not cache.entries
    plain = Cache()
    plain.put(key, Upstreamed(0, RECORD), 0)
    assert plain.stale(key, 61) is None


def test_popular_answers_are_due_before_they_expire() -> None:
    key = (to_wire("www.example.com.") + b"\0\1\0\1", False, False)
    cache = Cache(prefetch=True)
    cache.put(key, Upstreamed(0, RECORD), 0)
    for _ in range(POPULAR):
        cache.get(key, 50)
    assert not cache.due
    cache.get(key, 55)
    assert cache.due == {key}
    rare = Cache(prefetch=True)
    rare.put(key, Upstreamed(0, RECORD), 0)
    rare.get(key, 55)
    assert not rare.due


def test_what_is_due_is_fetched_once() -> None:
    async def work() -> None:
        key = (to_wire("www.example.com.") + b"\0\1\0\1", False, False)
        cache = Cache(prefetch=True)
        cache.due.add(key)
        forwarder = Forwarder({b"\0": forward.Route(("127.0.0.1#9",))}, cache)
        forwarder.refresh()
        cache.due.add(key)
        forwarder.refresh()
        assert (cache.prefetched, forwarder.asked) == (1, 1)
        forwarder.close()
        assert not cache.due

    asyncio.run(work())

"""Endpoints of Services with ClusterIP: the map that their names are made from, on its own and in the zone."""

from __future__ import annotations

import random
import tracemalloc
from collections import defaultdict

import pytest

from podwire_dns import names, native
from podwire_dns.answertable import AnswerTable
from podwire_dns.names import to_wire
from podwire_dns.pack import PTR_IN
from podwire_dns.places import BULK, Places, endpoint_name, packed, unpacked
from podwire_dns.testing import big, builders
from podwire_dns.testing.cases import HTTP, SVC, ZONE, endpoint, endpoint_slice, service
from podwire_dns.wire import NOERROR, NXDOMAIN


def test_the_map_follows_a_model() -> None:
    rand, places = random.Random(32), Places()
    model: dict[bytes, set[bytes]] = defaultdict(set)
    bases = [to_wire(f"s{number}.a.svc.{ZONE}") for number in range(6)]
    pool = [bytes((10, 244, 0, n)) for n in range(200)] + [b"\xfd" + bytes(14) + bytes((n,)) for n in range(40)]
    for step in range(600):
        base = rand.choice(bases)
        mine = {address for address, found in model.items() if base in found}
        some = set(rand.sample(pool, rand.choice((1, 3, BULK + 10))))
        if rand.random() < 0.5:
            places.add(base, some - mine)
            for address in some:
                model[address].add(base)
        else:
            places.remove(base, some & mine)
            for address in some & mine:
                model[address].discard(base)
        if step % 20 == 0:
            assert {address: places.at(address) for address in pool} == {
                address: sorted(model[address]) for address in pool
            }
            assert set(places.addresses()) == {address for address, found in model.items() if found}


def test_the_names_of_an_address_are_joined_and_split() -> None:
    bases = [to_wire(name) for name in (f"a.b.svc.{ZONE}", "x.", f"c-0.d.svc.{ZONE}")]
    assert unpacked(packed(bases)) == bases
    assert unpacked(b"") == []


@pytest.mark.parametrize("text", ["10.244.0.1", "255.0.0.9", "fd00::1", "::"])
def test_reverse_names_go_back(text: str) -> None:
    address = names.packed(names.canonical(text))
    assert names.unreversed(names.reverse_wire(address)) == address
    assert names.unreversed(b"\1x" + names.reverse_wire(address)) is None
    assert names.unreversed(names.reverse_wire(address)[2:]) is None


@pytest.mark.parametrize(
    "name", ["01.0.244.10.in-addr.arpa.", "x.0.244.10.in-addr.arpa.", "1.0.0.256.in-addr.arpa.", "."]
)
def test_what_is_not_a_reverse_name(name: str) -> None:
    assert names.unreversed(to_wire(name)) is None


@pytest.mark.parametrize("order", ["cluster first", "headless first", "at once"])
def test_an_address_of_both_kinds_has_all_its_names(order: str) -> None:
    """A pod of a StatefulSet: behind its headless Service and one with ClusterIP. Both names stand in one answer."""
    source = builders.builder()
    both = [
        (service("web", ip="10.96.0.50", ports=[HTTP]), endpoint_slice("web", [endpoint("10.244.3.3")])),
        (service("db", ip="None", ports=[HTTP]), endpoint_slice("db", [endpoint("10.244.3.3", hostname="db-0")])),
    ]
    zone = builders.fed(source)
    for made, piece in reversed(both) if order == "headless first" else both:
        source.service(made)
        source.slice(piece)
        if order != "at once":
            zone.apply(source.flush(2))
    zone.apply(source.flush(3))
    key = names.reverse_wire(bytes((10, 244, 3, 3))) + PTR_IN
    answer = builders.answerer(zone)._unrecorded
    names_of_both = [to_wire(f"10-244-3-3.web.{SVC}"), to_wire(f"db-0.db.{SVC}")]
    rendered = zone.answers.get(key)
    assert rendered is not None
    assert all(name in rendered for name in names_of_both)
    source.service(both[1][0], deleted=True)
    zone.apply(source.flush(4))
    assert zone.answers.get(key) is None
    assert answer(key[:-4], 12, to_wire("244.10.in-addr.arpa."))[0] == NOERROR
    assert zone.pointers(key[:-4]) == names_of_both[:1]
    source.slice(both[0][1], deleted=True)
    zone.apply(source.flush(5))
    assert zone.pointers(key[:-4]) == []
    assert answer(key[:-4], 12, to_wire("244.10.in-addr.arpa."))[0] == NXDOMAIN
    assert not source._moved and not list(source.placed())


def test_the_memory_of_many_endpoints() -> None:
    """90,000 endpoints of 9,000 Services take a few MB, and not the 40 MB of rendered answers."""
    addresses = [bytes((10, 244, n >> 8, n & 255)) for n in range(1 << 16)] + [
        bytes((10, 245, n >> 8, n & 255)) for n in range(24_464)
    ]
    bases = [to_wire(f"svc-{n}.{big.namespace_of(n)}.svc.{ZONE}") for n in range(9000)]
    tracemalloc.start()
    places = Places()
    places.load([(base, addresses[10 * n : 10 * n + 10]) for n, base in enumerate(bases)])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 3 << 20
    assert places.at(addresses[77]) == [bases[7]]


def test_the_compiled_table_leaves_endpoints_to_python() -> None:
    module = native.load()
    if module is None:
        pytest.skip("the packet module is not built here")
    zone = builders.conformance_zone(AnswerTable(module))
    assert zone.endpoint(to_wire(f"10-244-0-1.svc1.{SVC}")) == bytes((10, 244, 0, 1))
    assert zone.endpoint(to_wire(f"10-244-0-1.dual.{SVC}")) is None
    assert zone.endpoint(endpoint_name(bytes((10, 244, 0, 1)), to_wire(f"two.{SVC}"))) is not None

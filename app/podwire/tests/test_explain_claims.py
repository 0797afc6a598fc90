"""Which Service `podwire explain` names for an address: the one that the rules serve there."""

from __future__ import annotations

from typing import Any

import pytest

from podwire.explain.catalogue import Catalogue, counts, places
from podwire_base.kube.meta import Object, key
from podwire_proxy.changes import Tracker
from podwire_proxy.dataplane import Key
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

SHARED = "198.51.100.7"


def made(name: str, ip: str, created: str, uid: str = "", number: int = 80, **spec: Any) -> Object:
    obj = service(name, ip, [port(number)], externalIPs=[SHARED], **spec)
    obj["metadata"] |= {"creationTimestamp": f"2026-01-0{created}T00:00:00Z", "uid": uid}
    return obj


@pytest.mark.parametrize(
    "services",
    [
        [made("a", "10.96.0.1", "2"), made("b", "10.96.0.2", "1")],
        [made("b", "10.96.0.2", "1"), made("a", "10.96.0.1", "2")],
        [made("a", "10.96.0.1", "1", "z"), made("b", "10.96.0.2", "1", "y")],
        [made("b", "10.96.0.2", "1", "y"), made("a", "10.96.0.1", "1", "z")],
        [made("a", "10.96.0.1", "1", number=81), made("b", "10.96.0.2", "2")],
    ],
)
def test_of_two_services_with_one_address_and_port_the_one_that_has_it_is_named(services: list[Object]) -> None:
    slices = [endpoint_slice("b", [endpoint(s.POD_B), endpoint(s.POD_C, ready=False)], [("", "TCP", 80)])]
    tracker = Tracker(s.INFO)
    for obj in services:
        tracker.service(f"default/{obj['metadata']['name']}", obj)
    tracker.flush()
    assert tracker.dataplane.frontends[Key(SHARED, "TCP", 80)].service == "default/b"
    objects = Catalogue({"Service": tuple(services), "EndpointSlice": tuple(slices)})
    found = objects.at(SHARED, "TCP", 80)
    assert found is not None
    assert (key(found), *counts(objects.slices(key(found)))) == ("default/b", 2, 1)


def test_an_address_of_a_family_that_the_service_does_not_have_is_nobodys() -> None:
    one = made("a", "fd00:96::1", "1")
    assert set(places(one, Catalogue())) == {("fd00:96::1", "TCP", 80)}

"""Which addresses of a Node count."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kube.nodeaddresses import INTERNAL, listed, primary, usable

IN4, IN6, OUT4, OUT6 = (
    ("InternalIP", "192.0.2.1"),
    ("InternalIP", "fd00::1"),
    ("ExternalIP", "203.0.113.1"),
    (
        "ExternalIP",
        "2001:db8::1",
    ),
)


def node(*addresses: tuple[str, Any]) -> dict[str, Any]:
    return {"status": {"addresses": [{"type": kind, "address": ip} for kind, ip in addresses]}}


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        ([IN4, IN6], ["192.0.2.1", "fd00::1"]),
        ([OUT4], ["203.0.113.1"]),
        ([OUT6, OUT4], ["2001:db8::1", "203.0.113.1"]),
        ([OUT4, IN4], ["192.0.2.1"]),
        ([OUT4, OUT6, IN4], ["192.0.2.1", "2001:db8::1"]),
        ([OUT4, IN6], ["fd00::1", "203.0.113.1"]),
        ([("InternalIP", "garbage"), OUT4], ["203.0.113.1"]),
        ([("Hostname", "192.0.2.9"), ("InternalDNS", "192.0.2.8")], []),
        ([("InternalIP", "192.0.02.010")], ["192.0.2.10"]),
        ([("InternalIP", "fe80::1%eth0"), OUT6], ["2001:db8::1"]),
    ],
)
def test_internal_first_else_external_by_family(addresses: list[tuple[str, str]], expected: list[str]) -> None:
    assert list(map(str, usable(node(*addresses)))) == expected
    assert list(map(str, primary(node(*addresses)))) == expected


def test_several_of_a_kind() -> None:
    found = node(IN4, ("InternalIP", "192.0.2.2"), IN4)
    assert list(map(str, usable(found))) == ["192.0.2.1", "192.0.2.2"]
    assert list(map(str, primary(found))) == ["192.0.2.1"]


@pytest.mark.parametrize("status", [None, {}, {"addresses": None}, {"addresses": "x"}, {"addresses": [None, 5, {}]}])
def test_what_is_not_formed_as_a_node(status: Any) -> None:
    told: list[str] = []
    assert usable({"status": status}) == ()
    assert listed({"status": status}, INTERNAL, told.append) == ()
    assert len(told) == (2 if status == {"addresses": [None, 5, {}]} else 0)
    assert usable(None) == ()

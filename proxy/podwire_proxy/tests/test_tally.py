"""What the socket hooks count: rows of the map, what a start finds stale, and the families of /metrics. Pure."""

from __future__ import annotations

import pytest

from podwire_proxy.dataplane import Balance, Frontend, Key
from podwire_proxy.ebpf import maps, tally
from podwire_proxy.model import Destination
from podwire_proxy.tally import GONE, SHOWN, Tallies, Tally, metrics

KEYS = [Key("10.96.0.20", "TCP", 80), Key("fd00::20", "UDP", 53)]


def frontend(key: Key, *ends: Destination) -> Frontend:
    return Frontend(key, "ClusterIP", "default/web", Balance(ends), None, "off-cluster")


@pytest.mark.parametrize("key", KEYS, ids=["IPv4", "IPv6"])
def test_a_row_is_read_as_it_is_written(key: Key) -> None:
    to = Destination("fd00::9" if ":" in key.ip else "10.244.0.9", 8080)
    assert tally.tally_of(tally.row_key(key, to), 3) == Tally(key, to, "", 3)
    assert tally.tally_of(tally.row_key(key, None), 3) == Tally(key, None, "", 3)
    for code, why in maps.WHY_LEFT.items():
        assert tally.tally_of(tally.row_key(key, None, code), 3) == Tally(key, None, why, 3)
    assert tally.tally_of(tally.row_key(key, None, 15), 3).why == "15", "of a later version"


def test_a_start_finds_endpoints_and_frontends_that_are_gone() -> None:
    stays, went = Destination("10.244.0.9", 1), Destination("10.244.0.8", 1)
    other = Key("10.96.0.21", "TCP", 80)
    rows = [Tally(KEYS[0], stays, "", 1), Tally(KEYS[0], went, "", 1), Tally(other, None, "unserved", 1)]
    rows += [Tally(KEYS[0], None, "", 4), Tally(KEYS[1], Destination("fd00::8", 1), "", 1)]
    have = {KEYS[0]: frontend(KEYS[0], stays)}
    assert tally.stale(Tallies(tuple(rows)), have.get, v6=False) == [
        (KEYS[0], frozenset({went})),
        (other, frozenset()),
    ]


def test_the_rows_of_the_page_are_bounded_and_the_rest_is_summed() -> None:
    keys = [Key(f"10.96.{n >> 8}.{n & 255}", "TCP", 80) for n in range(SHOWN + 5)]
    have = {
        key: Frontend(key, "ClusterIP", f"default/s{n}", Balance(()), None, "off-cluster") for n, key in enumerate(keys)
    }
    rows = tuple(Tally(key, None, "", n + 1) for n, key in enumerate(keys))
    left = {"unserved": 7}
    found = {name: list(samples) for name, _, samples in metrics(Tallies(rows, 1, left, 2), have.get)}
    ports = found["podwire_proxy_socket_hook_connections_total"]
    assert len(ports) == SHOWN + 1
    assert ports[-1] == ({"namespace": "", "service": "other", "protocol": "", "port": ""}, 1 + 2 + 3 + 4 + 5)
    assert found["podwire_proxy_socket_hook_endpoint_connections_total"][0][0]["endpoint"] == GONE
    assert found["podwire_proxy_socket_hook_left_to_nftables_total"] == [({"reason": "unserved"}, 7)]
    assert found["podwire_proxy_socket_hook_uncounted_total"] == [({}, 2)]


def test_frontends_of_one_port_are_one_series() -> None:
    both = [Key("10.96.0.20", "TCP", 80), Key("192.0.2.1", "TCP", 80)]
    have = {key: frontend(key) for key in both}
    rows = tuple(Tally(key, Destination("10.244.0.9", 8080), "", 2) for key in both)
    found = {name: list(samples) for name, _, samples in metrics(Tallies(rows), have.get)}
    assert [n for _, n in found["podwire_proxy_socket_hook_connections_total"]] == [4]

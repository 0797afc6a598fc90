"""Names, reverse zones, and the settings that are made from them."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from typing import Any

import dns.name
import hypothesis.strategies as st
import pytest
from hypothesis import given

from podwire_dns import feed, names
from podwire_dns.config import BadConfig, DnsConfig

CONFIG = DnsConfig("n1", None, Path("unused"))
label = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)


@given(st.lists(label, min_size=1, max_size=8))
def test_wire_form_is_what_dnspython_makes(labels: list[str]) -> None:
    name = ".".join(labels) + "."
    assert names.to_wire(name) == dns.name.from_text(name).to_wire()
    assert names.from_wire(names.to_wire(name)) == name
    assert names.fqdn(name.upper()) == name


@pytest.mark.parametrize("bad", ["", "a..b", "-a.b", "a-.b", "a b.c", "ü.example", "a" * 64, ".".join(["a" * 60] * 5)])
def test_what_is_no_name_is_refused(bad: str) -> None:
    with pytest.raises(names.BadName):
        names.fqdn(bad)


@given(st.ip_addresses())
def test_dashed_names_are_labels_and_lead_back(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    text = names.dashed(str(address))
    assert names.label(text, "x") == text
    assert names.undashed(text) == str(address)


@pytest.mark.parametrize(
    ("cidr", "zones"),
    [
        ("10.96.0.0/16", ["96.10.in-addr.arpa."]),
        ("10.0.0.0/8", ["10.in-addr.arpa."]),
        ("0.0.0.0/0", ["in-addr.arpa."]),
        ("10.96.0.0/15", ["96.10.in-addr.arpa.", "97.10.in-addr.arpa."]),
        ("10.1.2.128/26", [f"{i}.2.1.10.in-addr.arpa." for i in range(128, 192)]),
        ("fd00:96::/32", ["6.9.0.0.0.0.d.f.ip6.arpa."]),
        ("fd00:96::/31", ["6.9.0.0.0.0.d.f.ip6.arpa.", "7.9.0.0.0.0.d.f.ip6.arpa."]),
    ],
)
def test_reverse_zones_cover_a_range_exactly(cidr: str, zones: list[str]) -> None:
    assert names.reverse_zones(cidr) == zones


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ttl": -1}, "ttl"),
        ({"ttl": 3601}, "ttl"),
        ({"cluster_domain": "no good"}, "no good"),
        ({"pod_cidrs": ("10.244.0.1/16",)}, "10.244.0.1/16"),
        ({"listen": ("10.96.0",)}, "listen"),
        ({"upstreams": ("resolver",)}, "upstream: 'resolver'"),
        ({"upstreams": ("192.0.2.1#x",)}, "192.0.2.1#x"),
        ({"upstreams": ("10.96.0.10",)}, "this DNS itself"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], named: str) -> None:
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(BadConfig, match=named):
        config.schema()
        config.routes()


def test_upstreams_get_their_port() -> None:
    config = dataclasses.replace(CONFIG, upstreams=("192.0.2.1", "2001:db8::1#5353"))
    assert config.routes()[b"\0"].addresses == ("192.0.2.1#53", "2001:db8::1#5353")


def test_a_feed_of_another_version_says_what_to_do() -> None:
    frame = feed.frame(feed.Hello(feed.VERSION + 1, (b"\0",), 5, True))
    with pytest.raises(feed.BadFeed, match="restart both"):
        feed.decode(frame[4:])
    with pytest.raises(feed.BadFeed):
        feed.decode(b"garbage")

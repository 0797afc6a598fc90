"""Directives that answer from a source that podwire does not read: their names never go to an upstream."""

from __future__ import annotations

from pathlib import Path

import pytest

from podwire_dns import names
from podwire_dns.cache import Cache
from podwire_dns.config import DnsConfig
from podwire_dns.corefile import apply
from podwire_dns.pack import A_IN
from podwire_dns.upstream import Forwarder

BASE = DnsConfig("n1", None, Path("/run/podwire"))
UP, OTHER = "192.0.2.53#53", "192.0.2.54#53"


def upstreams(text: str, name: str) -> tuple[str, ...]:
    """The upstreams that get a question for the name; the parts of the server that decide it are real."""
    config, _ = apply(text, BASE)
    forwarder = Forwarder(config.routes(), Cache(10), homes=config.homes())
    found = forwarder.route(names.to_wire(name) + A_IN)
    return found.route.addresses if found is not None else ()


@pytest.mark.parametrize(
    ("line", "mine", "others"),
    [
        ("file db.example example.test", "www.example.test.", "www.test."),
        ("file db.example example.test 192.0.2.0/24", "7.2.0.192.in-addr.arpa.", "7.3.0.192.in-addr.arpa."),
        ("etcd skydns.test {\n path /skydns\n}", "a.skydns.test.", "a.test."),
        ("route53 example.test.:Z1Z2 {\n region x\n}", "www.example.test.", "example.org."),
        ("clouddns example.test.:project:zone", "example.test.", "example.org."),
        ("azure group:example.test", "a.example.test.", "a.test."),
        ("auto example.test {\n directory /zones\n}", "a.example.test.", "a.test."),
        ("secondary example.test {\n transfer from 192.0.2.1\n}", "a.example.test.", "a.test."),
        ("k8s_external example.test", "web.default.example.test.", "a.test."),
    ],
)
def test_names_of_a_source_are_refused_and_the_others_forwarded(line: str, mine: str, others: str) -> None:
    text = f". {{\n {line}\n forward . 192.0.2.53\n}}\n"
    assert upstreams(text, mine) == ()
    assert upstreams(text, others) == (UP,)
    (note,) = apply(text, BASE)[1]
    assert "is not supported: names in" in note and "are refused" in note


def test_a_source_without_zones_has_those_of_its_block() -> None:
    text = "example.test {\n file db.example\n forward . 192.0.2.54\n}\n. {\n forward . 192.0.2.53\n}\n"
    assert upstreams(text, "www.example.test.") == ()
    assert upstreams(text, "www.test.") == (UP,)
    assert any("is never used" in note for note in apply(text, BASE)[1])


def test_fallthrough_leads_to_the_upstreams() -> None:
    text = ". {\n etcd skydns.test {\n  fallthrough\n }\n forward . 192.0.2.53\n}\n"
    assert upstreams(text, "a.skydns.test.") == (UP,)
    (note,) = apply(text, BASE)[1]
    assert "as fallthrough says" in note


def test_a_block_with_nothing_but_a_source_offers_no_recursion() -> None:
    config, _ = apply("example.test {\n file db.example\n}\n", BASE)
    assert config.forwarding() == () and config.routes() == {}


def test_a_forward_twice_is_still_refused() -> None:
    with pytest.raises(ValueError, match="forwarded twice"):
        apply(". {\n file db.x example.test\n forward . 192.0.2.53\n forward . 192.0.2.54\n}\n", BASE)

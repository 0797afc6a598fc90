"""The conformance table, sent to the pure answerer as UDP and as TCP."""

from __future__ import annotations

import dns.message
import pytest

from podwire_dns.answer import Answerer
from podwire_dns.testing import builders, judge
from podwire_dns.testing.cases import CASES, Case


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return builders.answerer(builders.conformance_zone())


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(answerer: Answerer, case: Case, transport: str) -> None:
    query = dns.message.make_query(case.name, case.rtype, use_edns=0, payload=4096)
    response = answerer.handle(query.to_wire(), udp=transport == "udp")
    assert isinstance(response, bytes)
    judge.check(case, response)


def test_names_are_unique_in_the_table() -> None:
    asked = [(case.name, case.rtype) for case in CASES]
    assert len(asked) == len(set(asked))

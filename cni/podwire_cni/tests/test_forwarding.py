"""A chain FORWARD of iptables whose policy is drop: what the agent appends to it, and when it takes it away again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.reasons import PODS_FORWARDED
from podwire_cni import forwarding

OPEN = nft.Chain(nft.Table("ip", "filter"), "FORWARD", "forward", "filter", 0)
CLOSED = replace(OPEN, policy="drop")
CIDRS = ("10.244.0.0/16", "10.244.3.0/24", "192.168.7.0/25", "fd00:1::/64")
HOSTS = [nft.Rule(CLOSED, (), "of the host"), nft.Rule(CLOSED, (), "")]


def test_each_direction_of_the_pods_addresses_is_accepted_at_the_end() -> None:
    made = forwarding.plan(CLOSED, HOSTS, CIDRS)
    told = [op.thing.comment.rpartition(" #")[0] for op in made if isinstance(op.thing, nft.Rule)]
    assert told == [
        f"{PODS_FORWARDED}, {side} {net}" for net in ("10.244.0.0/16", "192.168.7.0/25") for side in ("from", "to")
    ]
    assert all(op.verb == "add" for op in made), "nothing of the host's is touched"
    six = forwarding.rules(replace(CLOSED, table=nft.Table("ip6", "filter")), CIDRS)
    assert [rule.comment.rpartition(" #")[0] for rule in six] == [
        f"{PODS_FORWARDED}, {side} fd00:1::/64" for side in ("from", "to")
    ]


@pytest.mark.parametrize("chain", [None, OPEN, replace(CLOSED, hook=None), replace(CLOSED, hook="input")])
def test_other_chains_are_left_alone(chain: nft.Chain | None) -> None:
    assert not forwarding.plan(chain, HOSTS, CIDRS)


def test_nothing_is_written_twice_and_what_is_not_needed_goes() -> None:
    there = [replace(rule, handle=n) for n, rule in enumerate(forwarding.rules(CLOSED, CIDRS), 7)]
    assert not forwarding.plan(CLOSED, [*HOSTS, *there], CIDRS)
    for chain, cidrs in ((OPEN, CIDRS), (CLOSED, ())):
        gone = list(forwarding.plan(chain, [*HOSTS, *there], cidrs))
        assert [op.verb for op in gone] == ["delete"] * 4
    again = list(forwarding.plan(CLOSED, [*HOSTS, *there[1:]], CIDRS))
    assert [op.verb for op in again] == ["delete"] * 3 + ["add"] * 4, "in order"

"""What policies dropped is told with names, once a minute for each pair of ends, port and rule."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kernel.dropped import Packet
from podwire_base.kernel.nflog import Logged
from podwire_base.kernel.reasons import Reason

from .. import told
from ..told import Told
from .test_names import made

RULE = "ingress: no rule of shop/deny allows it"


def dropped(reason: Reason = Reason.POLICY, dport: int = 80, sport: int = 40000) -> Logged:
    return Logged(reason, Packet("10.244.0.2", "10.244.1.3", 6, sport, dport), RULE)


def lines(*packets: tuple[float, Logged]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    writer = Told(lambda words, **more: found.append({"words": words, **more}))
    names = made()
    for at, one in packets:
        writer.tell(one, names, at)
    return found


@pytest.mark.parametrize("reason", [Reason.POLICY, Reason.STAGED])
def test_pods_and_rule_are_named(reason: Reason) -> None:
    (line,) = lines((100.0, dropped(reason)))
    assert (line["words"], line["rule"], line["port"]) == (told.WORDS[reason], RULE, 80)
    assert line["source"] == "shop/web"


def test_what_no_policy_dropped_is_not_told() -> None:
    assert lines((100.0, dropped(Reason.NO_ENDPOINTS))) == []


def test_the_same_is_told_once_a_minute_with_the_number_of_packets() -> None:
    packets = [(100.0 + at, dropped(sport=40000 + at)) for at in range(62)]
    first, second = lines(*packets)
    assert "packets" not in first
    assert second["packets"] == 60
    assert len(lines((100.0, dropped()), (100.5, dropped(dport=81)))) == 2


def test_lines_of_one_second_and_what_is_remembered_are_bounded() -> None:
    assert len(lines(*((100.0, dropped(dport=port)) for port in range(1, 3000)))) == told.EACH_SECOND

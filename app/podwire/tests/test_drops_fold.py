"""`podwire drops`: rows of equal packets, their bounds, and their text. Pure."""

from __future__ import annotations

import json
from pathlib import Path

from podwire.drops.fold import MOST, Fold, Names, as_json, line
from podwire.drops.watch import Spaces
from podwire.explain.onnode import Place
from podwire_base.kernel.dropped import TCP, Dropped, Packet
from podwire_base.role import podspaces
from podwire_base.role.podspaces import PodSpace
from podwire_proxy.dataplane import Key

PACKET = Packet("10.244.0.2", "10.96.0.20", TCP, 40000, 80)
NAMES = Names({"10.244.0.2": "default/client"}, {Key("10.96.0.20", "TCP", 80): "default/web"})


def dropped(reason: str = "NO_SOCKET", **changes: object) -> Dropped:
    return Dropped(0.0, reason, PACKET._replace(**changes), "eth0", 2, 7)  # type: ignore[arg-type]  # fields of Packet


def test_equal_packets_are_one_row_and_the_most_come_first() -> None:
    fold = Fold()
    for sport in range(3):
        fold.add("node1", dropped(sport=sport))
    fold.add("node1", dropped("NETFILTER_DROP"))
    fold.add("node2", dropped())
    rows, others = fold.take()
    assert (rows[0].node, rows[0].first.reason, rows[0].number) == ("node1", "NO_SOCKET", 3)
    assert len(rows) == 3 and others == 0
    assert fold.take() == ([], 0)


def test_a_scan_cannot_fill_the_memory_and_is_counted() -> None:
    fold = Fold()
    for number in range(MOST + 25):
        fold.add("node1", dropped(dport=number))
    rows, others = fold.take()
    assert (len(rows), others) == (MOST, 25)


def test_a_row_names_pods_services_and_the_rule() -> None:
    fold = Fold()
    fold.add("node1", dropped("NETFILTER_DROP"))
    ((row,), _) = fold.take()
    row.rule, row.cause = "no-endpoints", "the Service has no ready endpoint"
    told = json.loads(as_json(row, NAMES))
    assert (told["reason"], told["kernelReason"], told["service"]) == ("no-endpoints", "NETFILTER_DROP", "default/web")
    text = line(row, NAMES)
    assert "10.244.0.2:40000 (default/client) -> 10.96.0.20:80 (default/web) TCP: the Service has" in text
    assert "node1 eth0" in text and "no-endpoints" in text


def test_what_a_terminal_obeys_is_escaped() -> None:
    fold = Fold()
    fold.add("node1", dropped())
    ((row,), _) = fold.take()
    assert "\x1b" not in line(row, Names({"10.244.0.2": "default/\x1b[2J"}))


def test_pods_are_named_by_what_wiring_tells(tmp_path: Path) -> None:
    told = (
        PodSpace(1, 2, "/nowhere", ("10.244.1.2", "fd00::2"), "default/web"),
        PodSpace(1, 3, "/nowhere", ("10.244.1.3",)),
    )
    podspaces.path(tmp_path).write_text(podspaces.encode(told))
    spaces = Spaces([Place(run_dir=tmp_path), Place()])
    spaces.look()
    assert spaces.pods == dict.fromkeys(("10.244.1.2", "fd00::2"), "default/web")
    podspaces.path(tmp_path).unlink()
    spaces.look()
    assert spaces.pods == {}

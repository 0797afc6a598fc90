"""The layout number of the Service tables: what a later version wrote is refused, what an earlier one wrote goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.expr import GOTO
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_base.kernel.nft.ruleset import Table
from podwire_base.role.layout import NewerLayout
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.decide import decide
from podwire_proxy.iptables import layout as chains
from podwire_proxy.iptables import plan as iptables
from podwire_proxy.model import NodeInfo
from podwire_proxy.nftables import layout as table
from podwire_proxy.nftables.plan import Planner
from podwire_proxy.nftables.trace import Tracer
from podwire_proxy.testing import scenarios as s
from podwire_proxy.verdict import combined

from .toy import Toy

LAYOUT = table.Layout("ip")


def synced(kernel: FakeConnection, node: NodeInfo, tracker: Tracker) -> Planner:
    planner = Planner(LAYOUT, node)
    kernel.commit(tx := planner.full(tracker.dataplane, kernel.dump(LAYOUT.table)))
    planner.committed(tx)
    kernel.commit(tx := planner.sweep())
    planner.committed(tx)
    return planner


def served(node: NodeInfo = s.INFO) -> tuple[FakeConnection, Tracker]:
    row = next(row for row in s.SCENARIOS if row.node == s.INFO)
    tracker, kernel = row.tracker(), FakeConnection()
    tracker.node(node)
    tracker.flush()
    synced(kernel, node, tracker)
    return kernel, tracker


def names(kernel: FakeConnection) -> set[str]:
    return {chain.name for chain in kernel.state[LAYOUT.table].chains.values()}


@pytest.mark.parametrize(
    ("name", "number"),
    [("layout-1", 1), ("layout-27", 27), ("layout-x", 0), ("my-layout-2", 0), ("layout-" + "9" * 99, 0)],
)
def test_a_chain_tells_the_layout(name: str, number: int) -> None:
    assert table.layout_of(nft.Chain(LAYOUT.table, name)) == number
    assert table.layout_of(nft.Chain(Table("ip", "podwire-cni"), name)) == 0, "of another table"
    assert chains.layout_of("PODWIRE-" + name.upper()) == number
    assert chains.layout_of(name) == 0


def test_both_backends_write_their_number() -> None:
    kernel, tracker = served()
    assert f"layout-{table.LAYOUT}" in names(kernel)
    for family in ("ip", "ip6"):
        plan = iptables.Planner(family, s.INFO).full(tracker.dataplane, iptables.KernelState())
        assert max(chains.layout_of(chain.name) for chain in plan.write) == chains.LAYOUT


def test_rules_of_a_later_version_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "ALL", (toy := Toy(),))
    backends.refuse_newer()
    monkeypatch.setattr(toy, "newer", lambda ns_fd=None: "podwire of a later version wrote the toys")
    with pytest.raises(NewerLayout, match="later version wrote the toys"):
        backends.refuse_newer()


@pytest.mark.parametrize("how", ["base", "regular", "both"])
def test_chains_of_an_earlier_layout_go(how: str) -> None:
    """The mark of that layout, and chains that jump to each other and are jumped to by an element."""
    kernel, tracker = served()
    before = names(kernel)
    old = nft.Chain(LAYOUT.table, "layout-0"), nft.Chain(LAYOUT.table, "a-old"), nft.Chain(LAYOUT.table, "b-old")
    hooked = nft.Chain(LAYOUT.table, "hooked", "forward", "filter")
    add = [*(old if how != "base" else ()), *([hooked] if how != "regular" else ())]
    kernel.commit(nft.Transaction().add(*add))
    if how == "both":
        kernel.commit(
            nft.Transaction().add(nft.Rule(old[2], (nft.jump("a-old"),)), nft.Rule(hooked, (nft.jump("b-old"),)))
        )
        dump = kernel.state[LAYOUT.table]
        key = next(iter(dump.elements["services"]))
        kernel.commit(
            nft.Transaction()
            .delete(nft.Elements(LAYOUT.sets()["services"], {key: dump.elements["services"][key]}))
            .add(nft.Elements(LAYOUT.sets()["services"], {key: nft.Verdict(GOTO, "b-old")}))
        )
    synced(kernel, s.INFO, tracker)
    assert names(kernel) == before


def test_a_setting_that_is_off_leaves_no_rules() -> None:
    """`forward` drops what is invalid for conntrack; with tcpBeLiberal nothing may drop it any more."""
    wanted = replace(s.INFO, drop_invalid=True)
    kernel, tracker = served(wanted)
    assert "forward" in names(kernel)
    tracker.node(liberal := replace(wanted, drop_invalid=False))
    tracker.flush()
    synced(kernel, liberal, tracker)
    assert "forward" not in names(kernel)


def test_the_way_back_leaves_no_chain_that_the_version_before_does_not_know() -> None:
    kernel, tracker = served()
    plan, gone = table.downgrade(LAYOUT, kernel.state[LAYOUT.table].chains.values())
    kernel.commit(plan)
    assert {chain.name for chain in gone} == {"wrong-port", f"layout-{table.LAYOUT}"}
    assert not {"wrong-port", f"layout-{table.LAYOUT}"} & names(kernel)
    live = Tracer(kernel.state[LAYOUT.table], s.INFO)
    for vip in sorted(tracker.dataplane.cluster_ips):
        if ":" not in vip:
            packet = s.packet(s.POD_A, vip, 9)
            assert combined(way.verdict for way in live.traces(packet)).kind == decide(tracker.dataplane, packet).kind
    assert not table.downgrade(LAYOUT, kernel.state[LAYOUT.table].chains.values())[0], "twice is once"

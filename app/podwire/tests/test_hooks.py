"""The table in docs/hooks.md, which rule runs before which, agrees with the rules that the roles write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from podwire_base.kernel.ip import FAMILIES
from podwire_base.kernel.nft import ruleset as nft
from podwire_cni import nodetable, tunneltable
from podwire_dns import host
from podwire_policy.compiled import Compiled
from podwire_policy.tables.plan import Planner as PolicyPlanner
from podwire_proxy.dataplane import Dataplane
from podwire_proxy.iptables import layout as iptables
from podwire_proxy.model import NodeInfo
from podwire_proxy.nftables.layout import Layout
from podwire_proxy.nftables.plan import Planner

PAGE = Path(__file__).parents[3] / "docs" / "hooks.md"
HOOKS = (
    "bridge prerouting",
    "bridge input",
    "bridge forward",
    "prerouting",
    "input",
    "forward",
    "output",
    "postrouting",
)
# NF_IP_PRI_* of the kernel (linux/netfilter_ipv4.h), where built-in chains of iptables hook in.
IPTABLES = {"raw": -300, "nat": -100, "filter": 0}
SOURCE_NAT = 100
NODE = NodeInfo(
    "n1",
    ("192.0.2.1", "2001:db8::1"),
    pod_cidrs=("10.244.0.0/24", "fd00:1::/64"),
    service_cidrs=("10.96.0.0/16", "fd00:96::/112"),
    localhost=True,
)


class Row(NamedTuple):
    hook: str
    priority: int
    owner: str
    family: str
    table: str
    chain: str


def on_the_page() -> list[Row]:
    rows = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip().replace("`", "") for cell in line.split("|")[1:-1]]
        if len(cells) == 8 and cells[0] in HOOKS:
            rows.append(Row(cells[0], int(cells[1]), *cells[2:6]))
    return rows


def base_chains(owner: str, transaction: nft.Transaction) -> Iterator[Row]:
    for op in transaction:
        chain = op.thing
        if isinstance(chain, nft.Chain) and chain.hook and op.verb == "add":
            assert chain.policy == "accept", "no role's table ends what others allow"
            hook = f"bridge {chain.hook}" if chain.table.family == "bridge" else chain.hook
            name = f"{chain.name} ({chain.type})"
            yield Row(hook, chain.priority, owner, chain.table.family, chain.table.name, name)


def jumps(family: str, chain: iptables.Chain, rules: tuple[str, ...]) -> Iterator[Row]:
    source = chain.table == "nat" and chain.name in ("INPUT", "POSTROUTING")
    priority = SOURCE_NAT if source else IPTABLES[chain.table]
    for rule in rules:
        target = rule.rpartition(" -j ")[2]
        yield Row(chain.name.lower(), priority, "proxy", family, chain.table, f"{chain.name} -> {target}")


def in_the_code() -> set[Row]:
    rules = nodetable.NodeRules(NODE.pod_cidrs, frozenset(NODE.pod_cidrs))
    found = {
        *base_chains("cni", nodetable.whole(rules, ())),
        *base_chains("cni", tunneltable.plan(tunneltable.TunnelRules())),
        *base_chains("dns", host.notrack(["169.254.20.10", "fd00::a"], 53)),
    }
    for family in FAMILIES:
        found |= set(base_chains("policy", PolicyPlanner(family).full(Compiled(), None)))
        found |= set(base_chains("proxy", Planner(Layout(family), NODE).full(Dataplane(NODE), None)))
        for chain, lines in iptables.hooks(family, NODE).items():
            found |= set(jumps(family, chain, lines))
    return found


def test_the_page_has_every_hook_and_nothing_else() -> None:
    rows = [row for row in on_the_page() if row.owner != "kernel"]
    split = [row._replace(family=family) for row in rows for family in row.family.split(", ")]
    assert len(split) == len(set(split)), "no row twice"
    assert set(split) == in_the_code()


def test_the_rows_are_in_the_order_that_a_packet_meets_them() -> None:
    places = [(HOOKS.index(row.hook), row.priority) for row in on_the_page()]
    assert places == sorted(places)
    assert len(places) > 20


def test_what_must_run_before_what() -> None:
    """The ordering requirements that the page gives reasons for, whatever the numbers are."""
    at = {(row.owner, row.table, re.split(r"[ (]", row.chain)[0], row.hook): row.priority for row in in_the_code()}
    conntrack = next(row.priority for row in on_the_page() if row.chain == "conntrack")
    for hook in ("prerouting", "output"):
        assert at["dns", "podwire-dns", hook, hook] < conntrack
        assert conntrack < at["proxy", "podwire", hook, hook] < at["cni", "podwire-cni", hook, hook]
        assert at["proxy", "nat", hook.upper(), hook] < at["cni", "podwire-cni", hook, hook]
    assert at["cni", "podwire-cni", "loopback", "prerouting"] < conntrack
    assert at["proxy", "podwire", "loopback", "prerouting"] < conntrack
    assert at["cni", "podwire-tunnel", "prerouting", "prerouting"] < conntrack
    assert at["proxy", "podwire", "forward", "forward"] < at["policy", "podwire-policy", "forward", "forward"]
    assert at["cni", "podwire-leases", "forward", "forward"] < at["policy", "podwire-policy", "forward", "forward"]
    assert at["cni", "podwire-cni", "spoofing", "bridge prerouting"] < 0, "before br_netfilter"

"""`podwire nft list`: whose each element and chain of the ruleset is."""

from __future__ import annotations

from ipaddress import ip_address

from podwire.explain.owners import lines, owners, parse_rules
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_cni import nodetable
from podwire_cni.types import BRIDGE
from podwire_proxy.nftables.layout import Layout
from podwire_proxy.nftables.plan import Planner

from .explain_cluster import SERVICES, catalogue
from .explain_world import tracker


def test_each_element_of_the_services_has_its_owner() -> None:
    objects = catalogue(
        Service=tuple(
            {**one, "spec": {**one["spec"], "sessionAffinity": "ClientIP"}} if one["metadata"]["name"] == "web" else one
            for one in SERVICES
        )
    )
    made, fake, layout = tracker("node1", objects), FakeConnection(), Layout("ip")
    fake.commit(Planner(layout, made.dataplane.node).full(made.dataplane, None))
    said = list(lines(fake.state[layout.table], owners(objects), {}))
    text = "\n".join(said)
    assert "10.96.0.22 . tcp . 8080 : goto reject  # Service default/one (ClusterIP)" in text
    assert any(
        line.strip().startswith("10.96.0.20 . tcp . 80 . 0 : 10.244.1.2 . 9376  # Service default/web (ClusterIP http)")
        and line.endswith("-> pod default/web-5d4-a on node1")
        for line in said
    ), text
    assert "10.96.0.20  # Service default/web" in text
    assert "10.244.1.2 . 10.244.1.2  # pod default/web-5d4-a on node1" in text
    assert (
        [line for line in said if line.strip().startswith("chain sticky-")]
        == [
            line for line in said if line.strip().startswith("chain sticky-") and line.endswith("# Service default/web")
        ]
        != []
    )


def test_the_elements_of_pods_have_their_owner() -> None:
    objects, fake = catalogue(), FakeConnection()
    rules = nodetable.NodeRules(("10.244.1.0/24",), frozenset())
    pods = [nodetable.PodRules("vethabc", "02:00:00:00:00:02", (ip_address("10.244.1.2"),), bridge=BRIDGE)]
    fake.commit(nodetable.plan(rules, pods))
    who = owners(objects, {"vethabc": "default/web-5d4-a"})
    text = "\n".join(line for dump in fake.state.values() for line in lines(dump, who, {}))
    assert "vethabc  # pod default/web-5d4-a" in text
    assert "10.244.1.2  # pod default/web-5d4-a on node1" in text


def test_the_text_of_rules_is_that_of_nft_where_it_is_there() -> None:
    listed = """table ip podwire { # handle 1
\tset pods { # handle 2
\t\ttype ipv4_addr
\t}
\tchain reject { # handle 9
\t\tmeta l4proto tcp counter packets 3 bytes 180 reject with tcp reset comment "x" # handle 10
\t}
}"""
    rule = 'meta l4proto tcp counter packets 3 bytes 180 reject with tcp reset comment "x"'
    assert parse_rules(listed) == {("reject", 10): rule}

"""What `podwire policy` says of a cluster: decisions as the oracle's, and what is probably not meant."""

from __future__ import annotations

from random import Random

import pytest

from podwire_policy.convert import STAGED
from podwire_policy.overview import Overview, peer_words, rule_words, trail_words
from podwire_policy.testing import oracle, table
from podwire_policy.testing.judge import packet
from podwire_policy.testing.oracle import Object, World
from podwire_policy.testing.rows_cluster import ALL, X_A, cluster, rule
from podwire_policy.testing.worlds import Chance, probes


def seen(world: World) -> Overview:
    made = Overview()
    for kind in oracle.KINDS:
        made.take(kind, getattr(world, kind).values())
    return made


def of(*policies: Object) -> Overview:
    world = table.world()
    for one in policies:
        space, own = one["metadata"].get("namespace"), one["metadata"]["name"]
        (world.policies if space else world.clusters)[f"{space}/{own}" if space else own] = one
    return seen(world)


@pytest.mark.parametrize("seed", range(20))
def test_it_judges_as_the_oracle(seed: int) -> None:
    chance = Chance(Random(seed))
    world = chance.world()
    found, every = seen(world), list(probes(world))
    for src, dst, protocol, port in chance.rng.sample(every, min(200, len(every))):
        asked = packet(src, dst, protocol, port)
        judged = found.judge(*asked)
        assert judged.allowed == oracle.allowed(world, src, dst, protocol, port), (src, dst, protocol, port)
        assert judged.allowed == all(trail.verdict == "allow" for trail in judged.trails)
        assert all(trail_words(trail) for trail in judged.trails)


DENY = table.on(table.has(pod="a"), policyTypes=["Ingress"])
NOTES: dict[str, tuple[Object, list[str]]] = {
    "fine": (DENY, []),
    "no pod": (table.on(table.has(pod="none"), policyTypes=["Ingress"]), ["selects no pod"]),
    "nobody": (
        table.on(table.has(pod="a"), ingress=[table.frm(table.pods(table.has(pod="none")))]),
        ["ingress[0]: its peers select nobody"],
    ),
    "a port": (
        table.on(table.has(pod="a"), ingress=[{"ports": [{"port": "nowhere"}]}]),
        ["ingress[0]: no pod that it is about has a port nowhere/TCP"],
    ),
    "a port of the others": (
        table.on(table.has(pod="a"), egress=[{"ports": [{"port": "nowhere", "protocol": "UDP"}]}]),
        ["egress[0]: no pod that it is about has a port nowhere/UDP"],
    ),
}


@pytest.mark.parametrize(("policy", "notes"), NOTES.values(), ids=NOTES)
def test_what_is_probably_not_meant(policy: Object, notes: list[str]) -> None:
    found = of(policy)
    (one,) = found.policies
    assert found.notes(one) == notes


def test_an_unreadable_object_is_named_and_takes_nothing_else_with_it() -> None:
    found = of(DENY, {"metadata": {"name": "bad"}, "spec": {"tier": "Later"}})
    assert list(found.unreadable) == [("clusters", "bad")]
    assert [one.key for one in found.policies] == ["x/p"]


def why(found: Overview, src: str) -> list[str]:
    judged = found.judge(table.address(src, "ip"), table.address("x/a", "ip"), 6, 80)
    return [trail_words(trail) for trail in judged.trails]


def test_a_decision_names_its_rule() -> None:
    allow = table.on(
        table.has(pod="a"),
        "x/q",
        ingress=[{"from": [{"ipBlock": {"cidr": "1.1.1.1/32"}}]}, table.frm(table.pods(table.has(pod="b")))],
    )
    found = of(DENY, allow)
    assert why(found, "x/b") == ["rule 1 of x/q allows it"]
    assert why(found, "x/c") == ["no rule of x/p, x/q allows it"]
    assert why(found, "x/a") == ["a pod to itself"]
    guard = cluster("guard", "Admin", 1, X_A, ingress=[rule("Deny", "ingress", ALL)])
    assert why(of(DENY, allow, guard), "x/b") == ["rule 0 of guard denies it"]
    staged = {**DENY, "metadata": {**DENY["metadata"], "annotations": {STAGED: "true"}}}
    assert why(of(staged), "x/b") == ["nobody isolates it (staged: x/p would deny it)"]


def test_rules_in_words() -> None:
    peers = [
        table.pods(table.has(pod="b")),
        {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a", "b"]}]}},
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
    ]
    ports = [{"port": 80}, {"port": "http", "protocol": "UDP"}, {"port": 80, "endPort": 90}, {"protocol": "SCTP"}]
    (one,) = of(table.on({}, ingress=[{"from": peers, "ports": ports}, {}])).policies
    assert one.ingress is not None
    assert rule_words(one.ingress[0]) == (
        "pods pod=b of namespace x; all pods of namespaces team notin (a,b); 10.0.0.0/8 except 10.1.0.0/16",
        "80/TCP, http/UDP, 80-90/TCP, all SCTP",
    )
    assert rule_words(one.ingress[1]) == ("everybody", "all ports")
    assert peer_words(one.subject) == "all pods of namespace x"

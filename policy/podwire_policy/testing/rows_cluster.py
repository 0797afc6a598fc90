"""Rows of the scenario table with ClusterNetworkPolicies: what upstream's conformance tests of the kind assert (tiers,
priorities, the order of rules, the three actions, both directions, each protocol; namespaces, pods and networks as
peers; the tiers beside NetworkPolicies), and named ports, Nodes and what is not known. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from .oracle import Object, World
from .rows_more import FROM_B
from .rows_upstream import _egress, _ingress
from .table import PODS, Row, address, frm, has, label_namespace, label_pod, on, pods, put, remove, to

TIERS, WAYS = ("Admin", "Baseline"), ("ingress", "egress")
X_A: Object = {"pods": {"namespaceSelector": has(ns="x"), "podSelector": has(pod="a")}}
Y: Object = {"namespaces": has(ns="y")}
Z: Object = {"namespaces": has(ns="z")}
ALL: Object = {"namespaces": {}}
Y_B: Object = {"pods": {"namespaceSelector": has(ns="y"), "podSelector": has(pod="b")}}


def cluster(name: str, tier: str, priority: int, subject: Object, **rules: list[Object]) -> Object:
    spec = {"tier": tier, "priority": priority, "subject": subject, **rules}
    return {"metadata": {"name": name}, "spec": spec}


def rule(action: str, way: str, *peers: Object, protocols: list[Object] | None = None) -> Object:
    made: Object = {"action": action, "from" if way == "ingress" else "to": list(peers)}
    return {**made, **({"protocols": protocols} if protocols else {})}


def at(protocol: str, first: int, last: int | None = None) -> Object:
    port = {"number": first} if last is None else {"range": {"start": first, "end": last}}
    return {protocol.lower(): {"destinationPort": port}}


def _line(word: str, way: str, peer: str, spoken: str = "") -> str:
    ends = f"{peer} x/a" if way == "ingress" else f"x/a {peer}"
    return f"{word} {ends} {spoken}".strip()


def _one(tier: str, way: str, *rules: Object, name: str = "c", priority: int = 5) -> Object:
    return cluster(name, tier, priority, X_A, **{way: list(rules)})


def _of_a_protocol(tier: str, way: str, protocol: str) -> Iterator[tuple[str, tuple[Object, ...], tuple[str, ...]]]:
    """Yields (what, policies, expect)."""
    deny_all = rule("Deny", way, ALL)
    port = [at(protocol, 80)]

    def line(word: str, peer: str, spoken: str = "") -> str:
        return _line(word, way, peer, spoken)

    yield (
        "Deny of a port",
        (_one(tier, way, rule("Deny", way, Y, protocols=port)),),
        (line("deny", "y/*", f"{protocol}/80"),),
    )
    yield (
        "Deny of the protocol",
        (_one(tier, way, rule("Deny", way, Y, protocols=[{protocol.lower(): {}}])),),
        (line("deny", "y/*", protocol),),
    )
    yield (
        "Deny of a range",
        (_one(tier, way, rule("Deny", way, Y, protocols=[at(protocol, 79, 81)])),),
        (
            line("deny", "y/*", f"{protocol}/80"),
            line("deny", "y/*", f"{protocol}/81"),
        ),
    )
    yield (
        "Accept above Deny in one policy",
        (_one(tier, way, rule("Accept", way, Y, protocols=port), deny_all),),
        (line("deny", "*/*"), line("allow", "y/*", f"{protocol}/80")),
    )
    yield (
        "Deny above Accept in one policy",
        (_one(tier, way, rule("Deny", way, Y_B, protocols=port), rule("Accept", way, Y)),),
        (line("deny", "y/b", f"{protocol}/80"),),
    )
    yield (
        "the lower priority comes first",
        (
            _one(tier, way, rule("Accept", way, Y_B, protocols=port), name="c1", priority=1),
            _one(tier, way, deny_all, name="c0", priority=2),
        ),
        (line("deny", "*/*"), line("allow", "y/b", f"{protocol}/80")),
    )
    yield (
        "Pass skips the rest of the tier",
        (_one(tier, way, rule("Pass", way, Y, protocols=port), deny_all),),
        (line("deny", "*/*"), line("allow", "y/*", f"{protocol}/80")),
    )


def _beside() -> Iterator[Row]:
    """Yields the tiers beside each other and beside NetworkPolicies."""
    for way in WAYS:
        own = FROM_B if way == "ingress" else _egress(to(pods(has(pod="b"))))
        only_b = (_line("deny", way, "*"), _line("allow", way, "x/b"))
        everything = (_line("deny", way, "*/*"),)
        deny = {tier: _one(tier, way, rule("Deny", way, ALL), name=tier.lower()) for tier in TIERS}
        accept = {tier: _one(tier, way, rule("Accept", way, ALL), name=tier.lower()) for tier in TIERS}
        passed = _one("Admin", way, rule("Pass", way, Y, Z), rule("Deny", way, ALL), name="admin")
        yield Row(f"{way}: Admin denies what a NetworkPolicy allows", (deny["Admin"], own), (_line("deny", way, "*"),))
        yield Row(
            f"{way}: Admin accepts what a NetworkPolicy denies",
            (accept["Admin"], own),
            (_line("deny", way, "world"),),
        )
        yield Row(
            f"{way}: a NetworkPolicy comes before Baseline, which it makes useless",
            (deny["Baseline"], own),
            only_b,
            ((remove("x/p"), everything), (put(own), only_b), (remove("baseline"), only_b)),
        )
        yield Row(
            f"{way}: Pass leads to the NetworkPolicies, and without one to Baseline",
            (passed, accept["Baseline"], own),
            (_line("deny", way, "*"),),
            (
                (remove("x/p"), (_line("deny", way, "x/*"),)),
                (put(deny["Baseline"]), everything),
                (remove("baseline"), (_line("deny", way, "x/*"),)),
            ),
        )


def _nodes(made: World) -> None:
    ips = (address("world", "ip"), address("world", "ip6"))
    made.nodes["edge"] = {
        "metadata": {"name": "edge", "labels": {"role": "edge"}},
        "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in ips]},
    }


NAMED = [{"destinationNamedPort": "serve-80-udp"}]
WORLD = [f"{address('world', 'ip')}/32", f"{address('world', 'ip6')}/128"]
EVERY = ["0.0.0.0/0", "::/0"]
CLOSED: Object = {"frobnicators": {}}  # a peer of a version that is not known
_MORE = (
    Row(
        "Deny of a named port in ingress",
        (_one("Admin", "ingress", rule("Deny", "ingress", Y, protocols=NAMED)),),
        ("deny y/* x/a UDP/80",),
    ),
    Row(
        "Deny of a named port in egress",
        (_one("Admin", "egress", rule("Deny", "egress", Y, protocols=NAMED)),),
        ("deny x/a y/* UDP/80",),
    ),
    Row(
        "networks are pods too",
        (_one("Admin", "egress", rule("Deny", "egress", {"networks": ["10.244.0.0/16", "fd00:244::/32"]})),),
        ("deny x/a */*",),
    ),
    Row(
        "Pass of pods above Deny of everywhere",
        (_one("Admin", "egress", rule("Pass", "egress", ALL), rule("Deny", "egress", {"networks": EVERY})),),
        ("deny x/a world",),
    ),
    Row("Deny of the world by its networks", (_one("Admin", "egress", rule("Deny", "egress", {"networks": WORLD})),),
        ("deny x/a world",)),
    Row(
        "Nodes by their labels",
        (_one("Admin", "egress", rule("Deny", "egress", {"nodes": has(role="edge")})),),
        (),
        ((_nodes, ("deny x/a world",)), (lambda made: made.nodes["edge"]["metadata"].update(labels={}), ())),
    ),
    Row(
        "subject: Namespaces by their labels, which change",
        (cluster("c", "Admin", 1, Y, ingress=[rule("Deny", "ingress", ALL)]),),
        ("deny */* y/*",),
        (
            (label_namespace("y"), ()),
            (label_namespace("x", ns="y"), ("deny */* x/*",)),
        ),
    ),
    Row(
        "subject: pods by their labels, which change",
        (cluster("c", "Baseline", 1, X_A, egress=[rule("Deny", "egress", ALL)]),),
        ("deny x/a */*",),
        ((label_pod("x/b", pod="a"), ("deny x/a */*", "deny x/b */*")), (label_pod("x/a"), ("deny x/b */*",))),
    ),
    Row("no rules of a direction: it is not spoken of", (cluster("c", "Admin", 1, ALL),), ()),
    Row(
        "there is no isolation by a rule that accepts",
        (_one("Admin", "ingress", rule("Accept", "ingress", Y)),),
        (),
    ),
    Row(
        "a NetworkPolicy that selects other pods leaves Baseline in force",
        (
            cluster("c", "Baseline", 1, {"namespaces": has(ns="x")}, ingress=[rule("Deny", "ingress", ALL)]),
            on(has(pod="b"), policyTypes=["Ingress"], ingress=[frm()]),
        ),
        ("deny */* x/*", "allow * x/b"),
    ),
    Row(
        "an ingress NetworkPolicy leaves Baseline in force in egress",
        (_one("Baseline", "egress", rule("Deny", "egress", ALL)), _ingress(frm())),
        ("deny x/a */*",),
    ),
)  # fmt: skip


def _every() -> Iterator[Row]:
    for tier in TIERS:
        for way in WAYS:
            for protocol in ("TCP", "UDP", "SCTP"):
                for what, policies, expect in _of_a_protocol(tier, way, protocol):
                    yield Row(f"{tier}, {way}, {protocol}: {what}", policies, expect)


ROWS: tuple[Row, ...] = (*_every(), *_beside(), *_MORE)
UNKNOWN = (  # what an API of another version may have: (rule, who reaches x/a, whose only one it is)
    ({"action": "Accept", "from": [CLOSED]}, PODS),
    ({"action": "Deny", "from": [CLOSED]}, ("x/a",)),
    ({"action": "Pass", "from": [CLOSED]}, ("x/a",)),
    ({"action": "Deny", "from": [ALL], "protocols": [{"quic": {}}]}, ("x/a",)),
    ({"action": "Frob", "from": [ALL]}, ("x/a",)),
)

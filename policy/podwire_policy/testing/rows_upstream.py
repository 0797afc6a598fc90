"""Rows of the scenario table: the facts that upstream's tests of NetworkPolicy assert (48, and 2 of endPort). Pure."""

from __future__ import annotations

from .oracle import Object
from .table import (
    Row,
    address,
    block,
    frm,
    has,
    label_namespace,
    label_pod,
    none_of,
    on,
    one_of,
    pods,
    port,
    put,
    remove,
    spaces,
    to,
)

A, ALL = has(pod="a"), dict[str, object]()
IN, OUT, BOTH = ["Ingress"], ["Egress"], ["Ingress", "Egress"]


def _deny_ingress(key: str = "x/deny-ingress") -> Object:
    return on(ALL, key, policyTypes=IN)


def _ingress(*rules: Object, key: str = "x/p", subject: Object = A) -> Object:
    return on(subject, key, policyTypes=IN, ingress=list(rules))


def _egress(*rules: Object, key: str = "x/p", subject: Object = A) -> Object:
    return on(subject, key, policyTypes=OUT, egress=list(rules))


def _ip(key: str) -> tuple[str, str]:
    return f"{address(key, 'ip')}/32", f"{address(key, 'ip6')}/128"


def _blocks(key: str, *, wide: bool, hole: str | None = None) -> list[Object]:
    """Peers that have a pod's addresses: these alone, or the blocks round them, maybe with a hole."""
    own = ("10.244.0.0/16", "fd00:244::/32") if wide else _ip(key)
    return [block(cidr, *([_ip(hole)[n]] if hole else [])) for n, cidr in enumerate(own)]


ALLOW_IN, ALLOW_OUT = frm(), to()
FROM_Y_A = "allow y/a x/a"
X_A_DENIED = "deny * x/a"

ROWS: tuple[Row, ...] = (
    Row("default deny of ingress", (_deny_ingress(),), ("deny * x/*",)),
    Row("default deny of both", (on(ALL, policyTypes=BOTH),), ("deny * x/*", "deny x/* *")),
    Row(
        "from pods of the own Namespace by podSelector",
        (_deny_ingress(), _ingress(frm(pods(has(pod="b"))))),
        ("deny * x/*", "allow x/b x/a"),
    ),
    Row("ingress to one target", (_deny_ingress(), _ingress(ALLOW_IN)), ("deny * x/*", "allow * x/a")),
    Row(
        "ingress from the pods of all Namespaces",
        (_deny_ingress(), _ingress(frm(spaces(ALL)))),
        ("deny * x/*", "allow */* x/a"),
    ),
    Row(
        "from one other Namespace only, by namespaceSelector",
        (_ingress(frm(spaces(has(ns="y")))),),
        (X_A_DENIED, "allow y/* x/a"),
    ),
    Row("podSelector with matchExpressions", (_ingress(frm(pods(one_of("pod", "b")))),), (X_A_DENIED, "allow x/b x/a")),
    Row(
        "namespaceSelector with matchExpressions",
        (_ingress(frm(spaces(one_of("ns", "y")))),),
        (X_A_DENIED, "allow y/* x/a"),
    ),
    Row(
        "podSelector or namespaceSelector",
        (_ingress(frm(pods(has(pod="b")), spaces(has(ns="y")))),),
        (X_A_DENIED, "allow x/b x/a", "allow y/* x/a"),
    ),
    Row(
        "podSelector and namespaceSelector",
        (_ingress(frm(spaces(one_of("ns", "y", "z"), has(pod="b")))),),
        (X_A_DENIED, "allow y/b x/a", "allow z/b x/a"),
    ),
    Row(
        "several podSelectors and namespaceSelectors",
        (_ingress(frm(spaces(none_of("ns", "x"), one_of("pod", "b", "c")))),),
        (X_A_DENIED, "allow y/b x/a", "allow y/c x/a", "allow z/b x/a", "allow z/c x/a"),
    ),
    Row(
        "any of several podSelectors",
        (_ingress(frm(pods(has(pod="b")), pods(has(pod="c")))),),
        (X_A_DENIED, "allow x/b x/a", "allow x/c x/a"),
    ),
    Row(
        "from one pod of another Namespace",
        (_ingress(frm(spaces(has(ns="y"), has(pod="a")))),),
        (X_A_DENIED, FROM_Y_A),
    ),
    Row(
        "ports",
        (_ingress(frm(spaces(has(ns="y"), has(pod="a")), ports=[port(81, "TCP")])),),
        (X_A_DENIED, "allow y/a x/a TCP/81"),
    ),
    Row(
        "several policies for one pod add up",
        (
            _ingress(frm(spaces(has(ns="y")), ports=[port(80)]), key="x/one"),
            _ingress(frm(spaces(has(ns="y")), ports=[port(81)]), key="x/two"),
        ),
        (X_A_DENIED, "allow y/* x/a TCP"),
    ),
    Row("allow all", (_deny_ingress(), _ingress(ALLOW_IN, subject=ALL, key="x/all")), ()),
    Row(
        "ingress on one named port",
        (_ingress(frm(ports=[port("serve-81-tcp", "TCP")])),),
        (X_A_DENIED, "allow * x/a TCP/81"),
    ),
    Row(
        "ingress from a Namespace on one named port",
        (_ingress(frm(spaces(has(ns="x")), ports=[port("serve-80-tcp", "TCP")])),),
        (X_A_DENIED, "allow x/* x/a TCP/80"),
    ),
    Row(
        "egress on one named port",
        (_egress(to(ports=[port("serve-80-tcp", "TCP")])),),
        ("deny x/a *", "allow x/a */* TCP/80"),
    ),
    Row(
        "a policy that is updated",
        (_ingress(ALLOW_IN),),
        (),
        ((put(_ingress()), (X_A_DENIED,)), (put(_ingress(frm(pods(has(pod="b"))))), (X_A_DENIED, "allow x/b x/a"))),
    ),
    Row(
        "from a Namespace whose labels are updated",
        (_ingress(frm(spaces(has(ns2="updated")))),),
        (X_A_DENIED,),
        ((label_namespace("y", ns="y", ns2="updated"), (X_A_DENIED, "allow y/* x/a")),),
    ),
    Row(
        "from a pod whose labels are updated",
        (_ingress(frm(pods(has(pod="b", pod2="updated")))),),
        (X_A_DENIED,),
        ((label_pod("x/b", pod="b", pod2="updated"), (X_A_DENIED, "allow x/b x/a")),),
    ),
    Row(
        "no ingress from pods of other Namespaces",
        (_ingress(frm(pods(ALL)), subject=ALL),),
        ("deny * x/*", "allow x/* x/*"),
    ),
    Row(
        "no ingress to a pod whose labels are updated",
        (_ingress(subject=has(target="isolated")),),
        (),
        ((label_pod("x/a", target="isolated"), (X_A_DENIED,)),),
    ),
    Row("no egress by podSelector", (_egress(),), ("deny x/a *",)),
    Row("no egress of a whole Namespace", (_egress(subject=ALL),), ("deny x/* *",)),
    Row(
        "ingress and egress together",
        (
            on(
                A,
                policyTypes=BOTH,
                ingress=[frm(spaces(has(ns="y")))],
                egress=[to(ports=[port(80), port(53, "UDP")])],
            ),
        ),
        (X_A_DENIED, "allow y/* x/a", "deny x/a *", "allow x/a * TCP/80"),
    ),
    Row(
        "egress denied at the client although the server allows",
        (_ingress(frm(pods(has(pod="b")))), _egress(key="x/out", subject=has(pod="b"))),
        (X_A_DENIED, "deny x/b *"),
    ),
    Row(
        "egress to one pod of another Namespace",
        (_egress(to(spaces(has(ns="y"), has(pod="a")))),),
        ("deny x/a *", "allow x/a y/a"),
    ),
    Row(
        "ingress on any port of one protocol",
        (_ingress(frm(ports=[port(protocol="TCP")])),),
        (X_A_DENIED, "allow * x/a TCP"),
    ),
    Row("several ingress policies, one allows all", (_ingress(key="x/deny"), _ingress(ALLOW_IN, key="x/all")), ()),
    Row("several egress policies, one allows all", (_egress(key="x/deny"), _egress(ALLOW_OUT, key="x/all")), ()),
    Row("no policy after it is deleted", (_deny_ingress("x/p"),), ("deny * x/*",), ((remove("x/p"), ()),)),
    Row("egress to a CIDR", (_egress(to(*_blocks("x/b", wide=False))),), ("deny x/a *", "allow x/a x/b")),
    Row(
        "egress to a CIDR but for its except",
        (_egress(to(*_blocks("x/b", wide=True, hole="x/b"))),),
        ("deny x/a *", "allow x/a */*", "deny x/a x/b"),
    ),
    Row(
        "an address in the except of one block and in another block",
        (_egress(to(*_blocks("x/b", wide=True, hole="x/b"), *_blocks("x/b", wide=False))),),
        ("deny x/a *", "allow x/a */*"),
        ((put(_egress(to(*_blocks("x/b", wide=True, hole="x/b")))), ("deny x/a *", "allow x/a */*", "deny x/a x/b")),),
    ),
    Row(
        "ingress and egress are independent",
        (_ingress(frm(pods(has(pod="b"))), key="x/in"), _egress(to(pods(has(pod="b"))), key="x/out")),
        (X_A_DENIED, "allow x/b x/a", "deny x/a *", "allow x/a x/b"),
        ((put(_egress(ALLOW_OUT, key="x/out")), (X_A_DENIED, "allow x/b x/a")),),
    ),
    Row(
        "SCTP is not taken for TCP",
        (_ingress(frm(ports=[port(81, "SCTP")])),),
        (X_A_DENIED, "allow * x/a SCTP/81"),
    ),
    Row(
        "a pod that allows SCTP is isolated for the rest",
        (_ingress(frm(ports=[port(80, "SCTP")])),),
        (X_A_DENIED, "allow * x/a SCTP/80"),
    ),
    Row("UDP is not taken for TCP", (_ingress(frm(ports=[port(81, "UDP")])),), (X_A_DENIED, "allow * x/a UDP/81")),
    Row(
        "the label that every Namespace has, with matchLabels",
        (_ingress(frm(spaces({"matchLabels": {"kubernetes.io/metadata.name": "y"}}))),),
        (X_A_DENIED, "allow y/* x/a"),
    ),
    Row(
        "the label that every Namespace has, with matchExpressions",
        (_ingress(frm(spaces(none_of("kubernetes.io/metadata.name", "x")))),),
        (X_A_DENIED, "allow y/* x/a", "allow z/* x/a"),
    ),
    *(
        row
        for protocol in ("UDP", "SCTP")
        for row in (
            Row(f"{protocol}: default deny of ingress", (_deny_ingress(),), (f"deny * x/* {protocol}", "deny * x/*")),
            Row(
                f"{protocol}: ports",
                (_ingress(frm(ports=[port(81, protocol)])),),
                (X_A_DENIED, f"allow * x/a {protocol}/81"),
            ),
            Row(
                f"{protocol}: from one pod of another Namespace",
                (_ingress(frm(spaces(has(ns="y"), has(pod="a")), ports=[port(80, protocol)])),),
                (X_A_DENIED, f"allow y/a x/a {protocol}/80"),
            ),
        )
    ),
    Row(
        "endPort: a range at one time with a port",
        (_egress(to(ports=[port(79, end=80)])),),
        ("deny x/a *", "allow x/a * TCP/80"),
        ((put(_egress(to(ports=[port(80, end=81)]))), ("deny x/a *", "allow x/a * TCP")),),
    ),
    Row(
        "endPort: a range beside other rules",
        (
            _egress(to(ports=[port(81, end=90)]), key="x/one"),
            _egress(to(pods(has(pod="b")), ports=[port(1, "TCP", 80)]), key="x/two"),
        ),
        ("deny x/a *", "allow x/a * TCP/81", "allow x/a x/b TCP"),
    ),
)

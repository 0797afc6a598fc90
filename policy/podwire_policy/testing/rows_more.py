"""Rows of the scenario table beside upstream's: every peer with every kind of port, the defaults of the API, and what
went wrong in other implementations. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from .oracle import Object, World
from .rows_upstream import _blocks, _egress, _ingress
from .table import (
    OUTSIDE,
    Change,
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
from .worlds import namespace

EXISTS: Object = {"matchExpressions": [{"key": "pod", "operator": "Exists"}]}
ABSENT: Object = {"matchExpressions": [{"key": "pod", "operator": "DoesNotExist"}]}
EVERYWHERE = (block("0.0.0.0/0"), block("::/0"))

# name, peers, the pods (and "world") that they are
PEERS: tuple[tuple[str, tuple[Object, ...], tuple[str, ...]], ...] = (
    ("everybody", (), ("*",)),
    ("pods of the own Namespace", (pods({}),), ("x/*",)),
    ("a pod of the own Namespace", (pods(has(pod="b")),), ("x/b",)),
    ("pods by an expression", (pods(one_of("pod", "b", "c")),), ("x/b", "x/c")),
    ("pods that lack a label", (pods(ABSENT),), ()),
    ("pods of all Namespaces", (spaces({}),), ("*/*",)),
    ("a Namespace", (spaces(has(ns="y")),), ("y/*",)),
    ("Namespaces by an expression", (spaces(none_of("ns", "x")),), ("y/*", "z/*")),
    ("a pod in all Namespaces", (spaces({}, has(pod="b")),), ("*/b",)),
    ("pods of a Namespace, with an empty podSelector", (spaces(has(ns="y"), {}),), ("y/*",)),
    ("pods by expression of a Namespace", (spaces(has(ns="y"), EXISTS),), ("y/*",)),
    ("two peers", (spaces(has(ns="y")), pods(has(pod="c"))), ("y/*", "x/c")),
    ("a block that has nobody", (block("192.0.2.0/24"),), ()),
    ("the address of a pod", tuple(_blocks("y/a", wide=False)), ("y/a",)),
    ("the addresses of pods but one", tuple(_blocks("y/a", wide=True, hole="y/a")), ("*/*", "-y/a")),
    ("every address", EVERYWHERE, ("*",)),
)
# name, ports, what of PROTOCOL/PORT they are
KINDS: tuple[tuple[str, list[Object] | None, tuple[str, ...]], ...] = (
    ("any traffic", None, ("*",)),
    ("port without protocol", [port(80)], ("TCP/80",)),
    ("TCP port", [port(81, "TCP")], ("TCP/81",)),
    ("UDP port", [port(80, "UDP")], ("UDP/80",)),
    ("SCTP port", [port(81, "SCTP")], ("SCTP/81",)),
    ("protocol without port", [port(protocol="UDP")], ("UDP",)),
    ("empty port", [{}], ("TCP",)),
    ("named port", [port("serve-80-udp", "UDP")], ("UDP/80",)),
    ("named port of another protocol", [port("serve-80-udp", "TCP")], ()),
    ("two ports", [port(80, "TCP"), port(81, "UDP")], ("TCP/80", "UDP/81")),
    ("range", [port(79, "TCP", 80)], ("TCP/80",)),
    ("range to the last port", [port(81, "UDP", 65535)], ("UDP/81",)),
    ("a port and the same port again", [port(80), port(80, "TCP")], ("TCP/80",)),
)


def _every_peer_with_every_port() -> Iterator[Row]:
    for who, peers, found in PEERS:
        for what, ports, spoken in KINDS:
            for way in ("ingress", "egress"):
                if way == "egress" and found == ("*",) and what == "named port":
                    allowed = [f"allow x/a */* {one}" for one in spoken]  # who is no pod has no named ports
                else:
                    allowed = [line for one in spoken for peer in found for line in [_line(way, peer, one)]]
                rule = frm(*peers, ports=ports) if way == "ingress" else to(*peers, ports=ports)
                denied = "deny * x/a" if way == "ingress" else "deny x/a *"
                subject = _ingress(rule) if way == "ingress" else _egress(rule)
                yield Row(f"{way}: {who}, {what}", (subject,), (denied, *allowed))


def _line(way: str, peer: str, spoken: str) -> str:
    word, peer = ("deny", peer[1:]) if peer.startswith("-") else ("allow", peer)
    return f"{word} {peer} x/a {spoken}" if way == "ingress" else f"{word} x/a {peer} {spoken}"


A = has(pod="a")
X_A_DENIED = "deny * x/a"


def _pod(key: str, **changed: object) -> Change:
    """Changes fields of a pod: spec_FIELD, status_FIELD or metadata_FIELD."""

    def change(made: World) -> None:
        pod = {part: dict(fields) for part, fields in made.pods[key].items()}
        for name, value in changed.items():
            part, field = name.split("_", 1)
            pod[part][field] = value
        made.pods[key] = pod

    return change


def _container(*ports: Object, **more: object) -> Object:
    return {"name": "c", "ports": list(ports), **more}


def _named(name: str, number: int, protocol: str = "TCP") -> Object:
    return {"name": name, "containerPort": number, "protocol": protocol}


WEB = frm(ports=[port("web")])
_DEFAULTS = (
    Row("policyTypes absent: a policy without rules isolates ingress alone", (on(A),), (X_A_DENIED,)),
    Row(
        "policyTypes absent: egress rules isolate egress too",
        (on(A, egress=[to(pods(has(pod="b")))]),),
        (X_A_DENIED, "deny x/a *", "allow x/a x/b"),
    ),
    Row("policyTypes absent: an empty list of egress rules isolates nothing more", (on(A, egress=[]),), (X_A_DENIED,)),
    Row("policyTypes says Ingress, so egress rules mean nothing", (_ingress(frm(), subject=A),), ()),
    Row("policyTypes says Egress, so ingress rules mean nothing", (on(A, policyTypes=["Egress"], ingress=[]),),
        ("deny x/a *",)),
    Row("an empty rule allows everything", (on(A, policyTypes=["Ingress", "Egress"], ingress=[{}], egress=[{}]),), ()),
    Row("from is an empty list: everybody", (_ingress({"from": [], "ports": [port(80)]}),),
        (X_A_DENIED, "allow * x/a TCP/80")),
    Row("ports is an empty list: all traffic", (_ingress({"from": [pods(has(pod="b"))], "ports": []}),),
        (X_A_DENIED, "allow x/b x/a")),
    Row("no ingress rules", (on(A, policyTypes=["Ingress"]),), (X_A_DENIED,)),
    Row("podSelector absent selects the Namespace", ({**on({}), "spec": {"policyTypes": ["Ingress"]}},),
        ("deny * x/*",)),
    Row("an expression that no pod has a label for: NotIn selects it too", (on(none_of("nothing", "b")),),
        ("deny * x/*",)),
    Row("a policy speaks of its own Namespace", (on({}, "y/p"),), ("deny * y/*",)),
    Row("a selector that selects nobody", (on(has(pod="nobody")),), ()),
)  # fmt: skip
_NAMED = (
    Row(
        "a named port that differs between pods, in ingress",
        (on({}, ingress=[WEB]),),
        ("deny * x/*",),
        (
            (_pod("x/a", spec_containers=[_container(_named("web", 80))]), ("deny * x/*", "allow * x/a TCP/80")),
            (
                _pod("x/b", spec_containers=[_container(_named("web", 81))]),
                ("deny * x/*", "allow * x/a TCP/80", "allow * x/b TCP/81"),
            ),
            (
                _pod("x/a", spec_containers=[_container(_named("web", 81, "UDP"))]),
                ("deny * x/*", "allow * x/b TCP/81"),
            ),
        ),
    ),
    Row(
        "a named port that differs between pods, in egress",
        (_egress(to(spaces({}), ports=[port("web")])),),
        ("deny x/a *",),
        (
            (_pod("y/a", spec_containers=[_container(_named("web", 80))]), ("deny x/a *", "allow x/a y/a TCP/80")),
            (
                _pod("y/b", spec_containers=[_container(_named("web", 81))]),
                ("deny x/a *", "allow x/a y/a TCP/80", "allow x/a y/b TCP/81"),
            ),
            (_pod("y/a", spec_containers=[_container()]), ("deny x/a *", "allow x/a y/b TCP/81")),
        ),
    ),
    Row(
        "a named port of a sidecar, and of a container that only initialises",
        (on(A, ingress=[WEB]),),
        (X_A_DENIED,),
        (
            (_pod("x/a", spec_initContainers=[_container(_named("web", 80))]), (X_A_DENIED,)),
            (
                _pod("x/a", spec_initContainers=[_container(_named("web", 80), restartPolicy="Always")]),
                (X_A_DENIED, "allow * x/a TCP/80"),
            ),
        ),
    ),
)
_BLOCKS = (
    Row("everything but the world outside", (_ingress(frm(spaces({}))),), ("deny world x/a",)),
    Row(
        "the world outside by its address",
        (_ingress(frm(*(block(f"{ip}/{(len(ip) > 12 and 128) or 32}") for ip in OUTSIDE))),),
        (X_A_DENIED, "allow world x/a"),
    ),
    Row(
        "everywhere but the pods",
        (_egress(to(block("0.0.0.0/0", "10.244.0.0/16"), block("::/0", "fd00:244::/32"))),),
        ("deny x/a *", "allow x/a world"),
    ),
    Row("0.0.0.0/0 speaks of IPv4 alone", (_ingress(frm(block("0.0.0.0/0"), block("::/0"))),), ()),
    Row(
        "an except is no denial for another rule",
        (_ingress(frm(*_blocks("x/b", wide=True, hole="x/b")), frm(pods(has(pod="b")))),),
        (X_A_DENIED, "allow */* x/a"),
    ),
    Row(
        "excepts that overlap and touch the ends",
        (_ingress(frm(block("10.244.0.0/16", "10.244.0.0/24", "10.244.0.0/25", "10.244.1.128/25"),
                      block("fd00:244::/32", "fd00:244:1::/48", "fd00:244:1::/64"))),),
        (X_A_DENIED, "allow x/b x/a", "allow y/a x/a", "allow y/c x/a", "allow z/b x/a"),
    ),
)  # fmt: skip
FROM_B = _ingress(frm(pods(has(pod="b"))))
_CHANGES = (
    Row(
        "labels of a pod come and go",
        (FROM_B,),
        (X_A_DENIED, "allow x/b x/a"),
        (
            (label_pod("x/c", pod="b"), (X_A_DENIED, "allow x/b x/a", "allow x/c x/a")),
            (label_pod("x/b", pod="other"), (X_A_DENIED, "allow x/c x/a")),
            (label_pod("x/c"), (X_A_DENIED,)),
        ),
    ),
    Row(
        "a Namespace goes, comes without labels, and with them",
        (_ingress(frm(spaces(has(ns="y")))),),
        (X_A_DENIED, "allow y/* x/a"),
        (
            (lambda made: made.namespaces.update(y=namespace("y")), (X_A_DENIED,)),
            (label_namespace("y", ns="y"), (X_A_DENIED, "allow y/* x/a")),
            (label_namespace("z", ns="y"), (X_A_DENIED, "allow y/* x/a", "allow z/* x/a")),
        ),
    ),
    Row(
        "a pod that ended is nobody's peer",
        (FROM_B,),
        (X_A_DENIED, "allow x/b x/a"),
        (
            (_pod("x/b", status_phase="Succeeded"), (X_A_DENIED,)),
            (_pod("x/b", status_phase="Failed"), (X_A_DENIED,)),
            (_pod("x/b", status_phase="Running"), (X_A_DENIED, "allow x/b x/a")),
            (_pod("x/b", metadata_deletionTimestamp="2026-01-01T00:00:00Z"), (X_A_DENIED, "allow x/b x/a")),
        ),
    ),
    Row(
        "an address that another pod got",
        (FROM_B,),
        (X_A_DENIED, "allow x/b x/a"),
        (
            (
                _pod("y/a", status_podIPs=[{"ip": address("x/b", f)} for f in ("ip", "ip6")], status_podIP="",
                     metadata_creationTimestamp="2026-02-01T00:00:00Z"),
                (X_A_DENIED,),
            ),
        ),
    ),
    Row(
        "one of two policies is deleted",
        (FROM_B, _ingress(frm(pods(has(pod="c"))), key="x/other")),
        (X_A_DENIED, "allow x/b x/a", "allow x/c x/a"),
        ((remove("x/p"), (X_A_DENIED, "allow x/c x/a")), (remove("x/other"), ())),
    ),
    Row(
        "a policy that selects other pods than before",
        (FROM_B,),
        (X_A_DENIED, "allow x/b x/a"),
        ((put(_ingress(frm(pods(has(pod="b"))), subject=has(pod="c"))), ("deny * x/c", "allow x/b x/c")),),
    ),
    Row(
        "the port of a policy changes",
        (_ingress(frm(ports=[port(80)])),),
        (X_A_DENIED, "allow * x/a TCP/80"),
        ((put(_ingress(frm(ports=[port(81)]))), (X_A_DENIED, "allow * x/a TCP/81")),),
    ),
)  # fmt: skip

ROWS: tuple[Row, ...] = (*_every_peer_with_every_port(), *_DEFAULTS, *_NAMED, *_BLOCKS, *_CHANGES)

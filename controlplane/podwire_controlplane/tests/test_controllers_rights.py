"""The controllers' own identity may do what they do, and nothing else is granted by name: the calls of Write in their
sources are compared with the ClusterRole `podwire:controllers`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from podwire_base.kube.registry import of
from podwire_controlplane import controllers
from podwire_controlplane.rbac import defaults
from podwire_controlplane.rbac.index import Index
from podwire_controlplane.rbac.rules import Attributes
from podwire_controlplane.server import auth

from ..testing.servers import Server

VERBS = {"create": "create", "update": "update", "patch": "patch", "status": "patch", "delete": "delete"}
SUBS = {"status": "status", "finalize": "finalize", "bind": "binding"}
GROUPS = ("system:authenticated",)


def index() -> Index:
    made = Index()
    for obj in defaults.objects():
        made.observe(obj["kind"], None, obj)
    return made


def writes() -> Iterator[tuple[str, str]]:
    """Yield (verb, kind) of the calls of Write that name both; kind is "" where it is decided later."""
    for file in Path(controllers.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Write":
                first, kind = node.args[:2]
                told = [n.value for n in ast.walk(first) if isinstance(n, ast.Constant) and n.value in (*VERBS, *SUBS)]
                own = kind.value if isinstance(kind, ast.Constant) else ""
                yield from ((str(verb), str(own)) for verb in told)


def wanted() -> set[Attributes]:
    found = set()
    for verb, kind in writes():
        if kind:
            row = of(kind)
            found.add(
                Attributes(
                    {"finalize": "update", "bind": "create"}.get(verb) or VERBS[verb],
                    row.group,
                    row.plural,
                    SUBS.get(verb, ""),
                    "" if not row.namespaced else "a",
                    "" if verb == "create" else "x",
                )
            )
    return found


def test_the_controllers_may_do_what_they_do() -> None:
    rights, asked = index(), wanted()
    assert len(asked) > 30
    assert not [one for one in asked if not rights.decide(auth.CONTROLLERS, GROUPS, one).allowed]
    for verb in ("delete", "get", "list", "patch", "watch"):
        request = Attributes(verb, "example.com", "widgets", "", "a", "x")
        assert rights.decide(auth.CONTROLLERS, GROUPS, request).allowed, "owners are of every kind"


def test_no_right_is_granted_that_no_controller_uses() -> None:
    (role,) = [
        o for o in defaults.objects() if o["kind"] == "ClusterRole" and o["metadata"]["name"] == "podwire:controllers"
    ]
    used = {(one.verb, one.group, one.combined) for one in wanted()}
    granted = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if resource != "*"
    }
    assert granted - used == {("escalate", "rbac.authorization.k8s.io", "clusterroles")}


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/v1/nodes", {"metadata": {"name": "n1"}}),
        ("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", {}),
        ("POST", "/api/v1/namespaces/default/pods/p/exec", None),
        ("DELETE", "/api/v1/namespaces/default/configmaps", None),
        ("PUT", "/api/v1/namespaces/default/configmaps/c", {}),
    ],
)
def test_the_rest_is_refused(method: str, path: str, body: object) -> None:
    with Server() as server:
        code, answer = server.ask(method, path, body, token="controllers-token")
    assert code == 403 and auth.CONTROLLERS in answer["message"]

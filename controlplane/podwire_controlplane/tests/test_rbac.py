"""RBAC without a server: rules, the index, escalation, the default roles. An oracle that shares no code with the
product judges random roles, bindings and requests.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.meta import Object
from podwire_controlplane.controllers.base import Snapshot
from podwire_controlplane.controllers.roles import CONTROLLERS, reconcile_aggregation
from podwire_controlplane.rbac import defaults
from podwire_controlplane.rbac.index import Index
from podwire_controlplane.rbac.rules import Attributes, Rule, authorize, forbidden_text, rules_of, uncovered

VERBS, GROUPS = ("get", "list", "create"), ("", "apps")
RESOURCES, SUBS, NAMES, SPACES = ("pods", "jobs"), ("", "status", "log"), ("", "a", "b"), ("", "n1", "n2")
PATHS = ("/api", "/api/v1", "/metrics", "/")


def subset(*values: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


resource_rules = st.fixed_dictionaries(
    {
        "verbs": subset(*VERBS, "*"),
        "apiGroups": subset(*GROUPS, "*"),
        "resources": subset(*RESOURCES, "pods/status", "pods/log", "jobs/status", "*/status", "*"),
    },
    optional={"resourceNames": subset("a", "b")},
)
path_rules = st.fixed_dictionaries(
    {"verbs": subset(*VERBS, "*"), "nonResourceURLs": subset("/api", "/api/*", "/metrics", "*", "/m*")}
)
rules = st.lists(st.one_of(resource_rules, path_rules), max_size=4)
requests = st.one_of(
    st.builds(
        Attributes,
        st.sampled_from(VERBS),
        st.sampled_from(GROUPS),
        st.sampled_from(RESOURCES),
        st.sampled_from(SUBS),
        st.sampled_from(SPACES),
        st.sampled_from(NAMES),
    ),
    st.builds(Attributes, st.sampled_from(VERBS), path=st.sampled_from(PATHS)),
)


def told(rule: dict[str, Any], request: Attributes) -> bool:
    """The oracle of one rule, from the API reference: every list of the rule must hold the request's part."""

    def holds(values: list[str], part: str) -> bool:
        return any(value in ("*", part) for value in values)

    if not holds(rule["verbs"], request.verb):
        return False
    if request.path is not None:
        urls = rule.get("nonResourceURLs", [])
        return any(fnmatch.fnmatchcase(request.path, url) for url in urls)
    full = request.resource + ("/" + request.sub if request.sub else "")
    known = ["*", full] + (["*/" + request.sub] if request.sub else [])
    named = "resourceNames" not in rule or request.name in rule["resourceNames"]
    return (
        holds(rule.get("apiGroups", []), request.group) and bool(set(known) & set(rule.get("resources", []))) and named
    )


@given(rules, requests)
def test_rules_allow_what_the_oracle_allows(found: list[dict[str, Any]], request: Attributes) -> None:
    expected = any(told(rule, request) for rule in found)
    assert (authorize(rules_of({"rules": found}), request) is not None) is expected


subjects = st.sampled_from(
    [
        {"kind": "User", "name": "ann"},
        {"kind": "User", "name": "system:serviceaccount:n1:robot"},
        {"kind": "Group", "name": "devs"},
        {"kind": "ServiceAccount", "name": "robot", "namespace": "n1"},
        {"kind": "ServiceAccount", "name": "robot"},
    ]
)


@st.composite
def clusters(draw: st.DrawFn) -> list[Object]:
    """Roles and bindings, some of which refer to roles that do not exist."""
    made: dict[tuple[str, str, str], Object] = {}
    for _ in range(draw(st.integers(0, 4))):
        kind, space = draw(st.sampled_from([("ClusterRole", ""), ("Role", "n1"), ("Role", "n2")]))
        name = draw(st.sampled_from(["r", "s"]))
        made[kind, space, name] = {"kind": kind, "metadata": meta(name, space), "rules": draw(rules)}
    for n in range(draw(st.integers(0, 5))):
        kind, space = draw(st.sampled_from([("ClusterRoleBinding", ""), ("RoleBinding", "n1"), ("RoleBinding", "n2")]))
        refers = "ClusterRole" if not space else draw(st.sampled_from(["Role", "ClusterRole"]))
        ref = {"kind": refers, "name": draw(st.sampled_from(["r", "s"]))}
        who = draw(st.lists(subjects, max_size=2))
        made[kind, space, str(n)] = {"kind": kind, "metadata": meta(str(n), space), "roleRef": ref, "subjects": who}
    return list(made.values())


def meta(name: str, space: str = "") -> Object:
    return {"name": name, **({"namespace": space} if space else {})}


users = st.sampled_from(
    [("ann", ()), ("bob", ("devs",)), ("bob", ()), ("system:serviceaccount:n1:robot", ("system:serviceaccounts",))]
)


def expected(cluster: list[Object], user: str, groups: tuple[str, ...], request: Attributes) -> bool:
    """The oracle of a cluster: every binding is looked at."""

    def means(subject: Object, space: str) -> bool:
        if subject["kind"] == "ServiceAccount":
            return user == f"system:serviceaccount:{subject.get('namespace', space)}:{subject['name']}"
        return user == subject["name"] if subject["kind"] == "User" else subject["name"] in groups

    for binding in cluster:
        space = binding["metadata"].get("namespace", "")
        if "roleRef" not in binding or (space and (request.path is not None or space != request.namespace)):
            continue
        if not any(means(subject, space) for subject in binding["subjects"]):
            continue
        for role in cluster:
            wanted = (binding["roleRef"]["kind"], binding["roleRef"]["name"])
            home = space if wanted[0] == "Role" else ""
            same = (role["kind"], role["metadata"]["name"]) == wanted and role["metadata"].get("namespace", "") == home
            if same and any(told(rule, request) for rule in role["rules"]):
                return True
    return False


@given(clusters(), clusters(), users, requests, st.randoms(use_true_random=False))
def test_the_index_decides_as_the_oracle_after_any_changes(
    first: list[Object], then: list[Object], user: tuple[str, tuple[str, ...]], request: Attributes, random: Any
) -> None:
    index, held = Index(), dict[tuple[str, str, str], Object]()

    def key(obj: Object) -> tuple[str, str, str]:
        return obj["kind"], obj["metadata"].get("namespace", ""), obj["metadata"]["name"]

    wanted = {key(obj): obj for obj in then}
    for obj in (*first, *then):
        index.observe(obj["kind"], held.get(key(obj)), obj)
        held[key(obj)] = obj
    for own in random.sample(sorted(held), len(held)):
        if own not in wanted:
            index.observe(own[0], held.pop(own), None)
    assert index.decide(*user, request).allowed is expected(then, *user, request)


def test_a_request_looks_at_the_bindings_of_its_user_only() -> None:
    index = Index()
    index.observe(
        "ClusterRole",
        None,
        {"metadata": meta("r"), "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]},
    )
    ref = {"kind": "ClusterRole", "name": "r"}
    for n in range(10_000):
        who = [{"kind": "User", "name": f"user{n % 5000}"}]
        space = "" if n < 5000 else f"space{n}"
        index.observe(
            "RoleBinding" if space else "ClusterRoleBinding",
            None,
            {"metadata": meta(str(n), space), "roleRef": ref, "subjects": who},
        )
    before = index.looked
    assert index.decide("user7", ("system:authenticated",), Attributes("get", "", "pods")).allowed
    assert not index.decide("user7", (), Attributes("list", "", "pods", namespace="space5007")).allowed
    assert not index.decide("stranger", (), Attributes("get", "", "pods")).allowed
    assert index.looked - before <= 6  # two bindings, and their rules


def test_reasons_are_those_of_kube_apiserver() -> None:
    index = Index()
    role = {"metadata": meta("r", "n1"), "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}
    index.observe("Role", None, role)
    who = [{"kind": "ServiceAccount", "name": "robot", "namespace": "n1"}]
    index.observe(
        "RoleBinding", None, {"metadata": meta("b", "n1"), "roleRef": {"kind": "Role", "name": "r"}, "subjects": who}
    )
    user = "system:serviceaccount:n1:robot"
    found = index.decide(user, (), Attributes("get", "", "pods", namespace="n1"))
    assert found.reason == 'RBAC: allowed by RoleBinding "b/n1" of Role "r" to ServiceAccount "robot/n1"'
    index.observe("Role", role, None)
    missing = index.decide(user, (), Attributes("get", "", "pods", namespace="n1"))
    assert missing.reason == 'RBAC: role.rbac.authorization.k8s.io "r" not found'


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            Attributes("get", "apps", "deployments", "scale", "n1", "web"),
            'User "ann" cannot get resource "deployments/scale" in API group "apps" in the namespace "n1"',
        ),
        (
            Attributes("list", "", "nodes"),
            'User "ann" cannot list resource "nodes" in API group "" at the cluster scope',
        ),
        (Attributes("get", path="/metrics"), 'User "ann" cannot get path "/metrics"'),
    ],
    ids=["namespaced", "cluster", "path"],
)
def test_refusals_have_the_words_of_kube_apiserver(request_: Attributes, text: str) -> None:
    assert forbidden_text("ann", request_) == text


# ---- escalation

UNIVERSE = [
    Attributes(verb, group, resource, sub, "", name)
    for verb, group, resource, sub, name in itertools.product(
        (*VERBS, "other"), (*GROUPS, "other"), (*RESOURCES, "other"), (*SUBS, "other"), (*NAMES, "other")
    )
] + [Attributes(verb, path=path) for verb in (*VERBS, "other") for path in (*PATHS, "/mx", "/api/x")]


@given(rules, rules)
def test_covered_rules_allow_nothing_new(owned: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    own, more = rules_of({"rules": owned}), rules_of({"rules": wanted})
    gained = [r for r in UNIVERSE if any(told(w, r) for w in wanted) and not any(told(o, r) for o in owned)]
    if not uncovered(own, more):
        assert gained == []
    assert (
        uncovered(more, more) == [] and uncovered((Rule(("*",), ("*",), ("*",)), Rule(("*",), urls=("*",))), more) == []
    )


def test_missing_rules_are_shown_compactly() -> None:
    wanted = Rule(("get", "list"), ("apps",), ("deployments", "replicasets"), ("a",))
    owned = Rule(("list",), ("apps",), ("replicasets",))
    assert [str(rule) for rule in uncovered([owned], [wanted])] == [
        '{APIGroups:["apps"], Resources:["deployments"], ResourceNames:["a"], Verbs:["get" "list"]}',
        '{APIGroups:["apps"], Resources:["replicasets"], ResourceNames:["a"], Verbs:["get"]}',
    ]


# ---- the default roles


def roles() -> dict[str, Object]:
    return {obj["metadata"]["name"]: obj for obj in defaults.objects() if obj["kind"] == "ClusterRole"}


def test_default_roles_have_what_kubernetes_documents() -> None:
    found = roles()
    assert {"cluster-admin", "admin", "edit", "view", "system:node", "system:discovery"} <= found.keys()
    view, edit, admin = (rules_of(found[name]) for name in ("view", "edit", "admin"))
    secret, pods = (
        Attributes("get", "", "secrets", namespace="n", name="s"),
        Attributes("list", "", "pods", namespace="n"),
    )
    assert authorize(view, pods) and not authorize(view, secret)
    assert authorize(edit, secret) and not authorize(edit, Attributes("create", "rbac.authorization.k8s.io", "roles"))
    assert authorize(admin, Attributes("create", "rbac.authorization.k8s.io", "roles"))
    assert uncovered(admin, edit) == [] and uncovered(edit, view) == []
    for obj in defaults.objects():
        if obj["kind"].endswith("Binding") and obj["roleRef"]["kind"] == "ClusterRole":
            assert obj["roleRef"]["name"] in found
        for rule in rules_of(obj):
            assert rule.verbs and (bool(rule.urls) != bool(rule.groups and rule.resources))


def test_reconciliation_adds_what_is_missing_and_keeps_what_was_added() -> None:
    wanted = roles()["system:node-proxier"]
    assert defaults.reconciled(wanted, copy.deepcopy(wanted)) is None
    found = copy.deepcopy(wanted)
    own = {"verbs": ["get"], "apiGroups": ["x"], "resources": ["y"]}
    found["rules"] = [*found["rules"][1:], own]
    after = defaults.reconciled(wanted, found)
    assert after is not None and after["rules"][: len(found["rules"])] == found["rules"]
    assert uncovered(rules_of(after), rules_of(wanted)) == [] and uncovered(rules_of(found), rules_of(wanted))
    assert defaults.reconciled(wanted, after) is None
    found["metadata"]["annotations"][defaults.AUTOUPDATE] = "false"
    assert defaults.reconciled(wanted, found) is None
    binding = next(
        o
        for o in defaults.objects()
        if o["kind"] == "ClusterRoleBinding" and o["metadata"]["name"] == "system:discovery"
    )
    less = {**binding, "subjects": [{"kind": "User", "name": "ann"}]}
    more = defaults.reconciled(binding, less)
    assert more is not None and more["subjects"] == [*less["subjects"], *binding["subjects"]]


def test_the_controller_collects_roles_by_their_labels() -> None:
    def role(name: str, label: str = "", collects: str = "", rule: str = "") -> Object:
        made: Object = {"metadata": {"name": name, "labels": {label: "true"} if label else {}}}
        if collects:
            made["aggregationRule"] = {
                "clusterRoleSelectors": [{"matchExpressions": [{"key": collects, "operator": "Exists"}]}]
            }
        return {**made, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [rule]}] if rule else None}

    cache = {
        r["metadata"]["name"]: r
        for r in (
            role("big", collects="x"),
            role("a", "x", rule="pods"),
            role("b", "x", rule="pods"),
            role("c", rule="nodes"),
        )
    }
    snapshot = Snapshot({"ClusterRole": cache})
    (write,) = reconcile_aggregation("big", snapshot, 0.0)
    assert (write.verb, write.obj) == (
        "patch",
        {"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]},
    )
    cache["big"] = {**cache["big"], **write.obj}
    assert reconcile_aggregation("big", snapshot, 0.0) == []
    assert list(CONTROLLERS[0].watches["ClusterRole"](cache["a"], snapshot)) == ["big"]
    del cache["a"], cache["b"]
    assert reconcile_aggregation("big", snapshot, 0.0)[0].obj == {"rules": []}


def test_a_rule_is_written_in_the_order_of_kubernetes() -> None:
    rule = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a"]}
    assert json.dumps(rules_of({"rules": [rule]})[0].to_object()) == json.dumps(rule)

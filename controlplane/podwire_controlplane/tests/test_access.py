"""Who may do what, over a real TLS socket: roles, escalation, impersonation, reviews."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.testing.builders import pod
from podwire_controlplane.server import auth, builtinroles, impersonation
from podwire_controlplane.store.memory import MemoryStore

from ..testing.servers import Server

RBAC = "/apis/rbac.authorization.k8s.io/v1"
HOME, PODS = f"{RBAC}/namespaces/default", "/api/v1/namespaces/default/pods"
GROUP = "rbac.authorization.k8s.io"
REVIEWS = "/apis/authorization.k8s.io/v1"


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as own:
        yield own


def role(name: str, *rules: tuple[str, str, str], kind: str = "Role") -> Object:
    rows = [{"verbs": v.split(), "apiGroups": [g], "resources": r.split()} for v, g, r in rules]
    return {"kind": kind, "apiVersion": f"{GROUP}/v1", "metadata": {"name": name}, "rules": rows}


def binding(name: str, user: str, kind: str = "Role", role: str = "", **subject: Any) -> Object:
    who = {"kind": "User", "apiGroup": GROUP, "name": user, **subject}
    ref = {"apiGroup": GROUP, "kind": kind, "name": role or name}
    return {"metadata": {"name": name}, "roleRef": ref, "subjects": [who]}


def as_user(server: Server, user: str, method: str, path: str, body: Any = None, *groups: str) -> tuple[int, Object]:
    headers = {"Impersonate-User": user, **({"Impersonate-Group": groups[0]} if groups else {})}
    if method == "PATCH":
        headers["Content-Type"] = "application/merge-patch+json"
    return server.ask(method, path, body, headers=headers)


# ---- roles


def test_a_role_counts_from_the_moment_that_it_is_written_until_it_goes(server: Server) -> None:
    assert as_user(server, "ann", "GET", PODS)[0] == 403
    server.good("POST", f"{HOME}/roles", role("r", ("get list", "", "pods")))
    server.good("POST", f"{HOME}/rolebindings", binding("r", "ann"))
    assert as_user(server, "ann", "GET", PODS)[0] == 200
    assert as_user(server, "ann", "GET", "/api/v1/pods")[0] == 403
    assert as_user(server, "ann", "GET", PODS + "?watch=true&timeoutSeconds=1")[0] == 403
    server.good("DELETE", f"{HOME}/roles/r")
    code, answer = as_user(server, "ann", "GET", PODS)
    assert (code, answer["reason"], answer["details"]) == (403, "Forbidden", {"kind": "pods"})
    assert answer["message"] == (
        'pods is forbidden: User "ann" cannot list resource "pods" in API group "" in the namespace "default": '
        'RBAC: role.rbac.authorization.k8s.io "r" not found'
    )


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/metrics", 'forbidden: User "bob" cannot get path "/metrics"'),
        (
            "DELETE",
            "/apis/apps/v1/namespaces/n/deployments/w",
            (
                'deployments.apps "w" is forbidden: User "bob" cannot delete resource "deployments" in API group '
                '"apps" in the namespace "n"'
            ),
        ),
        (
            "GET",
            "/api/v1/namespaces/n",
            (
                'namespaces "n" is forbidden: User "bob" cannot get resource "namespaces" in API group "" in the '
                'namespace "n"'
            ),
        ),
        (
            "DELETE",
            "/api/v1/namespaces/n/pods",
            (
                'pods is forbidden: User "bob" cannot deletecollection resource "pods" in API group "" in the '
                'namespace "n"'
            ),
        ),
        (
            "GET",
            "/api/v1/nodes?fieldSelector=metadata.name%3Dn1",
            'nodes "n1" is forbidden: User "bob" cannot list resource "nodes" in API group "" at the cluster scope',
        ),
    ],
    ids=["path", "delete", "namespace", "collection", "selected"],
)
def test_refusals_have_the_words_of_kube_apiserver(shared: Server, method: str, path: str, message: str) -> None:
    code, answer = as_user(shared, "bob", method, path)
    assert (code, answer["reason"], answer["message"]) == (403, "Forbidden", message)


def test_view_edit_and_admin_work_in_their_namespace(server: Server) -> None:
    for name in ("view", "edit", "admin"):
        server.good("POST", f"{HOME}/rolebindings", binding(f"b-{name}", f"{name}er", "ClusterRole", name))
    for user, may in (("viewer", 403), ("editer", 201), ("adminer", 201)):
        assert as_user(server, user, "GET", PODS)[0] == 200
        assert as_user(server, user, "POST", PODS, pod(user))[0] == may
        assert as_user(server, user, "GET", "/api/v1/namespaces/default")[0] == 200
        assert as_user(server, user, "GET", "/api/v1/namespaces/kube-system/pods")[0] == 403
    assert as_user(server, "viewer", "GET", "/api/v1/namespaces/default/secrets")[0] == 403
    assert as_user(server, "editer", "POST", f"{HOME}/roles", role("x"))[0] == 403
    assert as_user(server, "adminer", "POST", f"{HOME}/roles", role("x", ("get", "", "pods")))[0] == 201


def test_a_refusal_comes_before_the_body_is_read(shared: Server) -> None:
    body = b"{" + b"[" * 2_000_000
    with shared.open("POST", PODS, body, headers={"Impersonate-User": "bob"}) as answer:
        assert answer.status == 403


# ---- escalation


def test_nobody_grants_what_he_does_not_have(server: Server) -> None:
    verbs = "get create update"
    server.good("POST", f"{HOME}/roles", role("granter", (verbs, GROUP, "roles"), ("get", "", "pods")))
    server.good("POST", f"{HOME}/rolebindings", binding("granter", "ann"))
    code, answer = as_user(server, "ann", "POST", f"{HOME}/roles", role("more", ("get list", "", "pods secrets")))
    lines = (
        (
            'roles.rbac.authorization.k8s.io "more" is forbidden: user "ann" (groups=["system:authenticated"]) is '
            "attempting to grant RBAC permissions not currently held:"
        ),
        '{APIGroups:[""], Resources:["pods"], Verbs:["list"]}',
        '{APIGroups:[""], Resources:["secrets"], Verbs:["get" "list"]}',
    )
    assert (code, answer["message"].splitlines()) == (403, list(lines))
    server.good("POST", f"{HOME}/roles", role("any", ("*", GROUP, "roles")))
    server.good("POST", f"{HOME}/rolebindings", binding("any", "ann"))
    assert as_user(server, "ann", "POST", f"{HOME}/roles", role("more", ("get", "", "secrets")))[0] == 201, "escalate"


def test_escalate_and_bind_are_verbs_of_their_own(server: Server) -> None:
    verbs = "get create update patch"
    server.good("POST", f"{HOME}/roles", role("r", (verbs, GROUP, "roles rolebindings"), ("get", "", "pods")))
    server.good("POST", f"{HOME}/rolebindings", binding("r", "ann"))
    more, less = role("new", ("get", "", "secrets")), role("new", ("get", "", "pods"))
    assert as_user(server, "ann", "POST", f"{HOME}/roles", more)[0] == 403
    assert as_user(server, "ann", "POST", f"{HOME}/roles", less)[0] == 201
    assert as_user(server, "ann", "PATCH", f"{HOME}/roles/new", {"rules": more["rules"]})[0] == 403
    assert as_user(server, "ann", "PUT", f"{HOME}/roles/new", more)[0] == 403
    assert as_user(server, "ann", "PUT", f"{HOME}/roles/other", role("other", ("get", "", "secrets")))[0] == 403
    assert as_user(server, "ann", "POST", f"{HOME}/rolebindings", binding("b", "bob", "ClusterRole", "view"))[0] == 403
    assert as_user(server, "ann", "POST", f"{HOME}/rolebindings", binding("b", "bob", "Role", "new"))[0] == 201
    missing = as_user(server, "ann", "POST", f"{HOME}/rolebindings", binding("c", "bob", "Role", "none"))
    assert missing[0] == 404 and missing[1]["details"]["name"] == "none"
    server.good("POST", f"{HOME}/roles", role("s", ("escalate bind", GROUP, "roles clusterroles")))
    server.good("POST", f"{HOME}/rolebindings", binding("s", "ann"))
    assert as_user(server, "ann", "PATCH", f"{HOME}/roles/new", {"rules": more["rules"]})[0] == 200
    assert as_user(server, "ann", "POST", f"{HOME}/rolebindings", binding("d", "bob", "ClusterRole", "view"))[0] == 201


def test_a_put_that_creates_needs_the_right_to_create(server: Server) -> None:
    server.good("POST", f"{HOME}/roles", role("r", ("update", "", "limitranges")))
    server.good("POST", f"{HOME}/rolebindings", binding("r", "ann"))
    body = {"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container"}]}}
    code, answer = as_user(server, "ann", "PUT", "/api/v1/namespaces/default/limitranges/l", body)
    assert code == 403 and "cannot create" in answer["message"]


def test_an_aggregating_role_needs_everything(server: Server) -> None:
    server.good("POST", f"{RBAC}/clusterroles", role("r", ("create", GROUP, "clusterroles"), kind="ClusterRole"))
    server.good("POST", f"{RBAC}/clusterrolebindings", binding("r", "ann", "ClusterRole"))
    collects = {
        **role("all", kind="ClusterRole"),
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]},
    }
    assert as_user(server, "ann", "POST", f"{RBAC}/clusterroles", role("none", kind="ClusterRole"))[0] == 201
    assert as_user(server, "ann", "POST", f"{RBAC}/clusterroles", collects)[0] == 403


# ---- impersonation


def test_who_may_impersonate_whom(server: Server) -> None:
    def ask(headers: dict[str, str], token: str = "reader-token") -> tuple[int, Object]:
        return server.ask("GET", PODS, token=token, headers=headers)

    code, answer = ask({"Impersonate-User": "ann"})
    assert (code, answer["message"]) == (
        403,
        (
            'users "ann" is forbidden: User "reader" cannot impersonate resource "users" in API group "" at the '
            "cluster scope"
        ),
    )
    server.good("POST", f"{RBAC}/clusterroles", role("act", ("impersonate", "", "users"), kind="ClusterRole"))
    server.good("POST", f"{RBAC}/clusterrolebindings", binding("act", "reader", "ClusterRole"))
    assert 'User "ann"' in ask({"Impersonate-User": "ann"})[1]["message"]
    for more in ("Impersonate-Group: system:masters", "Impersonate-Uid: 1", "Impersonate-Extra-Scopes: x"):
        field, _, value = more.partition(": ")
        code, answer = ask({"Impersonate-User": "ann", field: value})
        assert code == 403 and 'User "reader" cannot impersonate' in answer["message"]
    assert ask({"Impersonate-User": "system:serviceaccount:default:x"})[0] == 403
    for alone in ("Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-A"):
        assert ask({alone: "x"}, "admin-token")[0] == 400


def test_an_acting_admin_is_no_admin(shared: Server) -> None:
    for path in (auth.REVOKE_PATH, PODS):
        code, answer = shared.ask("POST", path, {"node": "n"}, headers={"Impersonate-User": "nobody"})
        assert (code in (403, 404) and "nobody" in str(answer)) or code == 404, answer


def test_what_the_other_identity_has() -> None:
    headers = [
        ("Impersonate-User", "u"),
        ("Impersonate-Group", "a"),
        ("impersonate-group", "b"),
        ("Impersonate-Extra-A%2fB", "1"),
        ("Impersonate-Extra-a%2fb", "2"),
    ]
    who = impersonation.wanted(headers)
    assert who is not None
    assert who.extra == (("a/b", ("1", "2")),)
    assert impersonation.acting(who).groups == ("a", "b", auth.AUTHENTICATED)
    account = impersonation.acting(impersonation.Wanted("system:serviceaccount:n:x"))
    assert account.groups == ("system:serviceaccounts", "system:serviceaccounts:n", auth.AUTHENTICATED)
    assert impersonation.acting(impersonation.Wanted(auth.ANONYMOUS.name)).groups == (auth.UNAUTHENTICATED,)
    assert impersonation.acting(impersonation.Wanted("u", (auth.UNAUTHENTICATED,))).groups == (auth.UNAUTHENTICATED,)
    assert [(c.resource, c.sub, c.name) for c in impersonation.checks(who)] == [
        ("users", "", "u"), ("groups", "", "a"), ("groups", "", "b"),
        ("userextras", "a/b", "1"), ("userextras", "a/b", "2"),
    ]  # fmt: skip


# ---- reviews


def test_reviews_tell_what_a_request_would_be_told(server: Server) -> None:
    on = {"namespace": "default", "verb": "list", "resource": "pods"}
    own, other = f"{REVIEWS}/selfsubjectaccessreviews", f"{REVIEWS}/subjectaccessreviews"
    ask = {"spec": {"resourceAttributes": on}}
    assert as_user(server, "ann", "POST", own, ask)[1]["status"] == {"allowed": False}
    server.good("POST", f"{HOME}/rolebindings", binding("v", "ann", "ClusterRole", "view"))
    allowed = as_user(server, "ann", "POST", own, ask)[1]["status"]
    assert allowed == {
        "allowed": True,
        "reason": 'RBAC: allowed by RoleBinding "v/default" of ClusterRole "view" to User "ann"',
    }
    assert as_user(server, "ann", "POST", other, {"spec": {**ask["spec"], "user": "ann"}})[0] == 403
    assert server.good("POST", other, {"spec": {**ask["spec"], "user": "ann"}})["status"] == allowed
    masters = {"spec": {**ask["spec"], "groups": [auth.ADMINS]}}
    assert server.good("POST", other, masters)["status"] == {"allowed": True}
    rules = as_user(server, "ann", "POST", f"{REVIEWS}/selfsubjectrulesreviews", {"spec": {"namespace": "default"}})[1]
    assert any("pods/log" in rule["resources"] for rule in rules["status"]["resourceRules"])
    assert any("/version" in rule["nonResourceURLs"] for rule in rules["status"]["nonResourceRules"])


def test_readers_are_shown_what_they_may(shared: Server) -> None:
    path = f"{REVIEWS}/selfsubjectaccessreviews"
    for resource, sub, verb, may in (
        ("pods", "", "list", True), ("widgets", "", "get", True), ("secrets", "", "get", False),
        ("pods", "exec", "get", False), ("pods", "log", "get", True), ("pods", "", "create", False),
    ):  # fmt: skip
        on = {"verb": verb, "resource": resource, "subresource": sub}
        found = shared.good("POST", path, {"spec": {"resourceAttributes": on}}, token="reader-token")
        assert found["status"]["allowed"] is may, on


# ---- the default objects


def test_defaults_are_made_once_and_mended() -> None:
    async def check() -> None:
        store = MemoryStore()
        made = await builtinroles.keep(store, 0.0)
        assert made > 100 and await builtinroles.keep(store, 0.0) == 0
        key = "/rbac.authorization.k8s.io/clusterrolebindings/system:discovery"
        await store.delete(key)
        assert await builtinroles.keep(store, 0.0) == 1
        assert await store.get(key)

    asyncio.run(check())


def test_an_apply_creates_only_where_its_user_may_create(server: Server) -> None:
    """As upstream: the verb patch is not enough for an object that is not there, and an apply grants no rights that its
    user lacks.
    """
    server.good("POST", f"{HOME}/roles", role("p", ("patch", "", "configmaps")))
    server.good("POST", f"{HOME}/rolebindings", binding("p", "ann"))
    path = "/api/v1/namespaces/default/configmaps"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    headers = {"Content-Type": "application/apply-patch+yaml", "Impersonate-User": "ann"}
    code, answer = server.ask("PATCH", f"{path}/c?fieldManager=m", body, headers=headers)
    assert code == 403 and "create" in answer["message"]
    server.good("POST", path, body)
    code, answer = server.ask("PATCH", f"{path}/c?fieldManager=m", body, headers=headers)
    assert code == 200 and [row["manager"] for row in answer["metadata"]["managedFields"]][:1] == ["m"]
    role_body = {"apiVersion": f"{GROUP}/v1", "kind": "Role", "metadata": {"name": "p"}}
    rules = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
    server.good("POST", f"{HOME}/roles", role("q", ("patch create", GROUP, "roles")))
    server.good("POST", f"{HOME}/rolebindings", binding("q", "ann"))
    for target in ("p", "new"):  # rights that ann does not have, in an old Role and in a new one
        wanted = {**role_body, "metadata": {"name": target}, "rules": rules}
        asked = server.ask("PATCH", f"{HOME}/roles/{target}?fieldManager=m&force=true", wanted, headers=headers)
        assert asked[0] == 403, asked

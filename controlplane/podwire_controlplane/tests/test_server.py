"""The API over a real TLS socket: authentication, the form of every error, lists and pages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import RESOURCES
from podwire_base.testing.builders import deployment, minimal, node, pod, service
from podwire_base.testing.counts import examples
from podwire_controlplane.server import auth, pki

from ..testing.servers import AUTHORITY, Server

PODS, SERVICES = "/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/services"


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as own:
        yield own


def status(answer: tuple[int, Object], code: int, reason: str, *words: str) -> Object:
    got, body = answer
    assert got == code, body
    assert body["kind"] == "Status" and body["status"] == "Failure" and body["code"] == code
    assert body["reason"] == reason and body["message"], body
    assert "Traceback" not in json.dumps(body)
    for word in words:
        assert word in body["message"]
    return body


# ---- authentication and authorisation


def test_open_paths_and_nothing_else_for_the_anonymous(shared: Server) -> None:
    for path in auth.OPEN_PATHS:
        with shared.open("GET", path, token=None) as answer:
            assert answer.status == 200
    for path in ("/api", "/apis", PODS, "/openapi/v3", "/nothing", "/healthz/x", "/metrics"):
        status(shared.ask("GET", path, token=None), 403, "Forbidden", "system:anonymous")
        status(shared.ask("GET", path, token="wrong"), 401, "Unauthorized")
    status(shared.ask("GET", PODS, token=None, headers={"Authorization": "Basic YTpi"}), 403, "Forbidden")
    status(shared.ask("GET", PODS, token=None, headers={"Authorization": "Bearer é"}), 401, "Unauthorized")


def test_client_certificates(shared: Server) -> None:
    admin = AUTHORITY.client("root", [auth.ADMINS])
    assert shared.good("GET", PODS, token=None, cert=admin)["kind"] == "PodList"
    plain = AUTHORITY.client("somebody", [])
    status(shared.ask("GET", PODS, token=None, cert=plain), 403, "Forbidden", "somebody")
    foreign = pki.Authority().client("root", [auth.ADMINS])
    with pytest.raises(OSError, match=r"(?i)closed|alert|reset|broken"):  # the TLS layer refuses it
        shared.ask("GET", PODS, token=None, cert=foreign)


def test_readers_read_all_but_secrets(shared: Server) -> None:
    assert shared.good("GET", PODS, token="reader-token")["kind"] == "PodList"
    status(shared.ask("GET", "/api/v1/secrets", token="reader-token"), 403, "Forbidden", "secrets", "reader")
    status(shared.ask("POST", PODS, pod(), token="reader-token"), 403, "Forbidden", "create")
    status(shared.ask("DELETE", PODS, token="reader-token"), 403, "Forbidden", "deletecollection")
    status(shared.ask("GET", PODS, token="nobody-token"), 403, "Forbidden")


def test_a_node_writes_only_what_is_its_own(server: Server) -> None:
    nodes, leases = "/api/v1/nodes", "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"

    def ask(method: str, path: str, body: Any = None) -> tuple[int, Object]:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        return server.ask(method, path, body, token="node-token", headers={"Content-Type": kind})

    lease = {"metadata": {"name": "n1"}}
    assert ask("POST", nodes, node("n1"))[0] == 201 and ask("POST", leases, lease)[0] == 201
    assert ask("PATCH", nodes + "/n1/status", {"status": {"phase": "x"}})[0] == 200
    server.good("POST", nodes, node("n2"))
    for own in ("mine", "theirs"):
        server.good("POST", PODS, pod(own, nodeName="n1" if own == "mine" else "n2"))
    assert ask("PATCH", PODS + "/mine/status", {"status": {"phase": "Running"}})[0] == 200
    for method, path, body in (
        ("POST", nodes, node("n3")),
        ("POST", leases, {"metadata": {"name": "n3"}}),
        ("DELETE", nodes + "/n1", None),
        ("POST", nodes, {"metadata": {"generateName": "n"}}),
        ("PATCH", nodes + "/n2/status", {}),
        ("POST", PODS, pod()),
        ("PATCH", PODS + "/mine", {"spec": {}}),
        ("PATCH", PODS + "/theirs/status", {"status": {"phase": "Failed"}}),
        ("DELETE", PODS + "/theirs", None),
        ("PATCH", PODS + "/missing/status", {}),
        ("DELETE", PODS, None),
        ("GET", "/api/v1/secrets", None),
        ("POST", SERVICES, service()),
        ("PUT", nodes + "/n2", node("n2")),
    ):
        before = server.do(server.store.revision())
        status(ask(method, path, body), 403, "Forbidden")
        assert server.do(server.store.revision()) == before
    assert ask("DELETE", PODS + "/mine", {"gracePeriodSeconds": 0})[0] == 200


# ---- the form of errors


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "code", "reason"),
    [
        ("GET", "/api/v2/pods", None, {}, 404, "NotFound"),
        ("GET", "/apis/apps/v1/pods", None, {}, 404, "NotFound"),
        ("GET", PODS + "/none", None, {}, 404, "NotFound"),
        ("GET", PODS + "/none/nosub", None, {}, 404, "NotFound"),
        ("GET", "/api/v1/pods/x", None, {}, 404, "NotFound"),
        ("GET", "/api/v1/namespaces/default/nodes", None, {}, 404, "NotFound"),
        ("POST", PODS + "/x", {}, {}, 405, "MethodNotAllowed"),
        ("PUT", "/api/v1/pods", {}, {}, 405, "MethodNotAllowed"),
        ("POST", "/api/v1/pods", pod(), {}, 405, "MethodNotAllowed"),
        ("POST", PODS, b"{", {}, 400, "BadRequest"),
        ("POST", PODS, b"\xff\xfe", {}, 400, "BadRequest"),
        ("POST", PODS, b"[" * 100_000, {}, 400, "BadRequest"),
        ("POST", PODS, b'{"a":' * 990 + b"1" + b"}" * 990, {}, 400, "BadRequest"),
        ("POST", PODS, b"[]", {}, 400, "BadRequest"),
        ("POST", PODS, b"", {}, 400, "BadRequest"),
        ("POST", PODS, b"a: [", {"Content-Type": "application/yaml"}, 400, "BadRequest"),
        ("POST", PODS, b"{? [a] : b}", {"Content-Type": "application/yaml"}, 400, "BadRequest"),
        ("POST", PODS, b"a: [*a]", {"Content-Type": "application/yaml"}, 400, "BadRequest"),
        ("POST", PODS, b"when: 2026-99-99", {"Content-Type": "application/yaml"}, 422, "Invalid"),
        ("POST", PODS, b"k8s\0abc", {}, 400, "BadRequest"),
        ("POST", PODS, b"x", {"Content-Type": "application/vnd.kubernetes.protobuf"}, 400, "BadRequest"),
        ("POST", PODS, b"{}", {"Content-Type": "text/plain"}, 415, "UnsupportedMediaType"),
        ("PATCH", PODS + "/x", b"{}", {}, 415, "UnsupportedMediaType"),
        ("PATCH", PODS + "/x", b"{}", {"Content-Type": "application/apply-patch+yaml"}, 422, "Invalid"),
        (
            "PATCH",
            PODS + "/x?fieldManager=m",
            b"[]",
            {"Content-Type": "application/apply-patch+yaml"},
            400,
            "BadRequest",
        ),
        (
            "PATCH",
            PODS + "/x?fieldManager=m",
            b"a: [",
            {"Content-Type": "application/apply-patch+yaml"},
            400,
            "BadRequest",
        ),
        ("PATCH", PODS + "/x?force=true", b"{}", {"Content-Type": "application/merge-patch+json"}, 422, "Invalid"),
        ("PATCH", PODS + "/x", b"{}", {"Content-Type": "application/merge-patch+json"}, 404, "NotFound"),
        ("POST", PODS, b" " * (3 * 1024 * 1024 + 1), {}, 413, "RequestEntityTooLarge"),
        ("POST", PODS + "?fieldValidation=Maybe", pod(), {}, 422, "Invalid"),
        ("POST", PODS + "?dryRun=Some", pod(), {}, 422, "Invalid"),
        ("GET", PODS + "?limit=x", None, {}, 400, "BadRequest"),
        ("GET", PODS + "?limit=%C2%B2", None, {}, 400, "BadRequest"),
        ("GET", PODS + "?continue=x", None, {}, 400, "BadRequest"),
        ("GET", PODS + "?labelSelector=a%20in", None, {}, 400, "BadRequest"),
        ("GET", PODS + "?fieldSelector=a", None, {}, 400, "BadRequest"),
        ("GET", PODS + "?resourceVersion=x", None, {}, 400, "BadRequest"),
        ("GET", PODS + "?resourceVersion=" + "9" * 5000, None, {}, 400, "BadRequest"),
        ("GET", PODS + "?watch=1&timeoutSeconds=x", None, {}, 400, "BadRequest"),
        ("GET", PODS + "?watch=1&sendInitialEvents=true", None, {}, 422, "Invalid"),
        ("DELETE", PODS + "/x", b"[]", {}, 400, "BadRequest"),
        ("DELETE", PODS + "/x?gracePeriodSeconds=-1", None, {}, 404, "NotFound"),
        ("DELETE", PODS + "/x", {"gracePeriodSeconds": 10**30}, {}, 400, "BadRequest"),
        ("DELETE", PODS + "/x", {"gracePeriodSeconds": True}, {}, 400, "BadRequest"),
        ("DELETE", PODS + "/x", {"preconditions": "x"}, {}, 400, "BadRequest"),
        ("DELETE", PODS + "/x", {"dryRun": 5}, {}, 400, "BadRequest"),
        ("DELETE", PODS + "/x", {}, {}, 404, "NotFound"),
        ("PUT", "/api/v1/namespaces/default/finalize", b"[]", {}, 400, "BadRequest"),
        ("PUT", "/apis/apps/v1/namespaces/default/deployments/x/scale", b"[]", {}, 400, "BadRequest"),
        ("POST", SERVICES, service(type="Wrong"), {}, 422, "Invalid"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_every_error_is_a_status(
    shared: Server, method: str, path: str, body: Any, headers: dict[str, str], code: int, reason: str
) -> None:
    status(shared.ask(method, path, body, headers=headers), code, reason)


def test_details_name_the_object_and_every_field(shared: Server) -> None:
    bad = service(ports=[{"port": 0}, {"port": 70000, "name": "A"}], sessionAffinity="Sometimes")
    body = status(shared.ask("POST", SERVICES, bad), 422, "Invalid")
    assert body["details"]["kind"] == "Service" and body["details"]["name"] == "web"
    fields = {c["field"] for c in body["details"]["causes"]}
    assert fields >= {
        "spec.ports[0].port",
        "spec.ports[0].name",
        "spec.ports[1].port",
        "spec.ports[1].name",
        "spec.sessionAffinity",
    }
    assert all(f in body["message"] for f in fields)


_WORDS = st.sampled_from(
    [
        "api",
        "v1",
        "apis",
        "apps",
        "namespaces",
        "default",
        "pods",
        "services",
        "x",
        "status",
        "scale",
        "openapi",
        "v3",
        "%00",
        "%2e%2e",
        "..",
        "",
        "é",
        "a b",
        "%ff",
        "nodes",
        "finalize",
        "deployments",
    ]
)


@settings(max_examples=examples(25, 500))
@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"]),
    st.lists(_WORDS, max_size=7),
    st.dictionaries(
        st.sampled_from(
            [
                "watch",
                "limit",
                "labelSelector",
                "fieldSelector",
                "continue",
                "resourceVersion",
                "dryRun",
                "timeoutSeconds",
                "gracePeriodSeconds",
            ]
        ),
        st.text(max_size=5),
        max_size=2,
    ),
    st.binary(max_size=30) | st.sampled_from([b"{}", b'{"spec":{}}', b"null", b'[{"op":"add"}]', b'{"metadata":null}']),
    st.sampled_from(
        [
            "application/json",
            "application/merge-patch+json",
            "application/json-patch+json",
            "application/yaml",
            "application/strategic-merge-patch+json",
            "text/plain",
            "nonsense",
            "",
        ]
    ),
)
def test_no_request_brings_out_a_traceback(
    shared: Server, method: str, words: list[str], query: dict[str, str], body: bytes, kind: str
) -> None:
    from urllib.parse import quote, urlencode

    if query.get("watch") in ("1", "true"):
        query["timeoutSeconds"] = "1"
    path = "/" + "/".join(quote(w, safe="%.") for w in words) + "?" + urlencode(query)
    with shared.open(method, path, body, headers={"Content-Type": kind}) as answer:
        text = answer.read()
        assert b"Traceback" not in text and (answer.status != 500 or b"resourceVersion" in text), text
        if answer.status >= 400 and method != "HEAD":
            assert text == b"404 page not found\n" or json.loads(text)["kind"] == "Status"


# ---- reading


def test_names_in_answers(shared: Server) -> None:
    for resource in (r for r in RESOURCES if r.storable):
        space = "default" if resource.namespaced else ""
        body = minimal(resource)
        own = body["metadata"]["name"]
        if own == "x":  # other names follow a rule of their kind; two versions of one kind share their objects
            own = body["metadata"]["name"] = (
                f"named-{resource.version}{'-new' if resource.group == 'events.k8s.io' else ''}"
            )
        made = shared.good("POST", resource.path(space), body)
        got = shared.good("GET", resource.path(space, own))
        if resource.kind == "CustomResourceDefinition":  # its conditions follow the answer
            made |= {"metadata": got["metadata"], "status": got["status"]}
        assert got == made and got["kind"] == resource.kind and got["apiVersion"] == resource.api_version
        found = shared.good("GET", resource.path())
        assert found["kind"] == resource.kind + "List" and found["apiVersion"] == resource.api_version
        assert {k: v for k, v in made.items() if k not in ("kind", "apiVersion")} in found["items"]


def test_pages_are_of_one_moment(server: Server) -> None:
    for n in range(7):
        server.good("POST", PODS, pod(f"p{n}", labels={"odd": str(n % 2)}))
    first = server.good("GET", PODS + "?limit=3")
    server.good("POST", PODS, pod("p00"))
    server.good("DELETE", PODS + "/p5", {"gracePeriodSeconds": 0})
    names, page = [], first
    while True:
        names += [i["metadata"]["name"] for i in page["items"]]
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        if not (token := page["metadata"].get("continue")):
            break
        page = server.good("GET", PODS + f"?limit=3&continue={token}")
    assert names == [f"p{n}" for n in range(7)]
    odd = server.good("GET", PODS + "?limit=2&labelSelector=odd%3D1")
    assert [i["metadata"]["name"] for i in odd["items"]] == ["p1", "p3"] and "continue" not in odd["metadata"]
    assert [i["metadata"]["name"] for i in server.good("GET", PODS + "?fieldSelector=metadata.name%3Dp2")["items"]] == [
        "p2"
    ]


def test_delete_collection_takes_what_matches(server: Server) -> None:
    for n in range(4):
        server.good("POST", PODS, pod(f"p{n}", labels={"odd": str(n % 2)}))
    server.good("DELETE", PODS + "?labelSelector=odd%3D1&dryRun=All")
    assert len(server.good("GET", PODS)["items"]) == 4
    server.good("DELETE", PODS + "?labelSelector=odd%3D1")
    assert [i["metadata"]["name"] for i in server.good("GET", PODS)["items"]] == ["p0", "p2"]


def test_tables(shared: Server) -> None:
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
    shared.good("POST", SERVICES, service("shown"))
    table = shared.good("GET", SERVICES, headers=accept)
    titles = [c["name"] for c in table["columnDefinitions"]]
    row = next(r for r in table["rows"] if r["object"]["metadata"]["name"] == "shown")
    assert table["kind"] == "Table" and table["metadata"]["resourceVersion"]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    assert dict(zip(titles, row["cells"], strict=True)) | {"Age": ""} == {
        "Name": "shown",
        "Type": "ClusterIP",
        "Cluster-IP": row["cells"][titles.index("Cluster-IP")],
        "External-IP": "<none>",
        "Port(s)": "80/TCP",
        "Age": "",
        "Selector": "<none>",
    }
    one = shared.good("GET", SERVICES + "/shown?includeObject=Object", headers=accept)
    assert one["rows"][0]["object"]["spec"]["type"] == "ClusterIP"


def test_scale(server: Server) -> None:
    base = "/apis/apps/v1/namespaces/default/deployments"
    server.good("POST", base, deployment(replicas=2))
    scale = server.good("GET", base + "/web/scale")
    assert scale["kind"] == "Scale" and scale["spec"] == {"replicas": 2} and scale["status"]["selector"] == "app=web"
    scale["spec"]["replicas"] = 5
    assert server.good("PUT", base + "/web/scale", scale)["spec"]["replicas"] == 5
    merged = server.good(
        "PATCH",
        base + "/web/scale",
        {"spec": {"replicas": 7}},
        headers={"Content-Type": "application/merge-patch+json"},
    )
    assert merged["spec"]["replicas"] == 7 == server.good("GET", base + "/web")["spec"]["replicas"]
    status(server.ask("PUT", base + "/web/scale", {**scale, "spec": {"replicas": -1}}), 422, "Invalid", "spec.replicas")


def test_namespace_subresources_are_not_taken_for_kinds(shared: Server) -> None:
    assert shared.good("GET", "/api/v1/namespaces/default/status")["metadata"]["name"] == "default"


def test_what_no_header_can_say_is_left_out(server: Server) -> None:
    """A client's names come back in warnings, and its audit ID in a header."""
    body = {"metadata": {"name": "odd"}, "spec\nX-Evil: 1": {}, "other": 1, "del\x7f": 1}
    for more in ({"Audit-Id": "mine"}, {"Audit-Id": "\xff\xfe"}, {"Audit-Id": "a\tb"}):
        with server.open(
            "POST", "/api/v1/namespaces/default/configmaps?dryRun=All&fieldValidation=Warn", body, headers=more
        ) as answer:
            assert answer.status == 201
            assert answer.headers.get_all("Warning") == ['299 - "unknown field \\"other\\""']
            assert "X-Evil" not in answer.headers
            assert (answer.headers["Audit-Id"] == "mine") == (more["Audit-Id"] == "mine")


def test_a_second_service_with_an_address_or_port_is_refused_in_upstreams_words() -> None:
    """kubeadm and Helm tell such a refusal by its code and its words."""
    path = "/api/v1/namespaces/default/services"

    def body(own: str, **port: int) -> Object:
        spec = {"type": "NodePort", "ports": [{"port": 80, **port}]} if port else {"ports": [{"port": 80}]}
        return {"metadata": {"name": own}, "spec": spec}

    with Server() as server:
        first = body("a")
        first["spec"]["clusterIP"] = "10.96.0.77"
        server.good("POST", path, first)
        code, answer = server.ask("POST", path, {**first, "metadata": {"name": "b"}})
        assert (code, answer["reason"]) == (422, "Invalid")
        assert answer["message"] == (
            'Service "b" is invalid: spec.clusterIPs: Invalid value: ["10.96.0.77"]: failed to allocate IP 10.96.0.77: '
            "provided IP is already allocated: taken by Service default/a; choose another or leave it empty"
        )
        assert [(c["field"], c["reason"]) for c in answer["details"]["causes"]] == [
            ("spec.clusterIPs", "FieldValueInvalid")
        ]
        server.good("POST", path, body("c", nodePort=30077))
        code, answer = server.ask("POST", path, body("d", nodePort=30077))
        assert code == 422
        told = (
            "spec.ports[0].nodePort: Invalid value: 30077: provided port is already allocated: taken by Service default"
        )
        assert told in answer["message"]
        server.good("DELETE", f"{path}/a")
        server.good("POST", path, {**first, "metadata": {"name": "b"}})

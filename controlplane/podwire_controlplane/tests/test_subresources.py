"""Subresources that reach into a node, parts of pods, deprecated kinds, and PUTs that name no version."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from podwire_base.kube.meta import Object
from podwire_base.testing.builders import pod

from ..testing.servers import Server

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        two: Object = {"metadata": {"name": "two"}, "spec": {"containers": [{"name": n, "image": "i"} for n in "ab"]}}
        far: Object = {
            "metadata": {"name": "far"},
            "spec": {"nodeName": "n1", "containers": two["spec"]["containers"][:1]},
        }
        lost: Object = {"metadata": {"name": "lost"}, "spec": {**far["spec"], "nodeName": "ghost"}}
        for obj in (pod("one"), two, far, lost):
            obj["metadata"].pop("namespace", None)
            made.good("POST", PODS, obj)
        made.good("POST", "/api/v1/nodes", {"metadata": {"name": "n1"}})
        made.good(
            "POST",
            "/api/v1/namespaces/default/services",
            {"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}},
        )
        yield made


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("ghost/log", 404, "not found"),
        ("two/log", 400, "choose one of: [a b]"),
        ("two/log?container=c", 400, "container c is not valid"),
        ("one/log?tailLines=-1", 422, "tailLines"),
        ("one/log?limitBytes=0", 422, "limitBytes"),
        ("one/log?sinceSeconds=0", 422, "sinceSeconds"),
        ("one/log?sinceSeconds=5&sinceTime=2027-01-01T00:00:00Z", 422, "at most one"),
        ("one/log?tailLines=x", 400, "tailLines"),
        ("one/log?sinceTime=x", 400, "sinceTime"),
        ("lost/log", 404, "nodes"),
        ("far/log", 500, "n1"),
        ("one/exec?stdout=1", 422, "command"),
        ("one/exec?command=a", 422, "stdin"),
        ("one/exec?command=a&stdout=1", 400, "does not have a host assigned"),
        ("two/exec?command=a&stdout=1", 400, "choose one of"),
        ("one/attach", 400, "does not have a host assigned"),
        ("one/attach?stdout=0&stderr=0", 422, "stdin"),
        ("one/portforward", 400, "does not have a host assigned"),
        ("far/portforward", 400, "Upgrade request required"),
        ("one/proxy", 400, "address not allowed"),
        ("ghost/proxy/a/b", 404, "not found"),
        ("one:http/proxy/", 400, "address not allowed"),
        ("a:b:c:d/proxy", 400, "invalid pod request"),
        ("../services/web/proxy", 503, "no endpoints available"),
        ("../services/web:dns/proxy", 503, "no service port"),
        ("../services/https:web:http/proxy/x", 503, "no endpoints available"),
        ("../services/ghost/proxy", 404, "not found"),
        ("../../../nodes/n1/proxy/metrics", 503, "n1"),
        ("../../../nodes/ghost/proxy", 404, "not found"),
    ],
)
def test_what_needs_a_node(server: Server, path: str, code: int, words: str) -> None:
    parts = f"{PODS}/{path}".split("/")
    while ".." in parts:
        at = parts.index("..")
        del parts[at - 1 : at + 1]
    got, body = server.ask("GET", "/".join(parts))
    assert got == code and words in str(body)


def test_the_log_of_a_pod_without_a_node_is_empty(server: Server) -> None:
    with server.open("GET", f"{PODS}/one/log") as answer:
        assert (answer.status, answer.read(), answer.headers.get_content_type()) == (200, b"", "text/plain")


def test_ephemeral_containers_are_added_and_stay(server: Server) -> None:
    path = f"{PODS}/one/ephemeralcontainers"
    obj = server.good("GET", path)
    before = obj["metadata"]["generation"]
    obj["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "d"}]
    obj["spec"]["nodeName"] = obj["metadata"]["labels"] = None  # not of this subresource
    made = server.good("PUT", path, obj)
    assert made["spec"]["ephemeralContainers"][0]["terminationMessagePolicy"] == "File"
    assert made["metadata"]["generation"] == before + 1 and "nodeName" not in made["spec"]
    for bad, field in (
        ([], "spec.ephemeralContainers"),
        ([{"name": "debug", "image": "other"}], "spec.ephemeralContainers"),
        ([*made["spec"]["ephemeralContainers"], {"name": "x", "image": "d", "ports": [{"containerPort": 1}]}],
         "spec.ephemeralContainers[1].ports"),
        ([*made["spec"]["ephemeralContainers"], {"name": "x", "image": "d", "targetContainerName": "no"}],
         "spec.ephemeralContainers[1].targetContainerName"),
    ):  # fmt: skip
        made["spec"]["ephemeralContainers"] = bad
        code, answer = server.ask("PUT", path, made)
        assert code == 422 and field in [c["field"] for c in answer["details"]["causes"]]


def test_resize_changes_resources_only(server: Server) -> None:
    path = f"{PODS}/two/resize"
    obj = server.good("GET", path)
    obj["spec"]["containers"][0] |= {"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]}
    obj["spec"]["containers"][0]["image"] = "ignored"
    made = server.good("PUT", path, obj)
    assert made["spec"]["containers"][0]["resizePolicy"] and made["spec"]["containers"][0]["image"] == "i"
    obj = server.good("GET", path)
    obj["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1"}}
    code, answer = server.ask("PUT", path, obj)  # BestEffort would become Burstable
    assert code == 422 and "QOS" in answer["message"]
    obj = server.good("GET", path)
    obj["spec"]["containers"].pop()
    assert server.ask("PUT", path, obj)[0] == 422


def test_every_answer_on_a_deprecated_kind_says_so(server: Server) -> None:
    base = "/api/v1/namespaces/default/endpoints"
    for method, path, body in (
        ("GET", base, None),
        ("GET", f"{base}/ghost", None),
        ("GET", f"{base}?watch=1&timeoutSeconds=1", None),
        ("POST", f"{base}?dryRun=All", {"metadata": {"name": "x"}}),
        ("POST", base, b"{"),
        ("GET", "/api/v1/componentstatuses", None),
    ):
        with server.open(method, path, body) as answer:
            assert answer.headers.get("Warning", "").startswith('299 - "v1 '), (method, path)
            assert len(answer.headers.get_all("Warning") or []) == 1
    with server.open("GET", PODS) as answer:
        assert "Warning" not in answer.headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases", {}),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets", {"spec": {"minAvailable": 1}}),
        ("/apis/node.k8s.io/v1/runtimeclasses", {"handler": "x"}),
        ("/apis/storage.k8s.io/v1/csidrivers", {"spec": {}}),
    ],
)
def test_some_kinds_are_only_replaced_by_version(server: Server, path: str, body: Object) -> None:
    obj = server.good("POST", path, {"metadata": {"name": "x"}, **body})
    version = obj["metadata"].pop("resourceVersion")
    code, answer = server.ask("PUT", f"{path}/x", obj)
    assert code == 422 and answer["details"]["causes"][0]["field"] == "metadata.resourceVersion"
    obj["metadata"]["resourceVersion"] = version
    server.good("PUT", f"{path}/x", obj)


def test_the_addresses_of_a_pod_are_kept_equal(server: Server) -> None:
    def addresses(status: Object) -> Object:
        made = server.good("PATCH", f"{PODS}/far/status", {"status": status}, headers=MERGE)
        assert made["status"]["qosClass"] == "BestEffort"
        return {k: made["status"].get(k) for k in ("podIP", "podIPs")}

    assert addresses({"podIP": "10.0.0.1"}) == {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}
    assert addresses({"podIP": "10.0.0.2"}) == {"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}
    assert addresses({"podIP": None, "podIPs": [{"ip": "10.0.0.3"}]})["podIP"] == "10.0.0.3"


MERGE = {"Content-Type": "application/merge-patch+json"}

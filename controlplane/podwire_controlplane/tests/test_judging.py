"""Admission that judges: PodSecurity, LimitRange, growing claims and ResourceQuota, as clients see them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from podwire_base.kube.meta import Object

from .. import podsecurity, quota
from ..controllers import quota as counting
from ..testing.builders import snapshot
from ..testing.servers import Server

MERGE = {"Content-Type": "application/merge-patch+json"}
LABEL = "pod-security.kubernetes.io/"
GOOD = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
    "capabilities": {"drop": ["ALL"]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as found:
        yield found


@pytest.fixture
def space(server: Server, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    own = f"s{abs(hash(request.node.name)) % 10**9}"
    server.good("POST", "/api/v1/namespaces", {"metadata": {"name": own}})
    return f"/api/v1/namespaces/{own}"


def pod(own: str = "a", resources: Object | None = None, security: Object | None = None, **spec: Any) -> Object:
    container = {"name": "c", "image": "i", "resources": resources or {}, "securityContext": security or {}}
    return copy.deepcopy({"metadata": {"name": own}, "spec": {"containers": [container], **spec}})


# ---- PodSecurity


@pytest.mark.parametrize(
    "spec",
    [
        {"hostNetwork": True},
        {"hostPID": True},
        {"security": {"privileged": True}},
        {"security": {"capabilities": {"add": ["SYS_ADMIN"]}}},
        {"security": {"procMount": "Unmasked"}},
        {"security": {"seLinuxOptions": {"type": "spc_t"}}},
        {"security": {"seLinuxOptions": {"user": "u"}}},
        {"security": {"seccompProfile": {"type": "Unconfined"}}},
        {"security": {"appArmorProfile": {"type": "Unconfined"}}},
        {"security": {"windowsOptions": {"hostProcess": True}}},
        {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]},
        {"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
        {"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 1}]}]},
        {"initContainers": [{"name": "i", "securityContext": {"privileged": True}}]},
        {"containers": [{"name": "c", "livenessProbe": {"httpGet": {"port": 1, "host": "10.0.0.1"}}}]},
    ],
)
def test_baseline_forbids(spec: Object) -> None:
    assert podsecurity.violations(pod(**spec), "baseline")
    assert podsecurity.violations(pod(**spec), "restricted")
    assert podsecurity.violations(pod(**spec), "privileged") == ""


@pytest.mark.parametrize(
    "change",
    [
        {"allowPrivilegeEscalation": None},
        {"runAsNonRoot": None},
        {"runAsNonRoot": False},
        {"runAsUser": 0},
        {"seccompProfile": None},
        {"capabilities": {"drop": ["NET_RAW"]}},
        {"capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}},
    ],
)
def test_restricted_forbids_what_baseline_allows(change: Object) -> None:
    bad = pod(security={**GOOD, **change})
    assert podsecurity.violations(bad, "baseline") == ""
    assert podsecurity.violations(bad, "restricted")


def test_what_the_levels_allow() -> None:
    assert podsecurity.violations(pod(security={"privileged": True}), "privileged") == ""
    assert podsecurity.violations(pod(), "baseline") == ""
    assert podsecurity.violations(pod(security=GOOD), "restricted") == ""
    whole = {"runAsNonRoot": True, "seccompProfile": {"type": "Localhost"}}
    rest = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}
    assert podsecurity.violations(pod(security=rest, securityContext=whole), "restricted") == ""
    volumes = [{"name": "v", "nfs": {"server": "a", "path": "/"}}]
    assert "restricted volume types" in podsecurity.violations(pod(security=GOOD, volumes=volumes), "restricted")


def test_namespaces_enforce_and_warn(server: Server, space: str) -> None:
    code, answer = server.ask("PATCH", space, {"metadata": {"labels": {LABEL + "enforce": "strict"}}}, headers=MERGE)
    assert (code, answer["details"]["causes"][0]["field"]) == (422, f"metadata.labels[{LABEL}enforce]")
    server.good("POST", f"{space}/pods", pod("old", hostNetwork=True))
    wanted = {"metadata": {"labels": {LABEL + "enforce": "baseline", LABEL + "warn": "restricted"}}}
    with server.open("PATCH", space, wanted, headers=MERGE) as raw:
        assert "existing pods" in (raw.headers["Warning"] or ""), raw.read()
    code, answer = server.ask("POST", f"{space}/pods", pod(hostNetwork=True))
    assert (code, answer["reason"]) == (403, "Forbidden")
    assert 'violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)' in answer["message"]
    with server.open("POST", f"{space}/pods", pod()) as raw:
        assert raw.status == 201
        assert 'would violate PodSecurity \\"restricted:latest\\"' in raw.headers["Warning"]
    labels = {"app": "x"}
    template = {"metadata": {"labels": labels}, "spec": pod(hostNetwork=True)["spec"]}
    workload = {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": labels}, "template": template}}
    with server.open("POST", space.replace("/api/v1", "/apis/apps/v1") + "/deployments", workload) as raw:
        assert raw.status == 201, "workloads are warned about; their pods are refused"
        assert "host namespaces" in raw.headers["Warning"]


# ---- LimitRange


@pytest.mark.parametrize(
    ("limit", "resources", "why"),
    [
        ({"type": "Container", "max": {"cpu": "1"}}, {"limits": {"cpu": "2"}}, "maximum cpu usage per Container is 1"),
        ({"type": "Container", "min": {"cpu": "1"}}, {"requests": {"cpu": "10m"}}, "minimum cpu usage per Container"),
        ({"type": "Pod", "max": {"memory": "1Gi"}}, {}, "maximum memory usage per Pod is 1Gi.  No limit is specified"),
        (
            {"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}},
            {"requests": {"cpu": "1"}, "limits": {"cpu": "3"}},
            "cpu max limit to request ratio per Container is 2",
        ),
    ],
)
def test_limit_ranges_refuse(server: Server, space: str, limit: Object, resources: Object, why: str) -> None:
    server.good("POST", f"{space}/limitranges", {"metadata": {"name": "l"}, "spec": {"limits": [limit]}})
    code, answer = server.ask("POST", f"{space}/pods", pod(resources=resources))
    assert (code, answer["reason"]) == (403, "Forbidden")
    assert why in answer["message"]


def claim(own: str, size: str) -> Object:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    return {"metadata": {"name": own}, "spec": spec}


def test_claims_have_limits_too(server: Server, space: str) -> None:
    limit = {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}
    server.good("POST", f"{space}/limitranges", {"metadata": {"name": "l"}, "spec": {"limits": [limit]}})
    codes = [
        server.ask("POST", f"{space}/persistentvolumeclaims", claim(f"c{s.lower()}", s))[0] for s in ("3Gi", "1Mi")
    ]
    assert codes == [403, 403]
    server.good("POST", f"{space}/persistentvolumeclaims", claim("good", "1Gi"))


# ---- ResourceQuota


def limited(server: Server, space: str, hard: Object, **spec: Any) -> str:
    """Make a quota, and do what the controller does at first."""
    body = {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}}
    found = server.good("POST", f"{space}/resourcequotas", body)
    found["kind"] = "ResourceQuota"
    own = space.rpartition("/")[2]
    (write,) = counting.reconcile(f"{own}/q", snapshot(found), 0.0)
    server.good("PATCH", f"{space}/resourcequotas/q/status", write.obj, headers=MERGE)
    return f"{space}/resourcequotas/q"


def used(server: Server, path: str) -> Object:
    found: Object = server.good("GET", path)["status"]["used"]
    return found


def test_a_quota_counts_what_comes_and_goes(server: Server, space: str) -> None:
    path = limited(server, space, {"pods": "2", "requests.cpu": "1", "count/configmaps": "1"})
    code, answer = server.ask("POST", f"{space}/pods", pod())
    assert (code, "failed quota: q: must specify requests.cpu for: c" in answer["message"]) == (403, True)
    half = {"requests": {"cpu": "500m"}}
    server.good("POST", f"{space}/pods?dryRun=All", pod("dry", half))
    server.good("POST", f"{space}/pods", pod("a", half))
    assert used(server, path) == {"pods": "1", "requests.cpu": "500m", "count/configmaps": "0"}
    code, answer = server.ask("POST", f"{space}/pods", pod("b", {"requests": {"cpu": "600m"}}))
    assert code == 403
    assert (
        "exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1"
        in (answer["message"])
    )
    assert server.ask("POST", f"{space}/pods", pod("a", half))[0] == 409
    assert used(server, path)["pods"] == "1", "a name that is taken charges nothing"
    server.good("PATCH", f"{space}/pods/a/status", {"status": {"phase": "Succeeded"}}, headers=MERGE)
    assert used(server, path) == {"pods": "0", "requests.cpu": "0", "count/configmaps": "0"}
    server.good("DELETE", f"{space}/pods/a")
    server.good("POST", f"{space}/pods", pod("b", half))
    server.good("DELETE", f"{space}/pods/b")
    assert used(server, path)["pods"] == "0"


def test_writers_never_share_one_place(server: Server, space: str) -> None:
    path = limited(server, space, {"count/configmaps": "5"})

    def write(n: int) -> int:
        return server.ask("POST", f"{space}/configmaps", {"metadata": {"name": f"c{n}"}})[0]

    with ThreadPoolExecutor(8) as pool:
        codes = sorted(pool.map(write, range(16)))
    assert codes == [201] * 5 + [403] * 11
    assert used(server, path) == {"count/configmaps": "5"}
    server.good("DELETE", f"{space}/configmaps")
    assert used(server, path) == {"count/configmaps": "0"}


def test_services_claims_and_scopes(server: Server, space: str) -> None:
    path = limited(server, space, {"services": "2", "services.nodeports": "1", "requests.storage": "3Gi"})
    port = {"port": 80}
    service = {"metadata": {"name": "s"}, "spec": {"ports": [port], "type": "NodePort"}}
    server.good("POST", f"{space}/services", service)
    server.good("POST", f"{space}/services", {"metadata": {"name": "t"}, "spec": {"ports": [port]}})
    code, answer = server.ask("PATCH", f"{space}/services/t", {"spec": {"type": "NodePort"}}, headers=MERGE)
    assert (code, "services.nodeports" in answer["message"]) == (403, True)
    server.good("POST", f"{space}/persistentvolumeclaims", claim("c", "2Gi"))
    assert server.ask("POST", f"{space}/persistentvolumeclaims", claim("d", "2Gi"))[0] == 403
    assert used(server, path) == {"services": "2", "services.nodeports": "1", "requests.storage": "2Gi"}
    best = {"metadata": {"name": "b"}, "spec": {"hard": {"pods": "0"}, "scopes": ["BestEffort"]}}
    assert quota.counts(best, "", "pods", pod())
    assert not quota.counts(best, "", "pods", pod(resources={"requests": {"cpu": "1"}}))
    assert not quota.counts(best, "", "services", service)
    term = {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}
    chosen = {"metadata": {"name": "p"}, "spec": {"scopeSelector": {"matchExpressions": [term]}}}
    assert quota.counts(chosen, "", "pods", pod(priorityClassName="high"))
    assert not quota.counts(chosen, "", "pods", pod())


def test_a_claim_grows_where_its_class_allows_it(server: Server, space: str) -> None:
    for own, grows in (("fixed", False), ("grows", True)):
        kind = {"metadata": {"name": own}, "provisioner": "example.com/x", "allowVolumeExpansion": grows}
        server.good("POST", "/apis/storage.k8s.io/v1/storageclasses", kind)
        made = claim(own, "1Gi")
        made["spec"] |= {"storageClassName": own, "volumeName": "v"}
        path = f"{space}/persistentvolumeclaims"
        server.good("POST", path, made)
        more = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
        assert server.ask("PATCH", f"{path}/{own}", more, headers=MERGE)[0] in (403, 422)
        server.good("PATCH", f"{path}/{own}/status", {"status": {"phase": "Bound"}}, headers=MERGE)
        assert server.ask("PATCH", f"{path}/{own}", more, headers=MERGE)[0] == (200 if grows else 403), json.dumps(more)

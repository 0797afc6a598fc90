"""Defaults, and rules beyond types: every refusal names the field and an acceptable value."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import BUILTIN, Resource, of
from podwire_base.testing.builders import deployment, meta, minimal, node, pod, service
from podwire_controlplane import gotypes, ipfamilies
from podwire_controlplane.strategies.table import strategy_of

FAMILIES = ("IPv4",)


def filled(made: Object, resource: Resource | None = None, before: Object | None = None) -> Object:
    """Return an object as it is after the defaults, at its creation or at an update of `before`."""
    resource = resource or of(made["kind"])
    made, _ = gotypes.decode(resource.api_version, resource.kind, made)
    strategy = strategy_of(resource)
    strategy.defaults(made)
    if before is None:
        strategy.prepare_create(made)
    else:
        strategy.prepare_update(made, before)
    if resource.kind == "Service":
        ipfamilies.normalize(made, before)
        ipfamilies.fill(made, before, FAMILIES)
    made, _ = gotypes.decode(resource.api_version, resource.kind, made)
    return made


def causes(made: Object, resource: Resource | None = None) -> dict[str, str]:
    resource = resource or of(made["kind"])
    return {c.field: c.reason for c in strategy_of(resource).validate(filled(made, resource))}


def at(made: Object, path: str, value: Any) -> Object:
    """Return a copy of the object with one field set, for example "spec.ports.0.port"."""
    made = copy.deepcopy(made)
    *parts, last = path.split(".")
    target: Any = made
    for part in parts:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    if isinstance(target, list):
        target[int(last)] = value
    else:
        target[last] = value
    return made


@pytest.mark.parametrize("resource", BUILTIN.stored, ids=lambda r: r.kind)
def test_minimal_objects_are_good_and_defaults_are_stable(resource: Any) -> None:
    once = filled(minimal(resource), resource)
    assert filled(once, resource) == once and causes(minimal(resource), resource) == {}


@pytest.mark.parametrize(
    ("made", "path", "value"),
    [
        (service(), "spec.type", "ClusterIP"),
        (service(), "spec.sessionAffinity", "None"),
        (service(), "spec.ports.0.protocol", "TCP"),
        (service(), "spec.ports.0.targetPort", 80),
        (service(), "spec.internalTrafficPolicy", "Cluster"),
        (service(), "spec.ipFamilies", ["IPv4"]),
        (service(), "spec.ipFamilyPolicy", "SingleStack"),
        (service(clusterIP="10.0.0.1"), "spec.clusterIPs", ["10.0.0.1"]),
        (service(), "status.loadBalancer", {}),
        (service(type="NodePort"), "spec.externalTrafficPolicy", "Cluster"),
        (service(), "spec.externalTrafficPolicy", None),
        (service(type="LoadBalancer"), "spec.allocateLoadBalancerNodePorts", True),
        (service(sessionAffinity="ClientIP"), "spec.sessionAffinityConfig.clientIP.timeoutSeconds", 10800),
        (service(type="ExternalName", externalName="x"), "spec.ipFamilies", None),
        (pod(), "spec.dnsPolicy", "ClusterFirst"),
        (pod(), "spec.restartPolicy", "Always"),
        (pod(), "spec.terminationGracePeriodSeconds", 30),
        (pod(), "spec.schedulerName", "default-scheduler"),
        (pod(), "status.phase", "Pending"),
        (pod(), "spec.containers.0.imagePullPolicy", "Always"),
        (at(pod(), "spec.containers.0.image", "a/b:1"), "spec.containers.0.imagePullPolicy", "IfNotPresent"),
        (at(pod(), "spec.containers.0.image", "host:5000/b"), "spec.containers.0.imagePullPolicy", "Always"),
        (at(pod(), "spec.containers.0.ports", [{"containerPort": 1}]), "spec.containers.0.ports.0.protocol", "TCP"),
        (deployment(), "spec.strategy.rollingUpdate.maxSurge", "25%"),
        (deployment(), "spec.revisionHistoryLimit", 10),
        ({"kind": "Deployment", "metadata": {}, "spec": {}}, "spec.replicas", 1),
        ({"kind": "Namespace", "metadata": {"name": "n"}}, "metadata.labels", {"kubernetes.io/metadata.name": "n"}),
        ({"kind": "Namespace", "metadata": {"name": "n"}}, "spec.finalizers", ["kubernetes"]),
        ({"kind": "Secret", "metadata": {}}, "type", "Opaque"),
    ],
)
def test_defaults(made: Object, path: str, value: Any) -> None:
    found: Any = filled(made)
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else found.get(part)
    assert found == value


NODE_PORT = service(type="NodePort")
ENDPOINTS = {
    "kind": "Endpoints",
    "metadata": meta("web"),
    "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 1}]}],
}
SLICE = {**minimal(of("EndpointSlice")), "ports": [{"port": 80}]}


@pytest.mark.parametrize(
    ("made", "field", "reason"),
    [
        (at(service(), "metadata.name", ""), "metadata.name", "Required"),
        (at(service(), "metadata.name", "Web"), "metadata.name", "Invalid"),
        (at(service(), "metadata.name", "a.b"), "metadata.name", "Invalid"),
        (at(service(), "metadata.name", "a" * 64), "metadata.name", "Invalid"),
        (at(service(), "metadata.name", "web\n"), "metadata.name", "Invalid"),
        (at(pod(), "metadata.name", "a/b"), "metadata.name", "Invalid"),
        (at(pod(), "metadata.name", "a..b"), "metadata.name", "Invalid"),
        (at(pod(), "metadata.name", "p\n"), "metadata.name", "Invalid"),
        (at(pod(), "metadata.name", "a" * 254), "metadata.name", "Invalid"),
        (at(pod(), "metadata.labels", {"a b": "c"}), "metadata.labels", "Invalid"),
        (at(pod(), "metadata.labels", {"a": "c d"}), "metadata.labels", "Invalid"),
        (at(pod(), "metadata.labels", {"a": "c\n"}), "metadata.labels", "Invalid"),
        (at(pod(), "metadata.labels", {"a": "c" * 64}), "metadata.labels", "Invalid"),
        (at(pod(), "metadata.annotations", {"a": "c" * 300_000}), "metadata.annotations", "TooLong"),
        (service(ports=[]), "spec.ports", "Required"),
        (at(service(), "spec.ports.0.port", 65536), "spec.ports[0].port", "Invalid"),
        (at(service(), "spec.ports.0.protocol", "tcp"), "spec.ports[0].protocol", "NotSupported"),
        (at(service(), "spec.ports.0.targetPort", 70000), "spec.ports[0].targetPort", "Invalid"),
        (at(service(), "spec.ports.0.targetPort", "8080"), "spec.ports[0].targetPort", "Invalid"),
        (service(ports=[{"port": 1}, {"port": 2, "name": "b"}]), "spec.ports[0].name", "Required"),
        (service(ports=[{"port": 1, "name": "b"}, {"port": 2, "name": "b"}]), "spec.ports[1].name", "Duplicate"),
        (service(ports=[{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]), "spec.ports[1]", "Duplicate"),
        (service(ports=[{"port": 1, "name": "A"}]), "spec.ports[0].name", "Invalid"),
        (service(clusterIP="10.96.0.999"), "spec.clusterIPs[0]", "Invalid"),
        (service(clusterIPs=["10.0.0.1"]), "spec.clusterIP", "Required"),
        (service(type="NodePort", clusterIP="None"), "spec.clusterIPs[0]", "Invalid"),
        (service(type="ExternalName"), "spec.externalName", "Required"),
        (service(type="ExternalName", externalName="a b"), "spec.externalName", "Invalid"),
        (service(type="ExternalName", externalName="a", clusterIP="10.96.0.9"), "spec.clusterIPs", "Forbidden"),
        (service(externalIPs=["x"]), "spec.externalIPs[0]", "Invalid"),
        (service(sessionAffinity="Cookie"), "spec.sessionAffinity", "NotSupported"),
        (service(internalTrafficPolicy="Near"), "spec.internalTrafficPolicy", "NotSupported"),
        (service(trafficDistribution="Near"), "spec.trafficDistribution", "NotSupported"),
        (at(NODE_PORT, "spec.externalTrafficPolicy", "Near"), "spec.externalTrafficPolicy", "NotSupported"),
        (at(pod(), "spec.containers", []), "spec.containers", "Required"),
        (at(pod(), "spec.containers.0.name", "A_b"), "spec.containers[0].name", "Invalid"),
        (at(pod(), "spec.containers.0.image", ""), "spec.containers[0].image", "Required"),
        (
            at(pod(), "spec.containers.0.ports", [{"containerPort": 0}]),
            "spec.containers[0].ports[0].containerPort",
            "Required",
        ),
        (at(pod(), "spec.containers", [*pod()["spec"]["containers"]] * 2), "spec.containers[1].name", "Duplicate"),
        (pod(restartPolicy="Maybe"), "spec.restartPolicy", "NotSupported"),
        (pod(dnsPolicy="Other"), "spec.dnsPolicy", "NotSupported"),
        (pod(dnsPolicy="None"), "spec.dnsConfig", "Required"),
        (at(deployment(), "spec.selector", {}), "spec.selector", "Invalid"),
        (at(deployment(), "spec.selector.matchLabels", {"a": "b"}), "spec.template.metadata.labels", "Invalid"),
        (
            at(deployment(), "spec.selector.matchExpressions", [{"key": "app", "operator": "Is", "values": ["web"]}]),
            "spec.selector.matchExpressions[0].operator",
            "Invalid",
        ),
        (deployment(replicas=-1), "spec.replicas", "Invalid"),
        (deployment(strategy={"type": "Fast"}), "spec.strategy.type", "NotSupported"),
        (
            deployment(strategy={"rollingUpdate": {"maxSurge": "many"}}),
            "spec.strategy.rollingUpdate.maxSurge",
            "Invalid",
        ),
        (
            deployment(strategy={"rollingUpdate": {"maxUnavailable": -1}}),
            "spec.strategy.rollingUpdate.maxUnavailable",
            "Invalid",
        ),
        (at(deployment(), "spec.template.spec.containers", []), "spec.template.spec.containers", "Required"),
        (at(ENDPOINTS, "subsets.0.addresses.0.ip", "x"), "subsets[0].addresses[0].ip", "Invalid"),
        (at(ENDPOINTS, "subsets.0.addresses.0.ip", "127.0.0.1"), "subsets[0].addresses[0].ip", "Invalid"),
        (at(ENDPOINTS, "subsets.0.addresses.0.ip", "224.0.0.1"), "subsets[0].addresses[0].ip", "Invalid"),
        (
            at(ENDPOINTS, "subsets.0.notReadyAddresses", [{"ip": "fe80::1"}]),
            "subsets[0].notReadyAddresses[0].ip",
            "Invalid",
        ),
        (at(ENDPOINTS, "subsets.0.ports.0.port", 0), "subsets[0].ports[0].port", "Invalid"),
        (at(SLICE, "addressType", "IPX"), "addressType", "NotSupported"),
        (at(SLICE, "endpoints.0.addresses", []), "endpoints[0].addresses", "Required"),
        (at(SLICE, "endpoints.0.addresses", ["0.0.0.0"]), "endpoints[0].addresses[0]", "Invalid"),
        (at(SLICE, "ports.0.port", 70000), "ports[0].port", "Invalid"),
        (node("n", podCIDR="10.0.0.1"), "spec.podCIDRs[0]", "Invalid"),
        (at(minimal(of("CronJob")), "spec.schedule", "60 * * * *"), "spec.schedule", "Invalid"),
        (at(minimal(of("NetworkPolicy")), "spec", {"policyTypes": ["All"]}), "spec.policyTypes[0]", "NotSupported"),
        (at(minimal(of("Ingress")), "spec.defaultBackend.service.port", {}), "spec.defaultBackend", "Required"),
        (at(minimal(of("PersistentVolume")), "spec.nfs", {"server": "a", "path": "/"}), "spec.nfs", "Forbidden"),
        (at(minimal(of("RoleBinding")), "roleRef.name", ""), "roleRef.name", "Required"),
        (at(minimal(of("PriorityClass")), "value", 2_000_000_000), "value", "Forbidden"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_refusals_name_the_field(made: Object, field: str, reason: str) -> None:
    assert causes(made).get(field) == f"FieldValue{reason}", causes(made)


def test_names_of_events_are_one_segment_of_a_path() -> None:
    """Our own roles, and client-go of other languages, generate names from a prefix that ends with a dot."""
    about = {"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}}
    for metadata in ({"generateName": "pod.", "name": "pod.x1"}, {"name": "A_b"}, {"name": "pod."}):
        made = {"apiVersion": "v1", "kind": "Event", "metadata": {"namespace": "default", **metadata}, **about}
        assert causes(made) == {}
    made = {"apiVersion": "v1", "kind": "Event", "metadata": {"namespace": "default", "name": "a/b"}, **about}
    assert causes(made) == {"metadata.name": "FieldValueInvalid"}
    assert "metadata.generateName" in causes(at(pod(), "metadata.generateName", "pod."))


@pytest.mark.parametrize(
    ("before", "path", "value", "field"),
    [
        (deployment(), "spec.selector.matchExpressions", [{"key": "app", "operator": "Exists"}], "spec.selector"),
        (minimal(of("EndpointSlice")), "addressType", "IPv6", "addressType"),
        (pod(), "spec.dnsPolicy", "None", "spec"),
        (pod(), "spec.hostNetwork", True, "spec"),
        (pod(hostNetwork=True), "spec.hostNetwork", False, "spec"),
        (pod(), "spec.nodeName", "n1", "spec"),
        (pod(nodeName="n1"), "spec.nodeName", "n2", "spec"),
        (pod(nodeName="n1"), "spec.containers.0.image", "podwire.io/host", None),
        (pod(nodeName="n1"), "spec.containers.0.args", ["x"], "spec"),
        (pod(nodeName="n1"), "spec.tolerations", [{"operator": "Exists"}], None),
        (node("n"), "spec.podCIDR", "10.0.0.0/24", None),
        (node("n", podCIDR="10.0.0.0/24"), "spec.podCIDR", "10.0.1.0/24", "spec.podCIDRs"),
        (service(clusterIP="10.96.0.1"), "spec.clusterIP", "10.96.0.2", "spec.clusterIPs[0]"),
        (service(clusterIP="10.96.0.1"), "spec.ports.0.port", 81, None),
        (deployment(), "spec.replicas", 9, None),
    ],
)
def test_what_cannot_change(before: Object, path: str, value: Any, field: str | None) -> None:
    old = filled(before)
    new = filled(at(old, path, value), before=old)
    strategy = strategy_of(of(before["kind"]))
    assert [c.field for c in strategy.validate_update(new, old)] == ([field] if field else [])
    assert list(strategy.validate_update(old, old)) == []

"""Defaults, and rules beyond types: every refusal names the field and an acceptable value."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import BUILTIN, of
from podwire_base.testing.builders import deployment, meta, minimal, node, pod, service
from podwire_controlplane import defaults, validation


def filled(made: Object) -> Object:
    made = copy.deepcopy(made)
    defaults.fill(made["kind"], made)
    return made


def causes(made: Object) -> dict[str, str]:
    made = filled(made)
    return {c.field: c.message for c in validation.check(of(made["kind"]), made)}


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
    once = filled(minimal(resource))
    assert filled(once) == once and causes(once) == {}


@pytest.mark.parametrize(
    ("made", "path", "value"),
    [
        (service(), "spec.type", "ClusterIP"),
        (service(), "spec.sessionAffinity", "None"),
        (service(), "spec.ports.0.protocol", "TCP"),
        (service(), "spec.ports.0.targetPort", 80),
        (service(), "spec.internalTrafficPolicy", "Cluster"),
        (service(), "spec.ipFamilies", ["IPv4"]),
        (service(clusterIP="fd00::1"), "spec.ipFamilies", ["IPv6"]),
        (service(), "spec.ipFamilyPolicy", "SingleStack"),
        (service(clusterIP="10.0.0.1"), "spec.clusterIPs", ["10.0.0.1"]),
        (service(clusterIPs=["10.0.0.1"]), "spec.clusterIP", "10.0.0.1"),
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
    ("made", "field", "hint"),
    [
        (at(service(), "metadata.name", ""), "metadata.name", "generateName"),
        (at(service(), "metadata.name", "1web"), "metadata.name", "starting with a letter"),
        (at(service(), "metadata.name", "Web"), "metadata.name", "lower-case"),
        (at(service(), "metadata.name", "a.b"), "metadata.name", ""),
        (at(service(), "metadata.name", "a" * 64), "metadata.name", "at most 63"),
        (at(service(), "metadata.name", "web\n"), "metadata.name", "lower-case"),
        (at(pod(), "metadata.name", "a/b"), "metadata.name", "DNS subdomain"),
        (at(pod(), "metadata.name", "a..b"), "metadata.name", ""),
        (at(pod(), "metadata.name", "p\n"), "metadata.name", ""),
        (at(pod(), "metadata.name", "a" * 254), "metadata.name", "253"),
        (at(pod(), "metadata.labels", {"a b": "c"}), "metadata.labels.a b", "label key"),
        (at(pod(), "metadata.labels", {"a": "c d"}), "metadata.labels.a", "label value"),
        (at(pod(), "metadata.labels", {"a": "c\n"}), "metadata.labels.a", "label value"),
        (at(pod(), "metadata.labels", {"a": "c" * 64}), "metadata.labels.a", "at most 63"),
        (service(ports=[]), "spec.ports", "at least one port"),
        (at(service(), "spec.ports.0.port", 0), "spec.ports[0].port", "1 to 65535"),
        (at(service(), "spec.ports.0.port", 65536), "spec.ports[0].port", "1 to 65535"),
        (at(service(), "spec.ports.0.protocol", "tcp"), "spec.ports[0].protocol", "TCP, UDP, SCTP"),
        (at(service(), "spec.ports.0.targetPort", 70000), "spec.ports[0].targetPort", "1 to 65535"),
        (service(ports=[{"port": 1}, {"port": 2, "name": "b"}]), "spec.ports[0].name", "every port has a name"),
        (service(ports=[{"port": 1, "name": "b"}, {"port": 2, "name": "b"}]), "spec.ports[1].name", "twice"),
        (service(ports=[{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]), "spec.ports[1].port", "twice"),
        (service(ports=[{"port": 1, "name": "A"}]), "spec.ports[0].name", "DNS label"),
        (service(clusterIP="10.96.0.999"), "spec.clusterIP", "such as 10.0.0.1"),
        (service(type="NodePort", clusterIP="None"), "spec.clusterIP", "leave it empty"),
        (service(type="ExternalName"), "spec.externalName", "DNS name"),
        (service(type="ExternalName", externalName="a b"), "spec.externalName", "DNS name"),
        (service(type="ExternalName", externalName="a", clusterIP="10.96.0.9"), "spec.clusterIP", "leave it out"),
        (service(externalIPs=["x"]), "spec.externalIPs[0]", "such as"),
        (service(sessionAffinity="Cookie"), "spec.sessionAffinity", "ClientIP"),
        (service(internalTrafficPolicy="Near"), "spec.internalTrafficPolicy", "Cluster, Local"),
        (at(NODE_PORT, "spec.externalTrafficPolicy", "Near"), "spec.externalTrafficPolicy", "Cluster, Local"),
        (at(pod(), "spec.containers", []), "spec.containers", "at least one"),
        (at(pod(), "spec.containers.0.name", "A_b"), "spec.containers[0].name", "DNS label"),
        (at(pod(), "spec.containers.0.image", ""), "spec.containers[0].image", "podwire.io/echo"),
        (
            at(pod(), "spec.containers.0.ports", [{"containerPort": 0}]),
            "spec.containers[0].ports[0].containerPort",
            "1 to 65535",
        ),
        (at(pod(), "spec.containers", [*pod()["spec"]["containers"]] * 2), "spec.containers[1].name", "twice"),
        (pod(restartPolicy="Maybe"), "spec.restartPolicy", "OnFailure"),
        (pod(dnsPolicy="Other"), "spec.dnsPolicy", "ClusterFirst"),
        (pod(terminationGracePeriodSeconds=-1), "spec.terminationGracePeriodSeconds", "expected 0"),
        (pod(terminationGracePeriodSeconds=10**30), "spec.terminationGracePeriodSeconds", "expected 0"),
        (at(deployment(), "spec.selector", {}), "spec.selector", "matchLabels"),
        (
            at(deployment(), "spec.selector.matchLabels", {"a": "b"}),
            "spec.template.metadata.labels",
            "give the template those labels",
        ),
        (
            at(deployment(), "spec.selector.matchExpressions", [{"key": "app", "operator": "Is", "values": ["web"]}]),
            "spec.selector.matchExpressions[0].operator",
            "In, NotIn, Exists, DoesNotExist",
        ),
        (deployment(replicas=-1), "spec.replicas", "0 or more"),
        (deployment(strategy={"type": "Fast"}), "spec.strategy.type", "Recreate"),
        (deployment(strategy={"rollingUpdate": {"maxSurge": "many"}}), "spec.strategy.rollingUpdate.maxSurge", "25%"),
        (
            deployment(strategy={"rollingUpdate": {"maxUnavailable": -1}}),
            "spec.strategy.rollingUpdate.maxUnavailable",
            "25%",
        ),
        (at(deployment(), "spec.template.spec.containers", []), "spec.template.spec.containers", "at least one"),
        (at(ENDPOINTS, "subsets.0.addresses.0.ip", "x"), "subsets[0].addresses[0].ip", "IP address"),
        (at(ENDPOINTS, "subsets.0.addresses.0.ip", "127.0.0.1"), "subsets[0].addresses[0].ip", "loopback"),
        (at(ENDPOINTS, "subsets.0.addresses.0.ip", "224.0.0.1"), "subsets[0].addresses[0].ip", "multicast"),
        (
            at(ENDPOINTS, "subsets.0.notReadyAddresses", [{"ip": "fe80::1"}]),
            "subsets[0].notReadyAddresses[0].ip",
            "link-local",
        ),
        (at(ENDPOINTS, "subsets.0.ports.0.port", 0), "subsets[0].ports[0].port", "1 to 65535"),
        (at(SLICE, "addressType", "IPX"), "addressType", "IPv4, IPv6, FQDN"),
        (at(SLICE, "endpoints.0.addresses", []), "endpoints[0].addresses", ""),
        (at(SLICE, "endpoints.0.addresses", ["0.0.0.0"]), "endpoints[0].addresses[0]", "unspecified"),
        (at(SLICE, "ports.0.port", 70000), "ports[0].port", "1 to 65535"),
        (node("n", podCIDR="10.0.0.1/8"), "spec.podCIDR", "such as"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_refusals_name_the_field_and_the_fix(made: Object, field: str, hint: str) -> None:
    found = causes(made)
    assert field in found, found
    assert found[field] and hint in found[field]


@pytest.mark.parametrize(
    ("before", "path", "value", "field"),
    [
        (deployment(), "spec.selector.matchLabels", {"app": "x"}, "spec.selector"),
        (minimal(of("EndpointSlice")), "addressType", "IPv6", "addressType"),
        (pod(), "spec.dnsPolicy", "None", "spec.dnsPolicy"),
        (pod(), "spec.hostNetwork", True, None),
        (pod(hostNetwork=True), "spec.hostNetwork", False, "spec.hostNetwork"),
        (pod(), "spec.nodeName", "n1", None),
        (pod(nodeName="n1"), "spec.nodeName", "n2", "spec.nodeName"),
        (pod(nodeName="n1"), "spec.containers.0.image", "podwire.io/host", None),
        (pod(nodeName="n1"), "spec.containers.0.args", ["x"], "spec.containers"),
        (pod(nodeName="n1"), "spec.tolerations", [{"operator": "Exists"}], None),
        (node("n"), "spec.podCIDR", "10.0.0.0/24", None),
        (node("n", podCIDR="10.0.0.0/24"), "spec.podCIDR", "10.0.1.0/24", "spec.podCIDR"),
        (service(clusterIP="10.96.0.1"), "spec.clusterIP", "10.96.0.2", "spec.clusterIP"),
        (service(clusterIP="10.96.0.1"), "spec.ports.0.port", 81, None),
        (deployment(), "spec.replicas", 9, None),
    ],
)
def test_what_cannot_change(before: Object, path: str, value: Any, field: str | None) -> None:
    old, new = filled(before), filled(at(filled(before), path, value))
    found = validation.check_update(of(before["kind"]), old, new)
    assert [c.field for c in found] == ([field] if field else [])
    assert all("again" in c.message for c in found)
    assert validation.check_update(of(before["kind"]), old, old) == []

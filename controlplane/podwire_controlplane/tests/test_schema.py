"""The schema of Kubernetes, its types as Go reads and writes them, the registry's rows, and OpenAPI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import BUILTIN, GROUPS, RESOURCES, Registry, Resource
from podwire_base.kube.schema import builtin
from podwire_base.testing.builders import deployment, minimal, pod, service
from podwire_controlplane import convert, gotypes, openapi

# ---- the schema


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda r: f"{r.group}/{r.kind}")
def test_every_kind_has_its_schema_and_its_go_type(resource: Resource) -> None:
    node = builtin().kind(resource.api_version, resource.kind)
    assert node is not None and {"kind", "apiVersion", "metadata"} <= node.fields.keys()
    made = minimal(resource)
    decoded, unknown = gotypes.decode(resource.api_version, resource.kind, made)
    assert unknown == [] and gotypes.decode(resource.api_version, resource.kind, decoded) == (decoded, [])
    for sub in resource.subs:
        version = f"{sub.group}/{sub.version}" if sub.group else sub.version or resource.api_version
        assert gotypes.known(version, sub.kind), sub


@pytest.mark.parametrize(
    ("version", "kind", "path", "facts"),
    [
        ("v1", "Pod", "spec.containers", {"list_keys": ("name",), "merge_key": "name", "merge": True}),
        ("v1", "Pod", "spec.containers.ports", {"list_keys": ("containerPort", "protocol")}),
        ("v1", "Pod", "spec.containers.ports", {"merge_key": "containerPort", "list_type": "map"}),
        ("v1", "Pod", "spec.volumes", {"retain_keys": True, "merge": True, "merge_key": "name"}),
        ("apps/v1", "Deployment", "spec.strategy", {"retain_keys": True, "type": "object"}),
        ("v1", "Service", "spec.selector", {"atomic": True, "type": "map"}),
        ("v1", "Service", "spec.ports.targetPort", {"type": "int-or-string"}),
        ("v1", "Pod", "metadata.finalizers", {"list_type": "set", "merge": True, "merge_key": ""}),
        ("v1", "Pod", "spec.containers.resources.limits.cpu", {"type": "quantity"}),
        ("v1", "Secret", "data.x", {"type": "bytes"}),
        ("v1", "Pod", "metadata.creationTimestamp", {"type": "time"}),
        ("coordination.k8s.io/v1", "Lease", "spec.renewTime", {"type": "microtime"}),
        ("v1", "Pod", "spec.containers.command", {"list_type": "atomic", "merge": False}),
    ],
    ids=str,
)
def test_merge_rules_come_from_kubernetes(version: str, kind: str, path: str, facts: dict[str, Any]) -> None:
    node = builtin().walk(version, kind, path)
    assert node is not None and {name: getattr(node, name) for name in facts} == facts
    assert builtin().walk(version, kind, path + ".nothing.at.all") is None or node.type == "map"


# ---- types


def _at(made: Object, *path: Any, value: Any) -> Object:
    target: Any = made
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("made", "unknown"),
    [
        (service(), []),
        (_at(service(), "spec", "nope", value=1), ["spec.nope"]),
        (_at(service(), "spec", "ports", 0, "prot", value="x"), ["spec.ports[0].prot"]),
        (_at(service(), "spec", "Ports", value=[]), ["spec.Ports"]),
        (_at(service(), "spec", "ports", 0, "targetPort", value="http"), []),
        (_at(service(), "spec", "ports", 0, value=None), []),
        (_at(pod(), "spec", "containers", 0, "resources", value={"limits": {"cpu": 1, "memory": "1Gi"}}), []),
    ],
    ids=str,
)
def test_unknown_fields_are_named_and_gone(made: Object, unknown: list[str]) -> None:
    decoded, found = gotypes.decode(made["apiVersion"], made["kind"], made)
    assert found == unknown
    assert gotypes.decode(made["apiVersion"], made["kind"], decoded) == (decoded, [])


@pytest.mark.parametrize(
    ("made", "wrong"),
    [
        (_at(service(), "spec", "ports", value={}), "spec.ports"),
        (_at(service(), "spec", "ports", 0, "targetPort", value=[]), "spec.ports[0].targetPort"),
        (_at(service(), "spec", "ports", 0, "port", value=2**31), "spec.ports[0].port"),
        (_at(service(), "spec", "ports", 0, "port", value=80.0), "spec.ports[0].port"),
        (_at(service(), "spec", "selector", value={"a": 1}), "spec.selector.a"),
        (_at(service(), "metadata", "labels", value={"a": True}), "metadata.labels.a"),
        (_at(service(), "spec", "externalIPs", value=["a", 5]), "spec.externalIPs[1]"),
        (_at(service(), "spec", "publishNotReadyAddresses", value="yes"), "spec.publishNotReadyAddresses"),
        (_at(pod(), "spec", "containers", 0, "env", value=[{"value": 5}]), "spec.containers[0].env[0].value"),
        (_at(pod(), "spec", "containers", 0, "args", value=[True]), "spec.containers[0].args[0]"),
        (_at(pod(), "metadata", "creationTimestamp", value="yesterday"), "metadata.creationTimestamp"),
        (_at(pod(), "metadata", "creationTimestamp", value="2027-01-15T08:00:00Z\n"), "metadata.creationTimestamp"),
        (_at(pod(), "metadata", "creationTimestamp", value="2027-13-15T08:00:00Z"), "metadata.creationTimestamp"),
        (_at(pod(), "spec", "overhead", value={"cpu": "lots"}), "spec.overhead.cpu"),
        (_at(deployment(), "spec", "replicas", value="3"), "spec.replicas"),
        (_at(deployment(), "spec", "replicas", value=True), "spec.replicas"),
        ({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "data": {"a": "?"}}, "data.a"),
    ],
    ids=str,
)
def test_a_field_of_another_type_is_named(made: Object, wrong: str) -> None:
    with pytest.raises(gotypes.BadType) as caught:
        gotypes.decode(made["apiVersion"], made["kind"], made)
    assert wrong in str(caught.value)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1", "1"), ("0.1", "100m"), ("1.5Gi", "1536Mi"), ("1024Ki", "1Mi"), ("1e3", "1e3"), ("1000", "1k"),
        ("0", "0"), ("0.5Ki", "512"), ("12E6", "12e6"), ("1025", "1025"), ("-5", "-5"), ("2500m", "2500m"),
        ("1.234567891234", "1234567892n"), (".5", "500m"), ("5.", "5"), ("+1", "1"), ("0Gi", "0"), ("1000m", "1"),
        ("1E", "1E"), ("1000Mi", "1000Mi"), ("1024Mi", "1Gi"),
    ],
)  # fmt: skip
def test_quantities_are_canonical(text: str, canonical: str) -> None:
    assert quantity.canonical(text) == canonical == quantity.canonical(canonical)
    assert quantity.parse(text) == quantity.parse(canonical)


@pytest.mark.parametrize("text", ["", "x", "1 Gi", "1gi", "Gi", "1.2.3", "1e", "--1", "1Kii", "1\n2"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(quantity.BadQuantity):
        quantity.canonical(text)


def test_versions_of_one_object() -> None:
    new = next(r for r in RESOURCES if (r.group, r.kind) == ("events.k8s.io", "Event"))
    made, _ = gotypes.decode("events.k8s.io/v1", "Event", {**minimal(new), "note": "hello"})
    core = convert.stored(new, made)
    assert core["apiVersion"] == "v1" and core["message"] == "hello" and core["involvedObject"]["name"] == "p"
    assert convert.served(new, core) == made
    old = next(
        r for r in RESOURCES if (r.group, r.version, r.plural) == ("autoscaling", "v1", "horizontalpodautoscalers")
    )
    spec = {
        "maxReplicas": 3,
        "targetCPUUtilizationPercentage": 60,
        "scaleTargetRef": {"kind": "Deployment", "name": "w"},
    }
    made, _ = gotypes.decode("autoscaling/v1", old.kind, {"metadata": {"name": "x"}, "spec": spec})
    kept = convert.stored(old, made)
    assert kept["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 60
    assert convert.served(old, kept) == made
    kept["spec"]["metrics"].append({"type": "Resource", "resource": {"name": "memory"}})
    shown = convert.served(old, kept)
    assert json.loads(shown["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"])
    assert len(convert.stored(old, shown)["spec"]["metrics"]) == 2, "nothing is lost on the way"


# ---- rows


def test_rows_come_and_go_with_their_source() -> None:
    registry = Registry(BUILTIN.resources)
    toy = Resource("example.com", "v1", "Toy", "toys", short=("ty",))
    registry.put("toys.example.com", [toy])
    assert registry.by_name("ty") is toy and toy in registry.stored and ("example.com", "v1") in registry.groups
    registry.put("toys.example.com", [])
    assert registry.by_name("toy") is None and registry.stored == BUILTIN.stored
    assert registry.by_path["apps", "v1", "deployments"].kind == "Deployment"


# ---- OpenAPI


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):  # a JSONSchemaProps has a property of this name
            yield value["$ref"]
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


@pytest.mark.parametrize("pair", GROUPS, ids=str)
def test_openapi(pair: tuple[str, str]) -> None:
    document = openapi.v3(BUILTIN, *pair)
    assert document
    known = {f"#/components/schemas/{n}" for n in document["components"]["schemas"]}
    refs = set(_refs(document))
    assert refs and refs <= known
    kinds = {
        k["kind"]
        for s in document["components"]["schemas"].values()
        for k in s.get("x-kubernetes-group-version-kind", ())
    }
    for resource in (r for r in RESOURCES if (r.group, r.version) == pair):
        assert resource.kind in kinds, "kubectl explain looks for this"
        space = "{namespace}" if resource.namespaced else ""
        if "patch" in resource.verbs:
            operation = document["paths"][resource.path(space, "{name}")]["patch"]
            assert "fieldValidation" in [p["name"] for p in operation["parameters"]], "kubectl looks for this"
            assert operation["x-kubernetes-group-version-kind"]["kind"] == resource.kind
    assert openapi.v3(BUILTIN, "none", "v1") is None


def test_openapi_v2_has_every_kind_with_its_texts() -> None:
    document = openapi.v2(BUILTIN)
    assert set(_refs(document)) <= {f"#/definitions/{name}" for name in document["definitions"]}
    for resource in RESOURCES:
        name = builtin().name_of(resource.api_version, resource.kind)
        assert document["definitions"][name]["description"], resource
    ports = document["definitions"]["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"]
    assert ports["x-kubernetes-patch-merge-key"] == "port" and "ports" in ports["description"]

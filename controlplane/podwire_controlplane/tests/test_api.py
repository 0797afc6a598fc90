"""Selectors, shapes, OpenAPI, tables, the codec, YAML and the registry."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube import codec, schema, table, yamltext
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import BY_KIND, BY_PATH, GROUPS, RESOURCES, Resource, by_name, of
from podwire_base.kube.selectors import field_query, label_query, label_selector
from podwire_base.testing.builders import deployment, minimal, pod, service, stored

# ---- selectors


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("a=1", [{"a": "1"}], [{}, {"a": "2"}]),
        ("a==1", [{"a": "1"}], [{"a": "2"}]),
        ("a!=1", [{}, {"a": "2"}], [{"a": "1"}]),
        ("a in (1,2)", [{"a": "1"}, {"a": "2"}], [{}, {"a": "3"}]),
        ("a notin (1, 2)", [{}, {"a": "3"}], [{"a": "2"}]),
        ("a", [{"a": ""}], [{"b": ""}]),
        ("!a", [{}], [{"a": ""}]),
        ("a=", [{"a": ""}], [{"a": "1"}]),
        ("a=1,b in (x,y),!c", [{"a": "1", "b": "y"}], [{"a": "1", "b": "y", "c": ""}, {"a": "1"}]),
        ("x.io/a=1", [{"x.io/a": "1"}], [{}]),
        (" a = 1 ", [{"a": "1"}], [{}]),
    ],
)
def test_label_queries(text: str, yes: list[dict[str, str]], no: list[dict[str, str]]) -> None:
    found = label_query(text)
    assert found and all(found({"metadata": {"labels": have}}) for have in yes)
    assert not any(found({"metadata": {"labels": have}}) for have in no)


@pytest.mark.parametrize(
    "text", ["a in", "a in (", "a in 1", "=", "=1", "a b", "!", "a=1=2", "a=(b)", "a in (b) c", "!a=1", ")"]
)
def test_bad_label_queries_name_the_term(text: str) -> None:
    with pytest.raises(StatusError, match="requirement") as caught:
        label_query("good=1," + text)
    assert caught.value.code == 400 and text in caught.value.message


@given(st.text(max_size=20))
def test_any_text_is_a_selector_or_a_400(text: str) -> None:
    for parse in (label_query, field_query):
        try:
            found = parse(text)
        except StatusError as err:
            assert err.code == 400
        else:
            assert found is None or found({"metadata": {}}) in (True, False)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("metadata.name=p1", True),
        ("metadata.name!=p1", False),
        ("spec.nodeName=", True),
        ("spec.hostNetwork=true", True),
        ("status.phase==Running,metadata.name=p1", False),
        ("spec.clusterIP!=None", True),
        ("spec.nodeName.more=x", False),
    ],
)
def test_field_queries(text: str, matches: bool) -> None:
    found = field_query(text)
    assert found and found(pod(hostNetwork=True)) is matches
    assert field_query("") is None is label_query(" , ")


@pytest.mark.parametrize(
    ("selector", "have", "matches"),
    [
        (None, {"a": "1"}, False),
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, {"a": "1"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, False),
        (
            {"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]},
            {"a": "1", "b": ""},
            False,
        ),
    ],
)
def test_label_selector_objects(selector: Any, have: dict[str, str], matches: bool) -> None:
    assert label_selector(selector)(have) is matches


# ---- shapes


def _at(made: Object, *path: Any, value: Any) -> Object:
    target: Any = made
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return made


@pytest.mark.parametrize(
    ("made", "unknown", "wrong"),
    [
        (service(), [], []),
        (_at(service(), "spec", "nope", value=1), ["spec.nope"], []),
        (_at(service(), "spec", "ports", 0, "prot", value="x"), ["spec.ports[0].prot"], []),
        (_at(service(), "spec", "ports", value={}), [], ["spec.ports"]),
        (_at(service(), "spec", "ports", 0, "targetPort", value=[]), [], ["spec.ports[0].targetPort"]),
        (_at(service(), "spec", "ports", 0, "targetPort", value="http"), [], []),
        (_at(service(), "spec", "ports", 0, value=None), [], ["spec.ports[0]"]),
        (_at(service(), "spec", "ports", 0, value={}), [], ["spec.ports[0].port"]),
        (_at(service(), "spec", "selector", value={"a": 1}), [], ["spec.selector.a"]),
        (_at(service(), "metadata", "labels", value={"a": True}), [], ["metadata.labels.a"]),
        (_at(service(), "spec", "externalIPs", value=["a", 5]), [], ["spec.externalIPs[1]"]),
        (_at(service(), "spec", "publishNotReadyAddresses", value="yes"), [], ["spec.publishNotReadyAddresses"]),
        (_at(pod(), "spec", "containers", 0, "resources", value={"limits": {"cpu": 1, "memory": "1Gi"}}), [], []),
        (
            _at(pod(), "spec", "containers", 0, "env", value=[{"name": "A", "value": 5}]),
            [],
            ["spec.containers[0].env[0].value"],
        ),
        (_at(pod(), "spec", "containers", 0, "args", value=[True]), [], ["spec.containers[0].args[0]"]),
        (_at(pod(), "metadata", "creationTimestamp", value="yesterday"), [], ["metadata.creationTimestamp"]),
        (
            _at(pod(), "metadata", "creationTimestamp", value="2027-01-15T08:00:00Z\n"),
            [],
            ["metadata.creationTimestamp"],
        ),
        (
            _at(pod(), "metadata", "ownerReferences", value=[{"name": "x"}]),
            [],
            [f"metadata.ownerReferences[0].{f}" for f in ("apiVersion", "kind", "uid")],
        ),
        (_at(deployment(), "spec", "replicas", value="3"), [], ["spec.replicas"]),
        (_at(deployment(), "spec", "replicas", value=True), [], ["spec.replicas"]),
    ],
    ids=str,
)
def test_shapes(made: Object, unknown: list[str], wrong: list[str]) -> None:
    got, causes = schema.check(of(made["kind"]), made)
    assert got == unknown and sorted(c.field for c in causes) == sorted(wrong)
    assert all(c.message for c in causes)


def test_nulls_are_not_there() -> None:
    value = {"a": None, "b": {"c": None, "d": [{"e": None}, None]}}
    schema.drop_nulls(value)
    assert value == {"b": {"d": [{}, None]}}


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


@pytest.mark.parametrize("pair", GROUPS, ids=str)
def test_openapi(pair: tuple[str, str]) -> None:
    document = schema.openapi_v3(*pair)
    assert document
    known = {f"#/components/schemas/{n}" for n in document["components"]["schemas"]}
    refs = set(_refs(document))
    assert refs and refs <= known
    rows = [r for r in RESOURCES if (r.group, r.version) == pair]
    for resource in rows:
        space = "{namespace}" if resource.namespaced else ""
        operation = document["paths"][resource.path(space, "{name}")]["patch"]
        assert "fieldValidation" in [p["name"] for p in operation["parameters"]], "kubectl looks for this"
        assert operation["x-kubernetes-group-version-kind"]["kind"] == resource.kind
    assert {
        k["kind"]
        for s in document["components"]["schemas"].values()
        for k in s.get("x-kubernetes-group-version-kind", ())
    } == {r.kind for r in rows}
    assert schema.openapi_v3("none", "v1") is None


# ---- tables

NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda r: r.kind)
def test_tables_of_minimal_and_of_odd_objects(resource: Resource) -> None:
    odd: list[Object] = [
        stored(minimal(resource)),
        {"metadata": {"name": "x"}},
        {"metadata": {"name": "x"}, "spec": None, "status": None},
        {**stored(minimal(resource)), "status": {"conditions": [{}], "containerStatuses": [{}], "addresses": [{}]}},
    ]
    for made in odd:
        for include, wanted in (("None", None), ("Metadata", "PartialObjectMetadata"), ("Object", made.get("kind"))):
            found = table.table(resource, [made], NOW, include=include)
            (row,) = found["rows"]
            assert len(row["cells"]) == len(found["columnDefinitions"]) and row["cells"][0] == made["metadata"]["name"]
            assert row.get("object", {}).get("kind") == wanted
            codec.dumps(found)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172799, "47h"), (172800, "2d"), (-5, "0s")],
)
def test_ages(seconds: int, text: str) -> None:
    assert table.age(datetime.fromtimestamp(NOW.timestamp() - seconds, UTC).isoformat(), NOW) == text
    assert table.age("", NOW) == "<unknown>"


# ---- codec, YAML, registry


@given(
    st.dictionaries(st.text(max_size=5), st.none() | st.text() | st.integers(-(2**60), 2**60), max_size=4),
    st.integers(0, 2**50),
)
def test_spliced_revision_is_the_decoded_one(more: dict[str, Any], revision: int) -> None:
    made = {"kind": "X", **more, "metadata": {"name": "n", "resourceVersion": "old", **more}}
    made["metadata"]["name"] = "n"
    wanted = {**made, "metadata": {**made["metadata"], "resourceVersion": str(revision)}}
    assert codec.decode(codec.with_revision(codec.encode(made), revision)) == wanted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 2026-01-01", {"a": "2026-01-01"}),
        ("a: 2026-99-99T00:00:00Z", {"a": "2026-99-99T00:00:00Z"}),
        ("80: x\ntrue: y\n1.5: z", {"80": "x", "true": "y", "1.5": "z"}),
        ("a: =", {"a": "="}),
        ("a: {b: [1, 2.5, ~, on]}", {"a": {"b": [1, 2.5, None, True]}}),
        ("x: &a {b: 1}\ny: {<<: *a, c: 2}", {"x": {"b": 1}, "y": {"b": 1, "c": 2}}),
    ],
)
def test_yaml_is_read_as_json_could_say_it(text: str, value: Any) -> None:
    assert list(yamltext.documents(text)) == [value]


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "!!python/object:os.system {}",
        "!!set {a}",
        "!!binary aGk=",
        "[" * 900,
        "&a [*a]",
        "? {a: b}\n: c",
        "a: b: c",
        "\x00",
        "a: *b",
    ],
)
def test_yaml_that_is_refused(text: str) -> None:
    with pytest.raises(yamltext.BadYaml):
        list(yamltext.documents(text))


def test_no_aliases_from_the_network() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    with pytest.raises(yamltext.BadYaml, match="aliases"):
        list(yamltext.documents("\n".join(lines), aliases=False))


def test_registry() -> None:
    assert len(BY_PATH) == len(BY_KIND) == len(RESOURCES) == len({r.prefix() for r in RESOURCES})
    for resource in RESOURCES:
        for word in (resource.plural, resource.kind, resource.qualified.upper(), *resource.short):
            assert by_name(word) is resource
        assert schema.model(resource).__name__ == resource.kind
    assert by_name("nothing") is None
    assert of("Deployment").path("d", "n", "scale") == "/apis/apps/v1/namespaces/d/deployments/n/scale"
    assert of("Node").path("ignored", "n") == "/api/v1/nodes/n" and of("Pod").path() == "/api/v1/pods"

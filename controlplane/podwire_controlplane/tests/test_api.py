"""Selectors, tables, the codec, YAML and the registry."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from time import process_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube import codec, table, yamltext
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import BY_KIND, BY_PATH, RESOURCES, Resource, by_name, of
from podwire_base.kube.selectors import field_query, label_query, label_selector
from podwire_base.testing.builders import minimal, pod, stored

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
    assert field_query("") is None is label_query(" ")


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
            unnamed = resource.kind == "IPAddress"  # upstream too gives it an age without a definition
            assert len(row["cells"]) == len(found["columnDefinitions"]) + unnamed
            at = [c["format"] for c in found["columnDefinitions"]].index("name")
            assert row["cells"][at] == made["metadata"]["name"]
            assert row.get("object", {}).get("kind") == wanted
            codec.dumps(found)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (119, "119s"),
        (120, "2m"),
        (130, "2m10s"),
        (600, "10m"),
        (10799, "179m"),
        (10860, "3h1m"),
        (28800, "8h"),
        (172799, "47h"),
        (176400, "2d1h"),
        (691200, "8d"),
        (63072000, "2y"),
        (63158400, "2y1d"),
        (252288000, "8y"),
    ],
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


def test_what_aliases_repeat_is_bounded() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    with pytest.raises(yamltext.BadYaml, match="repeat"):
        list(yamltext.documents("\n".join(lines), repeats=1000))
    with pytest.raises(yamltext.BadYaml, match="values"):
        list(yamltext.documents("\n".join(lines)))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        "{a: " * 300_000,
        "- " * 200_000,
        "a: " + "1:" * 500_000 + "1",
        "a: " + "9" * 1_000_000,
        "? " * 9999,
    ],
    ids=lambda text: text[:6],
)
def test_hostile_yaml_takes_a_moment(text: str) -> None:
    start = process_time()
    with contextlib.suppress(yamltext.BadYaml):
        list(yamltext.documents(text))
    assert process_time() - start < 2


def test_registry() -> None:
    assert len(BY_PATH) == len(BY_KIND) == len(RESOURCES) == 68
    shared = {"events", "horizontalpodautoscalers"}  # two versions of each have the same objects
    assert len({r.prefix() for r in RESOURCES}) == 66
    for resource in RESOURCES:
        for word in (resource.plural, resource.kind, *resource.short):
            found = by_name(word)
            assert found is resource or (found and found.plural == resource.plural in shared)
        assert by_name(resource.qualified.upper()) in (resource, of(resource.kind))
        assert resource.path("d", "n").startswith(resource.base)
    with pytest.raises(KeyError):
        of("Nothing")
    assert by_name("nothing") is None
    assert of("Deployment").path("d", "n", "scale") == "/apis/apps/v1/namespaces/d/deployments/n/scale"
    assert of("Node").path("ignored", "n") == "/api/v1/nodes/n" and of("Pod").path() == "/api/v1/pods"

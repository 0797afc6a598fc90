"""Custom resources as clients see them: a CustomResourceDefinition, and objects of its kind."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from podwire_base.kube.meta import Object
from podwire_base.patience import patient

from ..store.memory import MemoryStore
from ..testing.servers import Server
from ..testing.widgets import CRDS, SPEC, WIDGETS, definition, schema, widget

MERGE = {"Content-Type": "application/merge-patch+json"}
UNCHECKED = ("<nil>", "FieldValueInvalid")  # the rules are not evaluated where a value has another type
TABLE = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}


def until(test: Callable[[], Any]) -> Any:
    """Ask again until the answer is true: the server writes conditions and ends definitions after its answer."""
    end = time.monotonic() + patient(10)
    while not (found := test()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        found.good("POST", "/api/v1/namespaces", {"metadata": {"name": "team-a"}})
        yield found


@pytest.fixture
def widgets(server: Server) -> Server:
    server.good("POST", CRDS, definition())
    return server


def conditions(server: Server, own: str = "widgets.example.com") -> dict[str, str]:
    found = server.good("GET", f"{CRDS}/{own}")
    return {row["type"]: row["status"] for row in found["status"].get("conditions") or []}


def causes(answer: Object) -> list[tuple[str, str]]:
    return sorted((c.get("field", ""), c["reason"]) for c in (answer.get("details") or {}).get("causes", []))


def test_a_kind_is_served_from_the_moment_of_its_definition(server: Server) -> None:
    with server.open("GET", WIDGETS) as raw:
        assert raw.status == 404
    server.good("POST", CRDS, definition())
    made = server.good("POST", WIDGETS, widget("a"))
    assert made["metadata"]["generation"] == 1
    assert made["spec"]["colour"] == "red"
    want = {"NamesAccepted": "True", "Established": "True"}
    until(lambda: conditions(server) == want)
    found = server.good("GET", f"{CRDS}/widgets.example.com")["status"]["acceptedNames"]
    assert found == {
        "plural": "widgets",
        "singular": "widget",
        "kind": "Widget",
        "listKind": "WidgetList",
        "shortNames": ["wd"],
        "categories": ["all"],
    }


def test_discovery_and_openapi_know_the_kind(widgets: Server) -> None:
    rows = {row["name"]: row for row in widgets.good("GET", "/apis/example.com/v1")["resources"]}
    assert rows.keys() == {"widgets", "widgets/status", "widgets/scale"}
    assert rows["widgets"]["shortNames"] == ["wd"]
    assert rows["widgets"]["categories"] == ["all"]
    assert rows["widgets/scale"]["group"] == "autoscaling"
    three = widgets.good("GET", "/openapi/v3/apis/example.com/v1")
    own = three["components"]["schemas"]["com.example.v1.Widget"]
    assert own["properties"]["spec"]["properties"]["size"] == SPEC["properties"]["size"]
    assert own["properties"]["metadata"]["allOf"][0]["$ref"].endswith("ObjectMeta")
    path = "/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"
    assert three["paths"][path]["get"]["x-kubernetes-group-version-kind"]["kind"] == "Widget"
    two = widgets.good("GET", "/openapi/v2")["definitions"]
    assert two["com.example.v1.Widget"]["x-kubernetes-group-version-kind"][0]["kind"] == "Widget"
    assert "com.example.v1.WidgetList" in two
    before = widgets.text("/openapi/v3")
    version = {**definition()["spec"]["versions"][0], "schema": schema({"type": "object"}), "selectableFields": []}
    widgets.good("PATCH", f"{CRDS}/widgets.example.com", {"spec": {"versions": [version]}}, headers=MERGE)
    assert widgets.text("/openapi/v3") != before, "the hash tells clients that the schema changed"


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ({"size": 101}, [("spec.size", "FieldValueInvalid")]),
        ({"tags": ["a", "b", "a", "a"]}, [("spec.tags[2]", "FieldValueDuplicate")]),
        ({"parts": [{"name": "a"}, {"name": "a"}]}, [("spec.parts[1]", "FieldValueDuplicate")]),
        ({"colour": "pink"}, [UNCHECKED, ("spec.colour", "FieldValueNotSupported")]),
        ({"limits": {"a": 1}}, [UNCHECKED, ("spec.limits.a", "FieldValueTypeInvalid")]),
        ({"parts": [{"name": "a", "port": True}]}, [UNCHECKED, ("spec.parts[0].port", "FieldValueTypeInvalid")]),
        ({"size": -1}, [(".spec.size", "FieldValueInvalid"), ("spec.size", "FieldValueInvalid")]),
    ],
)
def test_wrong_objects_are_refused_with_upstream_s_causes(widgets: Server, spec: Object, want: Any) -> None:
    code, answer = widgets.ask("POST", WIDGETS, widget("a", **spec))
    assert (code, answer["reason"], causes(answer)) == (422, "Invalid", want)


def test_unknown_fields_are_pruned_or_refused(widgets: Server) -> None:
    sent = widget("a", bogus=1, parts=[{"name": "x", "y": 1}], free={"a": [1, None, {"b": 1.0}]})
    code, answer = widgets.ask("POST", f"{WIDGETS}?fieldValidation=Strict", copy.deepcopy(sent))
    assert code == 400
    assert "spec.parts[0].y" in answer["message"]
    with widgets.open("POST", WIDGETS, sent) as raw:
        found = json.loads(raw.read())
        assert raw.headers.get_all("Warning") == [
            '299 - "unknown field \\"spec.bogus\\""',
            '299 - "unknown field \\"spec.parts[0].y\\""',
        ]
    assert found["spec"] == {
        "size": 1,
        "colour": "red",
        "parts": [{"name": "x", "count": 1}],
        "free": {"a": [1, None, {"b": 1}]},
    }


def test_status_and_scale(widgets: Server) -> None:
    made = widgets.good("POST", WIDGETS, {**widget("a"), "status": {"phase": "x"}})
    assert "status" not in made
    patch = {"status": {"size": 2, "selector": "a=b"}, "spec": {"size": 50}, "metadata": {"labels": {"x": "y"}}}
    found = widgets.good("PATCH", f"{WIDGETS}/a/status", patch, headers=MERGE)
    assert (found["spec"]["size"], found["metadata"]["generation"]) == (1, 1)
    assert "labels" not in found["metadata"], "only the status is written"
    scale = widgets.good("GET", f"{WIDGETS}/a/scale")
    assert (scale["spec"], scale["status"]) == ({"replicas": 1}, {"replicas": 2, "selector": "a=b"})
    scale["spec"]["replicas"] = 7
    assert widgets.good("PUT", f"{WIDGETS}/a/scale", scale)["spec"] == {"replicas": 7}
    code, _ = widgets.ask("PUT", f"{WIDGETS}/a/scale", scale)
    assert code == 409, "the Scale's resourceVersion counts"
    found = widgets.good("PATCH", f"{WIDGETS}/a", {"metadata": {"labels": {"x": "y"}}}, headers=MERGE)
    assert (found["spec"]["size"], found["metadata"]["generation"]) == (7, 2)
    code, answer = widgets.ask("PATCH", f"{WIDGETS}/a/status", {"status": {"size": "x"}}, headers=MERGE)
    assert causes(answer) == [
        (".status.size", "FieldValueInvalid"),
        UNCHECKED,
        ("status.size", "FieldValueTypeInvalid"),
    ]


def test_tables_lists_watches_and_selectors(widgets: Server) -> None:
    start = widgets.good("GET", WIDGETS)["metadata"]["resourceVersion"]
    widgets.good("POST", WIDGETS, widget("a", colour="blue"))
    widgets.good("POST", WIDGETS, widget("b"))
    table = widgets.good("GET", WIDGETS, headers=TABLE)
    assert [c["name"] for c in table["columnDefinitions"]] == ["Name", "Size", "Colour", "Age"]
    assert [row["cells"][:3] for row in table["rows"]] == [["a", 1, "blue"], ["b", 1, "red"]]
    listed = widgets.good("GET", f"{WIDGETS}?fieldSelector=spec.colour%3Dblue")
    assert (listed["kind"], [i["kind"] for i in listed["items"]]) == ("WidgetList", ["Widget"])
    assert widgets.ask("GET", f"{WIDGETS}?fieldSelector=spec.size%3D1")[0] == 400
    events = widgets.frames(f"{WIDGETS}?watch=1&resourceVersion={start}&timeoutSeconds=1")
    assert [(e["type"], e["object"]["metadata"]["name"]) for e in events] == [("ADDED", "a"), ("ADDED", "b")]
    assert (
        widgets.ask("PATCH", f"{WIDGETS}/a", {}, headers={"Content-Type": "application/strategic-merge-patch+json"})[0]
        == 415
    )


def _versions() -> list[Object]:
    one = definition()["spec"]["versions"][0]
    two = {**one, "name": "v2", "storage": False, "deprecated": True, "subresources": {"status": {}}}
    return [one, two]


def test_versions_share_their_objects(server: Server) -> None:
    server.good("POST", CRDS, definition(versions=_versions()))
    assert [v["version"] for v in server.good("GET", "/apis/example.com")["versions"]] == ["v2", "v1"]
    server.good("POST", WIDGETS.replace("/v1/", "/v2/"), widget("a", version="v2"))
    assert server.good("GET", f"{WIDGETS}/a")["apiVersion"] == "example.com/v1"
    with server.open("GET", f"{WIDGETS.replace('/v1/', '/v2/')}/a") as raw:
        assert json.loads(raw.read())["apiVersion"] == "example.com/v2"
        assert raw.headers.get_all("Warning") == ['299 - "example.com/v2 Widget is deprecated"']
    assert server.ask("GET", f"{WIDGETS.replace('/v1/', '/v2/')}/a/scale")[0] == 404


def test_a_changed_schema_changes_what_is_read(widgets: Server) -> None:
    """As upstream: objects are pruned and defaulted when they are read, and what did not change is not judged again."""
    widgets.good("POST", WIDGETS, widget("a", note="old", colour="blue"))
    spec = copy.deepcopy(SPEC)
    del spec["properties"]["note"]
    spec["properties"]["new"] = {"type": "string", "default": "x"}
    spec["properties"]["colour"]["enum"] = ["red"]
    version = {**definition()["spec"]["versions"][0], "schema": schema(spec)}
    widgets.good("PATCH", f"{CRDS}/widgets.example.com", {"spec": {"versions": [version]}}, headers=MERGE)
    want = {"size": 1, "colour": "blue", "new": "x"}
    assert widgets.good("GET", f"{WIDGETS}/a")["spec"] == want
    assert widgets.good("GET", WIDGETS)["items"][0]["spec"] == want
    assert widgets.good("PATCH", f"{WIDGETS}/a", {"spec": {"size": 2}}, headers=MERGE)["spec"] == {**want, "size": 2}
    assert widgets.ask("PATCH", f"{WIDGETS}/a", {"spec": {"colour": "green"}}, headers=MERGE)[0] == 422


def test_names_that_are_taken_are_not_served(widgets: Server) -> None:
    until(lambda: conditions(widgets).get("Established") == "True")
    other = definition("gadgets", "Widget")
    widgets.good("POST", CRDS, other)
    until(lambda: conditions(widgets, "gadgets.example.com") == {"NamesAccepted": "False", "Established": "False"})
    with widgets.open("GET", WIDGETS.replace("widgets", "gadgets")) as raw:
        assert raw.status == 404
    row = widgets.good("GET", f"{CRDS}/gadgets.example.com")["status"]["conditions"][0]
    assert (row["reason"], row["message"]) == ("ListKindConflict", '"WidgetList" is already in use')
    widgets.good("DELETE", f"{CRDS}/widgets.example.com")
    until(lambda: conditions(widgets, "gadgets.example.com").get("Established") == "True")
    assert widgets.good("GET", WIDGETS.replace("widgets", "gadgets"))["items"] == []


def test_a_definition_takes_its_objects_along(widgets: Server) -> None:
    widgets.good("POST", WIDGETS, widget("a"))
    held = widget("b")
    held["metadata"]["finalizers"] = ["example.com/hold"]
    widgets.good("POST", WIDGETS, held)
    found = widgets.good("DELETE", f"{CRDS}/widgets.example.com")
    assert found["metadata"]["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
    until(lambda: widgets.ask("GET", f"{WIDGETS}/a")[0] == 404)
    assert conditions(widgets)["Terminating"] == "True"
    code, answer = widgets.ask("POST", WIDGETS, widget("c"))
    assert (code, answer["reason"]) == (405, "MethodNotAllowed")
    widgets.good("PATCH", f"{WIDGETS}/b", {"metadata": {"finalizers": None}}, headers=MERGE)
    until(lambda: widgets.ask("GET", f"{CRDS}/widgets.example.com")[0] == 404)
    with widgets.open("GET", "/apis/example.com/v1") as raw:
        assert raw.status == 404
    widgets.good("POST", CRDS, definition())
    assert widgets.good("GET", WIDGETS)["items"] == []


def test_a_namespace_takes_its_custom_objects_along(widgets: Server) -> None:
    widgets.good("POST", WIDGETS, widget("a"))
    widgets.good("DELETE", "/api/v1/namespaces/team-a")
    until(lambda: widgets.ask("GET", f"{WIDGETS}/a")[0] == 404)


def test_definitions_survive_a_restart() -> None:
    """Also one that was being deleted when the server ended: its objects go at the start."""
    kept = MemoryStore()

    async def stays() -> None:
        """The store outlives the first server."""

    kept.close = stays  # type: ignore[method-assign]
    with Server(lambda: kept) as first:
        first.good("POST", "/api/v1/namespaces", {"metadata": {"name": "team-a"}})
        first.good("POST", CRDS, definition())
        first.good("POST", WIDGETS, widget("a"))
        until(lambda: conditions(first).get("Established") == "True")
    with Server(lambda: kept) as second:
        assert second.good("GET", f"{WIDGETS}/a")["spec"] == {"size": 1, "colour": "red"}
        assert second.ask("POST", WIDGETS, widget("b", size=101))[0] == 422

"""Server-side apply without a server: sets of fields, types, managers. The records of kube-apiserver are in
test_recordings.py.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.meta import Object
from podwire_base.kube.schema import Schema, builtin

from ..apply import fieldsets, typed
from ..apply.fieldsets import Fields
from ..apply.managers import (
    ANCIENT,
    MAX_UPDATERS,
    BadEntry,
    Conflicted,
    FieldManager,
    Managed,
    Manager,
    OneVersion,
    decode,
    encode,
    equal,
)
from ..apply.resets import reset_of
from ..apply.scale import to_object, to_scale

WIDGET = Schema({}).compile(
    {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                "properties": {"labels": {"type": "object", "additionalProperties": {"type": "string"}}},
            },
            "spec": {
                "type": "object",
                "properties": {
                    "size": {"type": "integer"},
                    "tags": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                    "plain": {"type": "array", "items": {"type": "integer"}},
                    "parts": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name", "kind"],
                        "items": {
                            "type": "object",
                            "properties": {
                                "name": {"type": "string"},
                                "kind": {"type": "string", "default": "plain"},
                                "count": {"type": "integer"},
                            },
                        },
                    },
                    "whole": {
                        "type": "object",
                        "x-kubernetes-map-type": "atomic",
                        "properties": {"a": {"type": "string"}},
                    },
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            },
        },
    }
)
KIND = FieldManager(OneVersion(WIDGET, ("v1",)), "v1")
LATER, NOW = "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z"


def widget(**spec: Any) -> Object:
    return {"apiVersion": "v1", "kind": "Widget", "metadata": {}, "spec": spec}


def owned(managed: Managed, name: str, operation: str = "Apply") -> Fields:
    found = [e.fields for k, e in managed.items() if isinstance(k, Manager) and k[:2] == (name, operation)]
    return found[0] if found else {}


def members(fields: Fields) -> set[str]:
    return {fieldsets.text(path) for path in fieldsets.paths(fields)}


# ---- sets of fields

_STEPS = st.sampled_from(["f:a", "f:b", 'k:{"name":"x"}', 'v:"y"'])
_PATHS = st.lists(_STEPS, min_size=1, max_size=4).map(tuple)


def built(paths: set[fieldsets.Path]) -> Fields:
    made: Fields = {}
    for path in paths:
        made = fieldsets.union(made, fieldsets.of_path(path))
    return made


@given(st.sets(_PATHS, max_size=8), st.sets(_PATHS, max_size=8))
def test_sets_of_fields_are_sets(a: set[fieldsets.Path], b: set[fieldsets.Path]) -> None:
    one, other = built(a), built(b)
    before = copy.deepcopy((one, other))
    assert set(fieldsets.paths(one)) == a and all(fieldsets.has(one, path) for path in a)
    assert set(fieldsets.paths(fieldsets.union(one, other))) == a | b
    assert set(fieldsets.paths(fieldsets.difference(one, other))) == a - b
    assert set(fieldsets.paths(fieldsets.intersection(one, other))) == a & b
    assert fieldsets.parse(json.loads(json.dumps(one))) == one and (one == other) is (a == b)
    for path in b:
        beneath = {p for p in a if p[: len(path)] == path}
        assert set(fieldsets.paths(fieldsets.without(one, path))) == a - beneath
        assert set(fieldsets.paths(fieldsets.only(one, path))) == beneath
    assert (one, other) == before  # no function changes its arguments


def test_a_path_reads_as_upstream_writes_it() -> None:
    path = ("f:spec", "f:ports", 'k:{"port":80,"protocol":"TCP"}', "f:name")
    assert fieldsets.text(path) == '.spec.ports[port=80,protocol="TCP"].name'
    assert fieldsets.text(("f:tags", 'v:"a"')) == '.tags[="a"]'
    assert fieldsets.text(("f:list", "i:3")) == ".list[3]"


@pytest.mark.parametrize("raw", [1, {"f:a": 1}, {"x:a": {}}, {"k:[]": {}}, {"v:{": {}}, {"i:x": {}}], ids=str)
def test_what_is_no_fieldsv1_is_refused(raw: Any) -> None:
    with pytest.raises(fieldsets.BadFields):
        fieldsets.parse(raw)


def test_keys_of_clients_become_canonical() -> None:
    raw: Fields = {"f:a": {'k:{"b": 2, "a": 1}': {".": {}}}}
    assert fieldsets.parse(raw) == {"f:a": {'k:{"a":1,"b":2}': {}}}


# ---- values and their types

SETS = [
    (widget(), {".apiVersion", ".kind", ".metadata", ".spec"}),
    (widget(size=None), {".spec.size"}),
    (widget(tags=["b", "a"]), {'.spec.tags[="a"]', '.spec.tags[="b"]'}),
    (widget(tags=[]), set[str]()),
    (widget(plain=[]), {".spec.plain"}),
    (widget(whole={"a": "b"}), {".spec.whole"}),
    (widget(free={"x": {"y": [1, 2]}}), {".spec.free.x", ".spec.free.x.y"}),
    (widget(parts=[{"name": "a"}]), {'.spec.parts[kind="plain",name="a"]', '.spec.parts[kind="plain",name="a"].name'}),
]


@pytest.mark.parametrize(("obj", "want"), SETS, ids=[str(n) for n in range(len(SETS))])
def test_the_fields_of_an_applied_object(obj: Object, want: set[str]) -> None:
    found = members(typed.field_set(WIDGET, obj))
    assert found - {".apiVersion", ".kind", ".metadata"} == want - {".apiVersion", ".kind", ".metadata"}


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"bogus": 1}, ".spec.bogus: field not declared in schema"),
        ({"size": "x"}, ".spec.size: expected numeric"),
        ({"tags": "x"}, ".spec.tags: expected list"),
        ({"tags": ["a", "a"]}, "duplicate entries"),
        ({"tags": [{}]}, "no scalar"),
        ({"parts": [{"count": 1}, {"count": 2}]}, "duplicate entries"),  # the key that has a default is enough
        ({"parts": [1]}, "no object"),
        ({"whole": [1]}, ".spec.whole: expected map"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named(spec: Object, word: str) -> None:
    assert word in " ".join(typed.check(WIDGET, widget(**spec)))


def test_free_json_takes_everything() -> None:
    assert not list(typed.check(WIDGET, widget(free={"a": [{"b": None}], "c": True})))
    assert not list(typed.check(None, {"anything": [1, {}]}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), JSON), st.dictionaries(st.sampled_from("abc"), JSON))
def test_deduced_types_lose_nothing(old: Object, new: Object) -> None:
    """Differences of two documents are none exactly if they are equal, and what was added and removed change places."""
    removed, modified, added = typed.compare(None, old, new)
    assert (not removed and not modified and not added) is typed.same(old, new)
    assert typed.compare(None, new, old) == (added, modified, removed)
    assert typed.same(typed.merge(None, old, old), old)


ORDERS = [
    (["a", "b", "c"], ["c", "a"], ["b", "c", "a"]),
    (["a", "b"], ["x", "b"], ["a", "x", "b"]),
    (["b", "a"], ["a", "b"], ["a", "b"]),
    ([], ["a", "b"], ["a", "b"]),
    (["a"], ["b"], ["a", "b"]),
]


@pytest.mark.parametrize(("live", "applied", "want"), ORDERS, ids=str)
def test_items_stand_in_the_applied_order(live: list[str], applied: list[str], want: list[str]) -> None:
    made = typed.merge(WIDGET, widget(tags=live), widget(tags=applied))
    assert made["spec"]["tags"] == want


# ---- managers


def test_conflicts_are_named_and_forced() -> None:
    live, managed = KIND.apply({"metadata": {}}, widget(size=1, tags=["a"]), {}, "ann", NOW)
    assert live is not None
    with pytest.raises(Conflicted) as caught:
        KIND.apply(live, widget(size=2, tags=["a", "b"]), managed, "bob", NOW)
    assert str(caught.value) == 'Apply failed with 1 conflict: conflict with "ann": .spec.size'
    new, managed = KIND.apply(live, widget(size=2, tags=["a"]), managed, "bob", NOW, force=True)
    assert new is not None and new["spec"] == {"size": 2, "tags": ["a"]}
    assert members(owned(managed, "ann")) == {'.spec.tags[="a"]'}
    assert members(owned(managed, "bob")) == {'.spec.tags[="a"]', ".spec.size"}


def test_a_manager_that_gives_a_field_up_removes_it_unless_it_is_shared() -> None:
    live, managed = KIND.apply({"metadata": {}}, widget(size=1, parts=[{"name": "a", "count": 1}]), {}, "ann", NOW)
    assert live is not None
    shared, managed = KIND.apply(live, widget(size=1), managed, "bob", NOW)
    assert shared is None  # nothing changes: bob wants what is there
    left, managed = KIND.apply(live, widget(), managed, "ann", NOW)
    assert left is not None and left["spec"] == {"size": 1}
    gone, managed = KIND.apply(left, widget(), managed, "bob", NOW)
    assert gone is not None and not gone.get("spec")
    live, managed = KIND.apply({"metadata": {}}, widget(parts=[{"name": "a"}], free={"a": 1}), {}, "ann", NOW)
    assert live is not None
    left, managed = KIND.apply(live, widget(free={}), managed, "ann", NOW)
    assert left is not None and left["spec"] == {"free": {}}  # a map that is wanted stays, empty


def test_updates_take_what_they_change_and_conflict_by_version() -> None:
    live, managed = KIND.apply({"metadata": {}}, widget(size=1), {}, "ann", NOW)
    assert live is not None
    managed = KIND.update(live, widget(size=2), managed, "kubectl-edit", NOW)
    assert not owned(managed, "ann") and members(owned(managed, "kubectl-edit", "Update")) == {".spec.size"}
    with pytest.raises(Conflicted, match=r'conflict with "kubectl-edit" using v1: \.spec\.size'):
        KIND.apply(widget(size=2), widget(size=3), managed, "ann", NOW)


def test_an_update_that_changes_nothing_owns_nothing() -> None:
    live, managed = KIND.apply({"metadata": {}}, widget(size=1), {}, "ann", NOW)
    assert live is not None and KIND.update(live, live, managed, "bob", LATER) == managed


def test_the_oldest_updates_become_one() -> None:
    live, managed = widget(), Managed()
    for n in range(MAX_UPDATERS + 3):
        new = widget(free={**live["spec"].get("free", {}), f"f{n:02}": 1})
        managed = KIND.update(live, new, managed, f"m{n:02}", f"2026-01-01T00:00:{n:02}Z")
        live = new
    names = [entry["manager"] for entry in encode(managed)]
    assert len(names) == MAX_UPDATERS and names[0] == ANCIENT and names[-1] == "m12"
    assert members(owned(managed, ANCIENT, "Update")) >= {".spec.free.f00", ".spec.free.f03"}


def test_the_server_owns_what_nobody_can_set() -> None:
    config = {**widget(), "metadata": {"name": "w", "labels": {"a": "1"}}}
    _, managed = KIND.apply({"metadata": {}}, config, {}, "ann", NOW)
    assert members(owned(managed, "ann")) == {".metadata.labels.a", ".spec"}


def test_status_is_nobodys_by_a_write_of_the_object() -> None:
    manager = FieldManager(OneVersion(None, ("v1",)), "v1", "", reset_of("", "Service", "", has_status=True))
    managed = manager.update({}, {"spec": {"a": 1}, "status": {"b": 1}}, {}, "ann", NOW)
    assert members(owned(managed, "ann", "Update")) == {".spec", ".spec.a"}
    status = FieldManager(OneVersion(None, ("v1",)), "v1", "status", reset_of("", "Service", "status", has_status=True))
    resize = reset_of("", "Pod", "resize", has_status=True)
    fields: Fields = {"f:spec": {"f:containers": {'k:{"name":"a"}': {"f:image": {}, "f:resources": {"f:limits": {}}}}}}
    assert members(resize(fields)) == {'.spec.containers[name="a"].resources.limits'}
    managed = status.update({}, {"spec": {"a": 1}, "status": {"b": 1}}, {}, "ann", NOW)
    assert members(owned(managed, "ann", "Update")) == {".status", ".status.b"}


def test_the_version_of_a_manager_that_is_gone_takes_its_fields_along() -> None:
    _, managed = KIND.apply({"metadata": {}}, widget(size=1), {}, "ann", NOW)
    newer = FieldManager(OneVersion(WIDGET, ("v2",)), "v2")
    with pytest.raises(Conflicted):
        KIND.apply(widget(size=1), widget(size=2), managed, "bob", NOW)
    new, managed = newer.apply(widget(size=1), {**widget(size=2), "apiVersion": "v2"}, managed, "bob", NOW)
    assert new is not None and not owned(managed, "ann")


ENTRY = {"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}}


@pytest.mark.parametrize(
    "wrong", [{"operation": "Take"}, {"apiVersion": ""}, {"fieldsType": "V2"}, {"fieldsV1": []}], ids=str
)
def test_entries_of_clients_are_checked(wrong: Object) -> None:
    with pytest.raises(BadEntry):
        decode([{**ENTRY, **wrong} if wrong != {"fieldsV1": []} else {**ENTRY, "fieldsV1": [1]}])
    assert encode(decode([ENTRY])) == [ENTRY]


def test_times_alone_are_no_change() -> None:
    assert equal([{**ENTRY, "time": NOW}], [{**ENTRY, "time": LATER}])
    assert not equal([ENTRY], [{**ENTRY, "manager": "n"}]) and not equal([ENTRY], None)


def test_replicas_change_hands_through_the_scale() -> None:
    path = ("f:spec", "f:replicas")
    fields: Fields = {"f:spec": {"f:replicas": {}, "f:paused": {}}}
    managed = decode([{**ENTRY, "manager": "ann", "operation": "Apply", "fieldsV1": fields}])
    assert to_object(managed, to_scale(managed, path), path, "apps/v1") == managed
    taken = decode(
        [{**ENTRY, "manager": "bob", "apiVersion": "autoscaling/v1", "fieldsV1": fields, "subresource": "scale"}]
    )
    after = to_object(managed, taken, path, "apps/v1")
    assert members(owned(after, "ann")) == {".spec.paused"}
    assert members(owned(after, "bob", "Update")) == {".spec.replicas"}
    assert [entry["apiVersion"] for entry in encode(after)] == ["v1", "apps/v1"]


# ---- any steps of three managers

PODS = builtin().kind("v1", "Pod")
_CONTAINERS: Any = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from("ab")},
        optional={
            "image": st.sampled_from(["x", "y"]),
            "args": st.lists(st.sampled_from("uv"), min_size=1, max_size=2),
            "env": st.lists(
                st.fixed_dictionaries({"name": st.sampled_from("AB")}, optional={"value": st.sampled_from("12")}),
                min_size=1,
                max_size=2,
                unique_by=lambda env: env["name"],
            ),
        },
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda one: one["name"],
)
_POD: Any = st.fixed_dictionaries(
    {
        "metadata": st.fixed_dictionaries(
            {}, optional={"labels": st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), min_size=1)}
        )
    },
    optional={
        "spec": st.fixed_dictionaries(
            {},
            optional={
                "containers": _CONTAINERS,
                "nodeSelector": st.dictionaries(st.sampled_from("de"), st.sampled_from("12"), min_size=1),
                "hostNetwork": st.booleans(),
            },
        )
    },
)


def stored(value: Any) -> Any:
    """As the write path stores an object: nothing empty. (An empty map is owned and not kept, upstream as here.)"""
    if isinstance(value, dict):
        return {k: inner for k, v in value.items() if (inner := stored(v)) not in (None, {})}
    return [stored(v) for v in value] if isinstance(value, list) else value


_STEP = st.tuples(
    st.sampled_from(["ann", "bob", "cid"]),
    st.sampled_from(["apply", "force", "update"]),
    _POD.map(lambda pod: {"metadata": {}, **stored(pod)}),
)


@given(st.lists(_STEP, min_size=1, max_size=8))
def test_any_steps_of_three_managers(steps: list[tuple[str, str, Object]]) -> None:
    """What an apply wants is there and its own; applied again, it changes nothing. A conflict changes nothing, and
    names fields of others that the apply would change. What is there has an owner, and what has an owner is there.
    """
    manager = FieldManager(OneVersion(PODS, ("v1",)), "v1")
    live: Object = {"metadata": {}}
    managed: Managed = {}
    for name, how, body in steps:
        before = copy.deepcopy((live, managed))
        wanted = typed.field_set(PODS, body)
        if how == "update":
            managed = manager.update(live, body, managed, name, NOW)
            live = body
        else:
            try:
                made, managed = manager.apply(live, body, managed, name, NOW, force=how == "force")
            except Conflicted as err:
                assert how == "apply" and (live, managed) == before
                removed, modified, added = typed.compare(PODS, live, typed.merge(PODS, live, body))
                changed = fieldsets.union(modified, added)
                for conflict in err.conflicts:
                    assert conflict.manager != Manager(name, "Apply", "", "")
                    assert fieldsets.has(managed[conflict.manager].fields, conflict.path)
                    assert fieldsets.has(changed, conflict.path) and not removed
                continue
            live = live if made is None else {"metadata": {}, **stored(made)}
            assert members(wanted) <= members(owned(managed, name)) | {".metadata", ".spec"}
            assert typed.same(typed.merge(PODS, live, body), live)
            again, same = manager.apply(live, body, managed, name, LATER)
            assert again is None and same == managed
        _everything_has_an_owner(live, managed)


def _everything_has_an_owner(live: Object, managed: Managed) -> None:
    there, claimed = members(typed.field_set(PODS, live)), set[str]()
    for entry in managed.values():
        assert entry.fields and decode(encode(managed), known=True) == managed
        claimed |= members(entry.fields)
    leaves = {path for path in there if not any(other.startswith((path + ".", path + "[")) for other in there)}
    assert leaves <= claimed | {".metadata"}
    assert {path for path in claimed if path not in there} <= {".metadata", ".spec", ".spec.containers"} | {
        path for path in claimed if path.endswith((".labels", ".nodeSelector", ".env", ".args"))
    }

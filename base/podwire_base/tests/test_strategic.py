"""Strategic merge patches by Kubernetes' own schema. Recorded answers of a real server: test_recordings.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube import strategic
from podwire_base.kube.errors import StatusError
from podwire_base.kube.schema import builtin

POD: dict[str, Any] = {
    "spec": {
        "containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}],
        "nodeSelector": {"k": "v"},
        "volumes": [{"name": "v", "emptyDir": {}}],
    },
    "metadata": {"finalizers": ["x", "y"], "labels": {"l": "1"}},
}
NODE = builtin().kind("v1", "Pod")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "$patch", "spec"]), inner),
    max_leaves=8,
)


def spec_of(change: Any) -> Any:
    return strategic.apply(POD, {"spec": change}, NODE)["spec"]


def names(items: Any) -> list[str]:
    return [item["name"] for item in items]


def test_lists_merge_by_their_key() -> None:
    spec = spec_of({"containers": [{"name": "b", "image": "3"}, {"name": "c", "image": "4"}]})
    assert {(c["name"], c["image"]) for c in spec["containers"]} == {("a", "1"), ("b", "3"), ("c", "4")}
    inner = spec_of({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}]}]})["containers"][0]
    assert inner["image"] == "1" and names(inner["env"]) == ["Y", "X"], "new items stand first, as upstream"
    args = {"spec": {"containers": [{"name": "a", "args": ["1", "2"]}]}}
    assert strategic.apply(args, {"spec": {"containers": [{"name": "a", "args": ["3"]}]}}, NODE) == {
        "spec": {"containers": [{"name": "a", "args": ["3"]}]}
    }, "a list without a key is replaced"


@pytest.mark.parametrize(
    ("kind", "path", "old", "new", "result"),
    [  # names of fields that mean different things in different kinds
        ("Service", "spec.ports", [{"port": 80}], [{"port": 81}], [{"port": 81}, {"port": 80}]),
        ("Endpoints", "subsets", [{"ports": []}], [{"addresses": []}], [{"addresses": []}]),
        ("ServiceAccount", "secrets", [{"name": "s"}], [{"name": "t"}], [{"name": "t"}, {"name": "s"}]),
        ("Pod", "spec.hostAliases", [{"ip": "1"}], [{"ip": "2"}], [{"ip": "2"}, {"ip": "1"}]),
        ("Pod", "spec.tolerations", [{"key": "a"}], [{"key": "b"}], [{"key": "b"}]),
        ("Node", "spec.taints", [{"key": "a"}], [{"key": "b"}], [{"key": "b"}]),
        ("Node", "status.addresses", [{"type": "a"}], [{"type": "b"}], [{"type": "b"}, {"type": "a"}]),
        ("Pod", "metadata.finalizers", ["a"], ["b", "a"], ["b", "a"]),
    ],
)
def test_the_schema_says_which_lists_merge(kind: str, path: str, old: Any, new: Any, result: Any) -> None:
    def at(value: Any) -> Any:
        for part in reversed(path.split(".")):
            value = {part: value}
        return value

    assert strategic.apply(at(old), at(new), builtin().kind("v1", kind)) == at(result)


def test_directives() -> None:
    assert names(spec_of({"containers": [{"$patch": "delete", "name": "a"}]})["containers"]) == ["b"]
    assert spec_of({"containers": [{"$patch": "delete", "name": "zz"}]})["containers"] == POD["spec"]["containers"]
    assert spec_of({"containers": [{"$patch": "replace"}, {"name": "z"}]})["containers"] == [{"name": "z"}]
    assert spec_of({"$patch": "replace", "hostname": "h"}) == {"hostname": "h"}
    assert spec_of({"nodeSelector": {"$patch": "delete"}})["nodeSelector"] == {}
    assert "nodeSelector" not in spec_of({"nodeSelector": None})
    assert set(spec_of({"$retainKeys": ["containers"]})) == {"containers"}
    volume = {"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}
    assert spec_of({"volumes": [volume]})["volumes"] == [{"name": "v", "hostPath": {"path": "/x"}}]
    gone = strategic.apply(POD, {"metadata": {"$deleteFromPrimitiveList/finalizers": ["x"]}}, NODE)
    assert gone["metadata"]["finalizers"] == ["y"]
    order = {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}
    assert names(spec_of({**order, "containers": [{"name": "c"}]})["containers"]) == ["c", "b", "a"]


def test_no_directive_is_stored() -> None:
    new = {"name": "n", "$retainKeys": ["name"], "env": [{"name": "E", "$patch": "delete"}, {"name": "F"}]}
    made = spec_of({"containers": [new], "affinity": {"$patch": "replace", "nodeAffinity": {}}})
    assert "$" not in repr(made) and names(made["containers"][0]["env"]) == ["F"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"containers": [{"image": "x"}]}, 500),
        ({"containers": ["x"]}, 500),
        ({"$patch": "fly"}, 500),
        ({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}, 500),
        ({"$retainKeys": "x"}, 400),
        ({"$retainKeys": ["a"], "b": 1}, 400),
        ({"$setElementOrder/containers": {}}, 400),
        ({"$deleteFromPrimitiveList/x": None}, 400),
    ],
    ids=str,
)
def test_bad_directives(change: Any, code: int) -> None:
    with pytest.raises(StatusError) as caught:
        spec_of(change)
    assert caught.value.code == code


@given(JSON.filter(lambda v: isinstance(v, dict)), JSON)
def test_no_argument_changes_and_every_failure_is_a_status(target: Any, change: Any) -> None:
    before = copy.deepcopy((target, change))
    try:
        strategic.apply(target, change, NODE)
    except StatusError as err:
        assert err.code in (400, 500)
    assert (target, change) == before

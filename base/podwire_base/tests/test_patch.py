"""The patch types, compared with the examples of their RFCs and with each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube import patch
from podwire_base.kube.errors import StatusError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("target", "change", "result"),
    [  # RFC 7386, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, change: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert patch.merge(target, change) == result and target == before


@given(JSON, JSON)
def test_merge_is_idempotent_and_changes_no_argument(target: Any, change: Any) -> None:
    before = copy.deepcopy((target, change))
    once = patch.merge(target, change)
    assert patch.merge(once, change) == once and (target, change) == before


@given(JSON.filter(lambda v: isinstance(v, dict)))
def test_a_value_merged_into_nothing_is_itself_without_nulls(value: Any) -> None:
    def bare(v: Any) -> Any:
        return {k: bare(i) for k, i in v.items() if i is not None} if isinstance(v, dict) else v

    assert patch.merge({}, value) == bare(value)


@pytest.mark.parametrize(
    ("target", "operations", "result"),
    [  # RFC 6902, appendix A
        ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
        ({"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
        ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
        ({"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
        ({"baz": "qux"}, [{"op": "replace", "path": "/baz", "value": "boo"}], {"baz": "boo"}),
        (
            {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
            [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
            {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
        ),
        (
            {"foo": ["all", "grass", "cows", "eat"]},
            [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
            {"foo": ["all", "cows", "eat", "grass"]},
        ),
        (
            {"baz": "qux", "foo": ["a", 2, "c"]},
            [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
            {"baz": "qux", "foo": ["a", 2, "c"]},
        ),
        (
            {"foo": "bar"},
            [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
            {"foo": "bar", "child": {"grandchild": {}}},
        ),
        (
            {"/": 9, "~1": 10},
            [{"op": "test", "path": "/~01", "value": 10}, {"op": "test", "path": "/~1", "value": 9}],
            {"/": 9, "~1": 10},
        ),
        (
            {"foo": ["bar"]},
            [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}],
            {"foo": ["bar", ["abc", "def"]]},
        ),
        (
            {"a": {"b": 1}},
            [{"op": "copy", "from": "/a", "path": "/c"}, {"op": "replace", "path": "/c/b", "value": 2}],
            {"a": {"b": 1}, "c": {"b": 2}},
        ),
        ({"a": 1}, [{"op": "add", "path": "/a", "value": None}], {"a": None}),
        # as kube-apiserver's library: an index from the end, an absent value, and a test for absence
        ({"l": [1, 2]}, [{"op": "remove", "path": "/l/-1"}, {"op": "add", "path": "/l/-1", "value": 3}], {"l": [1, 3]}),
        ({}, [{"op": "add", "path": "/a"}, {"op": "test", "path": "/b", "value": None}], {"a": None}),
    ],
)
def test_json_patch(target: Any, operations: Any, result: Any) -> None:
    before = copy.deepcopy(target)
    assert patch.json_patch(target, operations) == result and target == before


@pytest.mark.parametrize(
    ("operations", "code"),
    [
        ([{"op": "test", "path": "/a", "value": 2}], 422),
        ([{"op": "remove", "path": "/x"}], 422),
        ([{"op": "replace", "path": "/x", "value": 1}], 422),
        ([{"op": "add", "path": "/x/y", "value": 1}], 422),
        ([{"op": "add", "path": "/l/4", "value": 1}], 422),
        ([{"op": "replace", "path": "/l/-", "value": 1}], 422),
        ([{"op": "remove", "path": "/l/-4"}], 422),
        ([{"op": "remove", "path": "/l/01"}], 422),
        ([{"op": "add", "path": "/l/-5", "value": 1}], 422),
        ([{"op": "add", "path": "/l/\u00b2", "value": 1}], 422),
        ([{"op": "add", "path": "/a/b", "value": 1}], 422),
        ([{"op": "move", "from": "/x", "path": "/y"}], 422),
        ([{"op": "move", "from": "/o", "path": "/o/in"}], 422),
        ([{"op": "copy", "from": "/x", "path": "/y"}], 422),
        ([{"op": "add", "path": "a", "value": 1}], 422),
        ([{"op": "add", "value": 1}], 422),
        ([{"op": "fly", "path": "/a"}], 400),
        ([{"op": "move", "path": "/a"}], 422),
        ([{"op": "move", "from": "", "path": "/a"}], 400),
        ([{"path": "/a"}], 400),
        (["x"], 400),
        ({}, 400),
        (None, 400),
        ([{"op": "remove", "path": ""}], 400),
    ],
    ids=str,
)
def test_json_patch_all_or_nothing(operations: Any, code: int) -> None:
    target = {"a": 1, "l": [1, 2, 3], "o": {"in": 1}}
    before = copy.deepcopy(target)
    with pytest.raises(StatusError) as caught:
        first = [{"op": "replace", "path": "/a", "value": 1}]
        patch.json_patch(target, [*first, *operations] if isinstance(operations, list) else operations)
    assert caught.value.code == code and target == before


def test_copies_are_limited() -> None:
    """A patch of 2 kB made 4 MB of a Node."""
    grow = [{"op": "copy", "from": "/a", "path": f"/b{n}"} for n in range(40)]
    with pytest.raises(StatusError) as caught:
        patch.json_patch({"a": "x" * 100_000}, grow)
    assert caught.value.code == 413
    assert len(patch.json_patch({"a": "x" * 100}, grow)) == 41

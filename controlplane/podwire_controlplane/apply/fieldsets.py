"""Sets of fields, in the form in which managedFields hold them (FieldsV1 of meta/v1), and their algebra.

A set is a tree of dicts. The key of a child says where it is: `f:NAME` is a field of an object or a key of a map,
`k:{...}` an item of a list by its keys, `v:...` an item of a list that is a set, `i:N` an item by its place. A child is
itself a member of the set if it has the key "." or nothing at all. The root is never a member: `{}` is the empty set.

    {"f:spec": {"f:replicas": {}}}                      .spec.replicas
    {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}}  .metadata.labels and .metadata.labels.a

No function changes its arguments; results may share parts with them. Source: structured-merge-diff, the format of
FieldsV1, and KEP-555.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from podwire_base.kube.schema import MAP, OBJECT, Node

Fields = dict[str, Any]
Path = tuple[str, ...]
SELF = "."
LEAF: Fields = {}


class BadFields(ValueError):
    """A value is no FieldsV1. The text says where it is wrong."""


def member(child: Fields) -> bool:
    """Return whether a child is itself in the set."""
    return not child or SELF in child


def as_member(child: Fields | None) -> Fields:
    """Return the child as a member of the set, with everything beneath it."""
    if not child or SELF in child:
        return child or LEAF
    return {SELF: LEAF, **child}


def union(a: Fields, b: Fields) -> Fields:
    """Return the members of either set."""
    if not b:
        return a
    if not a:
        return b
    return {**a, **{k: _union(a[k], v) if k in a else v for k, v in b.items()}}


def _union(a: Fields, b: Fields) -> Fields:
    if a is b:
        return a
    made = {**a, **{k: _union(a[k], v) if k in a else v for k, v in b.items()}}
    return as_member(made) if made and (not a or not b) else made


def difference(a: Fields, b: Fields) -> Fields:
    """Return the members of `a` that `b` lacks."""
    if not b or not a:
        return a
    made = {}
    for key, child in a.items():
        other = b.get(key)
        left = child if other is None else _difference(child, other)
        if left is not None:
            made[key] = left
    return made


def _difference(a: Fields, b: Fields) -> Fields | None:
    made = {}
    for key, child in a.items():
        if key == SELF:
            continue
        other = b.get(key)
        left = child if other is None else _difference(child, other)
        if left is not None:
            made[key] = left
    if member(a) and not member(b):
        return as_member(made)
    return made or None


def intersection(a: Fields, b: Fields) -> Fields:
    """Return the members of both sets."""
    if len(b) < len(a):
        a, b = b, a
    made = {}
    for key, child in a.items():
        other = b.get(key)
        common = None if other is None else _intersection(child, other)
        if common is not None:
            made[key] = common
    return made


def _intersection(a: Fields, b: Fields) -> Fields | None:
    made = {}
    for key, child in a.items():
        other = b.get(key)
        if key == SELF or other is None:
            continue
        common = _intersection(child, other)
        if common is not None:
            made[key] = common
    if member(a) and member(b):
        return as_member(made)
    return made or None


def has(fields: Fields, path: Path) -> bool:
    """Return whether the path is a member of the set."""
    child: Fields | None = fields
    for step in path:
        child = child.get(step) if child is not None else None
    return child is not None and bool(path) and member(child)


def of_path(path: Path) -> Fields:
    """Return the set of one path."""
    made = LEAF
    for step in reversed(path):
        made = {step: made}
    return made


def without(fields: Fields, path: Path) -> Fields:
    """Return the set without the path and without everything beneath it."""
    step, rest = path[0], path[1:]
    child = fields.get(step)
    if child is None:
        return fields
    left = without(child, rest) if rest else None
    made = {k: v for k, v in fields.items() if k != step}
    if left or (left is not None and not child):  # a leaf above the path stays
        made[step] = LEAF if left.keys() == {SELF} else left
    return made


def only(fields: Fields, path: Path) -> Fields:
    """Return what the set has at the path and beneath it. The step "*" is any."""
    step, rest = path[0], path[1:]
    steps = [key for key in fields if key != SELF] if step == "*" else [step] if step in fields else []
    made = {key: only(fields[key], rest) if rest else fields[key] for key in steps}
    return {key: left for key, left in made.items() if left or not rest}


def named(fields: Fields, node: Node | None) -> Fields:
    """Return the set with every field of an object that it has something beneath as a member (not keys of maps, and not
    items of lists).
    """
    made = {}
    for key, child in fields.items():
        if key == SELF or not child:
            made[key] = child
            continue
        inner = beneath(node, key)
        deeper = named(child, inner)
        declared = key[:2] == "f:" and node is not None and node.type == OBJECT and key[2:] in node.fields
        made[key] = as_member(deeper) if declared else deeper
    return made


def beneath(node: Node | None, key: str) -> Node | None:
    """Return the type of a child, None if the schema does not say."""
    if node is None:
        return None
    if key[:2] == "f:":
        return node.item if node.type == MAP else node.fields.get(key[2:])
    return node.item


def paths(fields: Fields, above: Path = ()) -> Iterator[Path]:
    """Yield all members, sorted; the members of each level come before what is beneath them, as upstream."""
    keys = sorted((key for key in fields if key != SELF), key=_order)
    for key in keys:
        if member(fields[key]):
            yield (*above, key)
    for key in keys:
        if fields[key]:
            yield from paths(fields[key], (*above, key))


def _order(key: str) -> tuple[int, list[tuple[str, int, Any]], str]:
    """Fields come first, then items by keys, by value, by place; numbers count as numbers."""
    rank = "fkvi".find(key[:1])
    if key[:2] == "f:":
        return rank, [], key
    value = json.loads(key[2:])
    rows = sorted(value.items()) if isinstance(value, dict) else [("", value)]
    return rank, [(n, 0, v) if isinstance(v, int | float) else (n, 1, str(v)) for n, v in rows], key


def text(path: Sequence[str]) -> str:
    """Return a path as conflicts name it: .spec.containers[name="a"].image"""
    made = ""
    for step in path:
        kind, rest = step[:2], step[2:]
        if kind == "f:":
            made += f".{rest}"
        elif kind == "k:":
            made += "[" + ",".join(f"{n}={dumps(v)}" for n, v in sorted(json.loads(rest).items())) + "]"
        else:
            made += f"[={rest}]" if kind == "v:" else f"[{rest}]"
    return made


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def item_key(keys: dict[str, Any]) -> str:
    """Return the path step of an item of a list with these values of its keys."""
    return "k:" + dumps(keys)


def value_key(value: Any) -> str:
    """Return the path step of an item of a list that is a set."""
    return "v:" + dumps(value)


def parse(raw: Any) -> Fields:
    """Return a FieldsV1 of a client in canonical form. Raises BadFields."""
    if not isinstance(raw, dict):
        raise BadFields("fieldsV1 is not an object")
    return {_step(key): _parse(key, child) for key, child in raw.items() if key != SELF}


def _parse(key: str, raw: Any) -> Fields:
    if not isinstance(raw, dict):
        raise BadFields(f"fieldsV1: {key!r} has no object")
    made = {_step(k): _parse(k, child) for k, child in raw.items() if k != SELF}
    return as_member(made) if SELF in raw or not raw else made


def _step(key: str) -> str:
    kind, rest = key[:2], key[2:]
    if kind == "f:":
        return key
    try:
        if kind == "i:":
            return f"i:{int(rest)}"
        value = json.loads(rest)
        if kind == "v:":
            return value_key(value)
        if kind == "k:" and isinstance(value, dict):
            return item_key(value)
    except (ValueError, RecursionError):
        pass
    raise BadFields(f"fieldsV1: {key!r} is no path element")

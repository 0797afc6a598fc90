"""Walks over a value and its type: which fields it has, where two values differ, how an applied one is merged into a
live one, and how fields are taken away.

The type (a Node) says how lists and maps are put together: a list without a type is one field as a whole, as is a map
that is atomic; lists of type "map" have items by key, lists of type "set" items by value. What has no type (None, or
free JSON) is deduced from the value: maps by key, lists as a whole. Sources: KEP-555, structured-merge-diff.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from podwire_base.kube.schema import ANY, BOOLEAN, INTEGER, LIST, MAP, NUMBER, OBJECT, STRING, Node

from .fieldsets import LEAF, Fields, as_member, item_key, value_key

ABSENT: Any = object()  # in the place of a value: there is none, which is not null
_SCALAR = "scalar"
_RAW = "io.k8s.apimachinery.pkg.runtime.RawExtension"  # one field, whatever it holds


class BadValue(ValueError):
    """A value that is not of its type. The text starts with the field's path."""


def _form(node: Node | None, value: Any) -> str:
    """Return MAP, LIST or _SCALAR."""
    if node is None or node.type == ANY:
        if node is not None and node.name == _RAW:
            return _SCALAR
        return MAP if isinstance(value, dict) else LIST if isinstance(value, list) else _SCALAR
    return MAP if node.type in (OBJECT, MAP) else LIST if node.type == LIST else _SCALAR


def _atomic(node: Node | None, form: str) -> bool:
    if node is None or node.type == ANY:
        return form == LIST
    return node.atomic if form == MAP else node.list_type not in ("map", "set")


def _inner(node: Node | None, key: str) -> Node | None:
    """Return the type of a field or of a map's value."""
    if node is None:
        return None
    return node.item if node.type == MAP else node.fields.get(key)


def _step(node: Node | None, item: Any) -> str:
    """Return the path step of an item of a list of type "map" or "set". Raises BadValue."""
    assert node is not None  # a list without a type is atomic
    if node.list_type == "set":
        if isinstance(item, dict | list):
            raise BadValue("a list that is a set has an item that is no scalar")
        return value_key(item)
    if not isinstance(item, dict):
        raise BadValue("a list with keys has an item that is no object")
    keys = {}
    for key in node.list_keys:
        value = item[key] if key in item else _default(node.item, key)
        if value is not ABSENT:
            keys[key] = value
    if not keys:
        raise BadValue(f"a list with keys has an item without any of {', '.join(node.list_keys)}")
    return item_key(keys)


def _default(node: Node | None, key: str) -> Any:
    """Return what a key that an item lacks counts as. Kubernetes' own schema has no defaults here: protocols are TCP,
    and what Go's encoder never leaves out is the zero value.
    """
    if node is None or key not in node.fields:
        return ABSENT
    field = node.fields[key]
    if "default" in field.raw:
        return field.raw["default"]
    if node.name.startswith("io.k8s."):
        if key == "protocol":
            return "TCP"
        if key in node.required:
            return 0 if field.type == INTEGER else ""
    return ABSENT


def _items(node: Node | None, value: Any) -> dict[str, list[Any]]:
    """Return the items of a list by path step. Items that have none are left out."""
    found: dict[str, list[Any]] = {}
    for item in value or ():
        try:
            found.setdefault(_step(node, item), []).append(item)
        except BadValue:
            continue
    return found


def same(a: Any, b: Any) -> bool:
    """Return whether two JSON values are equal; true and 1 are not."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


# ---- the fields of a value


def field_set(node: Node | None, value: Any) -> Fields:
    """Return the fields that an applied object has. The value has passed `check`."""
    made: Fields = _field_set(node, value) or {}
    return made


def _field_set(node: Node | None, value: Any) -> Fields | None:
    form = _form(node, value)
    if form == _SCALAR or _atomic(node, form):
        return LEAF
    if form == LIST:
        return _list_set(node, value) if isinstance(value, list) else None
    if not isinstance(value, dict):
        return None
    fields = node.fields if node is not None and node.type == OBJECT else {}
    made: Fields = {}
    for key, inner in value.items():
        child = _field_set(_inner(node, key), inner)
        if inner is None or inner == {} or key not in fields:
            child = as_member(child)
        if child is not None:
            made["f:" + key] = child
    return made or None


def _list_set(node: Node | None, value: list[Any]) -> Fields | None:
    item = node.item if node is not None else None
    found = _items(node, value)
    return {
        step: LEAF if len(twins) > 1 else as_member(_field_set(item, twins[0])) for step, twins in found.items()
    } or None


# ---- where two values differ


def compare(node: Node | None, old: Any, new: Any) -> tuple[Fields, Fields, Fields]:
    """Return the sets (removed, modified, added) of an old and a new object."""
    removed, modified, added = _compare(node, old, new)
    return removed or {}, modified or {}, added or {}


Difference = tuple[Fields | None, Fields | None, Fields | None]
_SAME: Difference = (None, None, None)


def _compare(node: Node | None, old: Any, new: Any) -> Difference:
    if old is ABSENT:
        return None, None, _whole(node, new)
    if new is ABSENT:
        return _whole(node, old), None, None
    free = node is None or node.type == ANY
    if same(old, new) if free else old == new:
        return _SAME
    if free and old is not None and new is not None and _form(node, old) != _form(node, new):
        return _changed_form(node, old, new)
    form = _form(node, old if new is None else new)
    if form == _SCALAR or _atomic(node, form) or (_empty(old) and _empty(new)):
        return None, LEAF, None
    kinds = dict if form == MAP else list
    before, after = (value if isinstance(value, kinds) else None for value in (old, new))
    pairs = _fields_of(node, before, after) if form == MAP else _items_of(node, before, after)
    parts: tuple[Fields, Fields, Fields] = ({}, {}, {})
    for step, difference in pairs:
        for part, found in zip(parts, difference, strict=True):
            if found is not None:
                part[step] = found
    removed, modified, added = parts
    return removed or None, modified or None, added or None


def _whole(node: Node | None, value: Any) -> Fields:
    """Return all fields of a value that comes or goes, and the value itself as a member."""
    if not value or not isinstance(value, dict | list):
        return LEAF
    form = _form(node, value)
    if form == _SCALAR or isinstance(value, dict) != (form == MAP) or _atomic(node, form):
        return LEAF
    made = {".": LEAF}
    if isinstance(value, dict):
        for key, inner in value.items():
            made["f:" + key] = _whole(_inner(node, key), inner) if inner and isinstance(inner, dict | list) else LEAF
    else:
        item = node.item if node is not None else None
        for step, twins in _items(node, value).items():
            made[step] = LEAF if len(twins) > 1 else _whole(item, twins[0])
    return made


def _empty(value: Any) -> bool:
    return value is ABSENT or value is None or value in ({}, [])


def _changed_form(node: Node | None, old: Any, new: Any) -> Difference:
    """Free JSON that was a map and is none any more, or the other way round: what was beneath it goes or comes."""
    removed, added = (_whole(node, value) if isinstance(value, dict) and value else None for value in (old, new))
    return removed, LEAF, added


def _fields_of(node: Node | None, old: Any, new: Any) -> Iterator[tuple[str, Difference]]:
    old, new = old or {}, new or {}
    for key, value in old.items():
        other = new.get(key, ABSENT)
        if type(value) is type(other) and value == other and not isinstance(value, dict | list):
            continue
        difference = _compare(_inner(node, key), value, other)
        if difference is not _SAME:
            yield "f:" + key, difference
    for key, value in new.items():
        if key not in old:
            nested = value and isinstance(value, dict | list)
            yield "f:" + key, (None, None, _whole(_inner(node, key), value) if nested else LEAF)


def _items_of(node: Node | None, old: Any, new: Any) -> Iterator[tuple[str, Difference]]:
    """Items that stand twice in a list are one field each, as a whole."""
    item = node.item if node is not None else None
    before, after = _items(node, old), _items(node, new)
    for step in (*before, *(s for s in after if s not in before)):
        was, now = before.get(step, []), after.get(step, [])
        if len(was) < 2 and len(now) < 2:
            yield step, _compare(item, was[0] if was else ABSENT, now[0] if now else ABSENT)
        elif len(was) > 1 and len(now) > 1:
            yield step, _SAME if same(was, now) else (None, LEAF, None)
        elif len(was) > 1:
            yield step, (LEAF, None, _whole(item, now[0]) if now else None)
        else:
            yield step, (_whole(item, was[0]) if was else None, None, LEAF)


# ---- merging an applied value


def merge(node: Node | None, live: Any, applied: Any) -> Any:
    """Return the live object with everything of the applied one. Parts are shared with both."""
    made = _merge(node, live, applied)
    return {} if made is ABSENT else made


def _merge(node: Node | None, live: Any, applied: Any) -> Any:
    if applied is ABSENT:
        return live
    form = _form(node, live if applied is None and live is not ABSENT else applied)
    if form == _SCALAR or _atomic(node, form) or (_empty(live) and _empty(applied)):
        return applied
    if form == MAP:
        made = dict(live) if isinstance(live, dict) else {}
        for key, value in (applied or {}).items():
            merged = _merge(_inner(node, key), made.get(key, ABSENT), value)
            if merged is ABSENT:
                made.pop(key, None)
            else:
                made[key] = merged
        return made or ABSENT
    return _merge_list(node, live if isinstance(live, list) else [], applied or []) or ABSENT


def _merge_list(node: Node | None, live: list[Any], applied: list[Any]) -> list[Any]:
    """Items that both have stand in the applied order; an item that only one has stays behind its neighbour."""
    item = node.item if node is not None else None
    left = [(_step(node, value), value) for value in live if _has_step(node, value)]
    right = [(_step(node, value), value) for value in applied]
    twins = _items(node, live)
    ours = {step: values[0] if len(values) == 1 else None for step, values in twins.items()}
    theirs = dict(right)
    shared = iter([step for step, _ in right if step in ours])
    awaited, done = next(shared, None), set[str]()
    made: list[Any] = []
    at, to = 0, 0
    while at < len(left) or to < len(right):
        if at < len(left) and to < len(right):
            step = left[at][0]
            if step == right[to][0]:
                done.add(step)
                made.append(_merge(item, ours[step], theirs[step]))
                at, to, awaited = at + 1, to + 1, next(shared, None)
                continue
            if step in theirs and awaited is not None and awaited != step:
                at += 1  # an item of both, but not the one whose turn it is
                continue
        if at < len(left):
            step, value = left[at]
            if step not in theirs:
                made.append(value)
                at += 1
                continue
            if step in done:
                at += 1
        if to < len(right):
            step = right[to][0]
            done.add(step)
            made.append(_merge(item, ours.get(step, ABSENT), theirs[step]))
            to += 1
            if awaited == step:
                awaited = next(shared, None)
    return [value for value in made if value is not ABSENT]


def _has_step(node: Node | None, value: Any) -> bool:
    try:
        _step(node, value)
    except BadValue:
        return False
    return True


# ---- taking fields away


def remove(node: Node | None, value: Any, fields: Fields) -> Any:
    """Return the object without these fields. A map or list that loses its last part stays, empty."""
    made = _remove(node, value, fields)
    return {} if made is None else made


def _remove(node: Node | None, value: Any, fields: Fields) -> Any:
    form = _form(node, value)
    if form == _SCALAR:
        return value
    if not value or _atomic(node, form) or not isinstance(value, dict | list):
        return None
    if isinstance(value, dict) != (form == MAP):
        return None
    if isinstance(value, list):
        item = node.item if node is not None else None
        return [
            inner if child is None else _remove(item, inner, child)
            for inner in value
            if (child := _child(fields, node, inner)) is None or not _is_member(child)
        ]
    made = {}
    for key, inner in value.items():
        child = fields.get("f:" + key)
        if child is None:
            made[key] = inner
        elif not _is_member(child):
            made[key] = _remove(_inner(node, key), inner, child)
    return made


def _child(fields: Fields, node: Node | None, value: Any) -> Fields | None:
    try:
        found: Fields | None = fields.get(_step(node, value))
    except BadValue:
        return None
    return found


def _is_member(child: Fields) -> bool:
    return not child or "." in child


# ---- whether a value is of its type


def check(node: Node | None, value: Any, path: str = "", free: bool = False) -> Iterator[str]:
    """Yield what is wrong with an applied value: unknown fields, values of another type, items that stand twice. free:
    objects may have fields that the schema lacks.
    """
    if value is None or node is None:
        return
    form = _form(node, value)
    if form == _SCALAR:
        yield from _check_scalar(node, value, path)
    elif form == MAP:
        if not isinstance(value, dict):
            yield f"{path or '.'}: expected map, got {value!r:.80}"
            return
        free = free or node.keep_unknown or (node.type == OBJECT and not node.fields) or node.type == ANY
        for key, inner in value.items():
            kind = _inner(node, key)
            if kind is None and not free:
                yield f"{path}.{key}: field not declared in schema"
            yield from check(kind, inner, f"{path}.{key}", free)
    elif not isinstance(value, list):
        yield f"{path}: expected list, got {value!r:.80}"
    else:
        yield from _check_items(node, value, path, free)


def _check_items(node: Node, value: list[Any], path: str, free: bool) -> Iterator[str]:
    seen = set[str]()
    for n, inner in enumerate(value):
        if not _atomic(node, LIST):
            try:
                step = _step(node, inner)
            except BadValue as err:
                yield f"{path}: element {n}: {err}"
                continue
            if step in seen:
                yield f"{path}: duplicate entries for key {step[2:]}"
            seen.add(step)
        yield from check(node.item, inner, f"{path}[{n}]", free)


def _check_scalar(node: Node, value: Any, path: str) -> Iterator[str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if node.type in (INTEGER, NUMBER) and not number:
        yield f"{path}: expected numeric (int or float), got {value!r:.80}"
    elif node.type == STRING and not isinstance(value, str):
        yield f"{path}: expected string, got {value!r:.80}"
    elif node.type == BOOLEAN and not isinstance(value, bool):
        yield f"{path}: expected boolean, got {value!r:.80}"
    elif isinstance(value, dict | list) and node.name != _RAW:
        yield f"{path}: expected any scalar, got {value!r:.80}"

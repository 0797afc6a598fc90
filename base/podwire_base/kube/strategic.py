"""Strategic merge patch (k8s.io/apimachinery, pkg/util/strategicpatch), by Kubernetes' own schema.

Which lists are merged, and by which key, is in the schema (x-kubernetes-patch-strategy and -merge-key). The directives
are:

    $patch: replace | delete              in a map, or in an item of a merged list
    $retainKeys: [names]                  the map keeps only these fields: for unions such as a Deployment's strategy
    $deleteFromPrimitiveList/FIELD: [..]  takes values out of a merged list of texts
    $setElementOrder/FIELD: [..]          the order of the result, of items or of their merge keys

Without $setElementOrder, items of the patch stand before items that only the server has, unless the server's list has
both and says otherwise. No directive is left in the result.
"""

from __future__ import annotations

import copy
from typing import Any

from .errors import StatusError, bad_request
from .meta import Object
from .schema import LIST, MAP, Node

_PATCH, _RETAIN = "$patch", "$retainKeys"
_ORDER, _DELETE_FROM = "$setElementOrder/", "$deleteFromPrimitiveList/"
_MISSING: Any = object()


def _broken(why: str) -> StatusError:
    """Upstream answers 500, without a reason, to a patch that breaks the rules of merging."""
    return StatusError(500, "", why)


def apply(target: Any, patch: Any, node: Node | None) -> Any:
    """Return the merged value; no argument is changed. node: the type of `target`; None: a type without merge rules.
    Raises StatusError.
    """
    return _merge_map(target if isinstance(target, dict) else {}, patch, node)


def _child(node: Node | None, name: str) -> Node | None:
    return node.child(name) if node is not None else None


def _item(node: Node | None) -> Node | None:
    return node.item if node is not None and node.type in (LIST, MAP) else None


def _clean(value: Any) -> Any:
    """Return a value of a patch without directives and nulls: what it means where the target has nothing. An item or a
    field that says `$patch: delete` is _MISSING.
    """
    if isinstance(value, list):
        kept = (_clean(v) for v in value if not (isinstance(v, dict) and v.get(_PATCH) == "replace"))
        return [v for v in kept if v is not _MISSING]
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    if value.get(_PATCH) == "delete":
        return _MISSING
    out = {}
    for name, inner in value.items():
        if inner is None or name in (_PATCH, _RETAIN) or name.startswith((_ORDER, _DELETE_FROM)):
            continue
        made = _clean(inner)
        if made is not _MISSING:
            out[name] = made
    return out


def _members(directive: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise bad_request(f"strategic merge patch: {directive}: expected a list")
    return value


def _retain(target: Object, patch: Object) -> Object:
    if _RETAIN not in patch:
        return target
    kept = _members(_RETAIN, patch[_RETAIN])
    for name, value in patch.items():
        if not name.startswith("$") and value is not None and name not in kept:
            raise bad_request(f"strategic merge patch: {_RETAIN} does not have the field {name} of the patch")
    return {name: value for name, value in target.items() if name in kept}


def _merge_map(target: Object, patch: Any, node: Node | None) -> Any:
    if not isinstance(patch, dict):
        raise bad_request("strategic merge patch: expected an object")
    if (directive := patch.get(_PATCH)) is not None:
        if directive == "replace":
            return _clean({k: v for k, v in patch.items() if k != _PATCH})
        if directive == "delete":
            return {}
        raise _broken(f"strategic merge patch: unknown patch directive {directive!r}")
    result = dict(_retain(target, patch))
    done = _ordered_lists(result, patch, node)
    for name, value in patch.items():
        if name.startswith(_DELETE_FROM):
            field = name.removeprefix(_DELETE_FROM)
            gone = _members(name, value)
            if isinstance(result.get(field), list):
                result[field] = [v for v in result[field] if v not in gone]
        elif name == _RETAIN or name.startswith(_ORDER) or name in done:
            continue
        elif value is None:
            result.pop(name, None)
        else:
            _merge_field(result, name, value, _child(node, name))
    return result


def _merge_field(result: Object, name: str, value: Any, node: Node | None) -> None:
    old = result.get(name)
    if isinstance(old, dict) and isinstance(value, dict):
        result[name] = _merge_map(old, value, node)
    elif isinstance(old, list) and isinstance(value, list) and node is not None and node.merge:
        result[name] = _merge_list(old, value, node)
    elif isinstance(old, list) and isinstance(value, list):
        result[name] = copy.deepcopy(value)  # with its directives, which are then unknown fields, as upstream
    else:
        made = _clean(value)
        if made is not _MISSING:
            result[name] = made
        else:
            result.pop(name, None)


# ---- lists


def _key(node: Node, item: Any) -> Any:
    """Return what identifies an item: itself, or the value of its merge key. Raises StatusError."""
    if not node.merge_key:
        return item
    if not isinstance(item, dict) or node.merge_key not in item:
        raise _broken(f"map: {item} does not contain declared merge key: {node.merge_key}")
    return item[node.merge_key]


def _special(target: list[Any], patch: list[Any], node: Node) -> tuple[list[Any], list[Any]]:
    """Carry out the $patch of items. Returns (the target, what is left of the patch)."""
    plain, replace = [], False
    for item in patch:
        directive = item.get(_PATCH) if isinstance(item, dict) else None
        if directive is None:
            plain.append(item)
        elif directive == "delete":
            gone = _key(node, item)
            target = [old for old in target if not isinstance(old, dict) or old.get(node.merge_key) != gone]
        elif directive == "replace":
            replace = True
        else:
            raise _broken(f"strategic merge patch: unknown patch directive {directive!r}")
    return (plain, []) if replace else (target, plain)


def _merge_items(target: list[Any], patch: list[Any], node: Node) -> list[Any]:
    """Merge the items of a patch without special ones; new items follow."""
    result = list(target)
    if not node.merge_key:
        for item in patch:
            if isinstance(item, dict | list):
                raise _broken(f"strategic merge patch: {item} is not of the type of the list's items")
            if item not in result:
                result.append(item)
        return result
    for item in patch:
        wanted = _key(node, item)
        at = next(
            (n for n, old in enumerate(result) if isinstance(old, dict) and old.get(node.merge_key) == wanted), -1
        )
        if at < 0:
            result.append(_clean(item))
        else:
            result[at] = _merge_map(result[at], item, _item(node))
    return result


def _merge_list(target: list[Any], patch: list[Any], node: Node) -> list[Any]:
    """Merge two lists; their order is that of the patch, then that of the server."""
    base, plain = _special(target, patch, node)
    return _sorted(_merge_items(base, plain, node), plain, target, node)


def _sorted(merged: list[Any], wanted: list[Any], server: list[Any], node: Node) -> list[Any]:
    """Order items: those that `wanted` names as it has them, the others as the server has them, and both among each
    other as the server has them. Where the server does not have both, the named one comes first.
    """
    order = [_key(node, item) for item in wanted]
    known = [_key(node, item) for item in server]

    def place(item: Any, within: list[Any]) -> int:
        key = _key(node, item)
        return within.index(key) if key in within else len(within)

    named = sorted((m for m in merged if _key(node, m) in order), key=lambda m: place(m, order))
    others = sorted((m for m in merged if _key(node, m) not in order), key=lambda m: place(m, known))
    out = []
    while named and others:
        left, right = place(others[0], known), place(named[0], known)
        out.append(others.pop(0) if left < right < len(known) else named.pop(0))
    return out + named + others


def _ordered_lists(result: Object, patch: Object, node: Node | None) -> set[str]:
    """Merge the lists that have a $setElementOrder. Returns their names."""
    done = set()
    for name, order in patch.items():
        if not name.startswith(_ORDER):
            continue
        field = name.removeprefix(_ORDER)
        child, wanted = _child(node, field), _members(name, order)
        if child is None or not child.merge:
            continue
        given, old = patch.get(field), result.get(field)
        if isinstance(given, list):
            _check_order(field, given, wanted, child)
        if not isinstance(old, list):
            if not isinstance(given, list):
                continue
            merged = _clean(given)
        else:
            merged = _merge_list(old, given, child) if isinstance(given, list) else old
        result[field] = _sorted(merged, wanted, old if isinstance(old, list) else [], child)
        done.add(field)
    return done


def _check_order(field: str, given: list[Any], wanted: list[Any], node: Node) -> None:
    """The items of a patch must stand in the order that it asks for."""
    rest = [_key(node, item) for item in wanted]
    for item in given:
        if isinstance(item, dict) and item.get(_PATCH) is not None:
            continue
        key = _key(node, item)
        if key not in rest:
            raise _broken(f"the order in patch list doesn't match {_ORDER}{field} list")
        rest = rest[rest.index(key) + 1 :]

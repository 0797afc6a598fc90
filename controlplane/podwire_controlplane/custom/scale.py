"""The subresource scale of custom kinds: an autoscaling/v1 Scale of what three paths name. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from podwire_base.kube.errors import Cause, StatusError
from podwire_base.kube.meta import Object

from ..rules.fields import invalid

Paths = Mapping[str, str]
SPEC, STATUS, SELECTOR = "specReplicasPath", "statusReplicasPath", "labelSelectorPath"
_MAX = 2**31 - 1


def _at(obj: Object, path: str) -> Any:
    """Return the value at a path, None if it is absent. Raises TypeError if a part of the way is no object."""
    found: Any = obj
    for part in path.removeprefix(".").split("."):
        if not isinstance(found, dict):
            raise TypeError(f"{path} accessor error: {found} is of the type {type(found).__name__}, expected an object")
        if part not in found:
            return None
        found = found[part]
    return found


def _check_number(obj: Object, path: str) -> Iterator[Cause]:
    try:
        value = _at(obj, path)
    except TypeError as err:
        yield invalid(path, 0, str(err))
        return
    if value is None and _present(obj, path):
        yield invalid(path, 0, "accessor error: <nil> is of the type <nil>, expected int64")
    elif value is None:
        return
    elif isinstance(value, bool) or not isinstance(value, int):
        yield invalid(path, 0, f"accessor error: {value} is not an integer")
    elif value < 0:
        yield invalid(path, value, "should be a non-negative integer")
    elif value > _MAX:
        yield invalid(path, value, f"should be less than or equal to {_MAX}")


def _present(obj: Object, path: str) -> bool:
    *way, last = path.removeprefix(".").split(".")
    found = _at(obj, ".".join(way)) if way else obj
    return isinstance(found, dict) and last in found


def check_spec(obj: Object, paths: Paths | None) -> Iterator[Cause]:
    """Yield what is wrong with the wanted number of replicas. The path of the cause begins with a dot, as upstream."""
    if paths:
        yield from _check_number(obj, paths[SPEC])


def check_status(obj: Object, paths: Paths | None) -> Iterator[Cause]:
    if not paths:
        return
    yield from _check_number(obj, paths[STATUS])
    if path := paths.get(SELECTOR):
        try:
            value = _at(obj, path)
        except TypeError as err:
            yield invalid(path, "", str(err))
            return
        if value is not None and not isinstance(value, str):
            yield invalid(path, "", f"accessor error: {value} is not a string")


def of(obj: Object, paths: Paths, *, empty: bool = False) -> Object:
    """Return the Scale of a custom object. empty: a missing number of replicas is 0. Raises StatusError 500."""
    meta, wanted = obj["metadata"], _quiet(obj, paths[SPEC])
    if wanted is None and not empty:
        text = f'the spec replicas field "{paths[SPEC]}" does not exist'
        raise StatusError(500, "InternalError", f"Internal error occurred: {text}", causes=[Cause("", text, "")])
    carried = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status: Object = {"replicas": _quiet(obj, paths[STATUS]) or 0}
    if selector := paths.get(SELECTOR) and _quiet(obj, paths[SELECTOR]):
        status["selector"] = selector
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {k: meta[k] for k in carried if k in meta},
        "spec": {"replicas": wanted} if wanted else {},
        "status": status,
    }


def _quiet(obj: Object, path: str) -> Any:
    try:
        return _at(obj, path)
    except TypeError:
        return None


def change(paths: Paths, replicas: Any, version: str) -> Object:
    """Return the merge patch that sets the wanted number of replicas. version: "" or the resourceVersion expected."""
    body: Any = replicas
    for part in reversed(paths[SPEC].removeprefix(".").split(".")):
        body = {part: body}
    return {**body, **({"metadata": {"resourceVersion": version}} if version else {})}

"""Parses manifests (YAML text), and makes the request bodies of `podwire apply`. Pure; manifestfiles.py reads the
files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from . import yamltext
from .meta import Object, annotations_of
from .registry import BY_KIND, Resource

# The annotation of kubectl, so that a user can use kubectl and podwire alternately.
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


class BadManifest(Exception):
    """An invalid manifest; the text names file, document and field."""


def parse(text: str, where: str) -> Iterator[Object]:
    """Yields the objects of a YAML stream. The items of a `List` object are yielded one by one. Raises BadManifest."""
    try:
        documents = list(yamltext.documents(text))
    except yamltext.BadYaml as err:
        raise BadManifest(f"{where}: not YAML: {err}") from err
    for number, document in enumerate(documents, 1):
        spot = f"{where}, document {number}" if len(documents) > 1 else where
        if document is None:
            continue
        if not isinstance(document, dict):
            raise BadManifest(
                f"{spot}: expected an object with apiVersion, kind and metadata, got {type(document).__name__}"
            )
        if str(document.get("kind", "")).endswith("List") and isinstance(document.get("items"), list):
            for item in document["items"]:
                yield _checked(item, spot)
        else:
            yield _checked(document, spot)


def _checked(obj: Any, where: str) -> Object:
    if not isinstance(obj, dict):
        raise BadManifest(f"{where}: expected an object")
    for field in ("apiVersion", "kind"):
        if not isinstance(obj.get(field), str):
            raise BadManifest(f"{where}: {field} is missing; every object has apiVersion and kind")
    if not isinstance(obj.get("metadata"), dict) or not obj["metadata"].get("name"):
        raise BadManifest(f"{where}: metadata.name is missing")
    resource_of(obj, where)
    return obj


def resource_of(obj: Object, where: str = "") -> Resource:
    found = BY_KIND.get((obj["apiVersion"], obj["kind"]))
    if found is None:
        known = ", ".join(sorted(f"{kind} ({version})" for version, kind in BY_KIND))
        raise BadManifest(f"{where}: kind {obj['kind']!r} of {obj['apiVersion']!r} is not served; known: {known}")
    return found


def with_record(obj: Object) -> Object:
    """Returns the object with the annotation last-applied-configuration, byte for byte as kubectl writes it.

    The annotation does not contain an older copy of itself, so it does not grow.
    """
    bare = {k: v for k, v in annotations_of(obj).items() if k != LAST_APPLIED}
    plain = {**obj, "metadata": {**obj["metadata"], "annotations": bare}}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    for char in "<>&\u2028\u2029":  # Go's encoder escapes these characters
        text = text.replace(char, f"\\u{ord(char):04x}")
    return {**obj, "metadata": {**obj["metadata"], "annotations": {**bare, LAST_APPLIED: text}}}


def three_way(obj: Object, live: Object) -> Object:
    """Returns a merge patch. It contains all fields of `obj`, and null for the fields of the previous apply that `obj`
    does not have.

    Fields that other programs set (status, allocated ports, defaults) are not changed.
    """
    try:
        before = json.loads(annotations_of(live).get(LAST_APPLIED, "{}"))
    except ValueError:
        before = {}
    removed = _removed(before, obj)
    merged: Object = _overlay(removed, with_record(obj))
    return merged


def _removed(before: Any, after: Any) -> Object:
    gone: Object = {}
    for name, value in before.items() if isinstance(before, dict) else ():
        if name not in after:
            gone[name] = None
        elif isinstance(value, dict) and isinstance(after[name], dict) and (inner := _removed(value, after[name])):
            gone[name] = inner
    return gone


def _overlay(base: Any, top: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    return {**base, **{name: _overlay(base.get(name), value) for name, value in top.items()}}

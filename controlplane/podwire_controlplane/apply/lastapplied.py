"""The annotation of client-side `kubectl apply`, and how server-side apply by kubectl gets along with it.

An object that client-side apply wrote belongs to Updates. When kubectl then applies on the server, what the annotation
says is kubectl's own, so it is no conflict; and the annotation is renewed, so that a way back is open.
"""

from __future__ import annotations

import json
from typing import Any

from podwire_base.kube.meta import Object
from podwire_base.kube.schema import Node

from . import typed
from .fieldsets import Fields, difference, of_path, union
from .managers import Conflicted

NOTE = "kubectl.kubernetes.io/last-applied-configuration"
KUBECTL = "kubectl"
_LIMIT = 256 * 1024  # of all annotations of an object


def _note(obj: Object) -> str:
    notes = obj["metadata"].get("annotations")
    found = notes.get(NOTE) if isinstance(notes, dict) else None
    return found if isinstance(found, str) else ""


def excuses(node: Node | None, live: Object, conflicted: Conflicted, name: str) -> bool:
    """Return whether all conflicts are about fields that kubectl applied itself, and that nobody changed since."""
    text = _note(live)
    if name != KUBECTL or not text:
        return False
    try:
        last = json.loads(text)
    except ValueError:
        return False
    if not isinstance(last, dict) or any(typed.check(node, last)):
        return False
    own = typed.field_set(node, last)
    for part in typed.compare(node, last, live):
        own = difference(own, part)
    wanted: Fields = {}
    for conflict in conflicted.conflicts:
        wanted = union(wanted, of_path(conflict.path))
    return not difference(wanted, own)


def renew(obj: Object, config: Object, name: str) -> None:
    """Set the annotation to the applied configuration, where kubectl applies an object that has it."""
    if name != KUBECTL or not _note(obj):
        return
    metadata = dict(config["metadata"])
    notes = {k: v for k, v in (metadata.pop("annotations", None) or {}).items() if k != NOTE}
    if notes:
        metadata["annotations"] = notes
    kept: dict[str, Any] = {**config, "metadata": metadata}
    text = json.dumps(kept, separators=(",", ":"), ensure_ascii=False, sort_keys=True) + "\n"
    if len(text.encode()) <= _LIMIT:
        obj["metadata"]["annotations"][NOTE] = text
    else:
        del obj["metadata"]["annotations"][NOTE]

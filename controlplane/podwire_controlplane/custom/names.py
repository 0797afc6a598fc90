"""Which names of a CustomResourceDefinition are accepted, and its conditions (apiextensions-apiserver,
pkg/controller/status and pkg/controller/establish). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from podwire_base.kube.meta import Object, name

FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
NAMES, ESTABLISHED, TERMINATING = "NamesAccepted", "Established", "Terminating"
_NAMES = ("plural", "singular", "kind", "listKind")


def condition(definition: Object, kind: str) -> Object | None:
    rows = (definition.get("status") or {}).get("conditions") or []
    return next((row for row in rows if row.get("type") == kind), None)


def holds(definition: Object, kind: str) -> bool:
    return (condition(definition, kind) or {}).get("status") == "True"


def set_condition(definition: Object, new: Object, now: str) -> None:
    """Set a condition. Its time changes only with its status."""
    status = definition.setdefault("status", {})
    old = condition(definition, new["type"])
    same = old is not None and old.get("status") == new["status"]
    row = {**new, "lastTransitionTime": old.get("lastTransitionTime") if old is not None and same else now}
    rows = list(status.get("conditions") or [])
    if old is None:
        rows.append(row)
    else:
        rows[rows.index(old)] = row
    status["conditions"] = rows


def _used(
    definition: Object, others: Iterable[Object], builtin: Iterable[tuple[str, str]]
) -> tuple[set[str], set[str]]:
    """Return (resource names, kinds) of the group that other definitions have. builtin: (plural, kind) of the group's
    own kinds.
    """
    resources, kinds = set[Any](), set[Any]()
    for plural, kind in builtin:
        resources |= {plural, kind.lower()}
        kinds |= {kind, kind + "List"}
    for other in others:
        if name(other) == name(definition) or other["spec"].get("group") != definition["spec"].get("group"):
            continue
        taken = (other.get("status") or {}).get("acceptedNames") or {}
        resources |= {taken.get("plural"), taken.get("singular"), *(taken.get("shortNames") or [])}
        kinds |= {taken.get("kind"), taken.get("listKind")}
    return resources - {None, ""}, kinds - {None, ""}


def accept(definition: Object, others: Iterable[Object], builtin: Iterable[tuple[str, str]], now: str) -> Object:
    """Return the status of a definition: its accepted names and its conditions. others: all definitions."""
    resources, kinds = _used(definition, others, builtin)
    wanted = definition["spec"].get("names") or {}
    status = definition.get("status") or {}
    accepted = dict(status.get("acceptedNames") or {})
    reason = message = ""
    for field in _NAMES:
        taken = resources if field in ("plural", "singular") else kinds
        if wanted.get(field) != accepted.get(field) and wanted.get(field) in taken:
            reason, message = field[0].upper() + field[1:] + "Conflict", f'"{wanted.get(field)}" is already in use'
        else:
            accepted[field] = wanted.get(field)
    mine = accepted.get("shortNames") or []
    clash = [short for short in wanted.get("shortNames") or [] if short not in mine and short in resources]
    if clash:
        reason, message = "ShortNamesConflict", ", ".join(f'"{short}" is already in use' for short in clash)
    else:
        accepted.pop("shortNames", None)
        accepted |= {"shortNames": wanted["shortNames"]} if wanted.get("shortNames") else {}
    accepted.pop("categories", None)
    accepted |= {"categories": wanted["categories"]} if wanted.get("categories") else {}
    out = {**definition, "status": {**status, "acceptedNames": {k: v for k, v in accepted.items() if v}}}
    _conditions(out, reason, message, now)
    made: Object = out["status"]
    return made


def _conditions(definition: Object, reason: str, message: str, now: str) -> None:
    row: Object = {"type": NAMES, "status": "False", "reason": reason, "message": message}
    if not reason:
        row = {"type": NAMES, "status": "True", "reason": "NoConflicts", "message": "no conflicts found"}
    set_condition(definition, row, now)
    if holds(definition, ESTABLISHED):
        return
    if reason:
        row = {"type": ESTABLISHED, "status": "False", "reason": "NotAccepted", "message": "not all names are accepted"}
    else:
        why = "the initial names have been accepted"
        row = {"type": ESTABLISHED, "status": "True", "reason": "InitialNamesAccepted", "message": why}
    set_condition(definition, row, now)


def terminating(definition: Object, state: str, now: str) -> None:
    """Set the condition Terminating. state: Pending, InProgress or Completed."""
    why = {
        "Pending": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        "InProgress": "CustomResource deletion is in progress",
        "Completed": "removed all instances",
    }[state]
    status = "False" if state == "Completed" else "True"
    row = {"type": TERMINATING, "status": status, "reason": f"InstanceDeletion{state}", "message": why}
    set_condition(definition, row, now)

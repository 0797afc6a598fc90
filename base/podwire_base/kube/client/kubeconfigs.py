"""One kubeconfig of several files. Source: client-go's clientcmd, "Merging kubeconfig files". Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

LISTS = {"clusters": "cluster", "contexts": "context", "users": "user"}  # table -> the key of an entry's content
_FILES = {
    "clusters": ("certificate-authority",),
    "users": ("client-certificate", "client-key", "tokenFile"),
}  # values that name files, relative to the kubeconfig


def merged(documents: Sequence[tuple[PurePath, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return one kubeconfig. The first file that has an entry of a name, or a current-context, sets it. documents:
    (absolute file name, content). Paths in the result are
    absolute.
    """
    found: dict[str, Any] = {"current-context": "", **{table: [] for table in LISTS}}
    for file, document in documents:
        found["current-context"] = found["current-context"] or document.get("current-context") or ""
        for table, inner in LISTS.items():
            known = {row["name"] for row in found[table]}
            for row in document.get(table) or []:
                if row.get("name") not in known:
                    found[table].append({**row, inner: _absolute(row.get(inner) or {}, table, file)})
    return found


def _absolute(content: Mapping[str, Any], table: str, file: PurePath) -> dict[str, Any]:
    names = {key: content[key] for key in _FILES.get(table, ()) if content.get(key)}
    return {**content, **{key: str(file.parent / str(name)) for key, name in names.items()}}


def entry(document: Mapping[str, Any], table: str, name: str) -> dict[str, Any]:
    """Return the content of an entry, {} if there is none."""
    rows = [row for row in document.get(table) or [] if row.get("name") == name]
    return dict(rows[0].get(LISTS[table]) or {}) if rows else {}

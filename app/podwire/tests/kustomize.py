"""The part of kustomize that deploy/ uses, so that the manifests can be checked without kubectl.

An unknown field is an error. A test compares the result with kubectl's where kubectl is installed.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from podwire_base.kube import strategic
from podwire_base.kube.meta import Object
from podwire_base.kube.schema import builtin

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it
_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "patches", "labels"}
_GENERATED = "generated"  # only such ConfigMaps get a hash suffix
_UNHOSTED = {"ClusterRole", "ClusterRoleBinding", "Namespace"}


def _env(text: str) -> dict[str, str]:
    rows = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return dict(line.split("=", 1) for line in rows)


def _suffix(config: Object) -> str:
    """Ten characters of the content's hash, without letters that could make words (kustomize's api/hasher, which leaves
    the name empty)."""
    body = json.dumps(
        {"data": config["data"], "kind": "ConfigMap", "name": ""},
        separators=(",", ":"),
        sort_keys=True,
        ensure_ascii=False,
    )
    for raw, escaped in (("&", "\\u0026"), ("<", "\\u003c"), (">", "\\u003e")):  # Go's encoder does the same
        body = body.replace(raw, escaped)
    return hashlib.sha256(body.encode()).hexdigest()[:10].translate(str.maketrans("013ae", "ghkmt"))


def _generated(row: Object, folder: Path) -> dict[str, str]:
    data: dict[str, str] = {}
    for name in row.get("envs", []):
        data |= _env((folder / name).read_text())
    for name in row.get("files", []):
        data[Path(name).name] = (folder / name).read_text()
    for literal in row.get("literals", []):
        key, _, value = literal.partition("=")
        data[key] = value
    return data


def _accumulate(folder: Path, objects: list[Object]) -> list[Object]:
    document = yaml.load((folder / "kustomization.yaml").read_text(), _LOADER)
    assert set(document) <= _KNOWN, f"{folder}: {set(document) - _KNOWN} is not known here"
    for name in document.get("resources", []):
        path = folder / name
        objects += (
            _accumulate(path, []) if path.is_dir() else [o for o in yaml.load_all(path.read_text(), _LOADER) if o]
        )
    for name in document.get("components", []):
        objects = _accumulate(folder / name, objects)
    for row in document.get("configMapGenerator", []):
        data = _generated(row, folder)
        if row.get("behavior") == "merge":
            (one,) = [o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"] == row["name"]]
            one["data"] = {**one["data"], **data}
        else:
            place = {"namespace": row["namespace"]} if "namespace" in row else {}
            objects.append(
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {"name": row["name"], **place},
                    "data": data,
                    _GENERATED: True,
                }
            )
    for row in document.get("patches", []):
        change = yaml.load((folder / row["path"]).read_text(), _LOADER)
        (at,) = [
            n
            for n, o in enumerate(objects)
            if (o["kind"], o["metadata"]["name"]) == (change["kind"], change["metadata"]["name"])
        ]
        node = builtin().kind(change["apiVersion"], change["kind"])
        objects[at] = strategic.apply(objects[at], change, node)
    for row in document.get("labels", []):
        assert set(row) == {"pairs"}, "labels of selectors and templates are not known here"
        for obj in objects:
            obj["metadata"]["labels"] = {**obj["metadata"].get("labels", {}), **row["pairs"]}
    if space := document.get("namespace"):
        for obj in objects:
            if obj["kind"] not in _UNHOSTED:
                obj["metadata"]["namespace"] = space
    return objects


def _renamed(value: Any, names: dict[str, str], field: str = "") -> Any:
    if isinstance(value, list):
        return [_renamed(item, names, field) for item in value]
    if not isinstance(value, dict):
        return value
    if field in ("configMap", "configMapRef") and value.get("name") in names:
        return {**value, "name": names[value["name"]]}
    return {key: _renamed(item, names, key) for key, item in value.items()}


def build(folder: Path) -> list[Object]:
    """The output of `kubectl kustomize FOLDER`, except for the order of lists. The caller may change it."""
    return copy.deepcopy(_built(folder))


@functools.cache
def _built(folder: Path) -> list[Object]:
    objects = copy.deepcopy(_accumulate(folder, []))
    names = {}
    for obj in objects:
        if obj.pop(_GENERATED, False):
            own = obj["metadata"]["name"]
            names[own] = obj["metadata"]["name"] = f"{own}-{_suffix(obj)}"
    return [_renamed(obj, names) for obj in objects]

"""What the build writes into the wheel of Kubernetes' schema."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import kubeschema


def read(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()))


def test_the_build_writes_both_files_and_twice_the_same(tmp_path: Path) -> None:
    (tmp_path / kubeschema.FOLDER).parent.mkdir(parents=True)
    assert kubeschema.build(tmp_path) == list(kubeschema.OUTPUTS)
    first = [(tmp_path / path).read_bytes() for path in kubeschema.OUTPUTS]
    for path in kubeschema.OUTPUTS:
        (tmp_path / path).write_bytes(b"old")
    kubeschema.build(tmp_path)
    assert [(tmp_path / path).read_bytes() for path in kubeschema.OUTPUTS] == first
    schema, texts = (read(tmp_path / path) for path in kubeschema.OUTPUTS)
    assert schema.keys() == texts.keys() and "description" not in schema["io.k8s.api.core.v1.Pod"]
    assert texts["io.k8s.api.core.v1.Pod"]["spec"].startswith("Specification")
    named = {ref for raw in schema.values() for ref in references(raw)}
    assert named <= schema.keys(), "every reference has its definition"
    assert "v1beta1" not in " ".join(n for n in schema if n.startswith("io.k8s.api.admissionregistration"))


def references(raw: Any) -> list[str]:
    if isinstance(raw, list):
        return [ref for item in raw for ref in references(item)]
    if not isinstance(raw, dict):
        return []
    own = [raw["$ref"]] if isinstance(raw.get("$ref"), str) else []
    return own + [ref for item in raw.values() for ref in references(item)]


def test_schemas_are_as_kubernetes_publishes_them() -> None:
    given = {
        "type": ["object", "null"],
        "description": "text",
        "properties": {
            "kind": {"type": ["string", "null"], "enum": ["Pod"]},
            "description": {"type": "string", "description": "a field of this name"},
            "spec": {"$ref": "#/$defs/a.b.Spec", "description": "x"},
            "ports": {
                "type": ["array", "null"],
                "items": {"$ref": "#/$defs/a.b.Port"},
                "x-kubernetes-list-type": "map",
            },
        },
    }
    assert kubeschema.plain(given) == {
        "type": "object",
        "properties": {
            "kind": {"type": "string"},
            "description": {"type": "string"},
            "spec": {"$ref": "a.b.Spec"},
            "ports": {"type": "array", "items": {"$ref": "a.b.Port"}, "x-kubernetes-list-type": "map"},
        },
    }


def test_without_the_package_the_build_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(kubeschema.SchemaMissing, match="kubernetes-validate"):
        kubeschema.source()

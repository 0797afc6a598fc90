"""Writes the schema of Kubernetes' API into the wheel, from the package kubernetes-validate (Apache-2.0; see NOTICE).

Two files, both gzip over JSON. `schema.json.gz`: definition name -> OpenAPI schema without descriptions. Whatever needs
types loads it. `descriptions.json.gz`: definition name -> {"": text, property: text}. Only OpenAPI and explain load it.
Nothing of it is committed.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

VERSION = "v1.36.0-local"
PACKAGE = "kubernetes_validate"
FOLDER = "base/podwire_base/kube/generated"
SCHEMA, DESCRIPTIONS = f"{FOLDER}/schema.json.gz", f"{FOLDER}/descriptions.json.gz"
OUTPUTS = (SCHEMA, DESCRIPTIONS)
_REF = "#/$defs/"
_UNSERVED = re.compile(r"\.v\d+(alpha|beta)\d+\.")  # alpha and beta versions are not served
# The package widens these two for its validator. Here they are as Kubernetes publishes them.
_OWN = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": "string"},
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": "string", "format": "int-or-string"},
}


class SchemaMissing(Exception):
    """The build requirement is not installed. The text says what to do."""


def source() -> Path:
    """Return the path of the definitions in the installed package. Raises SchemaMissing."""
    found = importlib.util.find_spec(PACKAGE)  # not imported: its own requirements may be absent
    places = list(found.submodule_search_locations or ()) if found else []
    for place in places:
        path = Path(place) / "kubernetes-json-schema" / VERSION / "_definitions.json"
        if path.exists():
            return path
    raise SchemaMissing(
        f"the schema of Kubernetes {VERSION} is missing: install kubernetes-validate as requirements/build.txt has it "
        "(pip does, unless it runs with --no-build-isolation)"
    )


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema as Kubernetes publishes it: without the null that the package allows everywhere, without its
    enums of kind and apiVersion, and without descriptions.
    """
    out: dict[str, Any] = {}
    for word, value in schema.items():
        if word in ("description", "enum"):
            continue
        if word == "$ref":
            out[word] = value.removeprefix(_REF)
        elif word == "type":
            out[word] = next(t for t in value if t != "null") if isinstance(value, list) else value
        elif word == "properties":
            out[word] = {name: plain(inner) for name, inner in value.items()}
        elif word in ("items", "additionalProperties"):
            out[word] = plain(value)
        else:
            out[word] = value
    return out


def split(definitions: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Return (schemas, descriptions) of the served definitions and of those that they refer to."""
    schemas: dict[str, Any] = {}
    todo = [name for name in definitions if not _UNSERVED.search(name)]
    while todo:
        name = todo.pop()
        if name not in schemas:
            schemas[name] = _OWN.get(name) or plain(definitions[name])
            todo += re.findall(r'"\$ref": "([^"]+)"', json.dumps(schemas[name]))
    texts = {}
    for name in schemas:
        rows = {"": definitions[name].get("description", "")}
        rows |= {p: s["description"] for p, s in definitions[name].get("properties", {}).items() if "description" in s}
        texts[name] = rows
    return dict(sorted(schemas.items())), dict(sorted(texts.items()))


def build(root: Path) -> list[str]:
    """Write both files below the root of the source tree and return their paths, relative to it. Two builds are the
    same byte for byte. Raises SchemaMissing.
    """
    definitions = json.loads(source().read_bytes())["$defs"]
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for path, value in zip(OUTPUTS, split(definitions), strict=True):
        raw = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
        packed = gzip.compress(raw, mtime=0)
        if not (root / path).exists() or (root / path).read_bytes() != packed:
            (root / path).write_bytes(packed)
    return list(OUTPUTS)

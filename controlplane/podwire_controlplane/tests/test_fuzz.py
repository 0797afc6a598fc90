"""The API server, asked with what its own OpenAPI describes and with mistakes in it, answers everything and breaks at
nothing: no answer tells of an error in the server, and the server serves on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import BUILTIN, Resource
from podwire_base.testing.counts import LONG, examples

from .. import protobuf
from ..testing.drawn import Drawer
from ..testing.servers import Server

REQUESTS = examples(40, 400)  # of each group version
BROKEN = "in the API server; its log has the details"
PATCHES = ("application/merge-patch+json", "application/json-patch+json", "application/strategic-merge-patch+json")
QUERIES = (
    "", "dryRun=All", "fieldValidation=Strict", "pretty=1", "limit=1", "limit=x", "watch=1&timeoutSeconds=1",
    "resourceVersion=0", "resourceVersion=x", "resourceVersionMatch=Exact", "labelSelector=a%3Db",
    "labelSelector=%21", "fieldSelector=metadata.name%3Dweb", "fieldSelector=x", "continue=x", "sendInitialEvents=1",
    "timeoutSeconds=-1", "gracePeriodSeconds=0", "propagationPolicy=Orphan", "propagationPolicy=x",
)  # fmt: skip
_META = "v=v1;g=meta.k8s.io"
ACCEPTS = (
    "", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "*/*;q=x",
    f"application/json;as=Table;{_META}", f"application/json;as=PartialObjectMetadata;{_META}",
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def _schema(document: Object, resource: Resource) -> dict[str, Any]:
    wanted = {"group": resource.group, "version": resource.version, "kind": resource.kind}
    for schema in document["components"]["schemas"].values():
        if wanted in (schema.get("x-kubernetes-group-version-kind") or ()):
            found: dict[str, Any] = schema
            return found
    return {"type": "object"}


def _target(chance: random.Random, resource: Resource, own: str) -> tuple[str, str]:
    """Return (method, path)."""
    space = "default" if resource.namespaced else ""
    collection, one = resource.path(space), resource.path(space, own)
    subs = [resource.path(space, own, sub) for sub in resource.subresources]
    return chance.choice(
        [("POST", collection)] * 4
        + [("PUT", one), ("PATCH", one), ("GET", one), ("GET", collection), ("DELETE", one), ("DELETE", collection)]
        + [(method, path) for path in subs for method in ("GET", "PUT", "PATCH", "POST")][:8]
    )


def _body(
    chance: random.Random, drawer: Drawer, row: Resource, schema: dict[str, Any], method: str, own: str
) -> tuple[bytes, str]:
    """Return (body, its media type)."""
    made = drawer.value(schema)
    if isinstance(made, dict) and chance.random() < 0.9:
        made["metadata"] = {"name": own, **({"labels": {"a": "b"}} if chance.random() < 0.5 else {})}
        made |= {"apiVersion": row.api_version, "kind": row.kind}
    if method == "PATCH":
        kind = chance.choice(PATCHES)
        if kind == PATCHES[1]:
            made = [
                {"op": chance.choice(("add", "replace", "remove", "copy", "test", "x")), "path": "/spec", "value": made}
            ]
        return json.dumps(made).encode(), kind
    if method == "DELETE":
        made = chance.choice(
            ({}, {"gracePeriodSeconds": 0}, {"dryRun": ["All"]}, {"preconditions": {"uid": "x"}}, made)
        )
    raw = json.dumps(made).encode()
    if chance.random() < 0.05:
        raw = bytes(b ^ (chance.random() < 0.02) for b in raw)
    kind = chance.choice(("application/json", "application/yaml", "application/vnd.kubernetes.protobuf"))
    if kind.endswith("protobuf"):
        raw = _protobuf(chance, raw)
    return raw, kind


def _protobuf(chance: random.Random, raw: bytes) -> bytes:
    """Return the object in protobuf, sometimes with bytes that are changed; noise for what has no such form."""
    try:
        found = bytearray(protobuf.builtin().encode(json.loads(raw)))
    except (ValueError, AttributeError, TypeError):
        return b"k8s\0" + chance.randbytes(chance.randint(0, 60))
    if chance.random() < 0.3:
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


@pytest.mark.long
@pytest.mark.parametrize("group", sorted({(r.group, r.version) for r in BUILTIN.resources}), ids="/".join)
def test_nothing_that_is_sent_breaks_the_server(server: Server, group: tuple[str, str]) -> None:
    path = f"/openapi/v3/apis/{group[0]}/{group[1]}" if group[0] else f"/openapi/v3/api/{group[1]}"
    document = server.good("GET", path)
    rows = [r for r in BUILTIN.resources if (r.group, r.version) == group]
    schemas = {row: _schema(document, row) for row in rows}
    seed = random.SystemRandom().randrange(1 << 32) if LONG else 7
    chance = random.Random(seed)
    drawer = Drawer(document["components"]["schemas"], chance)
    answered = 0
    for number in range(REQUESTS):
        row, own = chance.choice(rows), chance.choice(("web", "web-1", "a.b", "default"))
        method, url = _target(chance, row, own)
        query = chance.choice(QUERIES) if chance.random() < 0.3 else ""
        if row.kind == "Namespace" and method == "DELETE":
            continue
        raw, kind = _body(chance, drawer, row, schemas[row], method, own) if method != "GET" else (None, "")
        headers = {"Accept": chance.choice(ACCEPTS), **({"Content-Type": kind} if kind else {})}
        asked = quote(url, safe="/") + ("?" + query if query else "")
        with server.open(method, asked, raw, headers=headers) as answer:
            text = answer.read().decode(errors="replace")
            answered += answer.status < 300
            assert BROKEN not in text, f"seed {seed}, request {number}: {method} {asked} {kind} {raw!r}: {text}"
            assert 200 <= answer.status < 600
    if any(row.storable for row in rows):
        assert answered, "every request was refused: nothing is tried behind the first check"
    assert server.text("/readyz") == b"ok"

"""/openapi/v2 as kubectl asks for it: a protobuf message that says the same as the JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from podwire_base.kube.registry import BUILTIN

from .. import openapi, openapiproto
from ..protobuf import fields
from ..testing.servers import Server
from ..testing.widgets import CRDS, definition

ASKED = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


def named(raw: bytes, number: int) -> dict[str, bytes]:
    """Return the entries of a map: messages of name and value in the fields of this number."""
    found = {}
    for own, _, entry in fields(raw):
        if own == number:
            parts = {n: value for n, _, value in fields(entry)}
            found[parts[1].decode()] = parts.get(2, b"")
    return found


def of(raw: bytes, number: int) -> list[Any]:
    return [value for own, _, value in fields(raw) if own == number]


def schema(raw: bytes) -> dict[str, Any]:
    """Read a Schema back, by the numbers of gnostic's OpenAPIv2.proto."""
    out: dict[str, Any] = {}
    for key, number in (("$ref", 1), ("format", 2), ("description", 4)):
        for value in of(raw, number):
            out[key] = value.decode()
    if required := of(raw, 19):
        out["required"] = [value.decode() for value in required]
    for value in of(raw, 21):
        (((number, _, inner)),) = fields(value)
        out["additionalProperties"] = schema(inner) if number == 1 else bool(inner)
    for value in of(raw, 22):
        out["type"] = of(value, 1)[0].decode()
    for value in of(raw, 23):
        out["items"] = schema(of(value, 1)[0])
    for value in of(raw, 25):
        out["properties"] = {name: schema(inner) for name, inner in named(value, 1).items()}
    for name, value in named(raw, 31).items():
        out[name] = json.loads(of(value, 2)[0])
    return out


def test_every_definition_is_in_the_message() -> None:
    document = openapi.v2(BUILTIN)
    (definitions,) = of(openapiproto.encode(document), 9)
    assert {name: schema(raw) for name, raw in named(definitions, 1).items()} == document["definitions"]


def test_the_paths_are_in_the_message() -> None:
    document = openapi.v2(BUILTIN)
    (paths,) = of(openapiproto.encode(document), 8)
    found = named(paths, 2)
    assert set(found) == set(document["paths"])
    (patch,) = of(found["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"], 8)
    parameters = [of(of(of(of(one, 1)[0], 2)[0], 3)[0], 4)[0] for one in of(patch, 8)[:3]]
    assert parameters == [b"dryRun", b"fieldManager", b"fieldValidation"]  # by this kubectl knows what it may ask for
    extensions = {name: json.loads(of(value, 2)[0]) for name, value in named(patch, 13).items()}
    assert extensions["x-kubernetes-group-version-kind"]["kind"] == "Deployment"


@pytest.mark.parametrize("values", [{"maximum": 1.5, "maxLength": 3, "enum": ["a", 1], "uniqueItems": True}])
def test_the_words_of_custom_schemas_have_a_place(values: dict[str, Any]) -> None:
    raw = openapiproto.encode({"definitions": {"x": {"type": "string", "x-kubernetes-y": {"a": [1]}, **values}}})
    (inner,) = named(of(raw, 9)[0], 1).values()
    assert [len(of(inner, number)) for number in (7, 11, 20, 16)] == [1, 1, 2, 1]
    assert schema(inner)["x-kubernetes-y"] == {"a": [1]}


def test_the_server_negotiates(server: Server) -> None:
    server.good("POST", CRDS, definition())
    for accept, media in (
        (ASKED, openapiproto.MEDIA),
        (openapiproto.MEDIA, openapiproto.MEDIA),
        ("application/json", "application/json"),
        ("*/*", "application/json"),
        (f"text/plain, {ASKED}", openapiproto.MEDIA),
    ):
        with server.open("GET", "/openapi/v2", headers={"Accept": accept}) as answer:
            raw = answer.read()
            assert (answer.status, answer.headers["Content-Type"]) == (200, media)
            if media == openapiproto.MEDIA:
                assert "com.example.v1.Widget" in named(of(raw, 9)[0], 1)
    with server.open("GET", "/openapi/v2", headers={"Accept": "text/plain"}) as answer:
        assert answer.status == 406

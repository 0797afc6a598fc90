"""Keys that a body has twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube import codec

from ..server import duplicates
from ..testing.servers import Server

MAPS = "/api/v1/namespaces/default/configmaps"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a":1,"b":{"a":2}}', ()),
        ('{"a":1,"a":1}', ("a",)),
        ('{"a": [{"b": 1}, {"c": 1, "b": 2, "c": 3}]}', ("a[1].c",)),
        ('{"a":{"x":1},"a":{"x":1,"x":2}}', ("a", "a.x")),
        ('{"\\u0061":1,"a":2}', ("a",)),
        ('{"a":1e5}', ()),
        ("[]", ()),
    ],
)
def test_json(text: str, found: tuple[str, ...]) -> None:
    raw = text.encode()
    assert duplicates.in_json(raw, codec.decode(raw)) == tuple(f'duplicate field "{path}"' for path in found)


@given(JSON, st.booleans(), st.booleans())
def test_no_text_that_repeats_nothing_is_told(value: Any, blanks: bool, ascii_only: bool) -> None:
    raw = json.dumps(value, indent=2 if blanks else None, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        made = codec.decode(raw)
    except ValueError:
        return  # half a surrogate
    assert duplicates.in_json(raw, made) == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1\nb: {a: 2}\n", ()),
        ("a: 1\nb: 2\na: 3\n", ((3, "a"),)),
        ("- {x: 1, x: 2}\n- [x, x]\n", ((1, "x"),)),
        ("a: &r {k: 1}\nb: *r\nc: {<<: *r, <<: *r, k: 2}\n", ()),
        ("a: 1\n---\na: 1\na: 2\n", ()),
    ],
)
def test_yaml(text: str, found: tuple[tuple[int, str], ...]) -> None:
    assert duplicates.in_yaml(text.encode()) == tuple(f'line {n}: key "{key}" already set in map' for n, key in found)


@pytest.mark.parametrize(
    ("mode", "code", "warned"), [("", 201, True), ("Warn", 201, True), ("Ignore", 201, False), ("Strict", 400, False)]
)
@pytest.mark.parametrize("media", ["json", "yaml"])
def test_the_client_hears_of_them(mode: str, code: int, warned: bool, media: str) -> None:
    text = '{"metadata": {"name": "x"}, "data": {"a": "1", "a": "2"}}'
    with Server() as server:
        path = f"{MAPS}?dryRun=All" + (f"&fieldValidation={mode}" if mode else "")
        headers = {"Content-Type": f"application/{media}"}
        with server.open("POST", path, text.encode(), headers=headers) as answer:
            assert answer.status == code and bool(answer.headers.get("Warning")) is warned
            body = json.loads(answer.read())
        assert (
            body["data"] == {"a": "2"} if code == 201 else "already set" in body["message"] or "duplicate" in str(body)
        )
        patch = {"Content-Type": "application/merge-patch+json"}
        server.good("POST", MAPS, {"metadata": {"name": "x"}})
        path = f"{MAPS}/x?" + (f"fieldValidation={mode}" if mode else "")
        with server.open("PATCH", path, b'{"data":{"a":"1","a":"2"}}', headers=patch) as answer:
            assert answer.status == (422 if mode == "Strict" else 200)
            assert bool(answer.headers.get("Warning")) is warned

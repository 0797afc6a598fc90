"""The protobuf codec, judged by what client-go's REST client sent to a real kube-apiserver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.meta import Object
from podwire_controlplane import protobuf
from podwire_controlplane.protobuf import BadProtobuf

RECORDS = [json.loads(line) for line in (Path(__file__).parent / "records/protobuf.jsonl").read_text().splitlines()]
CODEC = protobuf.builtin()


def _bodies() -> list[tuple[str, bytes]]:
    return [(record["id"], bytes.fromhex(record["request"]["hex"])) for record in RECORDS]


def _same(sent: Any, got: Any) -> bool:
    """Whether `got` has what was sent. Go's client adds fields that are always on the wire, and writes quantities
    canonically; empty lists and maps are not on the wire.
    """
    if isinstance(sent, dict):
        return isinstance(got, dict) and all(
            _same(value, got[key]) if key in got else value in ({}, [], "", 0, None) for key, value in sent.items()
        )
    if isinstance(sent, list):
        return isinstance(got, list) and len(sent) == len(got) and all(map(_same, sent, got))
    return sent == got or (isinstance(sent, str | int | float) and isinstance(got, str) and not isinstance(sent, bool))


def test_bodies_of_clients_are_read_and_written_byte_for_byte() -> None:
    """What is written again from the decoded object is what the client sent, and the object is what its user meant."""
    read = 0
    for own, body in _bodies():
        if own.startswith(("envelope-", "delete-deploy")):
            continue
        obj = CODEC.decode(body)
        read += 1
        again = CODEC.encode(obj)
        # raw JSON is written without spaces; Go's nil and empty bytes are one in JSON
        if b'": ' not in body and "webhook" not in own:
            assert again == body, own
        assert CODEC.decode(again) == obj, own
    assert read > 200
    for record in RECORDS:
        if record["id"].startswith("create-") and "sent" in record:
            obj = CODEC.decode(bytes.fromhex(record["request"]["hex"]))
            assert _same(record["sent"], obj), (record["id"], obj)


@pytest.mark.parametrize(
    ("field", "obj"),
    [
        ("replicas 0", {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0}}),
        ("class", {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {"storageClassName": ""}}),
        ("false", {"apiVersion": "v1", "kind": "ServiceAccount", "automountServiceAccountToken": False}),
    ],
)
def test_zeros_behind_pointers_stay(field: str, obj: Object) -> None:
    got = CODEC.decode(CODEC.encode({**obj, "metadata": {"name": "x"}}))
    path = next(k for k in obj if k not in ("apiVersion", "kind"))
    want = obj[path]
    assert (want.items() <= got[path].items()) if isinstance(want, dict) else got[path] is want, field


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"spec": {"ports": [{"port": 80, "targetPort": "web"}]}}, "Service"),
        ({"spec": {"ports": [{"port": 80, "targetPort": -1}]}}, "Service"),
        ({"data": {"a": "AP8B", "b": ""}}, "Secret"),
    ],
)
def test_forms_of_their_own_survive(value: Object, kind: str) -> None:
    got = CODEC.decode(CODEC.encode({"apiVersion": "v1", "kind": kind, "metadata": {"name": "x"}, **value}))
    for field, want in value.items():
        assert _same(want, got[field]), got


def test_times() -> None:
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    made = {
        "metadata": {"name": "x", "creationTimestamp": "2024-01-02T03:04:05Z"},
        "spec": {"renewTime": "1969-12-31T23:59:59.999999Z", "leaseDurationSeconds": 5},
    }
    assert CODEC.decode(CODEC.encode({**lease, **made})) == {**lease, **made}
    assert "creationTimestamp" not in CODEC.decode(CODEC.encode({**lease, "metadata": {}}))["metadata"]


@pytest.mark.parametrize("own", [r["id"] for r in RECORDS if r["id"].startswith("envelope-")])
def test_broken_envelopes(own: str) -> None:
    body = next(raw for name, raw in _bodies() if name == own)
    with pytest.raises(BadProtobuf):
        CODEC.decode(body)


def test_custom_resources_have_no_form() -> None:
    with pytest.raises(BadProtobuf, match="no form"):
        CODEC.encode({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {}})


@given(st.binary(max_size=60), st.integers(0, len(RECORDS) - 1), st.integers(0, 2000))
def test_no_bytes_bring_out_another_error(garbage: bytes, which: int, at: int) -> None:
    body = _bodies()[which][1]
    for raw in (protobuf.MAGIC + garbage, body[:at], body[:at] + garbage + body[at + len(garbage) :]):
        try:
            obj = CODEC.decode(raw)
        except BadProtobuf:
            continue
        assert isinstance(obj, dict)


def test_deep_messages_are_refused() -> None:
    inner = b""
    for _ in range(400):  # JSONSchemaProps.not within each other
        inner = protobuf.message((28, inner))
    with pytest.raises(BadProtobuf):
        CODEC._value("k8s.io.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps", inner, 0)

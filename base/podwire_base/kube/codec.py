"""Encodes objects as JSON, in the form of the store and in the form for clients.

The stored form has no resourceVersion; `metadata` is its first member, kind and apiVersion are its last. A read inserts
the revision as text. So a list of 10,000 objects is made by joining bytes, without decoding. And a store that gets the
revision only after the commit (etcd) needs no second write.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .meta import Object

_HEAD = b'{"metadata":{'
_OWN = ("metadata", "kind", "apiVersion")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def encode(obj: Object) -> bytes:
    """Returns the stored form. The object's metadata must not be empty (it has at least a name)."""
    metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    body = {"metadata": metadata, **{k: v for k, v in obj.items() if k not in _OWN}}
    return _encoder.encode(body | {k: obj[k] for k in ("kind", "apiVersion") if k in obj})


def with_revision(raw: bytes, revision: int) -> bytes:
    """Returns the form for clients of a stored object."""
    return b'%s"resourceVersion":"%d",%s' % (_HEAD, revision, raw[len(_HEAD) :])


def tail(kind: str, api_version: str) -> bytes:
    """Returns the end of the stored form of the objects of a kind."""
    return b',"kind":%s,"apiVersion":%s}' % (_encoder.encode(kind), _encoder.encode(api_version))


def bare(raw: bytes, revision: int, end: bytes) -> bytes:
    """Returns the form for clients within a list, where Kubernetes leaves kind and apiVersion out. end: see `tail`.
    Objects that version 0.2 stored have another end; they keep both.
    """
    if raw.endswith(end):
        return b'%s"resourceVersion":"%d",%s}' % (_HEAD, revision, raw[len(_HEAD) : -len(end)])
    return with_revision(raw, revision)


def decode(raw: bytes) -> Any:
    return _decoder.decode(raw)


def dumps(value: Any) -> bytes:
    return _encoder.encode(value)

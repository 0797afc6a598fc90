"""Encodes objects as JSON, in the form of the store and in the form for clients.

The stored form has no resourceVersion, and `metadata` is the first member. A read inserts the revision as text. So a
list of 10,000 objects is made by joining bytes, without decoding. And a store that gets the revision only after the
commit (etcd) needs no second write.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .meta import Object

_HEAD = b'{"metadata":{'
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def encode(obj: Object) -> bytes:
    """Returns the stored form. The object's metadata must not be empty (it has at least a name)."""
    metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
    return _encoder.encode({"metadata": metadata, **{k: v for k, v in obj.items() if k != "metadata"}})


def with_revision(raw: bytes, revision: int) -> bytes:
    """Returns the form for clients of a stored object."""
    return b'%s"resourceVersion":"%d",%s' % (_HEAD, revision, raw[len(_HEAD) :])


def decode(raw: bytes) -> Any:
    return _decoder.decode(raw)


def dumps(value: Any) -> bytes:
    return _encoder.encode(value)

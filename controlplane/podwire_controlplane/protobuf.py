"""Kubernetes' protobuf form of objects, both ways, driven by a table of messages. Pure.

A body is the magic number `k8s` and a zero byte, and then a message runtime.Unknown: typeMeta, and the object as a
message of its own. The table (data/protobuf.json) has the messages of the stable groups: for each field its number, its
name in JSON, its type, and how Go treats it:

- pointer: what is on the wire was set, also 0, "" and false;
- not a pointer: always on the wire, also if it is zero. In JSON, a zero is left out where the field is `omitempty`;
- inline: a message of its own in protobuf, whose fields stand beside it in JSON;
- is: the types with a form of their own in JSON (quantity, time, intorstring, raw JSON ...).

Wire format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import pkgutil
import struct
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from podwire_base.kube.meta import Object

MAGIC = b"k8s\0"
MAX_DEPTH = 64  # messages within messages; a JSONSchemaProps of a CustomResourceDefinition is the deepest
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ZERO: dict[str, Any] = {"string": "", "bytes": b"", "bool": False, "double": 0.0, "float": 0.0}
_WIRE = {"string": _BYTES, "bytes": _BYTES, "double": _FIXED64, "float": _FIXED32}
_ANYWHERE = ("DeleteOptions", "WatchEvent")  # kinds that every group version has, with one message
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Table = Mapping[str, Any]
_META = "k8s.io.apimachinery.pkg.apis.meta.v1."

# kinds that only answers have
_PARTIAL_ROOTS = {
    f"meta.k8s.io/{version} {kind}": _META + kind
    for version in ("v1", "v1beta1")
    for kind in ("PartialObjectMetadata", "PartialObjectMetadataList")
}


class BadProtobuf(ValueError):
    """The bytes are not the expected message, or the object has no form in protobuf. The text says why."""


# ---- the wire


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 70:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise BadProtobuf("a number is cut off")


def fields(raw: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield (number, wire type, value) of each field: a number for varints, else bytes."""
    at, end = 0, len(raw)
    while at < end:
        key, at = _varint(raw, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value: Any
            value, at = _varint(raw, at)
        elif wire in (_BYTES, _FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
            if wire == _BYTES:
                size, at = _varint(raw, at)
            if size > end - at:
                raise BadProtobuf("the message is cut off")
            value, at = raw[at : at + size], at + size
        else:
            raise BadProtobuf(f"wire type {wire} is not used")
        if not number:
            raise BadProtobuf("a field has number 0")
        yield number, wire, value


def _number(value: int) -> bytes:
    out = bytearray()
    value &= 0xFFFFFFFFFFFFFFFF
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, wire: int, value: Any) -> bytes:
    key = _number(number << 3 | wire)
    if wire == _VARINT:
        return key + _number(int(value))
    body: bytes = value
    return key + (_number(len(body)) + body if wire == _BYTES else body)


# ---- scalars


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadProtobuf("a text is not UTF-8") from None


def _from_wire(kind: str, value: Any) -> Any:
    if isinstance(value, int):
        if kind == "bool":
            return bool(value)
        bits = 32 if kind == "int32" else 64
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> (bits - 1) and not kind.startswith("uint") else value
    if kind == "string":
        return _text(value)
    if kind == "bytes":
        return base64.b64encode(value).decode()
    if kind in ("double", "float"):
        found = struct.unpack("<d" if kind == "double" else "<f", value)[0]
        return int(found) if found.is_integer() and abs(found) < 1e21 else found  # as Go writes it in JSON
    raise BadProtobuf(f"a field of type {kind} has the wrong wire type")


def _to_wire(kind: str, value: Any) -> Any:
    try:
        if kind == "string":
            return str(value).encode()
        if kind == "bytes":
            return base64.b64decode(value) if value else b""
        if kind in ("double", "float"):
            return struct.pack("<d" if kind == "double" else "<f", float(value))
        return int(value)
    except (ValueError, TypeError, binascii.Error, struct.error) as err:
        raise BadProtobuf(f"{value!r} is not a {kind}: {err}") from None


# ---- types with a form of their own


def _moment(raw: bytes, *, micro: bool) -> str | None:
    if not raw:
        return None
    seconds = nanos = 0
    for number, _, value in fields(raw):
        if number == 1:
            seconds = _from_wire("int64", value)
        elif number == 2:
            nanos = _from_wire("int32", value)
    try:
        moment = _EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)
    except OverflowError:
        raise BadProtobuf(f"{seconds} s is not a time") from None
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{moment.microsecond:06d}Z" if micro else "Z")


def _unmoment(value: Any, *, micro: bool) -> bytes:
    if not value:
        return b""
    try:
        moment = datetime.fromisoformat(str(value)) - _EPOCH
    except (ValueError, TypeError, OverflowError):
        raise BadProtobuf(f"{value!r} is not a time") from None
    seconds = moment.days * 86400 + moment.seconds
    return _field(1, _VARINT, seconds) + _field(2, _VARINT, moment.microseconds * 1000 if micro else 0)


def _int_or_string(raw: bytes) -> Any:
    found = {number: value for number, _, value in fields(raw)}
    return _text(found.get(3, b"")) if found.get(1) else _from_wire("int32", found.get(2, 0))


def _unint_or_string(value: Any) -> bytes:
    text = isinstance(value, str)
    return (
        _field(1, _VARINT, int(text))
        + _field(2, _VARINT, 0 if text else int(value or 0))
        + _field(3, _BYTES, value.encode() if text else b"")
    )


def _raw(raw: bytes) -> Any:
    found = next((value for number, _, value in fields(raw) if number == 1), b"")
    try:
        return json.loads(found) if found else None
    except (ValueError, RecursionError):
        raise BadProtobuf("a field with raw JSON does not hold JSON") from None


def _quantity(raw: bytes) -> str:
    return _text(next((value for number, _, value in fields(raw) if number == 1), b"")) or "0"


_DECODE: dict[str, Callable[[bytes], Any]] = {
    "quantity": _quantity,
    "time": lambda raw: _moment(raw, micro=False),
    "microtime": lambda raw: _moment(raw, micro=True),
    "intorstring": _int_or_string,
    "raw": _raw,
}
_ENCODE: dict[str, Callable[[Any], bytes]] = {
    "quantity": lambda value: _field(1, _BYTES, str(value).encode()),
    "time": lambda value: _unmoment(value, micro=False),
    "microtime": lambda value: _unmoment(value, micro=True),
    "intorstring": _unint_or_string,
    "raw": lambda value: _field(1, _BYTES, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()),
}


class Codec:
    """The messages of a table. Raises BadProtobuf for input that is not a message of it."""

    def __init__(self, table: Table) -> None:
        self.roots: dict[str, str] = {**_PARTIAL_ROOTS, **table["roots"]}
        self._messages: dict[str, Any] = table["messages"]
        self._numbers = {name: {f["number"]: f for f in m["fields"]} for name, m in self._messages.items()}

    def knows(self, api_version: str, kind: str) -> bool:
        return f"{api_version} {kind}" in self.roots

    # ---- bodies

    def decode(self, body: bytes, api_version: str = "", kind: str = "") -> Object:
        """Return the object of a body. api_version, kind: those of a body that does not tell its own."""
        if not body.startswith(MAGIC):
            raise BadProtobuf("the body does not start with the magic number of Kubernetes' protobuf")
        meta, raw = b"", None
        for number, wire, value in fields(body[len(MAGIC) :]):
            if number in (1, 2) and wire != _BYTES:
                raise BadProtobuf("the envelope is not a runtime.Unknown")
            meta, raw = (value, raw) if number == 1 else (meta, value) if number == 2 else (meta, raw)
        if raw is None and not meta:
            raise BadProtobuf("the envelope is empty")
        found = {number: _text(value) for number, wire, value in fields(meta) if wire == _BYTES}
        api_version, kind = found.get(1) or api_version, found.get(2) or kind
        root = self.roots.get(f"{api_version} {kind}") or self.roots.get(f"v1 {kind}" if kind in _ANYWHERE else "")
        if root is None:
            raise BadProtobuf(
                f"{kind or 'an object'} of {api_version or 'no version'} has no form in protobuf; send JSON"
            )
        return {"kind": kind, "apiVersion": api_version, **self._object(root, raw or b"", 0)}

    def encode(self, obj: Object) -> bytes:
        """Return the body of an object."""
        api_version, kind = str(obj.get("apiVersion", "")), str(obj.get("kind", ""))
        root = self.roots.get(f"{api_version or 'v1'} {kind}")
        if root is None:
            raise BadProtobuf(f"{kind} of {api_version} has no form in protobuf")
        meta = _field(1, _BYTES, api_version.encode()) + _field(2, _BYTES, kind.encode())
        parts = (_field(1, _BYTES, meta), _field(2, _BYTES, self._message(root, obj)))
        return MAGIC + b"".join(parts) + _field(3, _BYTES, b"") + _field(4, _BYTES, b"")

    # ---- messages to JSON

    def _value(self, kind: str, raw: Any, depth: int) -> Any:
        message = self._messages.get(kind)
        if message is None:
            return _from_wire(kind, raw)
        if not isinstance(raw, bytes) or depth > MAX_DEPTH:
            raise BadProtobuf(f"{kind.rpartition('.')[2]}: expected a message, at most {MAX_DEPTH} in each other")
        form = message.get("is", "")
        if form in _DECODE:
            return _DECODE[form](raw)
        if form == "list":
            return self._object(kind, raw, depth).get("items", [])
        if form.startswith("schemaor"):
            return self._schema_or(kind, form, raw, depth)
        return self._object(kind, raw, depth)

    def _object(self, name: str, raw: bytes, depth: int) -> Object:
        known, out = self._numbers[name], dict[str, Any]()
        for number, _, value in fields(raw):
            spec = known.get(number)
            if spec is None:
                continue  # a field of another version
            if spec.get("inline"):
                out |= self._value(spec["type"], value, depth + 1)
            elif spec.get("map"):
                key, item = self._entry(spec, value, depth)
                out.setdefault(spec["json"], {})[key] = item
            elif spec.get("repeated"):
                out.setdefault(spec["json"], []).extend(self._items(spec["type"], value, depth))
            else:
                found = self._value(spec["type"], value, depth + 1)
                if spec.get("pointer") or not self._left_out(spec, found):
                    out[spec["json"]] = found
        return out

    def _left_out(self, spec: Mapping[str, Any], value: Any) -> bool:
        """Whether Go leaves a value of a field that is no pointer out of its JSON. It never does so with structs."""
        if spec["type"] in self._messages:
            return bool(spec.get("omitzero")) and value is None
        return bool(spec.get("omitempty")) and value in ("", 0)

    def _items(self, kind: str, value: Any, depth: int) -> list[Any]:
        if isinstance(value, bytes) and kind not in self._messages and kind not in _WIRE:  # packed numbers
            found, at = [], 0
            while at < len(value):
                one, at = _varint(value, at)
                found.append(_from_wire(kind, one))
            return found
        return [self._value(kind, value, depth + 1)]

    def _entry(self, spec: Mapping[str, Any], raw: Any, depth: int) -> tuple[str, Any]:
        if not isinstance(raw, bytes):
            raise BadProtobuf(f"{spec['json']}: expected the entry of a map")
        found = {number: value for number, _, value in fields(raw)}
        empty = b"" if spec["type"] in self._messages or spec["type"] in ("string", "bytes") else 0
        return _text(found.get(1, b"")), self._value(spec["type"], found.get(2, empty), depth + 1)

    def _schema_or(self, name: str, form: str, raw: bytes, depth: int) -> Any:
        """JSONSchemaPropsOrArray, OrBool, OrStringArray: the schema if there is one, else the other field."""
        allows, rest, known = False, [], self._numbers[name]
        for number, _, value in fields(raw):
            spec = known.get(number)
            if spec is None:
                continue
            if spec["name"] == "schema":
                return self._value(spec["type"], value, depth + 1)
            if spec.get("repeated"):
                rest.append(self._value(spec["type"], value, depth + 1))
            else:
                allows = bool(value)
        return allows if form == "schemaorbool" else rest

    # ---- JSON to messages

    def _message(self, name: str, value: Any) -> bytes:
        message = self._messages[name]
        form = message.get("is", "")
        if form in _ENCODE:
            return _ENCODE[form](value)
        if form == "list":
            value = {"items": value or []}
        elif form.startswith("schemaor"):
            return self._schema_of(message, value)
        if not isinstance(value, dict):
            raise BadProtobuf(f"{name.rpartition('.')[2]}: {value!r} is not an object")
        return b"".join(part for spec in message["fields"] for part in self._parts(spec, value))

    def _parts(self, spec: Mapping[str, Any], obj: Object) -> Iterator[bytes]:
        number, kind = spec["number"], spec["type"]
        if spec.get("inline"):
            inner = self._message(kind, obj)
            if inner or not spec.get("pointer"):
                yield _field(number, _BYTES, inner)
            return
        value = obj.get(spec["json"])
        if spec.get("map"):
            for key, item in (value or {}).items():
                entry = _field(1, _BYTES, str(key).encode()) + self._one(2, kind, item)
                yield _field(number, _BYTES, entry)
        elif spec.get("repeated"):
            for item in value or ():
                yield self._one(number, kind, item)
        elif value is not None or not (spec.get("pointer") or kind == "bytes"):
            yield self._one(number, kind, value)

    def _one(self, number: int, kind: str, value: Any) -> bytes:
        if kind not in self._messages:
            return _field(
                number, _WIRE.get(kind, _VARINT), _to_wire(kind, _ZERO.get(kind, 0) if value is None else value)
            )
        form = self._messages[kind].get("is", "")
        if value is None and form in ("quantity", "raw"):
            return _field(number, _BYTES, _field(1, _BYTES, b"0") if form == "quantity" else b"")
        return _field(number, _BYTES, self._message(kind, {} if value is None and form not in _ENCODE else value))

    def _schema_of(self, message: Mapping[str, Any], value: Any) -> bytes:
        rows = {spec["name"]: spec for spec in message["fields"]}
        if isinstance(value, dict):
            found = self._one(rows["schema"]["number"], rows["schema"]["type"], value)
            return (_field(rows["allows"]["number"], _VARINT, 1) if "allows" in rows else b"") + found
        if "allows" in rows:
            return _field(rows["allows"]["number"], _VARINT, bool(value))
        spec = next(s for s in message["fields"] if s.get("repeated"))
        return b"".join(self._one(spec["number"], spec["type"], item) for item in value or ())


@functools.cache
def builtin() -> Codec:
    """Return the codec for Kubernetes' own kinds. Its table is read when it is first needed."""
    raw = pkgutil.get_data("podwire_controlplane", "data/protobuf.json")
    assert raw is not None  # package data: part of the program
    return Codec(json.loads(raw))


def message(*parts: tuple[int, bytes | int | float]) -> bytes:
    """Return a message of fields, each a (number, value): bytes, a whole number or bool as a varint, or a double."""
    return b"".join(
        _field(number, _BYTES, value)
        if isinstance(value, bytes)
        else _field(number, _FIXED64, struct.pack("<d", value))
        if isinstance(value, float)
        else _field(number, _VARINT, value)
        for number, value in parts
    )

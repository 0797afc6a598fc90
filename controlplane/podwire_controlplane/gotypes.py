"""Decodes JSON as the Go types of Kubernetes do, and writes it as they do.

An object that goes through kube-apiserver comes back changed: unknown fields are gone, zero values that are marked
`omitempty` are gone, structs that are no pointers are there even when empty (`status: {}`), quantities and times are in
canonical form. data/protobuf.json has these facts for each field of the stable groups; this module follows them. The
protobuf codec reads the same table.

    decode("v1", "Pod", obj) -> (the object as kube-apiserver would keep it, the paths of its unknown fields)
"""

from __future__ import annotations

import base64
import binascii
import json
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object
from podwire_base.kube.times import normal_time

_RANGES = {"int32": 2**31, "int64": 2**63}
_DROP: Any = object()  # what a field's decoder returns for a value that the encoder leaves out

Decoder = Callable[[Any, str, list[str]], Any]  # (value, path, unknown fields) -> value or _DROP


class BadType(ValueError):
    """A field has a value of another type. The text is kube-apiserver's: the decoder's, with the field's path."""


@cache
def table() -> dict[str, Any]:
    """Returns data/protobuf.json: `roots` ("apiVersion kind" -> message) and `messages` (name -> fields)."""
    raw = pkgutil.get_data("podwire_controlplane", "data/protobuf.json")
    assert raw is not None  # package data: part of the program
    loaded: dict[str, Any] = json.loads(raw)
    return loaded


def known(api_version: str, kind: str) -> bool:
    return f"{api_version} {kind}" in table()["roots"]


def decode(api_version: str, kind: str, obj: Mapping[str, Any]) -> tuple[Object, list[str]]:
    """Returns (object, paths of unknown fields). apiVersion and kind stay as they are. Raises BadType, and KeyError for
    a kind that the table does not have.
    """
    unknown: list[str] = []
    rest = {k: v for k, v in obj.items() if k not in ("kind", "apiVersion")}
    made: Object = _message(table()["roots"][f"{api_version} {kind}"])(rest, "", unknown)
    return {"kind": kind, "apiVersion": api_version, **made}, unknown


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return f"number {value}" if isinstance(value, float) else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _bad(value: Any, path: str, want: str) -> BadType:
    return BadType(f"json: cannot unmarshal {_kind_of(value)} into Go struct field {path} of type {want}")


# ---- values without fields: JSON value -> value as Go keeps it; None is Go's zero value


def _string(value: Any, path: str, _unknown: list[str]) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad(value, path, "string")
    return value


def _boolean(value: Any, path: str, _unknown: list[str]) -> Any:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _bad(value, path, "bool")
    return value


def _integer(bits: str) -> Decoder:
    limit = _RANGES[bits]

    def integer(value: Any, path: str, _unknown: list[str]) -> Any:
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or not -limit <= value < limit:
            raise _bad(value, path, bits)
        return value

    return integer


def _double(value: Any, path: str, _unknown: list[str]) -> Any:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _bad(value, path, "float64")
    return value


def _bytes(value: Any, path: str, _unknown: list[str]) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad(value, path, "[]uint8")
    try:
        return base64.b64encode(base64.b64decode(value.replace("\n", "").replace("\r", ""), validate=True)).decode()
    except (binascii.Error, ValueError) as err:
        raise BadType(f"{path}: illegal base64 data: {err}") from None


def _quantity(value: Any, path: str, _unknown: list[str]) -> Any:
    if value is None:
        return "0"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _bad(value, path, "resource.Quantity")
    try:
        return quantity.canonical(value if isinstance(value, str) else repr(value))
    except quantity.BadQuantity as err:
        raise BadType(f"{path}: {err}") from None


_moment = lru_cache(maxsize=1024)(normal_time)  # the same few times come with every write


def _resource_amount(value: Any, path: str, unknown: list[str]) -> Any:
    """A quantity in a map of resources: nothing finer than a thousandth (SetDefaults_ResourceList)."""
    made = _quantity(value, path, unknown)
    return quantity.to_milli(made) if made[-1] in "nu" else made


def _time(micro: bool) -> Decoder:
    def time(value: Any, path: str, _unknown: list[str]) -> Any:
        if value is None:
            return None
        if not isinstance(value, str):
            raise _bad(value, path, "time.Time")
        try:
            return _moment(value, micro)
        except (ValueError, OverflowError):
            layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
            raise BadType(f'{path}: parsing time "{value}" as "{layout}": cannot parse it') from None

    return time


def _int_or_string(value: Any, path: str, _unknown: list[str]) -> Any:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _bad(value, path, "intstr.IntOrString")
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise _bad(value, path, "int32")
    return value


def _type_meta(value: Any, path: str, unknown: list[str]) -> Any:
    return _string(value, path, unknown) or _DROP


@cache
def _roots() -> frozenset[str]:
    return frozenset(table()["roots"].values())


def _raw(value: Any, _path: str, _unknown: list[str]) -> Any:
    return value


_SCALARS: dict[str, Decoder] = {
    "string": _string,
    "bool": _boolean,
    "int32": _integer("int32"),
    "int64": _integer("int64"),
    "double": _double,
    "bytes": _bytes,
}
_SPECIAL: dict[str, Decoder] = {
    "quantity": _quantity,
    "time": _time(False),
    "microtime": _time(True),
    "intorstring": _int_or_string,
    "raw": _raw,
}


# ---- messages


def _one_of(name: str, kind: str) -> Decoder:
    """JSONSchemaProps, or a boolean, a list of schemas or a list of names (CustomResourceDefinition)."""

    def decode_one(value: Any, path: str, unknown: list[str]) -> Any:
        if isinstance(value, dict):
            return _message(name)(value, path, unknown)
        if kind == "schemaorarray" and isinstance(value, list):
            return [_message(name)(item, f"{path}[{n}]", unknown) for n, item in enumerate(value)]
        return value

    return decode_one


@cache
def _type(name: str) -> tuple[Decoder, bool]:
    """Returns (decoder of one value, whether it is a struct, which the encoder writes even when empty)."""
    if name in _SCALARS:
        return _SCALARS[name], False
    message = table()["messages"][name]
    kind = message.get("is")
    if kind is None:
        return _message(name), True
    if kind == "list":
        item, _ = _type(message["fields"][0]["type"])
        return _listed(item), False
    if kind.startswith("schemaor"):
        inner = next(f["type"] for f in message["fields"] if "." in f["type"])
        return _one_of(inner, kind), False
    return _SPECIAL[kind], False


def _listed(item: Decoder) -> Decoder:
    def items(value: Any, path: str, unknown: list[str]) -> Any:
        if value is None:
            return None
        if not isinstance(value, list):
            raise _bad(value, path, "slice")
        return [item(v, f"{path}[{n}]", unknown) for n, v in enumerate(value)]

    return items


def _mapped(item: Decoder) -> Decoder:
    def items(value: Any, path: str, unknown: list[str]) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise _bad(value, path, "map")
        return {k: item(v, f"{path}.{k}", unknown) for k, v in value.items()}

    return items


def _field(field: Mapping[str, Any]) -> tuple[Decoder, Any]:
    """Returns (decoder of the field, what an absent field becomes: _DROP if the encoder leaves it out)."""
    one, struct = _type(field["type"])
    omit, pointer = bool(field.get("omitempty")), bool(field.get("pointer"))
    kind = table()["messages"].get(field["type"], {}).get("is")
    many = bool(field.get("repeated") or "map" in field or kind in ("list", "raw"))
    if field.get("repeated"):
        one = _listed(one)
    elif "map" in field:
        one = _mapped(_resource_amount if kind == "quantity" else one)
    if field.get("omitzero"):
        return (lambda v, p, u: _DROP if v is None else one(v, p, u)), _DROP
    if pointer or (kind or "").startswith("schemaor"):
        absent = _DROP if omit else None
        return (lambda v, p, u: absent if v is None else one(v, p, u)), absent
    if many:
        absent = _DROP if omit else None

        def several(value: Any, path: str, unknown: list[str]) -> Any:
            made = one(value, path, unknown)
            # the store's own form (protobuf) does not tell an empty list from none
            return absent if made is None or (not made and kind != "raw") else made

        return several, absent
    if struct or kind in ("quantity", "time", "microtime", "intorstring"):  # Go's encoder never leaves structs out
        return (lambda v, p, u: one({} if v is None and struct else v, p, u)), one({} if struct else None, "", [])
    zero = one(None, "", [])

    def scalar(value: Any, path: str, unknown: list[str]) -> Any:
        made = one(value, path, unknown)
        return _DROP if omit and made == zero else made

    return scalar, _DROP if omit else zero


@cache
def _fields(name: str) -> tuple[dict[str, Decoder], dict[str, Any]]:
    """Returns (JSON name -> decoder, JSON name -> value that an absent field gets)."""
    decoders: dict[str, Decoder] = {}
    absent: dict[str, Any] = {}
    if name in _roots():  # an object inside another one, as in volumeClaimTemplates
        decoders = {"kind": _type_meta, "apiVersion": _type_meta}
    for field in table()["messages"][name]["fields"]:
        if field.get("inline"):
            inner, rest = _fields(field["type"])
            decoders |= inner
            absent |= rest
            continue
        decoders[field["json"]], default = _field(field)
        if default is not _DROP:
            absent[field["json"]] = default
    return decoders, absent


def _copied(default: Object) -> Object:
    """Copy what an absent struct becomes: structs in structs, and values that never change."""
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in default.items()}


@cache
def _message(name: str) -> Decoder:
    short = name.rsplit(".", 1)[-1]

    def message(value: Any, path: str, unknown: list[str]) -> Any:
        decoders, absent = _fields(name)  # here, because messages refer to each other in circles
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise _bad(value, path or short, short)
        out: Object = {}
        for key, inner in value.items():
            decoder = decoders.get(key)
            if decoder is None:
                unknown.append(_join(path, key))
                continue
            made = decoder(inner, _join(path, key), unknown)
            if made is not _DROP:
                out[key] = made
        for key, default in absent.items():
            if key not in out:
                out[key] = _copied(default) if isinstance(default, dict) else default
        return out

    return message


# ---- one message alone, for objects that are no kind of the table

OBJECT_META = "k8s.io.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def decode_message(name: str, value: Any, path: str, unknown: list[str]) -> Any:
    """Returns a value as the message has it; the paths of unknown fields go into `unknown`. Raises BadType."""
    return _message(name)(value, path, unknown)

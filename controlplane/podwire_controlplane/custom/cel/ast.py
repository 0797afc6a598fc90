"""Reads the syntax tree that a compiled CEL expression serializes to (cel.expr.CheckedExpr). Pure."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_EXPR, _CONST, _IDENT, _SELECT, _CALL, _LIST, _STRUCT, _LOOP = 4, 3, 4, 5, 6, 7, 8, 9
Wire = dict[int, list[Any]]


@dataclass(frozen=True, slots=True)
class Expr:
    """kind: const, ident, select, call, list, map or loop. name: the identifier, the field or the function.

    parts: the operand of a select, the target and the arguments of a call, the elements of a list, the keys and values
    of a map; of a loop (a macro such as all) the range, the initial value, the condition, the step and the result.
    value: of a const; of a select whether it is the macro has; of a loop the names of its variables.
    """

    kind: str
    name: str = ""
    parts: tuple[Expr, ...] = ()
    value: Any = None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _read(raw: bytes) -> Wire:
    """Return field number -> values of a message: ints, and bytes for what has a length."""
    found: Wire = defaultdict(list)
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        if tag & 7 == 0:
            value: Any
            value, at = _varint(raw, at)
        elif tag & 7 == 2:
            size, at = _varint(raw, at)
            value, at = raw[at : at + size], at + size
        else:
            size = 8 if tag & 7 == 1 else 4
            value, at = raw[at : at + size], at + size
        found[tag >> 3].append(value)
    return found


def _text(wire: Wire, number: int) -> str:
    return wire[number][0].decode() if wire.get(number) else ""


def _constant(raw: bytes) -> Any:
    wire = _read(raw)
    if 2 in wire:
        return bool(wire[2][0])
    if 3 in wire or 4 in wire:
        value = (wire.get(3) or wire[4])[0]
        return value - (1 << 64) if 3 in wire and value >= 1 << 63 else value
    if 5 in wire:
        return struct.unpack("<d", wire[5][0])[0]
    return _text(wire, 6) if 6 in wire else wire[7][0] if 7 in wire else None


def _expr(raw: bytes) -> Expr:
    wire = _read(raw)
    if _CONST in wire:
        return Expr("const", value=_constant(wire[_CONST][0]))
    if _IDENT in wire:
        return Expr("ident", _text(_read(wire[_IDENT][0]), 1))
    for number, reader in ((_SELECT, _select), (_CALL, _call), (_LIST, _list), (_STRUCT, _map), (_LOOP, _loop)):
        if number in wire:
            return reader(_read(wire[number][0]))
    return Expr("const")


def _select(wire: Wire) -> Expr:
    return Expr("select", _text(wire, 2), (_expr(wire[1][0]),), value=bool(wire.get(3)))


def _call(wire: Wire) -> Expr:
    return Expr("call", _text(wire, 2), tuple(map(_expr, (*wire.get(1, ()), *wire.get(3, ())))))


def _list(wire: Wire) -> Expr:
    return Expr("list", parts=tuple(map(_expr, wire.get(1, ()))))


def _map(wire: Wire) -> Expr:
    parts = []
    for raw in wire.get(2, ()):
        entry = _read(raw)
        parts += [_expr(entry[number][0]) for number in (3, 4) if entry.get(number)]
    return Expr("map", parts=tuple(parts))


def _loop(wire: Wire) -> Expr:
    parts = tuple(_expr(wire[number][0]) for number in (2, 4, 5, 6, 7) if wire.get(number))
    return Expr("loop", parts=parts, value=(_text(wire, 1), _text(wire, 3)))


def read(raw: bytes) -> Expr:
    """Return the tree of a serialized expression: a CheckedExpr in a google.protobuf.Any."""
    return _expr(_read(_read(raw)[2][0])[_EXPR][0])


def names(expr: Expr) -> Iterator[str]:
    """Yield every identifier that the expression reads."""
    if expr.kind == "ident":
        yield expr.name
    for part in expr.parts:
        yield from names(part)

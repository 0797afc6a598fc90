"""Reads the kernel's types (BTF): where a structure has a field, and the names of an enumeration. Pure.

Source: "BPF Type Format" in the kernel's documentation. The kernel shows its types in /sys/kernel/btf/vmlinux.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator

_HEAD = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
MAGIC = 0xEB9F
PTR, ARRAY, STRUCT, UNION, ENUM, ENUM64 = 2, 3, 4, 5, 6, 19
_QUALIFIERS = (8, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag
# bytes behind a type's head: (fixed, for each of its parts)
_MORE = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0)} | {
    19: (0, 12)
}


class NoTypes(ValueError):
    """The data are no BTF, or lack what was asked for. The message says what."""


class Types:
    """data: the whole blob. Raises NoTypes."""

    def __init__(self, data: bytes) -> None:
        try:
            magic, _, _, head, start, size, texts, length = _HEAD.unpack_from(data)
        except struct.error:
            raise NoTypes("not BTF: too short") from None
        if magic != MAGIC:
            raise NoTypes(f"not BTF: it begins with {magic:#x}, not {MAGIC:#x}")
        self._data, self._texts = data, data[head + texts : head + texts + length]
        self._at = array("I", [0])  # the place of each type by its number; number 0 is void
        at, end = head + start, head + start + size
        heads = struct.Struct("<4xI")
        while at < end:
            self._at.append(at)
            (info,) = heads.unpack_from(data, at)
            fixed, each = _MORE.get(info >> 24 & 0x1F, (0, 0))
            at += 12 + fixed + each * (info & 0xFFFF)

    def _head(self, number: int) -> tuple[str, int, int, bool, int]:
        """Returns (name, kind, number of parts, whether offsets hold sizes of bit fields, size or type)."""
        name, info, size = _TYPE.unpack_from(self._data, self._at[number])
        return self._text(name), info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), size

    def _text(self, offset: int) -> str:
        return self._texts[offset : self._texts.index(b"\0", offset)].decode()

    def _named(self, name: str, kinds: tuple[int, ...]) -> int:
        wanted = self._texts.find(b"\0" + name.encode() + b"\0") + 1
        while wanted:
            for number in range(1, len(self._at)):
                offset, info, _ = _TYPE.unpack_from(self._data, self._at[number])
                if offset == wanted and info >> 24 & 0x1F in kinds:
                    return number
            wanted = self._texts.find(b"\0" + name.encode() + b"\0", wanted) + 1
        raise NoTypes(f"this kernel's types have no {name}")

    def _members(self, number: int) -> Iterator[tuple[str, int, int]]:
        """Yields (name, type, offset in bytes)."""
        _, _, count, fields, _ = self._head(number)
        at = self._at[number] + 12
        for name, kind, offset in _MEMBER.iter_unpack(self._data[at : at + 12 * count]):
            yield self._text(name), kind, (offset & 0xFFFFFF if fields else offset) // 8

    def _bare(self, number: int) -> int:
        while self._head(number)[1] in _QUALIFIERS:
            number = self._head(number)[4]
        return number

    def _find(self, number: int, wanted: str) -> tuple[int, int] | None:
        """Returns (type, offset) of a member, also one of an unnamed part."""
        for name, kind, offset in self._members(number):
            if name == wanted:
                return kind, offset
            inner = self._bare(kind) if not name and kind else 0
            if inner and self._head(inner)[1] in (STRUCT, UNION) and (found := self._find(inner, wanted)):
                return found[0], offset + found[1]
        return None

    def offset(self, structure: str, path: str) -> int:
        """Returns the offset in bytes of a field, "a.b" for a field of a field. Raises NoTypes."""
        number, total = self._named(structure, (STRUCT,)), 0
        for part in path.split("."):
            found = self._find(self._bare(number), part)
            if found is None:
                raise NoTypes(f"this kernel's struct {structure} has no {path}")
            number, total = found[0], total + found[1]
        return total

    def names(self, enumeration: str, prefix: str = "") -> dict[int, str]:
        """Returns number -> name of an enumeration, without the prefix. Raises NoTypes."""
        number = self._named(enumeration, (ENUM, ENUM64))
        _, kind, count, _, _ = self._head(number)
        form = struct.Struct("<II" if kind == ENUM else "<IQ")
        at = self._at[number] + 12
        rows = form.iter_unpack(self._data[at : at + form.size * count])
        return {value: self._text(name).removeprefix(prefix) for name, value in rows}

"""Stores a zone's answers and names in table.c, where the threads of batch.c read them without the interpreter.

The classes implement the parts of dict and set that a server needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ROOM = 1024  # bytes; larger values need a second lookup


class AnswerTable:
    """A table of table.c. One thread writes the table; any thread reads it.

    native: the result of native.load(). Python frees the table with the last reference.
    """

    def __init__(self, native: Any) -> None:
        self.lib, self._ffi = native.lib, native.ffi
        made = self.lib.table_new()
        if made == self._ffi.NULL:
            raise MemoryError("no memory for the zone")
        self.raw = self._ffi.gc(made, self.lib.table_free)

    def put(self, kind: int, keys: list[bytes], values: list[bytes]) -> int:
        """Stores values and returns the number of new keys. kind: ANSWERS or NAMES of table.h."""
        fresh: int = self.lib.table_put(
            self.raw,
            kind,
            len(keys),
            b"".join(keys),
            [len(key) for key in keys],
            b"".join(values),
            [len(value) for value in values],
        )
        if fresh < 0:
            raise MemoryError("no memory for the zone")
        return fresh

    def drop(self, kind: int, key: bytes) -> bool:
        """Removes a key and returns whether the key existed."""
        return bool(self.lib.table_drop(self.raw, kind, key, len(key)))

    def has(self, kind: int, key: bytes) -> bool:
        return bool(self.lib.table_get(self.raw, kind, key, len(key), self._ffi.NULL, -1) >= 0)

    def get(self, kind: int, key: bytes) -> bytes | None:
        room = ROOM
        while True:
            out = self._ffi.new("char[]", room)
            size = self.lib.table_get(self.raw, kind, key, len(key), out, room)
            if size < 0:
                return None
            if size <= room:
                found: bytes = self._ffi.unpack(out, size)
                return found
            room = size

    def negative(self, value: bytes) -> None:
        """Stores NODATA and NXDOMAIN for the zone's apex. table.c derives the negative answers for other names."""
        self.lib.table_negative(self.raw, value, len(value))


class TableAnswers:
    """Question key -> value."""

    def __init__(self, table: AnswerTable) -> None:
        self._table, self._kind, self._count = table, table.lib.ANSWERS, 0

    def get(self, key: bytes, /) -> bytes | None:
        return self._table.get(self._kind, key)

    def __contains__(self, key: object, /) -> bool:
        return isinstance(key, bytes) and self._table.has(self._kind, key)

    def __len__(self) -> int:
        return self._count

    def update(self, found: Mapping[bytes, bytes], /) -> None:
        self._count += self._table.put(self._kind, list(found), list(found.values()))

    def pop(self, key: bytes, default: None, /) -> bytes | None:
        value = self.get(key)
        self._count -= self._table.drop(self._kind, key)
        return value


class TablePlaces:
    """Address of an endpoint -> Services, as in places.py."""

    def __init__(self, table: AnswerTable) -> None:
        self._table, self._kind = table, table.lib.PLACES

    def get(self, address: bytes, /) -> bytes | None:
        return self._table.get(self._kind, address)

    def update(self, found: Mapping[bytes, bytes], /) -> None:
        self._table.put(self._kind, list(found), list(found.values()))

    def pop(self, address: bytes, default: None, /) -> None:
        self._table.drop(self._kind, address)


class TableNames:
    """The names that exist without an answer."""

    def __init__(self, table: AnswerTable) -> None:
        self._table, self._kind = table, table.lib.NAMES

    def __contains__(self, name: object, /) -> bool:
        return isinstance(name, bytes) and self._table.has(self._kind, name)

    def update(self, found: Iterable[bytes], /) -> None:
        keys = list(found)
        self._table.put(self._kind, keys, [b""] * len(keys))

    def difference_update(self, lost: Iterable[bytes], /) -> None:
        for name in lost:
            self._table.drop(self._kind, name)

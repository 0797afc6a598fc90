"""Reads a ring buffer of the kernel (BPF_MAP_TYPE_RINGBUF). I/O.

The kernel's documentation, "BPF ring buffer": a page with the reader's position, a page with the writer's, then the
data twice in a row, so that no record is split. A record has a head of 8 bytes: its length, with the bits BUSY and
DISCARD.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

BUSY, DISCARD = 1 << 31, 1 << 30
_POSITION, _HEAD = struct.Struct("<Q"), struct.Struct("<I4x")


class Ring:
    """fd: the map's descriptor, which stays the caller's. size: its max_entries. It becomes readable in an event loop
    when a record is there. Raises OSError.
    """

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size, page = fd, size, mmap.PAGESIZE
        self._reader = mmap.mmap(fd, page)
        try:
            self._data = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        except BaseException:
            self._reader.close()
            raise
        self._start = page

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._reader.close()
        self._data.close()

    def records(self, most: int) -> Iterator[bytes]:
        """Yields the records that are there, at most `most`. Each is free for the writer when the next is asked for."""
        for _ in range(most):
            (at,), (end,) = _POSITION.unpack_from(self._reader), _POSITION.unpack_from(self._data)
            if at >= end:
                return
            place = self._start + at % self._size
            (head,) = _HEAD.unpack_from(self._data, place)
            if head & BUSY:
                return
            length = head & ~(BUSY | DISCARD)
            if not head & DISCARD:
                yield self._data[place + 8 : place + 8 + length]
            _POSITION.pack_into(self._reader, 0, at + (length + 8 + 7) // 8 * 8)

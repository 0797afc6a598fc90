"""Hears of files that other processes replace: inotify(7). I/O."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

_MOVED_TO, _CLOSE_WRITE, _OVERFLOW = 0x80, 0x8, 0x4000  # linux/inotify.h
_EVENT = struct.Struct("=iIII")  # struct inotify_event: wd, mask, cookie, len
_ROOM = 65536  # bytes of a read; an event has at most 272
_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Watches files of one directory, which may come later. Raises OSError, e.g. if the directory does not exist.

    When `fileno` becomes readable, call `changed`.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self._names = frozenset(map(os.fsencode, names))
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), f"inotify: {os.strerror(ctypes.get_errno())}")
        if _libc.inotify_add_watch(self._fd, os.fsencode(folder), _MOVED_TO | _CLOSE_WRITE) < 0:
            code = ctypes.get_errno()
            os.close(self._fd)
            raise OSError(code, os.strerror(code), str(folder))

    def fileno(self) -> int:
        return int(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def changed(self) -> bool:
        """Whether one of the files was written or replaced since the last call."""
        found = False
        while True:
            try:
                events = os.read(self._fd, _ROOM)
            except BlockingIOError:
                return found
            found |= any(mask & _OVERFLOW or name in self._names for mask, name in _parsed(events))


def _parsed(events: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(events):
        _, mask, _, size = _EVENT.unpack_from(events, at)
        yield mask, events[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0")
        at += _EVENT.size + size

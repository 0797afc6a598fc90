"""Bounds the log file of a process: at LIMIT bytes the file becomes FILE.1, and a new file takes its place.

The process that writes the log replaces its own descriptors, so no line is lost. Processes that share a file (a
supervisor and a role without a file of its own) follow each other: only the first one renames. What a child writes
without the logger, or a process that only inherited the descriptor, goes to FILE.1 from then on; `cut` is the
supervisor's last resort for such a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

LIMIT = 10 * 1024 * 1024  # bytes, as kubelet's containerLogMaxSize
VARIABLE = "PODWIRE_LOG_BYTES"  # another limit, for all processes below
LOOK = 64 * 1024  # bytes of own lines between two looks at the file
STREAMS = (1, 2)


def limit() -> int:
    text = os.environ.get(VARIABLE, "")
    return max(4096, int(text)) if text.isascii() and text.isdecimal() and len(text) < 16 else LIMIT


def old(path: Path) -> Path:
    return path.with_name(path.name + ".1")


class LogFile:
    """The file behind stdout and stderr of this process. `wrote` is called with the size of each line."""

    def __init__(self, path: Path) -> None:
        """Make `path` the file of both streams; missing directories are created. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.limit = path, limit()
        self._written, self._look = 0, min(LOOK, self.limit // 8)
        self._open(STREAMS)
        self.look()

    def wrote(self, size: int) -> None:
        self._written += size
        if self._written >= self._look:
            self._written = 0
            self.look()

    def look(self) -> None:
        """Replace the file if it is too large, or if another process has replaced it. An error leaves all as it is."""
        with contextlib.suppress(OSError):
            have = os.fstat(2)
            if not self._is(have):
                self._open(STREAMS)
            elif have.st_size >= self.limit:
                fcntl.lockf(2, fcntl.LOCK_EX)  # released when the descriptor is replaced
                if self._is(have):
                    self.path.rename(old(self.path))
                self._open(STREAMS)

    def _is(self, have: os.stat_result) -> bool:
        try:
            named = self.path.stat()
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (have.st_dev, have.st_ino)

    def _open(self, streams: tuple[int, ...]) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        for stream in streams:
            os.dup2(fd, stream)
        os.close(fd)


def cut(path: Path) -> bool:
    """Cut a file that its own process does not replace: twice as large as allowed. Lines that are written at this
    moment may get lost. Returns whether the file was cut.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size >= 2 * limit():
            shutil.copyfile(path, old(path))
            os.truncate(path, 0)  # its writers append, so they go on at the new end
            return True
    return False

"""Writes files atomically: first under a temporary name in the same directory, then renamed.

A reader sees either the old file or the new file. The file of a running program is replaced and not overwritten. Only
with `sync` does the content survive a power failure.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


def write(
    path: Path,
    content: str | bytes,
    *,
    mode: int | None = None,
    sync: bool = False,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write `content` to `path` and create missing directories. mode: the exact permissions, independent of the umask
    (default: 0644 less the umask). owner: (uid, gid). Raises OSError; then `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    put(str(path.with_name(f".{path.name}.{os.getpid()}")), str(path), data, mode, sync, owner)


def put(
    fresh: str,
    final: str,
    data: bytes,
    mode: int | None = None,
    sync: bool = False,
    owner: tuple[int, int] | None = None,
) -> None:
    """Write `data` to `final`, with `fresh` as the temporary name. It uses plain system calls and string paths, because
    a pod waits for its lease.
    """
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_TRUNC, 0o644 if mode is None else 0o600)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if owner is not None:
                os.fchown(fd, *owner)  # before the mode, because it clears the set-user-ID bit
            if mode is not None:
                os.fchmod(fd, mode)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(fresh, final)  # noqa: PTH104 - see above
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(fresh)  # noqa: PTH108 - see above
        raise

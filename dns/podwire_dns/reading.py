"""Reads the files that the settings name. A server without privileges reads them through its helper (rights.py)."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from . import forward, host

Stamp = tuple[int, int, int] | None  # mtime, size, inode


_made: dict[forward.Tls, ssl.SSLContext] = {}  # for a fork of the server, which has no helper


def stamp(path: str) -> Stamp:
    """Returns what changes with the file's content; None if the file cannot be seen."""
    helper = host.helper()
    try:
        if helper is not None:
            found_there: list[int] | None = helper.call("stamp", path)
            return None if found_there is None else (found_there[0], found_there[1], found_there[2])
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def text(path: str) -> str:
    """Raises OSError."""
    helper = host.helper()
    if helper is None:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    with helper.call("open", path) as file:
        return str(file.read().decode("utf-8", errors="replace"))


def fitting(pattern: str) -> list[str]:
    """Returns the files that match a pattern, in order. A mounted ConfigMap also has directories, which are skipped."""
    helper = host.helper()
    if helper is not None:
        return [str(path) for path in helper.call("fitting", pattern)]
    path = Path(pattern)
    return sorted(str(each) for each in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if not each.is_dir())


def tls_context(tls: forward.Tls) -> ssl.SSLContext:
    """Returns a context that always verifies certificates. Raises OSError (also ssl.SSLError) for unusable files."""
    helper = host.helper()
    if helper is not None and helper.foreign and tls in _made:
        return _made[tls]
    with contextlib.ExitStack() as stack:
        ca, cert, key = (stack.enter_context(_path(path)) if path else "" for path in (tls.ca, tls.cert, tls.key))
        context = ssl.create_default_context(cafile=ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if cert:
            context.load_cert_chain(cert, key)
    if helper is not None:
        _made[tls] = context
    return context


@contextlib.contextmanager
def _path(path: str) -> Iterator[str]:
    """Yields a path with the file's content: ssl takes paths only, so what the helper reads gets one in memory."""
    if host.helper() is None:
        yield path
        return
    fd = os.memfd_create("podwire-tls")
    try:
        os.write(fd, text(path).encode())
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)

"""Listens on a unix socket that only root and the own user may use, from its first moment on. I/O.

A mode that is set after bind() leaves a moment in which everybody may connect. The umask would close it, but it is the
whole process's, and other threads make files meanwhile. Linux gives the new file the mode of the unbound socket.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

MODE = 0o600
KUBELET = "kubelet.sock"  # in a node's run directory: where its node agent answers the API server


def listen(path: Path, backlog: int = 100) -> socket.socket:
    """Return a stream socket that listens at `path`, mode 0600. A socket that another process left there is replaced at
    once: who connects meets the old one or the new one. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), MODE)
        sock.bind(str(fresh))
        sock.listen(backlog)
        fresh.rename(path)
    except OSError:
        sock.close()
        fresh.unlink(missing_ok=True)
        raise
    return sock

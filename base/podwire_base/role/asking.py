"""Asks the policy role to judge a pod (judging.py). I/O."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from .judging import SOCKET, WAIT, Asked


class Asker:
    """Asks the role of one node. Thread-safe."""

    def __init__(self, run_dir: Path, wait: float = WAIT) -> None:
        self._path, self._wait = str(run_dir / SOCKET), wait

    def there(self) -> bool:
        """Whether the role ever ran on this node. Nobody judges pods where it did not."""
        return os.path.exists(self._path)  # noqa: PTH110  # a third of the bytecodes of Path.exists, in each ADD

    def ask(self, asked: Asked) -> str:
        """Returns "" if the pod is judged, else why it is not."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(self._wait)
            try:
                sock.connect(self._path)
                sock.sendall(asked.line())
                return "" if sock.recv(16) == b"ok\n" else "the policy role did not judge it"
            except OSError as err:
                return f"the policy role does not answer: {err}"

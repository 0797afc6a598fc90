"""The status of a node role, in a small JSON file in the node's run directory.

The role writes the file when its status changes. The node agent reads the file at each heartbeat and publishes the
status as a condition of the Node, which `podwire status` shows. The status is in a file, so that the last status of a
hanging or dead role can still be read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import beat, files
from .run import notify


class RoleStatus:
    """`RoleStatus(run_dir, "proxy").update(ready=True, message="12 Services", services=12)`"""

    def __init__(self, run_dir: Path, role: str, write: Callable[[Path, str], object] = files.write) -> None:
        """write: writes the file, for a role that has no right to do it."""
        self.path = run_dir / "status" / f"{role}.json"
        self.role = role
        self._last: dict[str, Any] = {}
        self._told_manager = False
        self._write = write
        beat.ensure(beat.path_of(run_dir, role))

    def update(self, *, ready: bool, message: str, reason: str = "", **figures: Any) -> None:
        """Write the status atomically. An unchanged status is not written again. The first ready status is also
        reported to systemd.

        reason: a CamelCase word as in Kubernetes conditions (default: Ready / NotReady).
        """
        beat.tell(ready, message)
        body = {
            "role": self.role,
            "pid": os.getpid(),
            "ready": ready,
            "message": message,
            "figures": figures,
            "reason": reason or ("Ready" if ready else "NotReady"),
        }
        if body == self._last:
            return
        self._last = body
        self._write(self.path, json.dumps({**body, "since": time.time()}))
        if ready and not self._told_manager:
            self._told_manager = True
            notify("READY=1")


def read_all(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Returns role name -> last status of the role. Incomplete files are skipped."""
    found = {}
    for path in sorted((run_dir / "status").glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    return found

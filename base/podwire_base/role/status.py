"""Where a node role stands, as a small JSON file in the node's run directory.

The role writes it when something changes, the node agent reads it at each heartbeat and publishes it as a condition of
the Node, and `podwire status` shows that. A file, so that a role which hangs or died still leaves its last word.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from . import files
from .run import notify


class RoleStatus:
    """`RoleStatus(run_dir, "proxy").update(ready=True, message="12 Services", services=12)`"""

    def __init__(self, run_dir: Path, role: str) -> None:
        self.path = run_dir / "status" / f"{role}.json"
        self.role = role
        self._last: dict[str, Any] = {}
        self._told_manager = False

    def update(self, *, ready: bool, message: str, reason: str = "", **figures: Any) -> None:
        """Write the status; a reader sees whole files only, and unchanged status is not rewritten. The first that is
        ready is also told to systemd.

        reason: a CamelCase word as Kubernetes conditions have (default: Ready / NotReady).
        """
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
        files.write(self.path, json.dumps({**body, "since": time.time()}))
        if ready and not self._told_manager:
            self._told_manager = True
            notify("READY=1")


def read_all(run_dir: Path) -> dict[str, dict[str, Any]]:
    """role name -> its last status; files that are not whole are left out."""
    found = {}
    for path in sorted((run_dir / "status").glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    return found

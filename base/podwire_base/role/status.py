"""The status of a node role, in a small JSON file in the node's run directory.

The role writes the file when its status changes. The node agent reads the file at each heartbeat and publishes the
status as a condition of the Node, which `podwire status` shows. The status is in a file, so that the last status of a
hanging or dead role can still be read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from . import beat, files
from .run import notify
from .standing import Standing, standing


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


def repairs(run_dir: Path) -> dict[str, int]:
    """Returns role -> how often it mended what another program had changed in the kernel (upkeep.py), for roles that
    have written a status. A role that starts again counts from 0.
    """
    found = {}
    for role, row in read_all(run_dir).items():
        figures = row.get("figures") if isinstance(row, dict) else None
        if isinstance(figures, dict) and str(figures.get("repairs") or 0).isdecimal():
            found[role] = int(figures.get("repairs") or 0)
    return found


def running(pid: int) -> bool:
    """Whether a process runs: it exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def standings(
    run_dir: Path, roles: Iterable[str], restarts: Mapping[str, int] | None = None, *, here: bool = True
) -> dict[str, Standing]:
    """Returns role -> where it stands on this node, for `roles` and for every other role of the run directory.

    restarts: role -> how often its supervisor started it again. here: the roles are in this PID namespace; else only
    their beats tell whether they run.
    """
    rows, now, found = read_all(run_dir), time.monotonic(), {}
    for role in dict.fromkeys((*roles, *rows)):
        row, seen = rows.get(role), beat.read(beat.path_of(run_dir, role))
        pid = int(row.get("pid") or 0) if row is not None else seen.pid if seen is not None else 0
        found[role] = standing(row, seen, now, alive=not here or running(pid), restarts=(restarts or {}).get(role, 0))
    return found

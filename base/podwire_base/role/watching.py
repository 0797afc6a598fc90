"""What a supervisor reads of its roles, for the watchdog (watchdog.py decides)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from . import beat
from .watchdog import SECONDS

VARIABLE = "PODWIRE_WATCHDOG_SECONDS"  # another limit, for all supervisors below; 0: no role is killed
LOOK = 2.0  # seconds between two looks


def seconds() -> float:
    """Returns the time without progress after which a role is killed; 0: never."""
    text = os.environ.get(VARIABLE, "")
    try:
        return max(0.0, float(text)) if text else SECONDS
    except ValueError:
        return SECONDS


def traced(pid: int) -> bool:
    """Whether a debugger or strace is attached to any thread of the process."""
    with contextlib.suppress(OSError):
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            if "\nTracerPid:\t0\n" not in status.read_text():
                return True
    return False


def reading(path: Path, pid: int) -> beat.Reading | None:
    """Returns the beat of the process; None if there is none, or only that of an earlier process."""
    found = beat.read(path)
    return found if found is not None and found.pid == pid else None


def end_stopped(left: Mapping[str, int]) -> list[str]:
    """Kill the roles of an earlier supervisor that are stopped, and so did not get its SIGTERM: they hold locks and
    addresses that their successors need. left: role -> process id, as the earlier supervisor wrote it. Returns the
    roles that were killed.
    """
    found = []
    for role, pid in left.items():
        with contextlib.suppress(OSError, IndexError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            ours = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"podwire\0")
            if state == "T" and ours:
                os.kill(pid, signal.SIGKILL)
                found.append(role)
    return found

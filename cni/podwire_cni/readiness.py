"""The file by which the plugin binary knows that an agent was ready a moment ago (native/client.c, `stands`).

A container runtime asks STATUS every few seconds and marks its Node NotReady at the first refusal. An agent that is
replaced is away for a second or ten, and pods and their network go on meanwhile. So the plugin itself answers for at
most a minute, if the node still has what an ADD needs. An agent that ends again and again before it is ready does not
renew the file.
"""

from __future__ import annotations

import time
from pathlib import Path

from podwire_base.role import files

from .types import BRIDGE

EACH = 2.0  # seconds between two writes


def path(run_dir: Path) -> Path:
    return run_dir / "cni" / "ready"


def line(at: float, conflist: Path, bridge: str = BRIDGE) -> str:
    """at: seconds of CLOCK_BOOTTIME."""
    return f"podwire-ready/1 at={at:.2f} bridge={bridge} conflist={conflist}\n"


def tell(run_dir: Path, conflist: Path) -> None:
    """Raises OSError."""
    files.write(path(run_dir), line(time.clock_gettime(time.CLOCK_BOOTTIME), conflist))

"""The native programs: `podwire-cni` is the plugin binary, and `podwire-pause` keeps a pod's namespaces open.

The build compiles client.c and pause.c to `bin/`. If there is no compiler, podwire uses equivalent Python programs.
Each call of the plugin then takes 20 ms longer, and a pause process takes 10 MB instead of 0.1 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from podwire_base import native

FOLDER = Path(__file__).parent


def _compiled(program: str) -> Path | None:
    return native.program(FOLDER, program)


def is_compiled(*programs: str) -> bool:
    """Whether all of these programs are compiled."""
    return all(_compiled(program) for program in programs or ("podwire-cni", "podwire-pause"))


def client_path() -> Path:
    """Returns the path of the CNI plugin. The file is named `podwire-cni`, like the plugin type in the conflist."""
    return _compiled("podwire-cni") or FOLDER / "standin" / "podwire-cni"


def cni_bin_dir() -> Path:
    """Returns a directory for a runtime's CNI_PATH. It contains `podwire-cni`."""
    return client_path().parent


def pause_command() -> list[str]:
    """Returns the argv of the process that keeps a pod's namespaces open. The process blocks, reaps orphans, and exits
    with status 0 at SIGTERM or SIGINT.
    """
    compiled = _compiled("podwire-pause")
    return [str(compiled)] if compiled else [sys.executable, "-IS", str(FOLDER / "pause.py")]

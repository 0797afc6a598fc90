"""The native programs: `podwire-cni`, the plugin binary, and `podwire-pause`, which holds a pod's namespaces.

The build compiles client.c and pause.c to `bin/`. Without a compiler, equivalent Python programs are used: each call of
the plugin then takes 20 ms longer, and a pause process takes 10 MB instead of 0.1 MB.
"""

from __future__ import annotations

import sys
from pathlib import Path

from podwire_base import native

FOLDER = Path(__file__).parent


def _compiled(program: str) -> Path | None:
    return native.program(FOLDER, program)


def is_compiled(*programs: str) -> bool:
    """Whether all programs named are compiled."""
    return all(_compiled(program) for program in programs or ("podwire-cni", "podwire-pause"))


def client_path() -> Path:
    """The CNI plugin binary, named `podwire-cni` as the plugin type in the conflist."""
    return _compiled("podwire-cni") or FOLDER / "standin" / "podwire-cni"


def cni_bin_dir() -> Path:
    """A directory for a runtime's CNI_PATH: it holds `podwire-cni`."""
    return client_path().parent


def pause_command() -> list[str]:
    """argv of the process that holds a pod's namespaces: blocks, reaps orphans, exits 0 at SIGTERM or SIGINT."""
    compiled = _compiled("podwire-pause")
    return [str(compiled)] if compiled else [sys.executable, "-IS", str(FOLDER / "pause.py")]

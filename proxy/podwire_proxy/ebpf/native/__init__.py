"""Finds the compiled eBPF programs. tools/nativebuild/ compiles them; without clang there are none."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def code(name: str) -> bytes | None:
    """Returns the object `name`, as clang wrote it; None if the build left it out (podwire_base.native.reason)."""
    try:
        return (FOLDER / "bin" / f"{name}.bpf.o").read_bytes()
    except FileNotFoundError:
        return None

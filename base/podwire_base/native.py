"""Compiled modules: loaded where they were built from the sources beside them.

Where one is missing or stale, Python does its work, slower; `problem` is what a user reads about it.

The build (tools/nativebuild/) writes `bin/NAME.abi3.so` or a program into a package's `native` folder, or, where it
cannot, `bin/NAME.missing` with the reason.
"""

from __future__ import annotations

import binascii
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

AGAIN = "install podwire again (make install)"


class Library(NamedTuple):
    """module: the cffi module (`.ffi`, `.lib`), or None. problem: why there is none, "" where there is one. left_out:
    the build said so, and why; else the installation is broken."""

    module: Any | None
    problem: str
    left_out: bool = False


def digest(folder: Path, sources: Iterable[str]) -> int:
    """What tells one version of the sources from another. Raises OSError."""
    value = 0
    for source in sources:
        with open(folder / source, "rb") as file:
            value = binascii.crc32(file.read(), value)
    return value


def reason(folder: Path, name: str) -> str:
    """Why the build left out `name` of the package's `native` folder; "" where the build says nothing about it."""
    try:
        return (folder / "bin" / f"{name}.missing").read_text().strip()
    except OSError:
        return ""


def load(package: str, folder: Path, name: str, sources: Iterable[str]) -> Library:
    """The module `name` of a package's `native` folder. A file that was compiled from other sources is refused: it
    could take arguments for something else."""
    try:
        module = importlib.import_module(f"{package}.bin.{name}")
    except ModuleNotFoundError:
        why = reason(folder, name)
        return Library(None, why or f"{name} was not built; {AGAIN}", bool(why))
    except Exception as err:  # of another architecture, another cffi, or cut short: Python does its work
        return Library(None, f"{name} cannot be loaded: {err}; {AGAIN}")
    try:
        compiled, here = module.lib.SOURCES_DIGEST, digest(folder, sources)
    except (OSError, AttributeError) as err:
        return Library(None, f"{name} cannot be compared with its sources: {err}; {AGAIN}")
    if compiled != here:
        return Library(None, f"{name} is stale: it was compiled from other sources than those beside it; {AGAIN}")
    return Library(module, "")


def program(folder: Path, name: str) -> Path | None:
    """A compiled program of a package's `native` folder; None: it was not built, see `reason`."""
    path = folder / "bin" / name
    return path if os.access(path, os.X_OK) else None

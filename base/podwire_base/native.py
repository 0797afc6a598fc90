"""Loads compiled modules that were built from the sources beside them.

If a module is missing or stale, Python code does the same work more slowly, and `problem` is the explanation for the
user.

The build (tools/nativebuild/) writes `bin/NAME.abi3.so` or a program into a package's `native` folder. If it cannot, it
writes `bin/NAME.missing` with the reason.
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
    """The result of `load`. module: the cffi module (`.ffi`, `.lib`), or None. problem: why `module` is None; "" if the
    module is loaded. left_out: whether the build recorded why it left the module out. If `module` is None and
    `left_out` is False, the installation is broken.
    """

    module: Any | None
    problem: str
    left_out: bool = False


def digest(folder: Path, sources: Iterable[str]) -> int:
    """Returns a digest that identifies a version of the sources. Raises OSError."""
    value = 0
    for source in sources:
        with open(folder / source, "rb") as file:
            value = binascii.crc32(file.read(), value)
    return value


def reason(folder: Path, name: str) -> str:
    """Returns why the build left out `name` from the package's `native` folder; "" if the build recorded no reason."""
    try:
        return (folder / "bin" / f"{name}.missing").read_text().strip()
    except OSError:
        return ""


def load(package: str, folder: Path, name: str, sources: Iterable[str]) -> Library:
    """Load the module `name` from a package's `native` folder. A module that was compiled from other sources is not
    loaded, because its functions could have other arguments.
    """
    try:
        module = importlib.import_module(f"{package}.bin.{name}")
    except ModuleNotFoundError:
        why = reason(folder, name)
        return Library(None, why or f"{name} was not built; {AGAIN}", bool(why))
    except Exception as err:  # the file may be for another architecture or cffi, or truncated: use Python
        return Library(None, f"{name} cannot be loaded: {err}; {AGAIN}")
    try:
        compiled, here = module.lib.SOURCES_DIGEST, digest(folder, sources)
    except (OSError, AttributeError) as err:
        return Library(None, f"{name} cannot be compared with its sources: {err}; {AGAIN}")
    if compiled != here:
        return Library(None, f"{name} is stale: it was compiled from other sources than those beside it; {AGAIN}")
    return Library(module, "")


def program(folder: Path, name: str) -> Path | None:
    """Returns the path of a compiled program in a package's `native` folder; None if the build left it out (see
    `reason`).
    """
    path = folder / "bin" / name
    return path if os.access(path, os.X_OK) else None

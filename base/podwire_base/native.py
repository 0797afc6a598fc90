"""Loads compiled modules that were built from the sources beside them.

If a module is missing or stale, Python does its work, slower; `problem` is the explanation for the user.

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
    """module: the cffi module (`.ffi`, `.lib`), or None. problem: why it is None, "" if it is not. left_out: the build
    recorded that it left the module out, and why; otherwise the installation is broken.
    """

    module: Any | None
    problem: str
    left_out: bool = False


def digest(folder: Path, sources: Iterable[str]) -> int:
    """A digest that identifies a version of the sources. Raises OSError."""
    value = 0
    for source in sources:
        with open(folder / source, "rb") as file:
            value = binascii.crc32(file.read(), value)
    return value


def reason(folder: Path, name: str) -> str:
    """Why the build left out `name` of the package's `native` folder; "" if the build recorded nothing."""
    try:
        return (folder / "bin" / f"{name}.missing").read_text().strip()
    except OSError:
        return ""


def load(package: str, folder: Path, name: str, sources: Iterable[str]) -> Library:
    """The module `name` of a package's `native` folder. A file compiled from other sources is refused, because its
    functions could take other arguments.
    """
    try:
        module = importlib.import_module(f"{package}.bin.{name}")
    except ModuleNotFoundError:
        why = reason(folder, name)
        return Library(None, why or f"{name} was not built; {AGAIN}", bool(why))
    except Exception as err:  # of another architecture, another cffi, or truncated: Python does its work
        return Library(None, f"{name} cannot be loaded: {err}; {AGAIN}")
    try:
        compiled, here = module.lib.SOURCES_DIGEST, digest(folder, sources)
    except (OSError, AttributeError) as err:
        return Library(None, f"{name} cannot be compared with its sources: {err}; {AGAIN}")
    if compiled != here:
        return Library(None, f"{name} is stale: it was compiled from other sources than those beside it; {AGAIN}")
    return Library(module, "")


def program(folder: Path, name: str) -> Path | None:
    """A compiled program of a package's `native` folder; None if it was not built, see `reason`."""
    path = folder / "bin" / name
    return path if os.access(path, os.X_OK) else None

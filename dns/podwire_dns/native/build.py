"""Compiles table.c, batch.c and asker.c as one cffi module in API mode (limited API: one file for all Python versions).
Called by hatch_build.py."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

HERE = Path(__file__).parent
MODULE = HERE / "bin" / "_batch.abi3.so"


def missing() -> str:
    """What this machine lacks to build the module, "" where it has all."""
    if compiler() is None:
        return "no C compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no Python.h (Debian: python3-dev)"
    return "" if importlib.util.find_spec("cffi") else "no cffi"


def compiler() -> str | None:
    """Not musl-gcc: the module runs inside the interpreter, with the interpreter's libc."""
    return next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)


def build() -> str:
    """Write MODULE. "", or why it cannot be built: it is then left out, and Python receives packet by packet."""
    why = missing()
    if why:
        return why
    from cffi import FFI

    ffi = FFI()
    parts = ("table", "batch", "asker")
    ffi.cdef("".join((HERE / f"{part}.h").read_text() for part in parts))
    ffi.set_source(
        "podwire_dns.native.bin._batch",
        "".join((HERE / f"{part}.c").read_text() for part in parts),
        py_limited_api=True,
    )
    MODULE.parent.mkdir(exist_ok=True)
    source = MODULE.parent / "_batch.c"
    ffi.emit_c_code(str(source))
    done = subprocess.run(
        [
            str(compiler()),
            "-O2",
            "-pthread",
            "-shared",
            "-fPIC",
            "-s",
            "-Wall",
            "-DPy_LIMITED_API=0x030b0000",
            f"-I{sysconfig.get_path('include')}",
            "-o",
            str(MODULE),
            str(source),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    source.unlink()
    return done.stderr if done.returncode else ""


if __name__ == "__main__":
    print(build() or f"built {MODULE}")

"""Builds every unit that this machine can build. For every other unit, a text file in place of the result has the
reason.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from podwire_base.native import digest

from . import toolchain
from .units import (
    EVERYTHING,
    LOADED,
    NOT_FOR_PYTHON,
    STATIC,
    Module,
    Object,
    Unit,
    module_command,
    object_command,
    preprocess_command,
    program_command,
)


def build(root: Path) -> tuple[list[Unit], list[str]]:
    """Build all units and return (built units, warnings). If a unit fails, the result of an earlier build is
    removed.
    """
    built, warnings = list[Unit](), list[str]()
    static, no_static = toolchain.find(musl=True, flags=("-static",))
    plain, no_plain = toolchain.find(musl=False, flags=())
    no_modules = toolchain.module_problem() or no_plain
    no_objects = toolchain.object_problem()
    for unit in EVERYTHING:
        out, missing = root / unit.output, root / unit.missing
        out.parent.mkdir(exist_ok=True)
        if isinstance(unit, Object):
            why = no_objects or build_object(root, unit, toolchain.CLANG, out)
        elif isinstance(unit, Module):
            why = no_modules or build_module(root, unit, str(plain), out)
        else:
            why = no_static or build_program(root, unit, str(static), out)
        if why:
            out.unlink(missing_ok=True)
            missing.write_text(why.strip() + "\n")
            warnings.append(f"{unit.name} is not built ({why.strip()}); in its place: {unit.stands_in}")
        else:
            missing.unlink(missing_ok=True)
            built.append(unit)
    return built, warnings


def build_program(root: Path, unit: Unit, compiler: str, out: Path, flags: Sequence[str] = STATIC) -> str:
    """Compile the unit to `out` and return "", or the reason why the compilation fails."""
    sources = [str(root / unit.folder / source) for source in unit.sources]
    return _write(out, lambda fresh: program_command(compiler, sources, fresh, [*flags, *nameless(root)]))


def build_module(root: Path, unit: Module, compiler: str, out: Path, flags: Sequence[str] = LOADED) -> str:
    """Compile the unit to `out` and return "", or the reason why the compilation fails."""
    folder = root / unit.folder
    with tempfile.TemporaryDirectory(prefix="podwire-module-") as work:
        glue = Path(work) / f"{unit.module}.c"
        try:
            write_glue(folder, unit, compiler, glue)
        except subprocess.CalledProcessError as err:
            return f"{compiler}: {err.stderr.strip()}"
        sources = [str(glue), *(str(folder / source) for source in unit.c_files)]
        include = [str(folder), sysconfig.get_path("include")]
        nowhere = [*flags, *nameless(Path(work), root)]
        return _write(out, lambda fresh: module_command(compiler, unit, sources, include, fresh, nowhere))


def build_object(root: Path, unit: Unit, compiler: str, out: Path) -> str:
    """Compile the unit to `out` and return "", or the reason why the compilation fails."""
    source = str(root / unit.folder / unit.sources[-1])
    return _write(out, lambda fresh: object_command(compiler, source, fresh))


def nameless(*folders: Path) -> list[str]:
    """Return the flags that keep the names of folders out of the result (__FILE__), so that two builds are the same."""
    return [f"-ffile-prefix-map={folder}=." for folder in folders]


def write_glue(folder: Path, unit: Module, compiler: str, glue: Path) -> None:
    """Write cffi's C code, which connects the interpreter to the unit. Raises CalledProcessError."""
    import cffi

    headers = [header for header in unit.headers if header not in NOT_FOR_PYTHON]
    ffi = cffi.FFI()
    ffi.cdef("#define SOURCES_DIGEST ...\n" + "".join(declarations(compiler, folder / header) for header in headers))
    ffi.set_source(
        f"{unit.package}.bin.{unit.module}",
        "".join(f'#include "{header}"\n' for header in headers)
        + f"#define SOURCES_DIGEST {digest(folder, unit.sources)}u\n",
        py_limited_api=True,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # cffi prints the name of the file that it writes
        ffi.emit_c_code(str(glue))


def declarations(compiler: str, header: Path) -> str:
    """Return a header in the form that cffi reads. Raises CalledProcessError."""
    done = subprocess.run(preprocess_command(compiler, str(header)), capture_output=True, text=True, check=True)
    return done.stdout


def _write(out: Path, command: Callable[[str], Sequence[str]]) -> str:
    """Compile to a file beside `out` and rename it, so that a running program or loaded module stays intact. Return ""
    or the reason why the compilation fails.
    """
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    why = toolchain.run(command(str(fresh)))
    if why:
        fresh.unlink(missing_ok=True)
        return why
    fresh.rename(out)
    return ""

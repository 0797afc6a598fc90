"""Makes a copy of the source tree, builds its C with AddressSanitizer and UndefinedBehaviorSanitizer, and runs tests in
it.

The first error that a sanitizer finds ends the process, so the test fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import builder, toolchain
from .units import MODULES, PROGRAMS, SANITIZED, Module

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("app", "base", "cni", "controlplane", "dns", "netns-tests", "policy", "proxy", "tools")


def compiler() -> tuple[str | None, str]:
    """Return (a compiler that works with both sanitizers, "") or (None, the reason)."""
    found, why = toolchain.find(musl=False, flags=SANITIZED)
    return (found, why) if not toolchain.module_problem() else (None, toolchain.module_problem())


def build(copy: Path) -> None:
    """Copy the sources to `copy` and compile all units. Raises RuntimeError if a unit does not compile."""
    tool, why = compiler()
    if tool is None:
        raise RuntimeError(why)
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("bin", "__pycache__"))
    for name in ("pyproject.toml", "conftest.py", "hatch_build.py"):
        shutil.copy(ROOT / name, copy / name)
    for unit in (*PROGRAMS, *MODULES):
        out = copy / unit.output
        out.parent.mkdir(exist_ok=True)
        make = builder.build_module if isinstance(unit, Module) else builder.build_program
        why = make(copy, unit, tool, out, SANITIZED)  # type: ignore[arg-type]  # each unit has its own builder
        if why:
            raise RuntimeError(why)


def environment(copy: Path) -> Mapping[str, str]:
    """Return the environment for processes that use the copy. Python allocates each object with malloc, so that
    AddressSanitizer knows the object's bounds.
    """
    tool = str(compiler()[0])
    runtime = subprocess.run([tool, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(copy / part) for part in PARTS),
        "PYTHONMALLOC": "malloc",
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # the interpreter does not free all memory at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PODWIRE_PATIENCE": "5",
    }


def run_tests(copy: Path, tests: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run pytest in the copy. The tests may need only the files of the copy."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=copy,
        env=environment(copy),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )

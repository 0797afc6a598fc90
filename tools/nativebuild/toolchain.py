"""Finds working compilers. A compiler works if it compiles and links a test file and the result runs.

On Debian 13, for example, musl-tools does not depend on binutils: `musl-gcc` may exist but compile nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROBE = '#include <sys/socket.h>\n#include <stdio.h>\nint main(void) { return puts("ok") < 0; }\n'

CLANG = "clang"  # the compiler that knows the machine of eBPF
EBPF_PROBE = "int two(void) { return 2; }\n"


def candidates(*, musl: bool) -> list[str]:
    """Return the names of compilers to try, in order. With `musl`, Debian's two names of a musl compiler (packages
    musl-tools and musl-dev) come first: a program with musl has a tenth of the size and starts in half the time. A
    module needs the interpreter's C library instead.
    """
    first = ("musl-gcc", f"{os.uname().machine}-linux-musl-gcc") if musl else ()
    return [name for name in (*first, "cc", "gcc", "clang") if shutil.which(name)]


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run a command and return "" if it succeeds, else its error output."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False)
    except OSError as err:
        return f"{command[0]}: {err.strerror}"
    return "" if done.returncode == 0 else f"{' '.join(command)}\n{done.stderr or done.stdout}".strip()


def problem(compiler: str, flags: Sequence[str]) -> str:
    """Return the reason why the compiler does not work with these flags, "" if it works."""
    with tempfile.TemporaryDirectory(prefix="podwire-compiler-") as folder:
        source, out = Path(folder) / "probe.c", Path(folder) / "probe"
        source.write_text(PROBE)
        return run([compiler, *flags, "-o", str(out), str(source)]) or run([str(out)])


def first_line(text: str) -> str:
    """Return the line of a compiler's output that names the error."""
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()] or [text]
    return next((line for line in lines if "error" in line.lower()), lines[0])


def find(*, musl: bool, flags: Sequence[str]) -> tuple[str | None, str]:
    """Return (the first working compiler, "") or (None, the reason for each compiler that does not work)."""
    words = []
    for compiler in candidates(musl=musl):
        why = problem(compiler, flags)
        if not why:
            return compiler, ""
        words.append(f"{compiler}: {first_line(why)}")
    return None, "; ".join(words) or "no C compiler (Debian: gcc and libc6-dev)"


def has_headers() -> bool:
    return (Path(sysconfig.get_path("include")) / "Python.h").exists()


def module_problem() -> str:
    """Return the dependency that the running interpreter lacks for building modules, "" for none."""
    if not has_headers():
        return "no Python.h (Debian: python3-dev)"
    return "" if importlib.util.find_spec("cffi") else "no cffi"


def object_problem() -> str:
    """Return the reason why eBPF programs cannot be compiled, "" if they can."""
    if not shutil.which(CLANG):
        return "no clang (Debian: clang)"
    with tempfile.TemporaryDirectory(prefix="podwire-compiler-") as folder:
        source, out = Path(folder) / "probe.c", Path(folder) / "probe.o"
        source.write_text(EBPF_PROBE)
        why = run([CLANG, "-target", "bpfel", "-c", "-o", str(out), str(source)])
    return f"{CLANG}: {first_line(why)}" if why else ""


def packages() -> list[str]:
    """Return the Debian packages that this machine lacks for a complete build with this interpreter."""
    wanted = [] if find(musl=False, flags=())[0] else ["gcc", "libc6-dev"]
    if "musl" not in (find(musl=True, flags=("-static",))[0] or ""):
        wanted.append("musl-tools")
    if not has_headers() and sys.base_prefix == "/usr":  # another prefix: Python does not come from packages
        wanted.append(f"python3.{sys.version_info.minor}-dev")
    if object_problem():
        wanted.append("clang")
    return wanted


if __name__ == "__main__":
    print(*packages())

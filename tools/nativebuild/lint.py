"""`python -m nativebuild.lint` checks that all C is formatted (.clang-format) and compiles without a warning. `make
lint` runs it; a user's build does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from . import toolchain

ROOT = Path(__file__).resolve().parents[2]
WARNINGS = ("-Wall", "-Wextra", "-Werror")


def c_files(root: Path) -> list[Path]:
    """Return the C sources and headers of the packages and of the benchmarks."""
    return sorted(path for where in ("*/podwire_*/**/native/*.[ch]", "bench/*.[ch]") for path in root.glob(where))


def unformatted(root: Path) -> str:
    """Return the changes that clang-format would make, "" for none."""
    tool = Path(sys.executable).with_name("clang-format")  # from the dev extra, so that all developers use one version
    return toolchain.run([str(tool), "--dry-run", "-Werror", *map(str, c_files(root))], cwd=root)


def warned(root: Path, compiler: str) -> str:
    """Return the compiler's warnings about all sources, "" for none. eBPF programs are always compiled with -Werror."""
    sources = [path for path in c_files(root) if path.suffix == ".c" and not path.name.endswith(".bpf.c")]
    command = ["-O2", "-fPIC", *WARNINGS, "-c", "-o", "/dev/null"]  # with -O2 gcc finds more than with -fsyntax-only
    said = (toolchain.run([compiler, *command, str(source)]) for source in sources)
    return "\n".join(words for words in said if words)


def main() -> int:
    compiler, why = toolchain.find(musl=False, flags=())
    if compiler is None:
        print(f"C is not compiled: {why}", file=sys.stderr)
    problems = unformatted(ROOT) or (warned(ROOT, compiler) if compiler else "")
    if problems:
        print(problems, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    raise SystemExit(main())

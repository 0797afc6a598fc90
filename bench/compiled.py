"""Compiles the C programs of the benchmarks. cni_storm.c starts many plugins at once. dns_paced.c sends queries to a
DNS server at random times.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from nativebuild import toolchain


def compiled(name: str, folder: Path) -> Path:
    """Compile NAME.c into `folder`. Returns the path of the program. Raises FileNotFoundError if there is no working
    compiler, CalledProcessError if the compiler fails.
    """
    compiler, why = toolchain.find(musl=False, flags=())
    if compiler is None:
        raise FileNotFoundError(f"{name}.c cannot be compiled: {why}")
    found = folder / name
    subprocess.run(
        [compiler, "-O2", "-pthread", "-o", str(found), str(Path(__file__).with_name(f"{name}.c")), "-lm"], check=True
    )
    return found

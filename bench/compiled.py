"""The C programs of the benchmarks: cni_storm.c starts many plugins at once, dns_paced.c asks a DNS server at random
moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

from nativebuild import toolchain


def compiled(name: str, folder: Path) -> Path:
    """The compiled program NAME.c in `folder`. Raises FileNotFoundError if no compiler works, CalledProcessError."""
    compiler, why = toolchain.find(musl=False, flags=())
    if compiler is None:
        raise FileNotFoundError(f"{name}.c cannot be compiled: {why}")
    found = folder / name
    subprocess.run(
        [compiler, "-O2", "-pthread", "-o", str(found), str(Path(__file__).with_name(f"{name}.c")), "-lm"], check=True
    )
    return found

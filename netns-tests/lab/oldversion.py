"""An older version of podwire from the repository's own history, built beside the virtual environment. It runs with the
installed dependencies of this version.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "01f1de3"  # the version before; each release puts its own name here
HOME = Path(sys.prefix) / "old"
_BUILD = """
import importlib.util, pathlib, shutil, hatch_build
compilers = [c for c in ("musl-gcc", "x86_64-linux-musl-gcc", "cc", "gcc") if shutil.which(c)]
for source, program in {**hatch_build.PROGRAMS, **hatch_build.LIBRARIES}.items():
    out = pathlib.Path(source).parent / "bin" / program
    out.parent.mkdir(exist_ok=True)
    problems = [hatch_build.compile_one(c, pathlib.Path(source), out) for c in compilers]
    if all(problems):
        raise SystemExit(f"{program}: {problems}")
spec = importlib.util.spec_from_file_location("build_batch", "dns/podwire_dns/native/build.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.build())  # the DNS server works without it
from podwire_controlplane.main import COMMANDS
"""


@dataclass(frozen=True)
class OldVersion:
    """tree: its checkout, with its native programs."""

    tree: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which this interpreter imports the old packages and not those of this version."""
        return {**os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in _packages(self.tree))}

    @property
    def podwire(self) -> list[str]:
        return [sys.executable, "-c", "from podwire_controlplane.main import cli; cli()"]

    @property
    def client(self) -> Path:
        """The CNI plugin's program."""
        return self.tree / "cni/podwire_cni/native/bin/podwire-cni"


def _packages(tree: Path) -> list[Path]:
    return [tree / name for name in ("controlplane", "cni", "proxy", "dns")]


@functools.cache
def _build() -> OldVersion | str:
    """Return the old version, or why it is not here."""
    tree = HOME / RELEASE
    made = OldVersion(tree)
    if (tree / ".built").exists():
        return made
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", RELEASE], capture_output=True, check=False)
    if packed.returncode:
        return f"the repository's history has no {RELEASE} here: {packed.stderr.decode().strip()[:200]}"
    tree.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(tree)], input=packed.stdout, check=True)
    environment = {**made.environment, "PYTHONPATH": f"{tree}{os.pathsep}{made.environment['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"{RELEASE} does not build here: {done.stderr.strip()[-300:]}"
    (tree / ".built").touch()
    return made


def needed() -> OldVersion:
    """Return the old version. Skips the test by name where the repository's history is not there or the old version
    does not build; in CI (variable CI) that is a failure.
    """
    made = _build()
    if isinstance(made, OldVersion):
        return made
    if os.environ.get("CI"):
        pytest.fail(made)
    pytest.skip(made)

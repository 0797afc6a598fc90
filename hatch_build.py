"""Build hook: compiles the native programs (static, no libraries) into the packages that carry them.

Without a C compiler the install still works: the Python client and pause take the place of the native ones, slower,
and `podwire status` says so. With one the wheel is tagged for the platform.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# source -> program, both beside each other: <package>/native/NAME.c -> <package>/native/bin/PROGRAM
PROGRAMS = {
    "cni/podwire_cni/native/client.c": "podwire-cni",
    "cni/podwire_cni/native/pause.c": "podwire-pause",
    "controlplane/podwire_controlplane/native/echo.c": "podwire-echo",
}


class NativeBuild(BuildHookInterface[Any]):
    """Hatchling calls `initialize` for wheels and for editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        compiler = next((c for c in ("musl-gcc", "cc", "gcc") if shutil.which(c)), None)
        if compiler is None:
            self.app.display_warning("no C compiler: podwire's native programs are left out, Python stands in for them")
            return
        for source, program in PROGRAMS.items():
            src = root / source
            if not src.exists():
                continue
            out = src.parent / "bin" / program
            out.parent.mkdir(exist_ok=True)
            command = [compiler, "-O2", "-static", "-s", "-Wall", "-Wextra", "-Werror", "-o", str(out), str(src)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                self.app.display_error(f"{' '.join(command)}\n{done.stderr}")
                raise SystemExit(f"podwire: {source} did not compile")
            build_data["artifacts"].append(str(out.relative_to(root)))
        if version != "editable":
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"

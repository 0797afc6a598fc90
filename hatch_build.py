"""Build hook: compiles the native programs (static, no libraries) into the packages that carry them.

Without a C compiler the install still works: Python programs do the same work, slower, and `podwire status` says so.
With a compiler the wheel is tagged for the platform.
"""

from __future__ import annotations

import importlib.util
import os
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
    "controlplane/podwire_node/native/echo.c": "podwire-echo",
}
# Shared libraries, loaded into the interpreter by ctypes: no headers of Python's are needed.
LIBRARIES = {"cni/podwire_cni/native/wires.c": "podwire-wires.so"}


def compile_one(compiler: str, source: Path, out: Path) -> str:
    """Compile one program, or one library (.so); returns what went wrong, "" where nothing did (a compiler may lack the
    static C library)."""
    if out.suffix == ".so":  # the interpreter has a C library already: musl's must not come along
        kind = ["-shared", "-fPIC", *(["-nostdlib"] if "musl" in compiler else [])]
    else:  # one piece of the file, not four, is mapped at each start: a runtime starts the plugin for every call
        kind = ["-static", "-Wl,-z,noseparate-code"]
    command = [compiler, "-O2", *kind, "-s", "-Wall", "-Wextra", "-o", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{' '.join(command)}\n{done.stderr}" if done.returncode else ""


class NativeBuild(BuildHookInterface[Any]):
    """Hatchling calls `initialize` for wheels and for editable installs alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        # musl first, by both of Debian's names (packages musl-tools and musl-dev): a program of a tenth of the size,
        # which a runtime starts in half the time.
        compilers = [c for c in ("musl-gcc", f"{os.uname().machine}-linux-musl-gcc", "cc", "gcc") if shutil.which(c)]
        problem = "no C compiler"
        for source, program in {**PROGRAMS, **LIBRARIES}.items():
            out = root / Path(source).parent / "bin" / program
            out.parent.mkdir(exist_ok=True)
            if any(not (problem := compile_one(compiler, root / source, out)) for compiler in compilers):
                build_data["artifacts"].append(str(out.relative_to(root)))
                continue
            self.app.display_warning(
                f"{program} is left out: {problem}\nPython stands in where it can; install musl-tools and "
                "install podwire again to have it"
            )
        if not build_data["artifacts"]:
            return
        self._packets(root, build_data)
        if version != "editable":
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"

    def _packets(self, root: Path, build_data: dict[str, Any]) -> None:
        """The DNS server's packet module; it needs the interpreter's headers, and is left out where they are not."""
        found = importlib.util.spec_from_file_location("build_batch", root / "dns/podwire_dns/native/build.py")
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        why = module.build()
        if why:
            self.app.display_warning(f"the DNS server receives packet by packet: {why}")
        else:
            build_data["artifacts"].append(str(module.MODULE.relative_to(root)))

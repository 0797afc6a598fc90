"""Reads and writes the network configuration list, and installs the plugin beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from podwire_base.role import files

from . import conflist
from .plan import NodeNet
from .types import PLUGIN


def write(path: Path, socket: Path, node: NodeNet) -> bool:
    """Put the conflist in place, whole; False where it already says this."""
    return _write(path, conflist.text(conflist.content(socket, node)))


def read(path: Path) -> conflist.Last | None:
    """Of a conflist that `write` made; None where there is no such file or it says something else."""
    try:
        return conflist.parse(path.read_text())
    except (OSError, UnicodeDecodeError):
        return None


def install(
    program: Path, bin_dir: Path, conf_dir: Path, run_dir: Path, subnets: Sequence[str], plugin: Path
) -> list[Path]:
    """Copy the plugin `program` to bin_dir, also as `loopback` where there is none. With subnets, write a conflist that
    works without an agent too: `plugin` is the Python program that then serves a call. Returns what was written."""
    done, code = [bin_dir / PLUGIN], program.read_bytes()
    # containerd and CRI-O call a plugin of that name for each pod; the compiled program is one when it is called so.
    if code.startswith(b"\x7fELF") and not (bin_dir / "loopback").exists():
        done.append(bin_dir / "loopback")
    for path in done:
        files.write(path, code, mode=0o755)
    if subnets:
        done.append(conf_dir / "10-podwire.conflist")
        _write(done[-1], conflist.text(conflist.standalone(run_dir / "cni.sock", subnets, plugin)))
    return done


def _write(path: Path, text: str) -> bool:
    try:
        if path.read_text() == text:
            return False
    except OSError:
        pass  # it is not there, or cannot be read
    files.write(path, text)
    return True

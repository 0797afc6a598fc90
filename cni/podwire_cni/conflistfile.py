"""Reads and writes the network configuration list, and installs the plugin beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from podwire_base.role import files

from . import conflist
from .plan import NodeNet
from .types import PLUGIN


def write(path: Path, socket: Path, node: NodeNet) -> bool:
    """Write the conflist atomically; returns False if it is already up to date."""
    return _write(path, conflist.text(conflist.content(socket, node)))


def read(path: Path) -> conflist.Last | None:
    """The content of a conflist that `write` made; None if there is no such file or it has other content."""
    try:
        return conflist.parse(path.read_text())
    except (OSError, UnicodeDecodeError):
        return None


def install(
    program: Path, bin_dir: Path, conf_dir: Path, run_dir: Path, subnets: Sequence[str], plugin: Path
) -> list[Path]:
    """Copy the plugin `program` to bin_dir, also as `loopback` if there is none. With subnets, write a conflist that
    also works without an agent; the Python program `plugin` then serves the call. Returns the paths written.
    """
    done, code = [bin_dir / PLUGIN], program.read_bytes()
    # containerd and CRI-O call a plugin of that name for each pod; the compiled program acts as loopback under that
    # name.
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
        pass  # it does not exist or cannot be read
    files.write(path, text)
    return True

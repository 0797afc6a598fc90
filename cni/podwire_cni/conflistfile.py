"""Reads and writes the network configuration list, and installs the plugin beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from podwire_base.role import files

from . import conflist
from .plan import NodeNet
from .types import PLUGIN


def write(path: Path, socket: Path, node: NodeNet) -> bool:
    """Write the conflist atomically. Returns False, and writes nothing, if the file is already up to date."""
    return _write(path, conflist.text(conflist.content(socket, node)))


def read(path: Path) -> conflist.Last | None:
    """Read a conflist that `write` made. Returns None if the file does not exist or has other content."""
    try:
        return conflist.parse(path.read_text())
    except (OSError, UnicodeDecodeError):
        return None


def rival(path: Path) -> str:
    """Returns which file a container runtime reads instead of the conflist `path`, with what it is; "" if it reads
    `path`. Pods of a file that names this plugin for the node's own bridge come here all the same.
    """
    try:
        first = conflist.before((file.name for file in path.parent.iterdir() if not file.is_dir()), path.name)
    except OSError:
        return ""
    if not first:
        return ""
    file = path.parent / first[0]
    try:
        what = conflist.describe(file.read_text())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        what = "unreadable, and containerd stops there"
    return "" if what is None else f"{file} ({what})"


def install(
    program: Path, bin_dir: Path, conf_dir: Path, run_dir: Path, subnets: Sequence[str], plugin: Path
) -> list[Path]:
    """Copy the plugin `program` to bin_dir, and also as bin_dir/loopback if that file does not exist. If `subnets` are
    given, also write a conflist that works without an agent; without an agent, the Python program `plugin` serves the
    call. Returns the paths of the written files.
    """
    done, code = [bin_dir / PLUGIN], program.read_bytes()
    # containerd and CRI-O call a plugin named `loopback` for each pod. The compiled program acts as this plugin if it
    # is called by this name.
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
        pass  # the file does not exist or cannot be read
    files.write(path, text)
    return True

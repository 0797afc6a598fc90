"""Reads a machine's state under a root directory and executes the steps of plan.py there. No other module of this
package writes to the machine's files.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from podwire_base.role import files

from . import plan

Say = Callable[[str], None]


def _under(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def look(root: Path, paths: Iterable[str], conf_dir: str) -> plan.Facts:
    """Return the facts about the machine whose files are under `root`."""
    contents, modes, links = dict[str, bytes](), dict[str, int](), dict[str, str]()
    for path in paths:
        place = _under(root, path)
        if place.is_symlink():
            links[path] = str(place.readlink())
        elif place.is_file():
            contents[path], modes[path] = place.read_bytes(), place.stat().st_mode & 0o7777
    wants = _under(root, plan.link_path("x")).parent
    if wants.is_dir():
        for entry in wants.glob("podwire-*"):
            if entry.is_symlink():
                links[plan.link_path(entry.name)] = str(entry.readlink())
    folder = _under(root, conf_dir)
    here = root == Path("/")
    return plan.Facts(
        contents,
        modes,
        links,
        tuple(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else (),
        here and Path("/run/systemd/system").is_dir(),
        not here or not Path("/sys/fs/cgroup").is_dir() or Path("/sys/fs/cgroup/cgroup.controllers").exists(),
        not here or _has_nft(),
        not here or os.geteuid() == 0,
    )


def _has_nft() -> bool:
    from podwire_base.kernel.nft import socket as nft_socket

    try:
        with nft_socket.Connection() as connection:
            connection.tables()
    except OSError:
        return False
    return True


def look_for_uninstall(root: Path, bin_dir: str, conf_dir: str) -> plan.Facts:
    known = [plan.RECORD, plan.SETTINGS, *plan.DROP_INS, f"{bin_dir}/{plan.PLUGIN}", f"{bin_dir}/loopback"]
    return look(root, [*known, *plan.recorded(look(root, known, conf_dir)).written], conf_dir)


def do(root: Path, steps: Iterable[plan.Step], say: Say) -> None:
    """Execute the steps in order. Raises OSError and subprocess.CalledProcessError. After an error the completed steps
    stay, and a second run continues after them.
    """
    for step in steps:
        say(str(step))
        match step:
            case plan.Write(path, content, mode):
                files.write(_under(root, path), content, mode=mode, sync=True)
            case plan.Link(path, target):
                place = _under(root, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                place.symlink_to(target)
            case plan.Move(path, to):
                _under(root, path).rename(_under(root, to))
            case plan.Remove(path):
                _under(root, path).unlink(missing_ok=True)
            case plan.Run(argv):
                subprocess.run(argv, check=True)
            case plan.CleanKernel(dns_address):
                from . import kernel

                for line in kernel.clean(dns_address):
                    say(f"  removed {line}")

"""The version of the layout of what a node's agents leave behind: leases, networks, nft tables and iptables chains,
sets, links and routes. The number is in a file of the run directory, which a reboot removes together with all of that.

An agent that finds a newer layout refuses to start before it changes anything, because it would read the newer state
wrongly. An older layout, or no file (version 0.2 wrote none), is taken over. A change of a stored form that an older
agent would misread raises LAYOUT.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..kube.errors import ConfigError
from ..version import VERSION
from . import files

LAYOUT = 1
FILE = "layout.json"


class NewerLayout(ConfigError):
    """A later version of podwire wrote the node's state."""


def refusal(what: str, found: int, known: int) -> str:
    """Return the sentence that names state of a later version. what: the file or table. found, known: layouts."""
    return (
        f"{what}: a later version of podwire wrote this with layout {found}, and podwire {VERSION} knows layouts up "
        f"to {known}: start that version or a later one"
    )


def read(run_dir: Path) -> tuple[int, str]:
    """Return (layout, version of podwire that wrote it); (0, "") without a file. Raises ConfigError if the file cannot
    be read.
    """
    path = run_dir / FILE
    try:
        body = json.loads(path.read_text())
        return int(body["layout"]), str(body.get("version", ""))
    except FileNotFoundError:
        return 0, ""
    except (OSError, ValueError, LookupError, TypeError) as err:
        raise ConfigError(
            f"{path}: the layout of this node's state cannot be read ({err}); if an agent of this version wrote the "
            "state, remove the file"
        ) from err


def check(run_dir: Path) -> None:
    """Raise NewerLayout if a later version of podwire wrote the node's state."""
    layout, version = read(run_dir)
    if layout > LAYOUT:
        raise NewerLayout(
            f"{run_dir / FILE}: podwire {version or 'of a later version'} wrote this node's state with layout {layout},"
            f" and podwire {VERSION} knows layouts up to {LAYOUT}: start that version or a later one, or run its "
            "`podwire cleanup --for-downgrade` first"
        )


def claim(run_dir: Path) -> None:
    """Check the layout, and write that of this version. Raises NewerLayout, ConfigError and OSError."""
    check(run_dir)
    if read(run_dir) != (LAYOUT, VERSION):
        files.write(run_dir / FILE, json.dumps({"layout": LAYOUT, "version": VERSION}) + "\n")


def forget(run_dir: Path) -> bool:
    """Remove the file, for an older version that knows none. Returns whether there was one."""
    try:
        (run_dir / FILE).unlink()
    except FileNotFoundError:
        return False
    return True

"""The network namespaces of a node's pods, as a small JSON file in the node's run directory. Pure: the roles read and
write it.

Pod wiring writes the file, and the Service proxy reads it: the socket hooks of the backend ebpf serve the sockets of
these namespaces. The file is there so that neither role needs the other's leases or rights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class PodSpace:
    """device, inode: of the namespace's file, which tell whether `path` is still this namespace. ips: the pod's
    addresses, at most one of each family.
    """

    device: int
    inode: int
    path: str
    ips: tuple[str, ...] = ()


def path(run_dir: Path) -> Path:
    return run_dir / "podspaces.json"


def encode(found: Iterable[PodSpace]) -> str:
    """Returns the file's text. Equal namespaces give equal texts."""
    return json.dumps([asdict(one) for one in sorted(set(found))])


def decode(text: str) -> tuple[PodSpace, ...]:
    """Returns the namespaces. Unreadable entries are left out."""
    try:
        items: Any = json.loads(text)
    except ValueError:
        return ()
    return tuple(made for item in items if (made := _entry(item))) if isinstance(items, list) else ()


def _entry(item: Any) -> PodSpace | None:
    try:
        made = PodSpace(int(item["device"]), int(item["inode"]), str(item["path"]), tuple(map(str, item["ips"])))
    except (KeyError, TypeError, ValueError):
        return None
    return made

"""The network namespaces of a node's pods, as a small JSON file in the node's run directory. Pure: the roles read and
write it.

Pod wiring writes the file. The Service proxy reads it, because the socket hooks of the backend ebpf serve the sockets
of these namespaces, and the role `observe`, which names pods by their addresses. The file is there so that no role
needs another's leases or rights.
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
    addresses, at most one of each family. pod: "namespace/name", "" for a container that is no pod's.
    """

    device: int
    inode: int
    path: str
    ips: tuple[str, ...] = ()
    pod: str = ""


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
        made = PodSpace(
            int(item["device"]),
            int(item["inode"]),
            str(item["path"]),
            tuple(map(str, item["ips"])),
            str(item.get("pod", "")),  # version 0.2 does not write it
        )
    except (KeyError, TypeError, ValueError):
        return None
    return made

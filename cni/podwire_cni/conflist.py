"""The network configuration list that a container runtime reads: `10-podwire.conflist`.

cniVersion is 1.0.0 because containerd 1.6 and podman 4 refuse newer results; `cniVersions` (spec 1.1.0) lets newer runtimes
pick theirs. It appears only when pods can be wired: kubelets take its presence for "the network is ready".
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .conf import range_sets
from .errors import CNIError
from .plan import NodeNet
from .types import PLUGIN, RangeSet

NAME = "podwire"


def content(socket: Path, node: NodeNet) -> dict[str, Any]:
    sets = [[{"subnet": str(r.subnet), "gateway": str(r.gateway)} for r in ranges] for ranges in node.ranges]
    plugin = {"type": PLUGIN, "socket": str(socket), "mtu": node.mtu, "ipam": {"ranges": sets},
              "capabilities": {"ips": True, "mac": True, "portMappings": True, "bandwidth": True}}
    return {"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": NAME, "plugins": [plugin]}


def write(path: Path, socket: Path, node: NodeNet) -> bool:
    """Put the conflist in place, whole; False where it already says this."""
    text = json.dumps(content(socket, node), indent=2) + "\n"
    try:
        if path.read_text() == text:
            return False
    except OSError:
        path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)
    return True


def read_ranges(path: Path) -> Sequence[RangeSet] | None:
    """The ranges of a conflist that `write` made; None where there is no such file or it says something else."""
    try:
        plugin = json.loads(path.read_text())["plugins"][0]
        return range_sets(plugin["ipam"]["ranges"], "ipam.ranges") or None
    except (OSError, ValueError, LookupError, TypeError, CNIError):
        return None

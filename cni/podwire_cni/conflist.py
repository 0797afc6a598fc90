"""The network configuration list that a container runtime reads: `10-podwire.conflist`.

cniVersion is 1.0.0 because containerd 1.6 and podman 4 refuse newer results; `cniVersions` (spec 1.1.0) lets newer
runtimes pick theirs. It appears only when pods can be wired: kubelets take its presence for "the network is ready".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from podwire_base.role import files

from .conf import range_sets
from .errors import CNIError
from .ipam.ranges import podcidr_range
from .plan import NodeNet
from .types import PLUGIN, RangeSet

NAME = "podwire"


def content(socket: Path, node: NodeNet) -> dict[str, Any]:
    sets = [[{"subnet": str(r.subnet), "gateway": str(r.gateway)} for r in ranges] for ranges in node.ranges]
    plugin = {
        "type": PLUGIN,
        "socket": str(socket),
        "mtu": node.mtu,
        "ipam": {"ranges": sets},
        "capabilities": dict.fromkeys(("ips", "mac", "dns", "aliases", "portMappings", "bandwidth"), True),
    }
    return {"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": NAME, "plugins": [plugin]}


def write(path: Path, socket: Path, node: NodeNet) -> bool:
    """Put the conflist in place, whole; False where it already says this."""
    return _write(path, content(socket, node))


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
        node = NodeNet(tuple((podcidr_range(ip_network(subnet)),) for subnet in subnets))
        body = content(run_dir / "cni.sock", node)
        del body["plugins"][0]["mtu"]  # each ADD finds out the uplink's
        body["plugins"][0] |= {"standalone": True, "ipMasq": True, "pythonPlugin": str(plugin)}
        done.append(conf_dir / "10-podwire.conflist")
        _write(done[-1], body)
    return done


def _write(path: Path, body: dict[str, Any]) -> bool:
    text = json.dumps(body, indent=2) + "\n"
    try:
        if path.read_text() == text:
            return False
    except OSError:
        pass  # it is not there, or cannot be read
    files.write(path, text)
    return True


@dataclass(frozen=True)
class Last:
    """What an agent wrote into its conflist. mtu: of pods."""

    ranges: tuple[RangeSet, ...]
    mtu: int


def read(path: Path) -> Last | None:
    """Of a conflist that `write` made; None where there is no such file or it says something else."""
    try:
        plugin = json.loads(path.read_text())["plugins"][0]
        ranges, mtu = range_sets(plugin["ipam"]["ranges"], "ipam.ranges"), plugin["mtu"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError, CNIError):
        return None
    return Last(ranges, mtu) if ranges and type(mtu) is int and mtu > 0 else None

"""The network configuration list that a container runtime reads: `10-podwire.conflist`.

cniVersion is 1.0.0, because containerd 1.6 and podman 4 refuse newer results. Newer runtimes choose their version from
`cniVersions` (spec 1.1.0). The agent writes the file only when pods can be attached, because a kubelet treats the
file's presence as "the network is ready". This module is pure; conflistfile.py reads and writes the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import PurePath
from typing import Any

from .conf import range_sets
from .errors import CNIError
from .ipam.ranges import podcidr_range
from .plan import NodeNet
from .types import PLUGIN, RangeSet

NAME = "podwire"


def content(socket: PurePath, node: NodeNet) -> dict[str, Any]:
    sets = [[{"subnet": str(r.subnet), "gateway": str(r.gateway)} for r in ranges] for ranges in node.ranges]
    plugin = {
        "type": PLUGIN,
        "socket": str(socket),
        "mtu": node.mtu,
        "ipam": {"ranges": sets},
        "capabilities": dict.fromkeys(("ips", "mac", "dns", "aliases", "portMappings", "bandwidth"), True),
    }
    return {"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": NAME, "plugins": [plugin]}


def standalone(socket: PurePath, subnets: Sequence[str], plugin: PurePath) -> dict[str, Any]:
    """Returns a conflist that also works without an agent. Without an agent, the Python program `plugin` serves the
    call.
    """
    body = content(socket, NodeNet(tuple((podcidr_range(ip_network(subnet)),) for subnet in subnets)))
    del body["plugins"][0]["mtu"]  # each ADD determines the uplink's MTU
    body["plugins"][0] |= {"standalone": True, "ipMasq": True, "pythonPlugin": str(plugin)}
    return body


def text(body: dict[str, Any]) -> str:
    return json.dumps(body, indent=2) + "\n"


@dataclass(frozen=True)
class Last:
    """The entries of a conflist from which an agent continues after a restart. mtu: the pods' MTU."""

    ranges: tuple[RangeSet, ...]
    mtu: int


def parse(found: str) -> Last | None:
    """Parse the text of a conflist that `content` made. Returns None for any other text."""
    try:
        plugin = json.loads(found)["plugins"][0]
        ranges, mtu = range_sets(plugin["ipam"]["ranges"], "ipam.ranges"), plugin["mtu"]
    except (ValueError, LookupError, TypeError, RecursionError, CNIError):
        return None
    return Last(ranges, mtu) if ranges and type(mtu) is int and mtu > 0 else None


EXTENSIONS = (".conf", ".conflist", ".json")


def before(names: Iterable[str], own: str) -> list[str]:
    """Returns the files of a CNI directory that a container runtime finds before `own`, in its order: by name as bytes,
    hidden files too (libcni's ConfFiles; containerd and CRI-O take the first one).
    """
    found = {name for name in names if name.endswith(EXTENSIONS)}
    return sorted((name for name in found if name.encode() < own.encode()), key=str.encode)


def describe(found: str) -> str | None:
    """Returns what another file of the CNI directory is: its network and plugins. Returns None if its pods come to
    this plugin.
    """
    try:
        body = json.loads(found)
        plugins = body.get("plugins", [body])
        types = [str(plugin["type"]) for plugin in plugins]
        name = str(body.get("name", ""))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "no valid configuration, and containerd stops there"
    if any(kind == PLUGIN and not plugin.get("bridge") for kind, plugin in zip(types, plugins, strict=True)):
        return None
    return f"network {name}, plugins {', '.join(types)}"

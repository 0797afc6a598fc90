"""Encodes and decodes the JSON file with the hostPorts of a node's pods. Pure: the roles read and write the file.

Pod wiring writes the file into the node's run directory. The Service proxy reads it and posts an Event on each pod
whose hostPort a Service has. The backend ebpf and `podwire explain` read it too. With the file, neither role needs to
read the other role's rules or to have its privileges.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Protocol = Literal["TCP", "UDP", "SCTP"]
PROTOCOLS: dict[str, Protocol] = {
    "tcp": "TCP",
    "udp": "UDP",
    "sctp": "SCTP",
}  # key: the protocol in the CNI's portMappings


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """A hostPort: a port of the node that forwards to a pod. host_ip: "" stands for all addresses of the node,
    "0.0.0.0" and "::" stand for all addresses of one family. pod: "namespace/name", "" if unknown. uid: the pod's uid,
    "" if unknown.
    """

    port: int
    protocol: Protocol
    host_ip: str = ""
    pod: str = ""
    uid: str = ""

    def covers(self, ip: str) -> bool:
        """Whether the hostPort covers this address of the node."""
        if not self.host_ip:
            return True
        own, wanted = ipaddress.ip_address(self.host_ip), ipaddress.ip_address(ip)
        return own == wanted or (own.is_unspecified and own.version == wanted.version)


def path(run_dir: Path) -> Path:
    return run_dir / "hostports.json"


def encode(found: Iterable[HostPort]) -> str:
    """Returns the text of the file. Equal sets of hostPorts give equal texts."""
    return json.dumps([asdict(one) for one in sorted(set(found))])


def decode(text: str) -> tuple[HostPort, ...]:
    """Returns the hostPorts. It skips malformed entries, and returns () if the text is not a JSON list."""
    try:
        items: Any = json.loads(text)
    except ValueError:
        return ()
    return tuple(made for item in items if (made := _entry(item))) if isinstance(items, list) else ()


def _entry(item: Any) -> HostPort | None:
    try:
        made = HostPort(**item)
        made.covers("127.0.0.1")  # raises ValueError for a bad host_ip
    except (TypeError, ValueError):
        return None
    valid = isinstance(made.port, int) and made.protocol in PROTOCOLS.values()
    return made if valid and isinstance(made.pod, str) and isinstance(made.uid, str) else None

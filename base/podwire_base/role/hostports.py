"""The hostPorts of a node's pods, as a small JSON file in the node's run directory. Pure: the roles read and write it.

Pod wiring writes the file, and the Service proxy reads it, to tell the pods whose hostPort a Service has. The file is
there so that neither role needs the other's rules or rights.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Protocol = Literal["TCP", "UDP", "SCTP"]
PROTOCOLS: dict[str, Protocol] = {"tcp": "TCP", "udp": "UDP", "sctp": "SCTP"}  # as the CNI names them


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """One port of the node that leads to a pod. host_ip "": every address of the node; 0.0.0.0 and ::: every address of
    the family. pod: "namespace/name"; "" if unknown. uid: the pod's uid; "" if unknown.
    """

    port: int
    protocol: Protocol
    host_ip: str = ""
    pod: str = ""
    uid: str = ""

    def covers(self, ip: str) -> bool:
        """Whether packets to this address of the node belong to the hostPort."""
        if not self.host_ip:
            return True
        mine, asked = ipaddress.ip_address(self.host_ip), ipaddress.ip_address(ip)
        return mine == asked or (mine.is_unspecified and mine.version == asked.version)


def path(run_dir: Path) -> Path:
    return run_dir / "hostports.json"


def encode(found: Iterable[HostPort]) -> str:
    """Returns the file's text. Equal hostPorts give equal texts."""
    return json.dumps([asdict(one) for one in sorted(set(found))])


def decode(text: str) -> tuple[HostPort, ...]:
    """Returns the hostPorts. Unreadable entries are left out."""
    try:
        items: Any = json.loads(text)
    except ValueError:
        return ()
    return tuple(made for item in items if (made := _entry(item))) if isinstance(items, list) else ()


def _entry(item: Any) -> HostPort | None:
    try:
        made = HostPort(**item)
        made.covers("127.0.0.1")
    except (TypeError, ValueError):
        return None
    known = isinstance(made.port, int) and made.protocol in PROTOCOLS.values()
    return made if known and isinstance(made.pod, str) and isinstance(made.uid, str) else None

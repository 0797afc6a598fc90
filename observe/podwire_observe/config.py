"""The role's settings, and its rows for other roles' lists. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from podwire_base.role.metrics import check_address

Mode = Literal["always", "on-demand", "off"]
MODES: tuple[Mode, ...] = ("always", "on-demand", "off")
SOCKET = "observe.sock"
AFTERWARDS = 300.0  # seconds for which events stay subscribed to after the last reader, with on-demand


@dataclass(frozen=True)
class ObserveConfig:
    """mode: "always": connections are followed all the time; "on-demand": while somebody asks and five minutes after;
    polls run always. kubeconfig None: in-cluster. room: bytes of the queue of events. accounting: the role may switch
    on the counters and times of conntrack (net.netfilter.nf_conntrack_acct and nf_conntrack_timestamp).
    metrics_address: "host:port" of /metrics; empty: no such page.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    cluster_cidrs: tuple[str, ...] = ()
    service_cidrs: tuple[str, ...] = ()
    mode: Mode = "on-demand"
    room: int = 16 << 20
    accounting: bool = True
    metrics_address: str = ""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: {self.mode!r} is none of {', '.join(MODES)}")
        if self.room < 4096:
            raise ValueError(f"room: {self.room}: at least 4096 bytes")
        check_address(self.metrics_address)

"""The settings of the policy role. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PolicyConfig:
    """The settings of the role. kubeconfig None: in-cluster. cut_flows: open flows that a change of policies forbids
    end at once. metrics_address: "host:port" of /metrics; empty: no such page.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    cut_flows: bool = True
    metrics_address: str = ""

    def __post_init__(self) -> None:
        _, colon, port = self.metrics_address.rpartition(":")
        if self.metrics_address and not (colon and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise ValueError(f"metrics_address: {self.metrics_address!r} is not HOST:PORT")

"""The settings of the policy role. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from podwire_base.role.metrics import check_address


@dataclass(frozen=True)
class PolicyConfig:
    """The settings of the role. kubeconfig None: in-cluster. cut_flows: open flows that a change of policies forbids
    end at once. own_node: what a pod sends to its own node is judged too; answers and what the node sends are not.
    foreign: another program wires the pods, so the role learns of them from the API alone. drop_unknown: with foreign,
    addresses of this node's podCIDRs that the role does not know yet are dropped. metrics_address: "host:port" of
    /metrics; empty: no such page.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    cut_flows: bool = True
    own_node: bool = False
    foreign: bool = False
    drop_unknown: bool = True
    metrics_address: str = ""

    def __post_init__(self) -> None:
        check_address(self.metrics_address)

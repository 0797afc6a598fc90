"""The settings of the policy role. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PolicyConfig:
    """The settings of the role. kubeconfig None: in-cluster. cut_flows: open flows that a change of policies forbids
    end at once.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    cut_flows: bool = True

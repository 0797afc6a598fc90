"""What the wiring agent of one node is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import runtimes
from .overlay import Encapsulation
from .tunneltable import Sources


@dataclass(frozen=True)
class WiringConfig:
    """cluster_cidrs: the destinations to which pods send with their own source address. uplink: the link to the other
    nodes. The pods' MTU is the uplink's MTU, less the header of a tunnel if a tunnel is in use.

    mtu: the pods' MTU; 0: derive it from the uplink. conf_dir None: <run_dir>/cni/net.d. anti_spoofing: pods send only
    from their own addresses and MACs. encapsulation "auto": VXLAN to the nodes that are not on our link; "always":
    VXLAN to all nodes; "never": no VXLAN. quarantine: seconds before a released address is allocated to another pod, if
    other addresses are free. host_local: a directory of leases of the reference plugin host-local; the agent takes
    these leases over at its start. runtime_sockets: the CRI sockets of the node's container runtime, which is asked
    for its sandboxes when a pod vanished without a DEL; None: those of the common runtimes, if `conf_dir` says that a
    runtime of the machine uses this agent.
    host_managers: whether the agent of a machine tells the machine's network managers of podwire's interfaces.
    tunnel_sources "cluster": what leaves a tunnel has a source in the podCIDRs of the
    node that sent it, or an address of this node; "any": its node alone is checked, because a Service proxy without a
    detector of local traffic keeps the sources of other machines. no_pods: paths of network namespaces that are no
    pod's, besides the node's own and that of process 1: of the machine, if the node is a namespace of it.
    forward_accept: whether rules for pods are appended to an iptables chain FORWARD whose policy is drop.
    """

    node_name: str
    kubeconfig: str | None
    run_dir: Path
    cluster_cidrs: tuple[str, ...] = ("10.244.0.0/16",)
    uplink: str = "eth0"
    mtu: int = 0
    conf_dir: Path | None = None
    anti_spoofing: bool = True
    encapsulation: Encapsulation = "auto"
    quarantine: float = 30.0
    host_local: Path | None = None
    runtime_sockets: tuple[str, ...] | None = None
    host_managers: bool = True
    tunnel_sources: Sources = "cluster"
    no_pods: tuple[str, ...] = ()
    forward_accept: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError; its text begins with the field's name."""
        if self.mtu and not 68 <= self.mtu <= 65535:
            raise ValueError(f"mtu: {self.mtu} is neither 0 nor from 68 to 65535 (IPv6 needs 1280)")

    @property
    def socket(self) -> Path:
        return self.run_dir / "cni.sock"

    @property
    def sockets(self) -> tuple[Path, ...]:
        if self.runtime_sockets is not None:
            return tuple(map(Path, self.runtime_sockets))
        return runtimes.SOCKETS if self.conf_dir else ()

    @property
    def conflist(self) -> Path:
        return (self.conf_dir or self.run_dir / "cni" / "net.d") / "10-podwire.conflist"

    @property
    def leases(self) -> Path:
        return self.run_dir / "cni" / "leases"

"""The eBPF backend. backends.py lists this class among the available backends."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from podwire_base.kernel.ip import Family
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.role import logs
from podwire_base.role.layout import refusal

from ..backend import Live, Setting
from ..hostfacts import Foreign
from ..model import NodeInfo
from ..nftables.backend import Nftables
from ..tally import Tallies
from . import hooks, kernel, maps
from .fake import FakeMaps
from .live import Hooks
from .plan import Planner, State

log = logs.get("proxy")


@dataclass(frozen=True)
class Ebpf:
    """Implements the protocol backend.Backend: socket hooks over the nftables backend, whose rules are loaded whole.

    cgroup: where the hooks sit; "": the root of the machine's cgroup2. bpffs: where the pins are; "": /sys/fs/bpf.
    require: refuse to start where the hooks cannot run. run_dir: of the node, where pod wiring names the pods. bypass:
    packets from pod to pod of the node pass the host's stack by.
    """

    cgroup: str = ""
    bpffs: str = ""
    require: bool = False
    run_dir: str = ""
    bypass: bool = False

    name = "ebpf"
    place = "socket hooks"
    beneath = ("nftables",)
    metrics = Nftables.metrics
    settings: tuple[Setting, ...] = ()

    def having(self, values: Mapping[str, str]) -> Ebpf:
        return Ebpf(
            values.get("ebpf_cgroup", self.cgroup),
            values.get("ebpf_bpffs", self.bpffs),
            values.get("require_ebpf", str(self.require)) == "True",
            values.get("run_dir", self.run_dir),
            values.get("ebpf_bypass", str(self.bypass)) == "True",
        )

    def planner(self, family: Family, node: NodeInfo) -> Planner:
        return Planner(family, node)

    def live(self, states: Mapping[Family, State]) -> Live:
        return Hooks(states)

    def fake(self) -> FakeMaps:
        return FakeMaps()

    def kernel(self, planners: Sequence[Planner], ns_fd: int | None = None) -> kernel.Kernel:
        Nftables().kernel([planner.beneath for planner in planners], ns_fd).close()  # it says what the kernel lacks
        made = kernel.Kernel(planners, ns_fd, self.cgroup, self.bpffs, self.run_dir, bypass=self.bypass)
        if made.problem and self.require:
            made.close()
            raise OSError(errno.EOPNOTSUPP, f"--require-ebpf: socket hooks: {made.problem}")
        if made.problem:
            log.warn("socket hooks are off; nftables serves everything", problem=made.problem)
        return made

    def observe(self, ns_fd: int | None = None) -> Live | None:
        return None if nft_socket.missing(ns_fd) else kernel.observed(ns_fd)

    def existing(self, ns_fd: int | None = None) -> list[str]:
        return kernel.existing(ns_fd)

    def cleanup(self, ns_fd: int | None = None, *, patient: bool = True) -> list[str]:
        return kernel.cleanup(ns_fd)

    def tallies(self, ns_fd: int | None = None) -> Tallies | None:
        return kernel.observed_tallies(ns_fd)

    def remove_idle(self, node: NodeInfo, ns_fd: int | None = None) -> None:
        Nftables().remove_idle(node, ns_fd)

    def newer(self, ns_fd: int | None = None) -> str:
        found = hooks.newest(ns_fd)
        return refusal("socket hooks", found, maps.LAYOUT) if found > maps.LAYOUT else ""

    def downgrade(self, ns_fd: int | None = None) -> list[str]:
        """The version before knows no hooks, and its rules serve everything."""
        return kernel.cleanup(ns_fd)

    def foreign(self) -> Foreign:
        return Foreign()

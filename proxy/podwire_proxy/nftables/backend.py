"""The nftables backend. backends.py lists this class among the available backends."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from podwire_base.kernel.ip import Family
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.role.features import NFTABLES_BACKEND, explain, lacking
from podwire_base.role.kernelconfig import running
from podwire_base.role.layout import refusal

from ..backend import Live, MetricNames, Setting
from ..hostfacts import Foreign
from ..model import NodeInfo
from . import kernel
from .fake import FakeTables
from .layout import LAYOUT, TABLE_NAME, Layout
from .live import Tables
from .plan import Planner


class Nftables:
    """Implements the protocol backend.Backend with the table `podwire` of nftables."""

    name = "nftables"
    place = f"table {TABLE_NAME}"
    beneath: tuple[str, ...] = ()
    metrics = MetricNames(
        failures="kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
        cleanup_failures="kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
    )
    settings: tuple[Setting, ...] = ()

    def having(self, values: Mapping[str, str]) -> Nftables:
        return self

    def planner(self, family: Family, node: NodeInfo) -> Planner:
        return Planner(Layout(family), node)

    def live(self, states: Mapping[Family, TableDump]) -> Live:
        return Tables(states)

    def fake(self) -> FakeTables:
        return FakeTables()

    def kernel(self, planners: Sequence[Planner], ns_fd: int | None = None) -> kernel.Tables:
        if nft_socket.missing(ns_fd):
            here = running()
            lacks = lacking(NFTABLES_BACKEND, here) or [explain(NFTABLES_BACKEND[0], here)]
            raise OSError(errno.EOPNOTSUPP, f"--backend nftables: {'; '.join(lacks)}; or use --backend iptables")
        logs = kernel.can_log(ns_fd)
        for planner in planners:
            planner.logs = logs
        return kernel.Tables(ns_fd)

    def observe(self, ns_fd: int | None = None) -> Live | None:
        dumps = kernel.observed(ns_fd)
        return Tables(dumps) if dumps else None

    def existing(self, ns_fd: int | None = None) -> list[str]:
        return kernel.existing(ns_fd)

    def cleanup(self, ns_fd: int | None = None, *, patient: bool = True) -> list[str]:
        return kernel.cleanup(ns_fd)

    def remove_idle(self, node: NodeInfo, ns_fd: int | None = None) -> None:
        kernel.remove_idle(node, ns_fd)

    def newer(self, ns_fd: int | None = None) -> str:
        found = kernel.newest(ns_fd)
        return refusal(f"nft tables {TABLE_NAME}", found, LAYOUT) if found > LAYOUT else ""

    def downgrade(self, ns_fd: int | None = None) -> list[str]:
        return kernel.downgraded(ns_fd)

    def foreign(self) -> Foreign:
        return kernel.foreign()

"""The iptables backend. backends.py lists this class among the available backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from podwire_base.kernel.ip import Family
from podwire_base.role.layout import refusal

from ..backend import Live, MetricNames, Setting
from ..hostfacts import Foreign
from ..model import NodeInfo
from . import kernel, leftovers, live, programs
from .fake import FakeChains
from .layout import LAYOUT, PREFIX
from .plan import KernelState, Planner
from .programs import VARIANTS, Variant

AUTO = "auto"


@dataclass(frozen=True)
class Iptables:
    """Implements backend.Backend with iptables and ipset. variant None: the variant that the host uses."""

    variant: Variant | None = None
    name = "iptables"
    place = "chains PODWIRE-*"
    beneath: tuple[str, ...] = ()
    metrics = MetricNames(
        failures="kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
        partial_failures="kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
        rules="kubeproxy_sync_proxy_rules_iptables_total",
        last="kubeproxy_sync_proxy_rules_iptables_last",
        packets="kubeproxy_iptables",
    )
    settings = (Setting("iptables_variant", (AUTO, *VARIANTS), "Of --backend iptables. [auto: the host's own]"),)

    def having(self, values: Mapping[str, str]) -> Iptables:
        wanted = values.get("iptables_variant", AUTO)
        return Iptables(next((variant for variant in VARIANTS if variant == wanted), None))

    def planner(self, family: Family, node: NodeInfo) -> Planner:
        return Planner(family, node)

    def live(self, states: Mapping[Family, KernelState]) -> Live:
        return live.Chains(states, self.variant or VARIANTS[0])

    def fake(self) -> FakeChains:
        return FakeChains()

    def kernel(self, planners: Sequence[Planner], ns_fd: int | None = None) -> kernel.Chains:
        made = kernel.Chains(planners, ns_fd, self.variant)
        for planner in planners:
            planner.logs = made.can_log(planner.family)
        return made

    def observe(self, ns_fd: int | None = None) -> Live | None:
        return live.read(ns_fd)

    def existing(self, ns_fd: int | None = None) -> list[str]:
        return kernel.existing(ns_fd)

    def cleanup(self, ns_fd: int | None = None, *, patient: bool = True) -> list[str]:
        return kernel.cleanup(ns_fd, wait=programs.PATIENT if patient else 0)

    def remove_idle(self, node: NodeInfo, ns_fd: int | None = None) -> None:
        """Removes nothing: in a family without Services, the chains match no packet."""

    def newer(self, ns_fd: int | None = None) -> str:
        found = kernel.newest(ns_fd)
        return refusal(f"chains {PREFIX}*", found, LAYOUT) if found > LAYOUT else ""

    def downgrade(self, ns_fd: int | None = None) -> list[str]:
        """Removes nothing: an older proxy deletes the chains that it does not know."""
        return []

    def foreign(self) -> Foreign:
        return leftovers.foreign()

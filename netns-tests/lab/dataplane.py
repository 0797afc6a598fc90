"""The Service implementations under test, behind one interface that programs a scenario into the node of a World.

pytest's `--dataplane NAME` chooses implementations. A test with the fixture `dataplane` runs once for each of them.
`external` is an implementation that `--dataplane-hook PROGRAM` drives, for example kube-proxy. The hook is called in
the node's network namespace as `PROGRAM apply` and `PROGRAM clean`. For `apply` it reads a JSON object from stdin:

    {"node": {"name", "addresses", "zone"}, "clusterCIDRs": [...], "serviceCIDRs": [...],
     "items": [Service, EndpointSlice ...]}

The hook exits with status 0 when every rule is in force. If the hook fails, the test shows its output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from podwire_proxy import backends
from podwire_proxy.dataplane import Key
from podwire_proxy.decide import Packet
from podwire_proxy.ebpf.plan import served
from podwire_proxy.proxier import Proxier
from podwire_proxy.testing import scenarios as s
from podwire_proxy.verdict import Kind, Verdict, forward

from . import hookworld
from .serviceworld import World


class Dataplane(Protocol):
    """name: the column in the table of results."""

    name: str

    def program(self, world: World, scenario: s.Scenario) -> None:
        """Make the node serve exactly this scenario. An earlier scenario is replaced."""

    def clean(self, world: World) -> None:
        """Remove all rules and all session affinity entries."""

    def expected(self, scenario: s.Scenario, packet: Packet, verdict: Verdict) -> Verdict:
        """Return what packets show of the verdict with this implementation: a declared difference, or the same."""


class Ours:
    """podwire's proxy. choice: its backend and variant, for example "iptables-legacy"."""

    def __init__(self, choice: str) -> None:
        self.choice, self.name = choice, f"podwire-{choice}"

    def program(self, world: World, scenario: s.Scenario) -> None:
        tracker = scenario.tracker()
        tracker.flush()
        proxier = backends.proxier(scenario.node, world.node.fd, self.choice)
        try:
            proxier.sync(tracker.dataplane, None)
            backends.retire(proxier)
            proxier.sweep()
        finally:
            proxier.close()

    def clean(self, world: World) -> None:
        fields = backends.chosen(self.choice)
        chosen = backends.choose(fields["backend"], fields)
        for one in (chosen, *map(backends.choose, chosen.beneath)):
            one.cleanup(world.node.fd)

    def expected(self, scenario: s.Scenario, packet: Packet, verdict: Verdict) -> Verdict:
        return verdict


class Hooks(Ours):
    """The backend ebpf: the sockets of POD_A, POD_B and the node meet the hooks, those of POD_C do not. admits False:
    no pod's sockets do.
    """

    admits = True

    def __init__(self) -> None:
        super().__init__("ebpf")

    def program(self, world: World, scenario: s.Scenario) -> None:
        tracker = scenario.tracker()
        tracker.flush()
        proxier = self.proxier(world, scenario)
        try:
            proxier.sync(tracker.dataplane, None)
            backends.retire(proxier)
            proxier.sweep()
        finally:
            proxier.close()

    def proxier(self, world: World, scenario: s.Scenario) -> Proxier:
        proxier = Proxier(hookworld.backend(world), scenario.node, world.node.fd)
        proxier.kernel.admit(hookworld.clients(world) if self.admits else ())  # type: ignore[attr-defined]  # of this backend's kernel
        return proxier

    def expected(self, scenario: s.Scenario, packet: Packet, verdict: Verdict) -> Verdict:
        """A hairpin connection never leaves the pod, and shows the pod's own address, not the node's."""
        if verdict.kind is not Kind.FORWARD or packet.protocol not in ("TCP", "UDP") or packet.node:
            return verdict
        tracker = scenario.tracker()
        tracker.flush()
        frontend = tracker.dataplane.frontends[Key(packet.dst, packet.protocol, packet.port)]
        if not served(frontend, scenario.node) & hookworld.who(packet.src):
            return verdict
        return forward((to, masquerade and to.ip != packet.src) for to, masquerade in verdict.to)


class External:
    """Another proxy, which a hook program controls."""

    name = "external"

    def __init__(self, hook: Path) -> None:
        self.hook = hook.resolve(strict=True)

    def program(self, world: World, scenario: s.Scenario) -> None:
        self._call(world, "apply", request(scenario))

    def clean(self, world: World) -> None:
        self._call(world, "clean", {})

    def expected(self, scenario: s.Scenario, packet: Packet, verdict: Verdict) -> Verdict:
        return verdict

    def _call(self, world: World, verb: str, what: dict[str, Any]) -> None:
        world.node.run([str(self.hook), verb], input=json.dumps(what), timeout=120)


def request(scenario: s.Scenario) -> dict[str, Any]:
    """Return the JSON object that the hook reads."""
    node = scenario.node
    return {
        "node": {"name": node.name, "addresses": list(node.addresses), "zone": node.zone},
        "clusterCIDRs": list(node.pod_cidrs),
        "serviceCIDRs": list(node.service_cidrs),
        "items": list(scenario.objects),
    }


# One entry for each variant of each backend: "iptables-nft" and "iptables-legacy", without "iptables". Without "ebpf":
# its hooks need a cgroup of the test's own (Hooks), or they would sit at the machine's root.
CHOICES = [
    one
    for one in backends.choices()
    if not any(other.startswith(f"{one}-") for other in backends.choices()) and one != "ebpf"
]
OURS: dict[str, Callable[[], Dataplane]] = {f"podwire-{one}": partial(Ours, one) for one in CHOICES}
OURS["podwire-ebpf"] = Hooks
ALIASES = {"podwire": list(OURS)} | {
    f"podwire-{name}": found
    for name in backends.names()
    if (found := [n for n in OURS if n.startswith(f"podwire-{name}-")])
}


def make(name: str, hook: Path | None) -> Dataplane:
    if name == "external":
        assert hook is not None, "--dataplane external needs --dataplane-hook PROGRAM"
        return External(hook)
    return OURS[name]()

"""Open flows that a policy begins to forbid end at once, at both ends; those that it allows go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from lab.netns import Lab
from lab.patience import wait_until
from lab.policyflows import dial
from lab.policyworld import PolicyWorld
from podwire_base.kernel.conntrack.socket import Conntrack
from podwire_base.kernel.ip import FAMILIES
from podwire_policy.cut import touched
from podwire_policy.cutter import Cutter
from podwire_policy.testing import table
from podwire_policy.testing.oracle import Object

SERVICE = {"ip": "10.96.0.80", "ip6": "fd00:96::80"}
FROM_B = table.on(table.has(pod="a"), policyTypes=["Ingress"], ingress=[table.frm(table.pods(table.has(pod="b")))])
LOST = 0.2  # seconds, for a word that must not arrive
TO_NOBODY = table.on(table.has(pod="c"), policyTypes=["Egress"])


@pytest.fixture(scope="module")
def world() -> Iterator[PolicyWorld]:
    with Lab() as lab:
        made = PolicyWorld(lab)
        for node in made.nodes.values():  # x/a as a Service
            for family, vip in SERVICE.items():
                target = table.address("x/a", family)
                node.run(["nft", "add", "table", family, "services"])
                chain = "{ type nat hook prerouting priority -100; }"
                node.run(["nft", "add", "chain", family, "services", "pre", chain])
                node.run(["nft", "add", "rule", family, "services", "pre", family, "daddr", vip, "dnat", "to", target])
        yield made


def fresh(world: PolicyWorld) -> list[Cutter]:
    """Forgets the flows of the tests before. Returns what ends flows on each node."""
    for node in world.nodes.values():
        tracked = Conntrack(node.fd)
        for family in FAMILIES:
            tracked.delete(list(tracked.flows(family)))
        tracked.close()
    return [Cutter(world.tables[name].commit, node.fd) for name, node in world.nodes.items()]


def apply(world: PolicyWorld, cutters: list[Cutter], *policies: Object) -> int:
    """Puts policies on both nodes, as the role does. Returns how many flows it ended."""
    ended = 0
    wanted = {f"x/{one['metadata']['name']}": one for one in policies}
    objects = table.world()
    objects.policies = wanted
    for judge, cutter in zip(world.judges, cutters, strict=True):
        for key in {*judge.compiler.policies, *wanted}:
            judge.take(objects, "policies", key)
        delta = judge.compiler.flush()
        judge.tables.change(judge.compiler.compiled, delta)
        compiled = judge.compiler.compiled
        ended += len(asyncio.run(cutter.look(compiled, touched(compiled, delta))))
    return ended


@pytest.mark.parametrize("speaks", ["client", "server", "nobody"])
@pytest.mark.parametrize("way", ["pod", "service"])
@pytest.mark.parametrize("kind", ["TCP", "UDP"])
@pytest.mark.parametrize("family", ["ip", "ip6"])
@pytest.mark.parametrize("client", ["x/b", "x/c"])
def test_a_flow_that_a_policy_forbids_ends(
    world: PolicyWorld, client: str, family: str, kind: str, way: str, speaks: str
) -> None:
    """x/b is on another node than x/a, x/c on the same. The policy allows the other client alone."""
    world.load(table.world())
    cutters = fresh(world)
    target = SERVICE[family] if way == "service" else table.address("x/a", family)
    other = "x/c" if client == "x/b" else "x/b"
    allowed = table.has(pod=other[-1])
    policy = table.on(table.has(pod="a"), policyTypes=["Ingress"], ingress=[table.frm(table.pods(allowed))])
    with contextlib.ExitStack() as stack:
        flow, stays = (dial(world, key, target, kind, family, port) for key, port in ((client, 8100), (other, 8101)))
        stack.callback(flow.close)
        stack.callback(stays.close)
        assert all(one.says(who) for one in (flow, stays) for who in ("client", "server"))
        assert apply(world, cutters, policy) == 1
        if speaks != "nobody":
            assert not flow.says(speaks, LOST)
        if kind == "TCP":
            same_node = client == "x/c"
            told = (flow.server, flow.client) if same_node or speaks == "client" else (flow.server,)
            for end in told:
                wait_until(lambda end=end: flow.reset(end), "a reset")  # type: ignore[misc]  # bound now
        assert not any(flow.says(who, LOST) for who in ("server", "client", "server"))
        assert all(stays.says(who) for who in ("client", "server")), "harm to an allowed flow"


def test_a_flow_that_egress_forbids_ends_and_one_that_is_allowed_again_goes_on(world: PolicyWorld) -> None:
    world.load(table.world())
    cutters = fresh(world)
    with contextlib.closing(dial(world, "x/c", table.address("x/a", "ip"), "UDP", "ip", 8102)) as flow:
        assert apply(world, cutters, TO_NOBODY) == 1
        assert not flow.says("client", LOST) and not flow.says("server", LOST)
        assert apply(world, cutters) == 0
        assert flow.says("client") and flow.says("server"), "no element of the cut is left"

"""healthCheckNodePorts: each IP family answers for itself, with the endpoints that its packets can reach here."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.kube.meta import Object
from podwire_base.role import web
from podwire_base.testing.counts import examples
from podwire_proxy import health
from podwire_proxy.changes import Tracker
from podwire_proxy.dataplane import Balance, HealthCheck, Key
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

CHECK, VIP6 = 30500, s._v6(s.VIP)
DUAL = replace(
    s.INFO,
    addresses=(s.NODE_IP, s._v6(s.NODE_IP)),
    pod_cidrs=(*s.INFO.pod_cidrs, "fd00:244::/32"),
    service_cidrs=(*s.INFO.service_cidrs, "fd00:96::/112"),
)
ENDING: dict[str, Any] = {"ready": False, "serving": True, "terminating": True}


def local(*ips: str, **spec: Any) -> Object:
    ports = [port(80, name="a", node_port=30080), port(81, name="b", node_port=30081)]
    policy = {"externalTrafficPolicy": "Local", "healthCheckNodePort": CHECK}
    return service("x", ips, ports, type="LoadBalancer", **{**policy, **spec})


def slice_of(*found: Object, name: str = "x-1", ports: str = "ab") -> Object:
    v6 = any(":" in e["addresses"][0] for e in found)
    numbers = [(one, "TCP", 9376) for one in ports]
    return endpoint_slice("x", found, numbers, name=name, family="IPv6" if v6 else "IPv4")


def here(ip: str, node: str = s.NODE, **conditions: Any) -> Object:
    return endpoint(ip, node, **conditions)


A, B, C = s.POD_A, s.POD_B, s.POD_C
A6, B6, C6 = (s._v6(ip) for ip in (A, B, C))


@pytest.mark.parametrize(
    ("ips", "slices", "ipv4", "ipv6"),
    [
        ((s.VIP, VIP6), [slice_of(here(A6), name="six")], 0, 1),
        ((s.VIP, VIP6), [slice_of(here(A)), slice_of(here(C6, "n2"), name="six")], 1, 0),
        ((s.VIP, VIP6), [slice_of(here(A), here(B)), slice_of(here(A6), name="six")], 2, 1),
        ((s.VIP, VIP6), [slice_of(here(A, **ENDING)), slice_of(here(A6), here(B6, **ENDING), name="six")], 0, 1),
        ((s.VIP,), [slice_of(here(A)), slice_of(here(A6), here(B6), name="six")], 1, None),
        ((VIP6,), [slice_of(here(A)), slice_of(here(A6), here(B6), name="six")], None, 2),
        ((s.VIP,), [slice_of(here(A, ready=True, terminating=True))], 1, None),
        ((s.VIP,), [slice_of(here(A)), slice_of(here(A, **ENDING), name="old")], 1, None),
        ((s.VIP,), [slice_of(here(A, ready=False)), slice_of(here(A, **ENDING), name="old")], 0, None),
        ((s.VIP,), [slice_of(here(A), ports="a"), slice_of(here(B), ports="b", name="other")], 2, None),
        ((s.VIP,), [slice_of(here(A), ports="c")], 0, None),
        ((s.VIP,), [slice_of(here(A, ""))], 0, None),
    ],
    ids=[
        "local in IPv6 only",
        "local in IPv4 only",
        "both",
        "terminating endpoints do not count",
        "a Service of IPv4 alone",
        "a Service of IPv6 alone",
        "ready and terminating: publishNotReadyAddresses",
        "an address twice, once ready",
        "an address twice, not ready",
        "each port has its own endpoints",
        "a port that the Service does not have",
        "on no node",
    ],
)
def test_each_family_is_counted_for_itself(
    ips: tuple[str, ...], slices: list[Object], ipv4: int | None, ipv6: int | None
) -> None:
    tracker = Tracker(DUAL)
    tracker.service("default/x", local(*ips))
    for obj in slices:
        tracker.slice(obj["metadata"]["name"], obj)
    tracker.flush()
    assert tracker.dataplane.health == {"default/x": HealthCheck(CHECK, ipv4, ipv6)}


CONDITIONS = st.fixed_dictionaries({}, optional={name: st.booleans() for name in ("ready", "serving", "terminating")})


@settings(max_examples=examples(25, 500))
@given(
    st.lists(st.tuples(st.sampled_from([A, B, C, A6, B6, C6]), st.sampled_from([s.NODE, "n2"]), CONDITIONS), max_size=6)
)
def test_a_count_is_what_clients_outside_reach(drawn: list[tuple[str, str, dict[str, bool]]]) -> None:
    """The addresses behind the node's own NodePorts, as far as some endpoint there is ready."""
    tracker = Tracker(DUAL)
    tracker.service("default/x", local(s.VIP, VIP6))
    for n, (ip, node, conditions) in enumerate(drawn):
        tracker.slice(str(n), slice_of(here(ip, node, **conditions), name=str(n)))
    tracker.flush()
    check = tracker.dataplane.health["default/x"]
    ready = {ip for ip, node, conditions in drawn if node == s.NODE and conditions.get("ready", True)}
    for ip in DUAL.addresses:
        reached = tracker.dataplane.frontends[Key(ip, "TCP", 30080)].external
        chosen = {d.ip for d in reached.destinations} if isinstance(reached, Balance) else set()
        assert check.at(ip) in (len(chosen), 0), "all of them, or they only end their work"
        assert (check.at(ip) == 0) == (not chosen & ready) or _twice(drawn)


def _twice(drawn: list[tuple[str, str, dict[str, bool]]]) -> bool:
    """Whether some address has two entries: one of them decides (test_objects.py)."""
    return len({ip for ip, _, _ in drawn}) < len(drawn)


def test_the_listeners_of_each_family_answer_with_its_own_count() -> None:
    async def status(ip: str, number: int) -> tuple[int, str]:
        at = f"[{ip}]" if ":" in ip else ip
        async with aiohttp.ClientSession() as session, session.get(f"http://{at}:{number}/") as answer:
            return answer.status, answer.headers["X-Load-Balancing-Endpoint-Weight"]

    async def work() -> list[tuple[int, str]]:
        free = await web.serve("127.0.0.1:0", {})
        number = free.addresses[0][1]
        await free.cleanup()
        checks = health.ServiceChecks(lambda: True, lambda service, why: pytest.fail(why))
        try:
            await checks.update({"default/x": HealthCheck(number, 0, 2)}, ["127.0.0.1", "::1"])
            found = [await status(ip, number) for ip in ("127.0.0.1", "::1")]
            await checks.update({"default/x": HealthCheck(number, None, 2)}, ["127.0.0.1", "::1"])
            with pytest.raises(aiohttp.ClientConnectorError):
                await status("127.0.0.1", number)
            return [*found, await status("::1", number)]
        finally:
            await checks.close()

    assert asyncio.run(work()) == [(503, "0"), (200, "2"), (200, "2")]

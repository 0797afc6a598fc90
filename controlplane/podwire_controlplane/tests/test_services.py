"""Services on the write path: what an update keeps, what a change of type allocates and releases, the allocators."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.testing.builders import run, service, version
from podwire_controlplane.allocators import Exhausted, ServiceAllocator, free_pod_cidr
from podwire_controlplane.store.sqlite import SqliteStore

from ..testing.builders import World
from .test_objects import in_world, refused


def test_update_without_address_and_port_keeps_both() -> None:
    async def work(world: World) -> None:
        made = await world.create(
            service(type="NodePort", ports=[{"name": "a", "port": 80}, {"name": "b", "port": 81}])
        )
        address, ports = made["spec"]["clusterIP"], {p["port"]: p["nodePort"] for p in made["spec"]["ports"]}
        assert len(set(ports.values())) == 2
        after = await world.update(
            service(type="NodePort", ports=[{"name": "b", "port": 81}, {"name": "c", "port": 82}])
        )
        assert after["spec"]["clusterIP"] == address and after["spec"]["clusterIPs"] == [address]
        new = {p["port"]: p["nodePort"] for p in after["spec"]["ports"]}
        assert new[81] == ports[81] and new[82] not in (None, ports[81])
        _, ports = await world.claimed()
        assert set(ports.values()) == {"default/web"} and len(ports) == 2

    in_world(work)


def test_services_of_one_moment_get_different_values(tmp_path: Path) -> None:
    """While a Service is committed, others are checked: what it asked for counts as taken, until its write fails."""

    async def body() -> None:
        world = await World(SqliteStore(tmp_path / "s.db")).start()
        asked = [
            world.create(service(f"s{n}", type="NodePort", ports=[{"port": 80, "nodePort": 30005}])) for n in range(4)
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(one, dict) for one in found) == 1
        assert all(one.code == 422 for one in found if isinstance(one, StatusError))
        same = [world.create(service("same", type="NodePort")) for _ in range(3)]
        found = await asyncio.gather(*same, return_exceptions=True)
        kept = [one for one in found if isinstance(one, dict)]
        assert len(kept) == 1 and [e.code for e in found if isinstance(e, StatusError)] == [409, 409]
        addresses, ports = await world.claimed()
        assert kept[0]["spec"]["clusterIP"] in addresses
        assert len(addresses) == len(ports) == 2, "what the losers held is free again"
        await world.store.close()

    run(body())


def test_changes_of_type_take_and_release() -> None:
    async def work(world: World) -> None:
        first = await world.create(service(type="NodePort"))
        address = first["spec"]["clusterIP"]
        plain = await world.patch("Service", "web", {"spec": {"type": "ClusterIP"}})
        assert plain["spec"]["clusterIP"] == address and "nodePort" not in plain["spec"]["ports"][0]
        assert (await world.claimed())[1] == {} and "externalTrafficPolicy" not in plain["spec"]
        again = await world.patch("Service", "web", {"spec": {"type": "NodePort"}})
        assert again["spec"]["ports"][0]["nodePort"] in world.allocator.node_ports
        assert len((await world.claimed())[1]) == 1
        name = await world.patch("Service", "web", {"spec": {"type": "ExternalName", "externalName": "a.example"}})
        assert "clusterIP" not in name["spec"] and "nodePort" not in name["spec"]["ports"][0]
        assert await world.claimed() == ({}, {})
        back = await world.patch("Service", "web", {"spec": {"type": "ClusterIP"}})
        assert (await world.claimed())[0] == {back["spec"]["clusterIP"]: "default/web"}
        assert "externalName" not in back["spec"]
        await world.delete("Service", "web")
        assert await world.claimed() == ({}, {})

    in_world(work)


def test_address_is_immutable_and_says_so() -> None:
    async def work(world: World) -> None:
        await world.create(service(clusterIP="10.96.0.20"))
        for address in ("10.96.0.21", "None"):
            await refused(
                world.patch("Service", "web", {"spec": {"clusterIP": address}}), 422, "spec.clusterIP", "immutable"
            )
        await world.create(service("headless", clusterIP="None", selector={"a": "b"}))
        await refused(world.patch("Service", "headless", {"spec": {"clusterIP": "10.96.0.22"}}), 422, "immutable")
        await refused(world.patch("Service", "headless", {"spec": {"type": "NodePort"}}), 422, "headless")

    in_world(work)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"clusterIP": "10.96.0.5"}, ("spec.clusterIP", "taken by Service default/web", "leave it empty")),
        ({"clusterIP": "10.96.0.0"}, ("spec.clusterIP", "network or broadcast")),
        ({"clusterIP": "fd00::1"}, ("spec.clusterIPs[0]", "not configured")),
        ({"clusterIPs": ["10.96.0.5"]}, ("spec.clusterIP", "must be set")),
        ({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.7"]}, ("spec.clusterIPs", "first value must match")),
        (
            {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30001}]},
            ("spec.ports[0].nodePort", "taken by Service default/"),
        ),
        (
            {
                "type": "NodePort",
                "ports": [{"name": "a", "port": 1, "nodePort": 30002}, {"name": "b", "port": 2, "nodePort": 30002}],
            },
            ("spec.ports[1].nodePort", "Duplicate"),
        ),
        ({"ports": [{"port": 1, "nodePort": 30003}]}, ("spec.ports[0].nodePort", "may not be used")),
        ({"ipFamilies": ["IPv6"]}, ("spec.ipFamilies[0]", "not configured")),
    ],
)
def test_taken_and_impossible_requests(spec: Object, words: tuple[str, ...]) -> None:
    async def work(world: World) -> None:
        await world.create(service(type="NodePort", clusterIP="10.96.0.5", ports=[{"port": 80, "nodePort": 30001}]))
        before = await world.state()
        await refused(world.create(service("other", **spec)), 422, *words)
        after = await world.state()
        assert after[1] == before[1] and [len(held) for held in await world.claimed()] == [1, 1]

    in_world(work)


def test_same_node_port_for_tcp_and_udp() -> None:
    async def work(world: World) -> None:
        made = await world.create(
            service(
                type="NodePort",
                ports=[
                    {"name": "t", "port": 53, "nodePort": 30001},
                    {"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30001},
                ],
            )
        )
        assert {p["nodePort"] for p in made["spec"]["ports"]} == {30001}

    in_world(work)


def test_one_node_port_for_both_protocols_of_a_port_and_none_for_two_services() -> None:
    both = [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}, {"name": "h", "port": 80}]

    async def work(world: World) -> None:
        made = await world.create(service(type="NodePort", ports=both))
        first, second, third = (p["nodePort"] for p in made["spec"]["ports"])
        assert first == second != third
        taken = [{"port": 9, "protocol": "SCTP", "nodePort": first}]
        await refused(world.create(service("other", type="NodePort", ports=taken)), 422, "taken by Service default/web")

    in_world(work)


def test_the_port_of_a_health_check_is_given_kept_and_released() -> None:
    async def work(world: World) -> None:
        made = await world.create(service(type="LoadBalancer", externalTrafficPolicy="Local"))
        port = made["spec"]["healthCheckNodePort"]
        assert port in (await world.claimed())[1] and port != made["spec"]["ports"][0]["nodePort"]
        again = await world.update(service(type="LoadBalancer", externalTrafficPolicy="Local", selector={"a": "b"}))
        assert again["spec"]["healthCheckNodePort"] == port
        after = await world.patch("Service", "web", {"spec": {"externalTrafficPolicy": "Cluster"}})
        assert "healthCheckNodePort" not in after["spec"] and port not in (await world.claimed())[1]

    in_world(work)


def test_exhausted_ports_leave_nothing_behind() -> None:
    async def work(world: World) -> None:
        for n in range(10):
            await world.create(service(f"s{n}", type="NodePort"))
        before = await world.state()
        await refused(world.create(service(type="NodePort")), 500, "no free NodePort in 30000-30009")
        assert (await world.state())[1] == before[1] and [len(held) for held in await world.claimed()] == [10, 10]
        await world.delete("Service", "s4")
        await world.create(service(type="NodePort"))

    in_world(work)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.sampled_from(["ClusterIP", "NodePort", "ExternalName", "LoadBalancer", "headless", "delete"]),
        st.none() | st.integers(30000, 30005),
        st.none() | st.integers(0, 15),
    ),
    max_size=12,
)


@given(_STEPS)
def test_no_sequence_hands_a_value_out_twice(steps: list[tuple[str, str, int | None, int | None]]) -> None:
    """The claims in the store are always those that the stored Services have."""

    async def apply(world: World, own: str, kind: str, port: int | None, host: int | None) -> None:
        if kind == "delete":
            await world.delete("Service", own)
            return
        spec: dict[str, Any] = {"type": "ClusterIP" if kind == "headless" else kind, "externalName": "x.example"}
        if kind == "headless" or host is not None:
            spec["clusterIP"] = "None" if kind == "headless" else f"10.96.0.{host}"
        wanted = service(own, ports=[{"port": 80, **({"nodePort": port} if port else {})}], **spec)
        try:
            await world.create(wanted)
        except StatusError as err:
            if err.reason != "AlreadyExists":
                raise
            await world.update(wanted)

    async def work(world: World) -> None:
        for own, kind, port, host in steps:
            try:
                await apply(world, own, kind, port, host)
            except StatusError as err:
                assert err.code in (404, 422, 500), err
        found = [o async for o in _services(world)]
        addresses = [o["spec"]["clusterIP"] for o in found if o["spec"].get("clusterIP") not in (None, "None")]
        ports = [p["nodePort"] for o in found for p in o["spec"]["ports"] if p.get("nodePort")]
        assert len(addresses) == len(set(addresses)) and len(ports) == len(set(ports))
        held, given = await world.claimed()
        assert sorted(held) == sorted(addresses) and sorted(given) == sorted(ports)

    in_world_small(work)


async def _services(world: World) -> Any:
    for item in await world.store.scan(world.scope("Service").resource.prefix()):
        yield await world.get("Service", item.key.rsplit("/", 1)[1])


def in_both(work: Any) -> None:
    """A cluster with an IPv4 and an IPv6 range of Services."""

    async def body() -> None:
        await work(await World(second="fd00:10:96::/112").start())

    run(body())


def in_world_small(work: Any) -> None:
    """The range is a /28 with three node ports, so that the sequences exhaust both."""

    async def body() -> None:
        await work(await World(cidr="10.96.0.0/28", node_ports=range(30000, 30003)).start())

    run(body())


# ---- the allocator alone


def _allocator(cidr: str, draw: Any = lambda n: 0) -> ServiceAllocator:
    return ServiceAllocator(ipaddress.ip_network(cidr), range(30000, 30003), draw=draw)


def test_static_band_is_handed_out_last() -> None:
    got = list(_allocator("10.96.0.0/24").candidates("IPv4"))
    assert len(set(got)) == 254 == len(got)
    assert (got[0], got[238]) == ("10.96.0.16", "10.96.0.254"), "KEP-3070: 16 addresses for people"
    assert got[-15:] == [f"10.96.0.{n}" for n in range(1, 16)]


@pytest.mark.parametrize("cidr", ["10.96.0.0/29", "10.96.0.0/31", "fd00::/120", "fd00::/64", "10.0.0.0/8"])
def test_ranges_of_any_size(cidr: str) -> None:
    network = ipaddress.ip_network(cidr)
    allocator = _allocator(cidr, draw=lambda n: n - 1)
    got = list(itertools.islice(allocator.candidates(f"IPv{network.version}"), 3))
    assert bool(got) == (network.num_addresses > 2)
    for address in map(ipaddress.ip_address, got):
        assert address in network and address not in (network.network_address, network.broadcast_address)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=30), st.integers(25, 28))
def test_pod_ranges_never_overlap_and_are_reused(steps: list[tuple[bool, int]], size: int) -> None:
    cluster = ipaddress.IPv4Network("10.244.0.0/24")
    held: dict[int, str] = {}
    for give, node in steps:
        if not give:
            held.pop(node, None)
        elif node not in held:
            try:
                held[node] = free_pod_cidr(cluster, size, held.values())
            except Exhausted:
                assert len(held) == 2 ** (size - 24)
    nets = [ipaddress.IPv4Network(h) for h in held.values()]
    assert all(n.subnet_of(cluster) for n in nets)
    assert not any(a.overlaps(b) for a in nets for b in nets if a is not b)


def test_no_op_update_of_a_service_keeps_its_version() -> None:
    async def work(world: World) -> None:
        made = await world.create(service(type="LoadBalancer"))
        assert version(await world.update(service(type="LoadBalancer"))) == version(made)

    in_world(work)

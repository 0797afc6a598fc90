"""Claims: several servers over one store never give one value out twice, also when one dies between two writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, key
from podwire_base.testing.builders import run, service
from podwire_base.testing.counts import examples
from podwire_controlplane.allocators import addresses_of, pod_cidrs_of, ports_of
from podwire_controlplane.server.claims import GRACE
from podwire_controlplane.server.writes import WriteOptions
from podwire_controlplane.store.base import Item, Store, StoredChange
from podwire_controlplane.store.memory import MemoryStore
from podwire_controlplane.store.sqlite import SqliteStore

from ..testing.builders import World
from .test_objects import in_world, refused


class Killed(Exception):
    """The server process has ended."""


class Mortal:
    """A server's view of the store: the server dies at its next-but-`writes` write, before or after it is done."""

    def __init__(self, store: Store) -> None:
        self.store, self.writes, self.done = store, -1, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def _write(self, work: Callable[[], Any]) -> Any:
        self.writes -= 1
        if self.writes < -1 or self.writes > -1:
            return await work()
        if self.done:
            await work()
        raise Killed

    def dies(self, writes: int, *, done: bool) -> None:
        self.writes, self.done = writes, done

    async def put(self, key: str, value: bytes, expect: int | None = None) -> Item:
        item: Item = await self._write(lambda: self.store.put(key, value, expect))
        return item

    async def delete(self, key: str, expect: int | None = None) -> StoredChange:
        change: StoredChange = await self._write(lambda: self.store.delete(key, expect))
        return change


async def services(world: World) -> list[Object]:
    found = await world.store.scan(world.scope("Service").resource.prefix())
    return [await world.get("Service", item.key.rpartition("/")[2]) for item in found]


def values(found: list[Object]) -> tuple[dict[str, str], dict[int, str]]:
    """Return what the Services have. A value that two of them have fails the test."""
    addresses, ports = dict[str, str](), dict[int, str]()
    for one in found:
        for address in addresses_of(one):
            assert addresses.setdefault(address, key(one)) == key(one), f"{address} twice"
        for port in ports_of(one):
            assert ports.setdefault(port, key(one)) == key(one), f"{port} twice"
    return addresses, ports


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    return MemoryStore if request.param == "memory" else lambda: SqliteStore(tmp_path / "s.db")


def test_two_servers_fill_a_small_range_without_one_value_twice(make: Callable[[], Store]) -> None:
    async def body() -> None:
        store = make()
        one = await World(store, "10.96.0.0/27", range(30000, 30012)).start()
        two = World(store, "10.96.0.0/27", range(30000, 30012))
        await two.objects.start()
        asked = [
            world.create(service(f"{own}{n}", type="NodePort")) for n in range(8) for own, world in _both(one, two)
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(x, dict) for x in found) == 12, "as many as there are node ports"
        assert all(isinstance(x, dict) or (isinstance(x, StatusError) and x.code == 500) for x in found)
        assert values(await services(one)) == await two.claimed()
        await asyncio.gather(*(two.delete("Service", x["metadata"]["name"]) for x in found if isinstance(x, dict)))
        assert await one.claimed() == ({}, {})
        await store.close()

    run(body())


def _both(one: World, two: World) -> list[tuple[str, World]]:
    return [("a", one), ("b", two)]


def test_two_servers_and_one_wish(make: Callable[[], Store]) -> None:
    async def body() -> None:
        store = make()
        one, two = await World(store).start(), World(store)
        await two.objects.start()
        wish: dict[str, Any] = {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "10.96.0.9",
            "healthCheckNodePort": 30005, "ports": [{"port": 80, "nodePort": 30004}],
        }  # fmt: skip
        asked = [w.create(service(f"{own}{n}", **wish)) for n in range(3) for own, w in _both(one, two)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(x, dict) for x in found) == 1
        addresses, ports = await one.claimed()
        assert set(addresses) == {"10.96.0.9"} and set(ports) == {30004, 30005}
        await store.close()

    run(body())


def test_addresses_are_objects_as_upstream_writes_them() -> None:
    async def work(world: World) -> None:
        made = await world.create(service(clusterIP="10.96.0.9"))
        found = await world.get("IPAddress", "10.96.0.9")
        labels = {
            "ipaddress.kubernetes.io/ip-family": "IPv4",
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        }
        assert found["metadata"]["labels"] == labels
        assert found["spec"] == {"parentRef": {"resource": "services", "namespace": "default", "name": "web"}}
        assert made["metadata"]["name"] == "web" and found["apiVersion"] == "networking.k8s.io/v1"
        again = await world.update(found)
        assert again == found, "it is what a client would have written"
        await world.delete("Service", "web")
        await refused(world.get("IPAddress", "10.96.0.9"), 404)

    in_world(work)


def test_one_spelling_of_an_address() -> None:
    async def body() -> None:
        world = await World(second="fd00:10:96::/112").start()
        await world.create(service("one", clusterIP="fd00:0010:96::00a"))
        await refused(world.create(service("two", clusterIP="fd00:10:96::a")), 422, "taken by Service default/one")

    run(body())


def test_an_address_that_somebody_reserves_by_hand_is_never_given_out() -> None:
    async def work(world: World) -> None:
        parent = {"resource": "widgets", "name": "mine", "namespace": "default"}
        reserved = {"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.96.0.9"}}
        await world.create({**reserved, "spec": {"parentRef": parent}})
        world.now += 10 * GRACE
        await world.objects.care.repair()
        await refused(world.create(service(clusterIP="10.96.0.9")), 422, "taken")

    in_world(work)


def test_a_store_of_an_earlier_version_gets_its_claims() -> None:
    async def work(world: World) -> None:
        for n in range(3):
            await world.create(service(f"s{n}", type="NodePort"))
        before = await world.claimed()
        for item in await world.store.scan("/"):
            if "/nodeports/" in item.key or "/ipaddresses/" in item.key:
                await world.store.delete(item.key)
        assert await world.claimed() == ({}, {})
        await World(world.store).objects.start()
        assert await world.claimed() == before

    in_world(work)


def test_a_claim_without_its_service_is_free_after_a_while() -> None:
    async def body() -> None:
        store = MemoryStore()
        world, mortal = await World(store).start(), Mortal(store)
        dead = World(mortal)
        mortal.dies(2, done=False)  # after its two claims
        with pytest.raises(Killed):
            await dead.create(service(type="NodePort", clusterIP="10.96.0.9"))
        addresses, ports = await world.claimed()
        assert addresses == {"10.96.0.9": "default/web"} and len(ports) == 1
        await refused(world.create(service("other", clusterIP="10.96.0.9")), 422, "taken by Service default/web")
        world.now += GRACE + 1
        await world.create(service("other", clusterIP="10.96.0.9"))
        await world.objects.care.repair()
        assert await world.claimed() == ({"10.96.0.9": "default/other"}, {})

    run(body())


def test_a_slow_write_gives_up_before_others_may_take_its_claims() -> None:
    async def body() -> None:
        world = await World().start()
        put = world.store.put

        async def slow(key: str, value: bytes, expect: int | None = None) -> Item:
            world.now += GRACE
            return await put(key, value, expect)

        world.store.put = slow  # type: ignore[method-assign]
        await refused(world.create(service()), 409, "too slow")
        assert await world.claimed() == ({}, {})

    run(body())


def test_pod_ranges_of_two_nodes_never_overlap() -> None:
    def node(own: str, *cidrs: str) -> Object:
        return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": own}, "spec": {"podCIDRs": list(cidrs)}}

    async def work(world: World) -> None:
        two = World(world.store)
        await two.objects.start()
        await world.create(node("n1", "10.244.0.0/24", "fd00::/64"))
        await refused(two.create(node("n2", "10.244.0.128/25")), 422, "spec.podCIDRs", "of node n1")
        await two.create(node("n2"))
        patch = {"spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]}}
        asked = [w.patch("Node", own, patch) for own, w in (("n2", world), ("n3", two))]
        await two.create(node("n3"))
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(x, dict) for x in found) == 1
        nodes = [await world.get("Node", own) for own in ("n1", "n2", "n3")]
        assert sorted(c for n in nodes for c in pod_cidrs_of(n)) == ["10.244.0.0/24", "10.244.1.0/24", "fd00::/64"]
        await world.delete("Node", "n1")
        await two.create(node("n4", "10.244.0.0/23".replace("/23", "/24")))

    in_world(work)


# ---- any sequence, with deaths

_NAMES = st.sampled_from(["a", "b", "c", "d"])
_TYPES = st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName", "headless"])
_POLICY = st.sampled_from(["SingleStack", "PreferDualStack"])


class Servers(RuleBasedStateMachine):
    """Two servers over one store. A server may die at any write; another takes its place."""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.store = MemoryStore()
        self.now = 1_000_000_000.0
        self.worlds = [self._server(), self._server()]
        self.runner.run(self.worlds[0].start())

    def _server(self) -> World:
        mortal: Any = Mortal(self.store)
        world = World(mortal, "10.96.0.0/29", range(30000, 30005), "fd00:10:96::/125")
        world.now = self.now
        return world

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self._pass(GRACE + 1)
            found = self.runner.run(services(self.worlds[0]))
            assert self.runner.run(self.worlds[0].claimed()) == values(found), (
                "after a repair there is no claim too many"
            )
            self.runner.close()

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        for world in self.worlds:
            world.now = self.now
        self.runner.run(self.worlds[0].objects.care.repair())

    def _do(self, which: int, death: tuple[int, bool] | None, work: Any) -> None:
        world = self.worlds[which]
        if death:
            world.store.dies(death[0], done=death[1])  # type: ignore[attr-defined]
        try:
            self.runner.run(work(world))
        except StatusError as err:
            assert err.code in (404, 409, 422, 500), err
        except Killed:
            self.worlds[which] = self._server()
        world.store.dies(-1, done=False)  # type: ignore[attr-defined]

    @rule(
        which=st.integers(0, 1), own=_NAMES, kind=_TYPES, policy=_POLICY, host=st.none() | st.integers(1, 6),
        port=st.none() | st.integers(30000, 30004), local=st.booleans(),
        death=st.none() | st.tuples(st.integers(0, 6), st.booleans()),
    )  # fmt: skip
    def write(
        self, which: int, own: str, kind: str, policy: str, host: int | None, port: int | None, local: bool, death: Any
    ) -> None:
        spec: dict[str, Any] = {"type": "ClusterIP" if kind == "headless" else kind, "externalName": "x.example"}
        if kind != "ExternalName":
            spec["ipFamilyPolicy"] = policy
        if kind == "headless":
            spec |= {"clusterIP": "None", "selector": {"a": "b"}}
        elif host is not None and kind != "ExternalName":
            spec["clusterIP"] = f"10.96.0.{host}"
        if kind == "LoadBalancer" and local:
            spec["externalTrafficPolicy"] = "Local"
        rows = [{"name": "t", "port": 80}, {"name": "u", "port": 80, "protocol": "UDP"}]
        wanted = service(own, ports=[{**rows[0], **({"nodePort": port} if port else {})}, rows[1]], **spec)

        async def work(world: World) -> None:
            try:
                await world.objects.create(world.scope("Service"), wanted, WriteOptions())
            except StatusError as err:
                if err.reason != "AlreadyExists":
                    raise
                await world.update(wanted)

        self._do(which, death, work)

    @rule(which=st.integers(0, 1), own=_NAMES, death=st.none() | st.tuples(st.integers(0, 4), st.booleans()))
    def remove(self, which: int, own: str, death: Any) -> None:
        self._do(which, death, lambda world: world.delete("Service", own))

    @rule(seconds=st.sampled_from([1.0, GRACE / 2, GRACE + 1]))
    def later(self, seconds: float) -> None:
        self._pass(seconds)

    @invariant()
    def nothing_is_given_out_twice(self) -> None:
        if not hasattr(self, "runner"):
            return
        held = self.runner.run(self.worlds[0].claimed())
        addresses, ports = values(self.runner.run(services(self.worlds[0])))
        assert addresses.items() <= held[0].items() and ports.items() <= held[1].items(), (
            "what Services have is claimed"
        )


TestServers = Servers.TestCase
TestServers.settings = settings(max_examples=examples(20, 200), stateful_step_count=25, deadline=None)

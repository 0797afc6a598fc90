"""Further ranges of Service addresses: ServiceCIDR objects, and the controller that keeps them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object
from podwire_base.testing.builders import NOW, service

from ..controllers import servicecidrs
from ..controllers.servicecidrs import FINALIZER
from ..server.writes import Scope, WriteOptions
from ..testing.builders import World, snapshot

SMALL = "10.96.0.0/29"  # six addresses
MORE = "10.97.0.0/29"


def cidr(own: str, *cidrs: str, ready: str = "", going: bool = False, held: bool = True) -> Object:
    metadata: Object = {"name": own, "uid": f"u-{own}", "finalizers": [FINALIZER] * held}
    if going:
        metadata["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    made: Object = {"kind": "ServiceCIDR", "metadata": metadata, "spec": {"cidrs": list(cidrs)}}
    if ready:
        made["status"] = {"conditions": [{"type": "Ready", "status": ready, "reason": "", "message": ""}]}
    return made


def address(text: str) -> Object:
    return {"kind": "IPAddress", "metadata": {"name": text}}


def numbered(number: int, **spec: Any) -> Object:
    made = service(f"s{number}")
    made["spec"] = {"ports": [{"port": 80}], **spec}
    return made


def test_a_further_range_counts_while_it_is_ready() -> None:
    async def work() -> None:
        world = await World(cidr=SMALL).start()
        for number in range(6):
            await world.create(numbered(number))
        with pytest.raises(StatusError, match=r"no free address in the Service range 10\.96\.0\.0/29"):
            await world.create(numbered(6))
        await world.create({"kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": {"cidrs": [MORE]}})
        with pytest.raises(StatusError, match="no free address"):
            await world.create(numbered(6))  # nobody has said yet that it is ready
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "",
            "message": "",
            "lastTransitionTime": "2027-01-15T08:00:00Z",
        }
        await world.patch("ServiceCIDR", "more", {"status": {"conditions": [ready]}}, "status")
        drawn = (await world.create(numbered(6)))["spec"]["clusterIP"]
        assert drawn.startswith("10.97.0.")
        own = "10.97.0.5" if drawn == "10.97.0.6" else "10.97.0.6"
        assert (await world.create(numbered(7, clusterIP=own)))["spec"]["clusterIP"] == own
        with pytest.raises(StatusError, match="network or broadcast address"):
            await world.create(numbered(8, clusterIP="10.97.0.7"))
        with pytest.raises(StatusError, match=r"outside the Service ranges 10\.96\.0\.0/29 and 10\.97\.0\.0/29"):
            await world.create(numbered(8, clusterIP="10.98.0.1"))
        second = World(world.store, SMALL)
        await second.objects.start()
        assert [str(one) for one in second.allocator.more] == [MORE], "a server that starts later knows it too"
        await world.delete("ServiceCIDR", "more")
        assert world.allocator.more == second.allocator.more == []
        with pytest.raises(StatusError, match="no free address"):
            await world.create(numbered(8))
        assert (await world.get("Service", "s6"))["spec"]["clusterIP"] == drawn

    asyncio.run(work())


@pytest.mark.parametrize(
    ("objects", "verb", "change"),
    [
        ([cidr("more", MORE, held=False)], "patch", [FINALIZER]),
        ([cidr("more", MORE)], "status", "True"),
        ([cidr("more", MORE, ready="True")], "", None),
        ([cidr("more", MORE, ready="True", going=True), address("10.97.0.3")], "status", "False"),
        ([cidr("more", MORE, ready="True", going=True), address("10.98.0.3")], "patch", []),
        (
            [cidr("more", MORE, ready="True", going=True), cidr("wide", "10.97.0.0/16"), address("10.97.0.3")],
            "patch",
            [],
        ),
        (
            [cidr("more", MORE, going=True), cidr("wide", "10.97.0.0/16", going=True), address("10.97.0.3")],
            "status",
            "False",
        ),
        ([cidr("more", MORE, going=True, held=False)], "", None),
    ],
    ids=["new", "held", "ready", "in use", "free", "in another range", "both go", "let go"],
)
def test_a_range_stays_while_an_address_of_it_is_in_use(objects: list[Object], verb: str, change: Any) -> None:
    writes = servicecidrs.reconcile("more", snapshot(*objects), NOW)
    assert [write.verb for write in writes] == [verb] * bool(verb)
    for write in writes:
        found = (
            write.obj["metadata"]["finalizers"] if verb == "patch" else write.obj["status"]["conditions"][0]["status"]
        )
        assert found == change


def test_what_goes_is_looked_at_when_an_address_goes() -> None:
    (row,) = servicecidrs.CONTROLLERS
    held = snapshot(cidr("more", MORE, going=True), cidr("other", "10.99.0.0/24"))
    assert list(row.watches["IPAddress"](address("10.97.0.3"), held)) == ["more"]
    assert servicecidrs.reconcile("kubernetes", snapshot(cidr("kubernetes", SMALL, held=False)), NOW) == []


def test_the_condition_is_written_as_the_api_keeps_it() -> None:
    async def work() -> None:
        world = await World(cidr=SMALL).start()
        made = await world.create({"kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": {"cidrs": [MORE]}})
        for _ in range(2):
            (write,) = servicecidrs.reconcile("more", snapshot(made), NOW)
            sub = "status" if write.verb == "status" else ""
            scope = Scope(world.scope("ServiceCIDR").resource, "", "more", sub)
            await world.objects.patch(scope, "application/merge-patch+json", write.obj, WriteOptions())
            made = await world.get("ServiceCIDR", "more")
        assert servicecidrs.reconcile("more", snapshot(made), NOW) == []
        assert [str(one) for one in world.allocator.more] == [MORE]

    asyncio.run(work())

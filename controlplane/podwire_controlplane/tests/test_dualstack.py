"""Services of a cluster with two Service ranges: families, policies, addresses, and what an update may change."""

from __future__ import annotations

import ipaddress
import json
import ssl
from pathlib import Path

import pytest

from podwire_base.kube.meta import Object
from podwire_base.testing.builders import run, service
from podwire_controlplane.allocators import service_ranges
from podwire_controlplane.server import servicecidrs

from ..testing.builders import World
from ..testing.recordings import read, replay
from ..testing.replay import Connection
from ..testing.servers import AUTHORITY, Server
from .test_objects import refused
from .test_services import in_both

BOTH = ["IPv4", "IPv6"]


def test_answers_are_those_of_kube_apiserver() -> None:
    with Server(second="fd00:10:96::/112") as server:
        server.good("POST", "/api/v1/namespaces", {"metadata": {"name": "team-a"}})
        context = ssl.create_default_context(cadata=AUTHORITY.certificate)
        link = Connection(server.port, context, "admin-token")
        records = read(Path(__file__).parent / "records/dualstack.jsonl")
        assert len(records) > 50
        assert {r["id"]: found for r in records if (found := replay(link, r))} == {}
        link.close()


def families(obj: Object) -> list[str]:
    return [f"IPv{ipaddress.ip_address(address).version}" for address in obj["spec"]["clusterIPs"]]


def test_up_and_down_and_up_again() -> None:
    async def work(world: World) -> None:
        made = await world.create(service(selector={"a": "b"}))
        first = made["spec"]["clusterIP"]
        assert (families(made), made["spec"]["ipFamilyPolicy"]) == (["IPv4"], "SingleStack")
        both = await world.patch("Service", "web", {"spec": {"ipFamilyPolicy": "PreferDualStack"}})
        assert families(both) == BOTH == both["spec"]["ipFamilies"] and both["spec"]["clusterIP"] == first
        second = both["spec"]["clusterIPs"][1]
        again = await world.update(service(selector={"a": "c"}))  # without addresses, families and policy
        assert again["spec"]["clusterIPs"] == [first, second] and again["spec"]["ipFamilies"] == BOTH
        less = await world.patch("Service", "web", {"spec": {"ipFamilyPolicy": "SingleStack"}})
        assert less["spec"]["clusterIPs"] == [first] and less["spec"]["ipFamilies"] == ["IPv4"]
        other = await world.create(service("other", clusterIP=second))  # it is free again
        assert other["spec"]["ipFamilies"] == ["IPv6"]

    in_both(work)


@pytest.mark.parametrize(
    ("spec", "field", "says"),
    [
        ({"clusterIPs": ["10.96.0.77", "fd00:10:96::77"], "clusterIP": "10.96.0.77"}, "spec.clusterIPs[0]", "may not"),
        ({"ipFamilies": ["IPv6", "IPv4"]}, "spec.clusterIPs[0]", "expected an IPv6 value"),
        ({"ipFamilies": ["IPv4"]}, "spec.ipFamilyPolicy", "SingleStack"),
        ({"clusterIPs": ["ADDRESS"]}, "spec.ipFamilyPolicy", "SingleStack"),
        ({"clusterIP": "None", "clusterIPs": ["None"]}, "spec.ipFamilyPolicy", "SingleStack"),
    ],
)
def test_what_an_update_may_not_change(spec: Object, field: str, says: str) -> None:
    async def work(world: World) -> None:
        made = await world.create(service(selector={"a": "b"}, ipFamilyPolicy="RequireDualStack"))
        change = json.loads(json.dumps(spec).replace("ADDRESS", made["spec"]["clusterIP"]))
        await refused(world.patch("Service", "web", {"spec": change}), 422, field, says)

    in_both(work)


def test_external_name_gives_both_back_and_gets_them_anew() -> None:
    async def work(world: World) -> None:
        made = await world.create(service(ipFamilyPolicy="RequireDualStack", ipFamilies=["IPv6", "IPv4"]))
        assert families(made) == ["IPv6", "IPv4"]
        name = await world.patch("Service", "web", {"spec": {"type": "ExternalName", "externalName": "a.example"}})
        assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & set(name["spec"])
        for address in made["spec"]["clusterIPs"]:
            taken = await world.create(service(f"x{address[:2]}", clusterIP=address))
            assert taken["spec"]["clusterIP"] == address
        back = await world.patch("Service", "web", {"spec": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack"}})
        assert families(back) == BOTH and back["spec"]["ports"][0]["nodePort"]

    in_both(work)


def test_headless_services_may_change_their_families() -> None:
    async def work(world: World) -> None:
        made = await world.create(service(clusterIP="None", selector={"a": "b"}, ipFamilies=["IPv6"]))
        assert made["spec"]["ipFamilies"] == ["IPv6"] and made["spec"]["clusterIPs"] == ["None"]
        after = await world.patch("Service", "web", {"spec": {"ipFamilies": ["IPv4"]}})
        assert after["spec"]["ipFamilies"] == ["IPv4"]

    in_both(work)


def test_a_cluster_that_becomes_dual_stack_changes_no_service_by_itself() -> None:
    async def body() -> None:
        single = await World().start()
        made = await single.create(service(selector={"a": "b"}, ipFamilyPolicy="PreferDualStack"))
        world = World(single.store, second="fd00:10:96::/112")
        await world.objects.start()
        same = await world.patch("Service", "web", {"spec": {"selector": {"a": "c"}}})
        assert same["spec"]["clusterIPs"] == made["spec"]["clusterIPs"] and same["spec"]["ipFamilies"] == ["IPv4"]
        both = await world.patch("Service", "web", {"spec": {"ipFamilyPolicy": "RequireDualStack"}})
        assert families(both) == BOTH

    run(body())


def test_node_ports_stay_with_the_name_of_their_port() -> None:
    async def work(world: World) -> None:
        ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
        made = await world.create(service(type="NodePort", ports=ports))
        held = {p["name"]: p["nodePort"] for p in made["spec"]["ports"]}
        moved = [{"name": "a", "port": 90}, {"name": "c", "port": 81}, {"name": "d", "port": 82, "nodePort": held["b"]}]
        after = await world.update(service(type="NodePort", ports=moved))
        found = {p["name"]: p["nodePort"] for p in after["spec"]["ports"]}
        assert found["a"] == held["a"] and found["d"] == held["b"] and found["c"] not in held.values()

    in_both(work)


@pytest.mark.parametrize(
    "text", ["10.0.0.0/16,10.1.0.0/16", "fd00::/112,fd01::/112", "a", "", "10.0.0.0/8,fd00::/112,"]
)
def test_ranges_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        service_ranges(text)


def test_the_ranges_are_an_object_and_follow_the_setting() -> None:
    async def work(world: World) -> None:
        for cidrs in (["10.96.0.0/24"], ["10.96.0.0/24", "fd00:10:96::/112"], ["fd00:10:96::/112"]):
            for _ in range(2):
                await servicecidrs.ensure(world.objects, cidrs)
                found = await world.get("ServiceCIDR", "kubernetes")
                assert found["spec"]["cidrs"] == cidrs
                assert [(c["type"], c["status"]) for c in found["status"]["conditions"]] == [("Ready", "True")]

    in_both(work)

"""ClusterNetworkPolicy, which the API server defines itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from podwire_base.kube import codec
from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of

from ..custom import definition as checks
from ..custom import policykind
from ..server import builtinkinds
from ..store.memory import MemoryStore
from ..testing.servers import Server
from ..testing.widgets import CRDS

PATH = f"/apis/{policykind.GROUP}/{policykind.VERSION}/{policykind.PLURAL}"
EVERY: Object = {"namespaces": {}}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as found:
        found.do(builtinkinds.keep(found.store, 0.0))
        yield found


def policy(own: str = "guard", **spec: Any) -> Object:
    usual = {"tier": "Admin", "priority": 5, "subject": EVERY}
    return {
        "apiVersion": f"{policykind.GROUP}/{policykind.VERSION}",
        "kind": policykind.KIND,
        "metadata": {"name": own},
        "spec": {**usual, **spec},
    }


def to(*peers: Object, **more: Any) -> Object:
    return {"egress": [{"action": "Deny", "to": list(peers), **more}]}


def ports(**protocol: Any) -> Object:
    return to(EVERY, protocols=[protocol])


def test_our_own_checks_take_the_definition() -> None:
    made = policykind.definition()
    assert not list(checks.update(made, made))


GOOD: dict[str, Object] = {
    "no rules": {},
    "highest priority": {"priority": 1000},
    "pods": {"subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}}},
    "networks": to({"networks": ["10.0.0.0/8", "fd00::/8"]}),
    "nodes": to({"nodes": {"matchLabels": {"role": "edge"}}}),
    "a port": ports(tcp={"destinationPort": {"number": 80}}),
    "a range": ports(sctp={"destinationPort": {"range": {"start": 80, "end": 90}}}),
    "a named port": ports(destinationNamedPort="http"),
    "a whole protocol": ports(udp={}),
}
BAD: dict[str, tuple[Object, str]] = {
    "tier": ({"tier": "Later"}, "spec.tier"),
    "priority above": ({"priority": 1001}, "spec.priority"),
    "priority below": ({"priority": -1}, "spec.priority"),
    "two subjects": ({"subject": {**EVERY, "pods": {"namespaceSelector": {}, "podSelector": {}}}}, "spec.subject"),
    "no subject": ({"subject": {}}, "spec.subject"),
    "an unknown peer": (to({"domainNames": ["a.example"]}), "spec.egress[0].to[0]"),
    "no peers": (to(), "spec.egress[0].to"),
    "an action": ({"egress": [{"action": "Allow", "to": [EVERY]}]}, "spec.egress[0].action"),
    "a network": (to({"networks": ["10.0.0.0/33"]}), "spec.egress[0].to[0].networks[0]"),
    "networks of ingress": ({"ingress": [{"action": "Deny", "from": [{"networks": ["10.0.0.0/8"]}]}]},
                            "spec.ingress[0].from[0]"),
    "a port": (ports(tcp={"destinationPort": {"number": 0}}),
               "spec.egress[0].protocols[0].tcp.destinationPort.number"),
    "a range backwards": (ports(tcp={"destinationPort": {"range": {"start": 90, "end": 80}}}),
                          "spec.egress[0].protocols[0].tcp.destinationPort.range"),
    "two protocols": (ports(tcp={}, udp={}), "spec.egress[0].protocols[0]"),
    "an operator": ({"subject": {"namespaces": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}},
                    "spec.subject.namespaces.matchExpressions[0].operator"),
}  # fmt: skip


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD)
def test_it_takes(server: Server, spec: Object) -> None:
    made = server.good("POST", PATH, policy(**spec))
    assert made["spec"] == policy(**spec)["spec"], "no field is lost"
    server.good("DELETE", f"{PATH}/guard")


@pytest.mark.parametrize(("spec", "field"), BAD.values(), ids=BAD)
def test_it_refuses_and_names_the_field(server: Server, spec: Object, field: str) -> None:
    status, answer = server.ask("POST", PATH, policy(**spec))
    assert status == 422, answer
    assert field in [cause["field"] for cause in answer["details"]["causes"]], answer


def test_one_that_somebody_changed_stays() -> None:
    async def check() -> None:
        store, key = MemoryStore(), of("CustomResourceDefinition").key("", policykind.NAME)

        async def change(field: str, value: object) -> None:
            item = await store.get(key)
            assert item is not None
            obj = codec.decode(item.value)
            obj["spec"][field] = value
            if field == "scope":  # as an older version of the server would have written it
                obj["metadata"]["annotations"][policykind.BUILT_IN] = policykind.digest(obj["spec"])
            await store.put(key, codec.encode(obj), item.revision)

        assert await builtinkinds.keep(store, 0.0)
        assert not await builtinkinds.keep(store, 0.0)
        await change("scope", "Namespaced")
        assert await builtinkinds.keep(store, 0.0), "an older one of ours is renewed"
        await change("preserveUnknownFields", True)
        assert not await builtinkinds.keep(store, 0.0), "another's is not"

    asyncio.run(check())


def test_it_is_listed_with_its_columns(server: Server) -> None:
    server.good("POST", PATH, policy("shown"))
    found = server.good("GET", f"{CRDS}/{policykind.NAME}")
    assert found["status"]["acceptedNames"]["shortNames"] == ["cnp"]
    table = server.good("GET", PATH, headers={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})
    assert [column["name"] for column in table["columnDefinitions"]] == ["Name", "Tier", "Priority", "Age"]
    assert table["rows"][0]["cells"][:3] == ["shown", "Admin", 5]

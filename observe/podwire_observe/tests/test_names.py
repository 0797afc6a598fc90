"""Who has an address: pods, also when another pod gets it, Services, nodes, and which node tells of a connection."""

from __future__ import annotations

from typing import Any

import pytest

from podwire_base.kernel.conntrack.counted import Counted
from podwire_base.kernel.ip import packed

from ..names import Holders, Names
from ..record import End, Service

WEB, DB = End("pod", "shop", "web", "node1"), End("pod", "shop", "db", "node2")


def made() -> Names:
    names = Names("node1", ("10.244.0.0/16", "fd00:244::/48"), ("10.96.0.0/16",))
    names.local = frozenset({"172.30.0.11", "10.244.0.1"})
    for node, address, cidr in (("node1", "172.30.0.11", "10.244.0.0/24"), ("node2", "172.30.0.12", "10.244.1.0/24")):
        names.node_object(
            node,
            {
                "metadata": {"name": node},
                "spec": {"podCIDR": cidr},
                "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            },
        )
    names.service(
        "shop/db",
        {
            "metadata": {"namespace": "shop", "name": "db"},
            "spec": {
                "clusterIPs": ["10.96.0.10"],
                "ports": [{"name": "sql", "port": 5432, "nodePort": 30000}, {"port": 53, "protocol": "UDP"}],
                "externalIPs": ["192.0.2.9"],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}]}},
        },
    )
    names.slice(
        "shop/db-1",
        {
            "metadata": {"namespace": "shop", "name": "db-1"},
            "endpoints": [
                {
                    "addresses": ["10.244.1.3"],
                    "nodeName": "node2",
                    "targetRef": {"kind": "Pod", "namespace": "shop", "name": "db"},
                },
                {"addresses": ["192.0.2.77"]},
            ],
        },
    )
    names.pods_are({"10.244.0.2": WEB}, 100.0)
    return names


def seen(source: str, destination: str, port: int = 80, endpoint: str = "", protocol: int = 6) -> Counted:
    return Counted(
        "new", 1, protocol, packed(source), 40000, packed(destination), port, packed(endpoint or destination), 8080, 0
    )


@pytest.mark.parametrize(
    ("address", "port", "protocol", "service"),
    [
        ("10.96.0.10", 5432, 6, Service("shop", "db", "sql")),
        ("10.96.0.10", 53, 17, Service("shop", "db", "53")),
        ("192.0.2.9", 5432, 6, Service("shop", "db", "sql")),
        ("172.30.0.200", 5432, 6, Service("shop", "db", "sql")),
        ("172.30.0.12", 30000, 6, Service("shop", "db", "sql")),
        ("172.30.0.12", 30000, 17, Service()),
        (
            "10.96.0.10",
            81,
            6,
            Service("shop", "db", "81"),
        ),  # it does not have this port, and nobody else has the address
        ("192.0.2.9", 22, 6, Service()),  # an externalIP: that may be another server's port
        ("192.0.2.9", 30000, 6, Service()),
    ],
)
def test_a_service_at_all_its_addresses(address: str, port: int, protocol: int, service: Service) -> None:
    names = made()
    assert names.dialled(address, port, protocol) == service
    names.service("shop/db", None)
    assert names.dialled(address, port, protocol) == Service()


def test_both_ends_and_the_service() -> None:
    names = made()
    found = names.ends(seen("10.244.0.2", "10.96.0.10", 5432, "10.244.1.3"), 200.0)
    assert found is not None
    assert (found.source, found.target, found.service, found.probe) == (WEB, DB, Service("shop", "db", "sql"), False)
    refused = names.ends(seen("10.244.0.2", "10.96.0.10", 5432), 200.0)
    assert refused is not None
    assert refused.target == End("service", "shop", "db")


@pytest.mark.parametrize(
    ("source", "destination", "told"),
    [
        ("10.244.0.2", "10.244.1.3", True),  # a pod of this node
        ("10.244.1.3", "10.244.0.2", False),  # one of another node, which tells it
        ("172.30.0.12", "10.244.0.2", False),  # another node
        ("172.30.0.11", "10.244.1.3", True),  # this node
        ("192.0.2.1", "10.244.0.2", True),  # from outside: the node that it enters
        ("127.0.0.1", "127.0.0.1", False),
        ("172.30.0.11", "224.0.0.251", False),
        ("10.244.0.77", "10.244.1.3", True),  # of this node's range, a pod that nobody named yet
    ],
)
def test_one_node_tells_of_each_connection(source: str, destination: str, told: bool) -> None:
    assert (made().ends(seen(source, destination), 200.0) is not None) is told


def test_a_probe_is_the_node_asking_its_own_pod() -> None:
    names = made()
    probe, other = (names.ends(seen("10.244.0.1", ip), 200.0) for ip in ("10.244.0.2", "10.244.1.3"))
    assert probe is not None
    assert other is not None
    assert (probe.probe, other.probe) == (True, False)


def test_an_address_that_another_pod_gets() -> None:
    held, first, second = Holders(), End("pod", "shop", "a"), End("pod", "shop", "b")
    held.now({"10.244.0.2": first}, 100.0)
    held.now({}, 200.0)
    held.now({"10.244.0.2": second}, 300.0)
    assert [held.at("10.244.0.2", when) for when in (50.0, 150.0, 199.0, 299.0, 400.0)] == [
        first,
        first,
        first,
        second,
        second,
    ]
    held.now({"10.244.0.2": first}, 500.0)  # at once, without a moment between
    assert [held.at("10.244.0.2", when) for when in (400.0, 501.0)] == [second, first]
    held.now({}, 600.0)
    assert held.at("10.244.0.2", 700.0) is None


def test_addresses_that_nobody_has_any_more_are_bounded() -> None:
    held = Holders()
    for number in range(6000):
        held.now({f"ip-{number}": WEB}, float(number))
    assert len(held.found) < 4200
    assert held.at("ip-5999", 5999.0) == WEB


def test_objects_that_lack_everything() -> None:
    names = Names("node1")
    empty: dict[str, Any] = {"metadata": {"name": "x"}}
    names.service("x", empty)
    names.slice("x", {**empty, "endpoints": [{"targetRef": {"kind": "Pod"}}, {}]})
    names.node_object("x", empty)
    assert names.end("192.0.2.1", 0.0) == End("outside", "", "192.0.2.1")

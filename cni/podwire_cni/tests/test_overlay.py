"""The way to each peer: decided by the same rules at both ends."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_cni import overlay
from podwire_cni.overlay import Encapsulation, NextHop, PeerRoutes
from podwire_cni.routes import Cluster, Peer
from podwire_cni.types import IPAddress, IPNetwork

NEAR, FAR, NEAR6, FAR6 = map(ip_address, ("192.0.2.2", "198.51.100.2", "fd01::2", "fd02::2"))
OWN, OWN6 = map(ip_address, ("192.0.2.1", "fd01::1"))
PODS, PODS6 = map(ip_network, ("10.0.2.0/24", "fd00:2::/64"))
VIA, VIA6 = map(ip_address, ("10.0.2.1", "fd00:2::1"))


def peer(*addresses: IPAddress, cidrs: tuple[IPNetwork, ...] = (PODS,)) -> Peer:
    return Peer("n2", cidrs, addresses)


@pytest.mark.parametrize(
    ("mode", "own", "addresses", "cidrs", "hops"),
    [
        ("auto", (OWN,), (NEAR,), (PODS,), [NextHop(NEAR)]),
        ("auto", (OWN,), (FAR,), (PODS,), [NextHop(VIA, "podwire-vxlan")]),
        ("always", (OWN,), (NEAR,), (PODS,), [NextHop(VIA, "podwire-vxlan")]),
        ("never", (OWN,), (FAR,), (PODS,), [NextHop(FAR)]),
        ("auto", (OWN, OWN6), (FAR, NEAR6), (PODS, PODS6), [NextHop(VIA, "podwire-vxlan"), NextHop(NEAR6)]),
        (
            "auto",
            (OWN6,),
            (FAR, FAR6),
            (PODS, PODS6),
            [NextHop(VIA, "podwire-vxlan6"), NextHop(VIA6, "podwire-vxlan6")],
        ),
        ("auto", (OWN,), (NEAR,), (PODS, PODS6), [NextHop(NEAR), NextHop(VIA6, "podwire-vxlan")]),
        ("auto", (OWN,), (FAR6,), (PODS,), []),
        ("never", (OWN,), (NEAR,), (PODS6,), []),
    ],
)
def test_each_peer_is_reached_as_it_can_be(
    mode: Encapsulation, own: Any, addresses: Any, cidrs: Any, hops: list[NextHop]
) -> None:
    wires = overlay.plan(Cluster((peer(*addresses, cidrs=cidrs),), own), {NEAR, NEAR6}, mode)
    assert list(wires.routes.values()) == hops
    assert all("Node n2" in problem for problem in wires.problems) and len(wires.problems) == len(cidrs) - len(hops)
    # Every next hop in a tunnel has its MAC, and every MAC its node.
    tunnelled = {(hop.link, hop.via) for hop in hops if hop.link}
    assert set(wires.neighbours) == tunnelled
    assert {(link, mac) for (link, _), mac in wires.neighbours.items()} == set(wires.forwarding)


def test_the_largest_header_in_use_counts() -> None:
    both = {PODS: NextHop(VIA, "podwire-vxlan"), PODS6: NextHop(VIA6, "podwire-vxlan6")}
    assert [
        PeerRoutes({PODS: NextHop(NEAR)}).overhead,
        PeerRoutes({PODS: both[PODS]}).overhead,
        PeerRoutes(both).overhead,
    ] == [
        0,
        50,
        70,
    ]


def test_an_end_speaks_from_the_node_s_address_where_the_node_has_it() -> None:
    wires = PeerRoutes({PODS: NextHop(VIA, "podwire-vxlan"), PODS6: NextHop(VIA6, "podwire-vxlan6")})
    four, six = overlay.tunnels(wires, "n1", 1500, (OWN, OWN6), {OWN}, ())
    assert (four.local, four.mtu, six.local, six.mtu) == (OWN, 1450, None, 1430)
    assert four.mac == six.mac == overlay.tunnel_mac("n1")


def test_macs_are_unicast_local_and_apart() -> None:
    macs = {overlay.tunnel_mac(f"node-{n}") for n in range(5000)}
    assert len(macs) == 5000 and {int(mac[:2], 16) & 3 for mac in macs} == {2}


TABLE = st.dictionaries(st.integers(0, 5), st.integers(1, 4))


@given(TABLE, TABLE)
def test_changes_lead_from_any_table_to_the_desired_one(desired: dict[int, int], present: dict[int, int]) -> None:
    put, drop = overlay.changes(desired, present)
    assert {**{k: v for k, v in present.items() if k not in drop}, **put} == desired
    assert not put.keys() & drop.keys() and all(present.get(k) != v for k, v in put.items())

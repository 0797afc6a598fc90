"""The sources that the rules of the tunnels accept, against the podCIDRs and addresses of the nodes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kernel.ip import FAMILIES, Family, family_of, mac_bytes
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_cni import tunneltable
from podwire_cni.overlay import tunnel_mac
from podwire_cni.routes import Peer
from podwire_cni.tunneltable import TunnelRules
from podwire_cni.types import IPAddress, IPNetwork

BITS = {"ip": 32, "ip6": 128}
NAMES = ("n1", "n2", "n3", "nobody")


def loaded(rules: TunnelRules) -> dict[Family, nft.TableDump]:
    kernel = FakeConnection()
    kernel.commit(tunneltable.plan(rules))
    return {family: kernel.state[nft.Table(family, tunneltable.TABLE)] for family in FAMILIES}


def accepts(table: nft.TableDump, mac: str, source: IPAddress) -> bool:
    """What the rules of the chain `prerouting` say about a packet that leaves a tunnel."""
    bits = source.max_prefixlen
    for name, held in table.elements.items():
        if name.startswith("sources-"):
            rest = bits - int(name.removeprefix("sources-"))
            masked = (int(source) >> rest << rest).to_bytes(bits // 8, "big")
            if nft.key(mac_bytes(mac), masked) in held:
                return True
    return False


def small(number: int, six: bool) -> IPAddress:
    """One of few addresses, so that random networks and addresses meet."""
    return ip_address(f"fd00::{number:x}" if six else f"10.0.0.{number}")


NETWORK = st.builds(
    lambda number, host, six: ip_network(f"{small(number, six)}/{(128 if six else 32) - host}", strict=False),
    st.integers(0, 63),
    st.integers(0, 6),
    st.booleans(),
)
ADDRESS = st.builds(small, st.integers(0, 63), st.booleans())
PEERS = st.tuples(
    *(
        st.builds(
            Peer, st.just(name), st.lists(NETWORK, max_size=3).map(tuple), st.lists(ADDRESS, max_size=2).map(tuple)
        )
        for name in NAMES[:3]
    )
)


@given(PEERS, ADDRESS)
def test_a_source_is_accepted_exactly_from_its_own_node(peers: tuple[Peer, ...], source: IPAddress) -> None:
    tables, of_peer = loaded(TunnelRules(peers)), {peer.name: peer for peer in peers}

    def owns(peer: Peer) -> bool:
        nets: list[IPNetwork] = [cidr for cidr in peer.cidrs if cidr.version == source.version]
        return source in peer.addresses or any(source in cidr for cidr in nets)

    for name in NAMES:
        expected = name in of_peer and owns(of_peer[name])
        assert accepts(tables[family_of(source)], tunnel_mac(name), source) == expected


def test_the_outer_address_and_the_mac_belong_together() -> None:
    peers = (
        Peer("n2", (), (ip_address("192.0.2.2"), ip_address("fd01::2"))),
        Peer("n3", (ip_network("10.0.3.0/24"),), (ip_address("192.0.2.3"),)),
    )
    tables = loaded(TunnelRules(peers))
    assert set(tables["ip"].elements["peers"]) == {
        nft.key(bytes((192, 0, 2, number)), mac_bytes(tunnel_mac(f"n{number}"))) for number in (2, 3)
    }
    assert set(tables["ip6"].elements["peers"]) == {nft.key(ip_address("fd01::2").packed, mac_bytes(tunnel_mac("n2")))}


def test_where_settings_keep_sources_the_node_alone_is_checked() -> None:
    table = loaded(TunnelRules((Peer("n2", (), (ip_address("192.0.2.2"),)),), sources="any"))["ip"]
    assert not [name for name in table.elements if name.startswith("sources-")]
    assert {key[16:22] for key in table.elements["macs"]} == {mac_bytes(tunnel_mac("n2"))}


def test_without_other_nodes_nothing_enters_or_leaves() -> None:
    for table in loaded(TunnelRules()).values():
        assert table.elements["peers"] == {} and not [name for name in table.elements if name.startswith("sources-")]
        assert table.rules["prerouting"][-1].exprs[-1] == table.rules["input"][-1].exprs[-1] == nft.drop()

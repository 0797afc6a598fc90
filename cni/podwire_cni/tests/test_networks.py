"""Further bridges: the network that a configuration requests, and the state after a restart; and address
announcements.
"""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from podwire_cni import announce
from podwire_cni.conf import parse_conf
from podwire_cni.errors import CNIError
from podwire_cni.ipam.ranges import podcidr_range
from podwire_cni.networkstore import Networks
from podwire_cni.nodetable import OtherNet
from podwire_cni.plan import NodeNet
from podwire_cni.types import NetConf

MAIN = NodeNet(((podcidr_range(ip_network("10.244.1.0/24")),),), 1450)
MAC = "02:00:00:00:00:77"


def conf(bridge: str, subnet: str, **more: Any) -> NetConf:
    return parse_conf(
        json.dumps(
            {
                "cniVersion": "1.1.0",
                "name": "n",
                "type": "podwire-cni",
                "bridge": bridge,
                "ipam": {"ranges": [[{"subnet": subnet}]]},
                **more,
            }
        ).encode()
    )


class World:
    def __init__(self, folder: Path) -> None:
        self.made: list[NodeNet] = []
        self.told: list[tuple[OtherNet, ...]] = []
        self.networks = Networks(folder, self.made.append, self.told.append)
        self.networks.restore()


def test_a_network_is_made_once_and_found_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    asked = conf("lan0", "10.50.0.0/24", addressing="subnet", ipMasq=True, nonMasqueradeCIDRs=["192.0.2.7/32"])
    assert world.networks.of(asked, MAIN, make=False).bridge == "lan0" and not world.made
    net = world.networks.of(asked, MAIN, make=True)
    assert world.networks.of(asked, MAIN, make=True) == net and world.made == [net]
    assert (net.mtu, net.routed, net.is_gateway) == (1450, False, True)
    assert world.told == [(OtherNet("lan0", ("10.50.0.0/24",), frozenset({"192.0.2.7/32"})),)]
    (tmp_path / "broken.json").write_text('{"bridge": 1')
    again = World(tmp_path)
    assert again.networks.rules() == world.told[-1] and not again.made
    again.networks.ensure()
    assert again.made == [net]
    changed = again.networks.of(conf("lan0", "10.50.0.0/24", isGateway=False), MAIN, make=True)
    assert again.made[-1] == changed and again.told[-1] == (OtherNet("lan0", ("10.50.0.0/24",)),)


@pytest.mark.parametrize(("subnet", "words"), [("10.244.1.128/25", "podwire0"), ("10.50.0.0/16", "lan0")])
def test_an_address_belongs_to_one_bridge(tmp_path: Path, subnet: str, words: str) -> None:
    world = World(tmp_path)
    world.networks.of(conf("lan0", "10.50.0.0/24"), MAIN, make=True)
    with pytest.raises(CNIError, match=words) as caught:
        world.networks.of(conf("lan1", subnet), MAIN, make=True)
    assert caught.value.code == 7 and len(world.made) == 1


def test_what_others_made_is_left_alone(tmp_path: Path) -> None:
    made: list[NodeNet] = []
    networks = Networks(
        tmp_path, made.append, lambda _: None, lambda net: "other software made it" if net.bridge == "eth0" else ""
    )
    with pytest.raises(CNIError, match="eth0: other software made it") as caught:
        networks.of(conf("eth0", "10.50.0.0/24"), MAIN, make=True)
    assert caught.value.code == 7 and not made and not networks.known
    with pytest.raises(CNIError, match="another meaning"):
        networks.of(conf("podwire-vxlan", "10.50.0.0/24"), MAIN, make=True)


def test_one_network_that_cannot_be_made_stops_no_other(tmp_path: Path) -> None:
    world, made = World(tmp_path), list[str]()
    for i, bridge in enumerate(("lan0", "lan1")):
        world.networks.of(conf(bridge, f"10.5{i}.0.0/24"), MAIN, make=True)

    def make(net: NodeNet) -> None:
        if net.bridge == "lan0":
            raise FileExistsError(17, "lan0 is not a bridge")
        made.append(net.bridge)

    for name, text in (("torn", ""), ("deep", "[" * 100_000), ("other", "{}")):
        (tmp_path / f"{name}.json").write_text(text)
    again = Networks(tmp_path, make, lambda _: None)
    again.restore()
    refused = again.ensure()
    assert made == ["lan1"] and len(refused) == 1 and "lan0 is not a bridge" in refused[0]


def test_gratuitous_arp() -> None:
    got = Ether(announce.frame(MAC, ip_address("10.50.0.77")))
    assert (got.dst, got.src) == ("ff:ff:ff:ff:ff:ff", MAC)
    assert (got[ARP].psrc, got[ARP].pdst, got[ARP].hwsrc, got[ARP].op) == ("10.50.0.77", "10.50.0.77", MAC, 1)


def test_unsolicited_advertisement() -> None:
    raw = announce.frame(MAC, ip_address("fd50::77"))
    got = Ether(raw)
    assert (got.dst, got[IPv6].src, got[IPv6].dst, got[IPv6].hlim) == ("33:33:00:00:00:01", "fd50::77", "ff02::1", 255)
    assert (got[ICMPv6ND_NA].tgt, got[ICMPv6ND_NA].S, got[ICMPv6ND_NA].O) == ("fd50::77", 0, 1)
    assert got[ICMPv6NDOptDstLLAddr].lladdr == MAC
    given = got[ICMPv6ND_NA].cksum
    del got[ICMPv6ND_NA].cksum
    assert Ether(bytes(got))[ICMPv6ND_NA].cksum == given and len(raw) == len(bytes(got))

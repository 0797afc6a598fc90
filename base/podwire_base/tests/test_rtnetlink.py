"""Our packed messages, read back by pyroute2."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from podwire_base.kernel.netlink import codec
from podwire_base.kernel.netlink import rtnetlink as nl
from podwire_base.kernel.netlink.socket import RouteSocket

MAC = "0a:58:0a:f4:01:02"


def decode(kind: Any, data: bytes) -> Any:
    assert struct.unpack_from("=I", data)[0] == len(data)
    message = kind(data)
    message.decode()
    return message


def test_veth_is_made_with_its_peer_in_the_pod() -> None:
    link = decode(ifinfmsg, nl.new_veth("veth1", "0a:59:0a:f4:01:02", "eth0", MAC, 42, 1450, 7))
    assert link["header"]["flags"] == codec.REQUEST | codec.CREATE | codec.EXCL
    assert (link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU")) == ("veth1", 1450)
    assert (link.get_attr("IFLA_NUM_TX_QUEUES"), link.get_attr("IFLA_NUM_RX_QUEUES")) == (1, 1)
    info = link.get_attr("IFLA_LINKINFO")
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    assert (peer.get_attr("IFLA_IFNAME"), peer.get_attr("IFLA_ADDRESS"), peer.get_attr("IFLA_NET_NS_FD")) == (
        "eth0",
        MAC,
        42,
    )


def test_link_up_changes_that_flag_only() -> None:
    link = decode(ifinfmsg, nl.link_up(7, alias="default/a eth0"))
    assert (link["index"], link["flags"], link["change"]) == (7, 1, 1)
    assert link.get_attr("IFLA_IFALIAS") == "default/a eth0"


def test_bridge_port_and_hairpin() -> None:
    assert decode(ifinfmsg, nl.set_master(7, 3)).get_attr("IFLA_MASTER") == 3
    port = decode(ifinfmsg, nl.port_flags(7, learning=False))
    assert port["family"] == socket.AF_BRIDGE
    for learning in (False, True):
        flags = codec.parse(codec.parse(nl.port_flags(7, learning=learning)[32:])[nl.IFLA_PROTINFO])
        assert flags == {nl.IFLA_BRPORT_MODE: b"\1", nl.IFLA_BRPORT_LEARNING: bytes((learning,))}


@pytest.mark.parametrize(
    ("text", "family", "flags"), [("10.1.0.2", socket.AF_INET, None), ("fd00::2", socket.AF_INET6, 2)]
)
def test_address(text: str, family: int, flags: int | None) -> None:
    address = ip_address(text)
    got = decode(ifaddrmsg, nl.new_address(7, address, address.max_prefixlen))
    assert (got["family"], got["prefixlen"], got["index"]) == (family, address.max_prefixlen, 7)
    assert got.get_attr("IFA_ADDRESS") == got.get_attr("IFA_LOCAL") == text
    assert got.get_attr("IFA_FLAGS") == flags


@pytest.mark.parametrize(
    ("dst", "via", "scope"),
    [("10.1.0.1/32", None, 253), ("0.0.0.0/0", "10.1.0.1", 0), ("fd00::1/128", None, 0), ("::/0", "fd00::1", 0)],
)
def test_route(dst: str, via: str | None, scope: int) -> None:
    net = ip_network(dst)
    got = decode(rtmsg, nl.new_route(7, net, via=ip_address(via) if via else None))
    assert (got["dst_len"], got["table"], got["scope"], got["type"]) == (net.prefixlen, 254, scope, 1)
    assert (got.get_attr("RTA_DST"), got.get_attr("RTA_OIF"), got.get_attr("RTA_GATEWAY")) == (
        str(net.network_address),
        7,
        via,
    )


def test_a_route_with_all_that_a_configuration_may_say() -> None:
    got = decode(
        rtmsg, nl.new_route(7, ip_network("10.9.0.0/16"), mtu=1300, advmss=1200, priority=50, table=1000, scope=253)
    )
    assert (got["table"], got["scope"], got.get_attr("RTA_TABLE"), got.get_attr("RTA_PRIORITY")) == (0, 253, 1000, 50)
    assert [got.get_attr("RTA_METRICS").get_attr(key) for key in ("RTAX_MTU", "RTAX_ADVMSS")] == [1300, 1200]
    assert decode(rtmsg, nl.new_route(7, ip_network("10.9.0.0/16"), table=100))["table"] == 100


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_dump_that_others_disturbed_is_told_and_repeated(at: int) -> None:
    class Disturbed(RouteSocket):
        views = 0

        def frames(self) -> list[tuple[int, int, int, int, bytes]]:
            self.views += 1
            kinds = ((nl.NEWLINK, b"a"), (nl.NEWLINK, b"b"), (codec.DONE, b""))
            disturbed = [codec.DUMP_INTR if i == at and self.views == 1 else 0 for i in range(3)]
            return [
                (k, codec.MULTI | more, self._seq, 0, body) for (k, body), more in zip(kinds, disturbed, strict=True)
            ]

    with Disturbed() as sock:
        assert list(sock.request(nl.GETLINK, nl.all_links(), codec.DUMP)) == [(nl.NEWLINK, b"a"), (nl.NEWLINK, b"b")]
        assert sock.interrupted
        sock.views = 0
        assert list(sock.everything(nl.GETLINK, nl.all_links())) == [b"a", b"b"] * 2, "and it is used again"
        assert sock.views == 2


def test_neighbour_and_forwarding_entries() -> None:
    got = decode(ndmsg, nl.new_neighbour(7, ip_address("10.1.0.2"), MAC))
    assert (got["ifindex"], got["state"]) == (7, nl.NUD_PERMANENT)
    assert (got.get_attr("NDA_DST"), got.get_attr("NDA_LLADDR")) == ("10.1.0.2", MAC)
    fdb = decode(ndmsg, nl.new_fdb(9, MAC, sticky=True))
    assert (fdb["family"], fdb["ifindex"], fdb["flags"]) == (
        socket.AF_BRIDGE,
        9,
        nl.NTF_MASTER | nl.NTF_STICKY,
    )
    assert fdb.get_attr("NDA_LLADDR") == MAC


def test_link_of_what_pyroute2_encodes() -> None:
    message = ifinfmsg()
    message["index"], message["attrs"] = 5, [("IFLA_IFNAME", "veth1"), ("IFLA_MASTER", 3)]
    message.encode()
    assert nl.link_of(bytes(message.data)[16:]) == ("veth1", 5, 3)


@pytest.mark.parametrize("data", [b"", b"\1", b"\0\0\1\0", b"\x08\0\1\0ab", b"\3\0\1\0abcdefgh"])
def test_broken_attributes_end_the_run(data: bytes) -> None:
    assert len(codec.parse(data)) <= 1

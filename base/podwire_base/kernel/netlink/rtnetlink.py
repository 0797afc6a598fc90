"""Encodes and decodes rtnetlink messages about links, addresses, routes and neighbours. Importing pyroute2 for that
would take 150 ms. Pure; `socket.RouteSocket` sends the messages.

Each encoder returns one message. Sources of the layouts: <linux/rtnetlink.h>, <linux/if_link.h> and
<linux/neighbour.h>. The unit tests decode the messages with pyroute2.
"""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from ..ip import IPAddress, mac_bytes
from .codec import CREATE, EXCL, NESTED, REPLACE, attr, find, host_u32, message, parse, text

IPNetwork = IPv4Network | IPv6Network

NEWLINK, DELLINK, GETLINK, SETLINK, NEWADDR, GETADDR = 16, 17, 18, 19, 20, 22
NEWROUTE, DELROUTE, GETROUTE, NEWNEIGH, DELNEIGH, GETNEIGH = 24, 25, 26, 28, 29, 30
RTM_PROTOCOL = 5  # offset in struct rtmsg
AF_UNSPEC = 0
AF_INET, AF_BRIDGE, AF_INET6 = 2, 7, 10
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD = (
    1,
    3,
    4,
    10,
    12,
    18,
    20,
    28,
)
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER, IFLA_BRPORT_MODE, IFLA_BRPORT_LEARNING, IFLA_GROUP = 1, 2, 1, 4, 8, 27
IFLA_OPERSTATE, OPER_UP = 16, 6
IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 26, 8, 1
IFLA_BR_MULTI_BOOLOPT, NO_LL_LEARN = 46, 1 << 0  # linux/if_bridge.h: struct br_boolopt_multi, BR_BOOLOPT_NO_LL_LEARN
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 8
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_STATE, BR_STATE_FORWARDING = 4, 5, 1, 3
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NODAD = 1, 2, 8, 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_MULTIPATH, RTA_TABLE = (
    1,
    4,
    5,
    6,
    7,
    8,
    9,
    15,
)
RTAX_MTU, RTAX_ADVMSS = 2, 8
NDA_DST, NDA_LLADDR, NUD_PERMANENT, NUD_NOARP, NTF_MASTER, NTF_STICKY = 1, 2, 0x80, 0x40, 0x04, 0x40
IFF_UP, IFF_NOARP = 0x1, 0x80
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 4, 0, 253, 1
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_ENTRY = struct.Struct("=BxxxiHBB")  # struct ndmsg


def family(address: IPAddress | IPNetwork) -> int:
    return AF_INET if address.version == 4 else AF_INET6


def _link(index: int = 0, flags: int = 0, change: int = 0, fam: int = 0) -> bytes:
    return _LINK.pack(fam, 0, index, flags, change)


_ONE_QUEUE = host_u32(IFLA_NUM_TX_QUEUES, 1) + host_u32(IFLA_NUM_RX_QUEUES, 1)


def new_veth(host: str, host_mac: str, peer: str, peer_mac: str, netns_fd: int, mtu: int, group: int) -> bytes:
    """Create a veth pair. The kernel creates the peer inside the namespace behind `netns_fd`, so nothing is moved or
    renamed, and the peer is never visible elsewhere. group: the link group of the host's end; rules match this group.

    The veth has one queue in each direction. The default is one queue per CPU, and the sysfs objects of the queues take
    half of the creation time. A veth sends without a lock, on the sender's CPU, for any number of queues.
    """
    end = text(IFLA_IFNAME, peer) + attr(IFLA_ADDRESS, mac_bytes(peer_mac)) + host_u32(IFLA_MTU, mtu) + _ONE_QUEUE
    info = attr(VETH_INFO_PEER | NESTED, _link() + end + host_u32(IFLA_NET_NS_FD, netns_fd))
    kind = text(IFLA_INFO_KIND, "veth") + attr(IFLA_INFO_DATA | NESTED, info)
    return message(
        NEWLINK,
        CREATE | EXCL,
        _link()
        + text(IFLA_IFNAME, host)
        + attr(IFLA_ADDRESS, mac_bytes(host_mac))
        + host_u32(IFLA_MTU, mtu)
        + host_u32(IFLA_GROUP, group)
        + _ONE_QUEUE
        + attr(IFLA_LINKINFO | NESTED, kind),
    )


def link_up(index: int, *, alias: str = "", group: int | None = None) -> bytes:
    """Set a link up. group: make it a member of this link group and answer no ARP on it, because the link is a pod's
    port: the bridge hands some frames to the node with the port as input device.
    """
    flags = IFF_UP if group is None else IFF_UP | IFF_NOARP
    attrs = (text(IFLA_IFALIAS, alias) if alias else b"") + (b"" if group is None else host_u32(IFLA_GROUP, group))
    return message(SETLINK, 0, _link(index, flags, flags) + attrs)


def no_ipv6_address(index: int) -> bytes:
    """Let a link come up without a link-local IPv6 address. A kernel without IPv6 refuses this (EAFNOSUPPORT)."""
    mode = attr(AF_INET6 | NESTED, attr(IFLA_INET6_ADDR_GEN_MODE, bytes((IN6_ADDR_GEN_MODE_NONE,))))
    return message(SETLINK, 0, _link(index) + attr(IFLA_AF_SPEC | NESTED, mode))


def no_link_local_learning(index: int) -> bytes:
    """Keep a bridge from learning the source MACs of frames to the reserved group addresses of 802.1D (from Linux 4.20
    on). The bridge learns them even from ports that do not learn.
    """
    option = attr(IFLA_BR_MULTI_BOOLOPT, struct.pack("=II", NO_LL_LEARN, NO_LL_LEARN))
    info = text(IFLA_INFO_KIND, "bridge") + attr(IFLA_INFO_DATA | NESTED, option)
    return message(NEWLINK, 0, _link(index) + attr(IFLA_LINKINFO | NESTED, info))


def learns_link_local(link: bytes) -> bool:
    """Whether the bridge of an RTM_NEWLINK body learns from such frames and the kernel knows the option."""
    info = parse(parse(link[16:]).get(IFLA_LINKINFO, b""))
    options = parse(info.get(IFLA_INFO_DATA, b"")).get(IFLA_BR_MULTI_BOOLOPT)
    return options is not None and not _number(options[:4]) & NO_LL_LEARN


def kind_of(link: bytes) -> str:
    """Returns the kind of the link in an RTM_NEWLINK body, as "bridge"; "" for one without a kind."""
    info = parse(parse(link[16:]).get(IFLA_LINKINFO, b""))
    return info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode()


def is_marked(link: bytes, group: int) -> bool:
    """Whether the link of an RTM_NEWLINK body is a member of the group and answers no ARP (see `link_up`)."""
    flags = struct.unpack_from("=I", link, 8)[0]
    return bool(flags & IFF_NOARP) and _number(parse(link[16:]).get(IFLA_GROUP)) == group


def set_master(index: int, master: int) -> bytes:
    return message(SETLINK, 0, _link(index) + host_u32(IFLA_MASTER, master))


def port_flags(index: int, *, learning: bool) -> bytes:
    """Enable hairpin mode on a bridge port: the bridge may send a frame back to the port on which the frame arrived.
    learning: whether the bridge learns source MACs from frames of this port.
    """
    flags = attr(IFLA_BRPORT_MODE, b"\1") + attr(IFLA_BRPORT_LEARNING, bytes((learning,)))
    return message(SETLINK, 0, _link(index, fam=AF_BRIDGE) + attr(IFLA_PROTINFO | NESTED, flags))


def delete_link(index: int) -> bytes:
    return message(DELLINK, 0, _link(index))


_NO_STATISTICS = host_u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)  # half of the answer


def get_link(index: int) -> bytes:
    return message(GETLINK, 0, _link(index) + _NO_STATISTICS)


def new_address(index: int, address: IPAddress, prefix: int) -> bytes:
    """Add an address. IPv6 addresses skip duplicate address detection (DAD): the lease guarantees that the address is
    unique, and DAD takes 1-2 s.
    """
    flags = host_u32(IFA_FLAGS, IFA_F_NODAD) if address.version == 6 else b""
    return message(
        NEWADDR,
        CREATE | EXCL,
        struct.pack("=BBBBI", family(address), prefix, 0, 0, index)
        + attr(IFA_LOCAL, address.packed)
        + attr(IFA_ADDRESS, address.packed)
        + flags,
    )


def new_route(
    index: int,
    dst: IPNetwork,
    *,
    via: IPAddress | None = None,
    source: IPAddress | None = None,
    protocol: int = RTPROT_STATIC,
    mtu: int | None = None,
    advmss: int | None = None,
    priority: int | None = None,
    table: int | None = None,
    scope: int | None = None,
) -> bytes:
    """Add a route over link `index`. via None: a link-scope route, whose destinations are on the link itself."""
    if scope is None:
        scope = RT_SCOPE_UNIVERSE if via or dst.version == 6 else RT_SCOPE_LINK
    table = table or RT_TABLE_MAIN
    head = _ROUTE.pack(family(dst), dst.prefixlen, 0, 0, table if table < 256 else 0, protocol, scope, RTN_UNICAST, 0)
    attrs = attr(RTA_DST, dst.network_address.packed) + host_u32(RTA_OIF, index)
    attrs += attr(RTA_GATEWAY, via.packed) if via else b""
    attrs += attr(RTA_PREFSRC, source.packed) if source else b""
    attrs += host_u32(RTA_TABLE, table) if table > 255 else b""
    attrs += b"" if priority is None else host_u32(RTA_PRIORITY, priority)
    metrics = b"".join(host_u32(kind, value) for kind, value in ((RTAX_MTU, mtu), (RTAX_ADVMSS, advmss)) if value)
    attrs += attr(RTA_METRICS | NESTED, metrics) if metrics else b""
    return message(NEWROUTE, CREATE | EXCL, head + attrs)


def delete_route(index: int, dst: IPNetwork) -> bytes:
    """Delete a route of the main table, of any kind."""
    scope_nowhere = 255
    head = _ROUTE.pack(family(dst), dst.prefixlen, 0, 0, RT_TABLE_MAIN, 0, scope_nowhere, 0, 0)
    return message(DELROUTE, 0, head + attr(RTA_DST, dst.network_address.packed) + host_u32(RTA_OIF, index))


def new_neighbour(index: int, address: IPAddress, mac: str) -> bytes:
    """Add a permanent neighbour entry. The first packet then needs no ARP, and the kernel's limit of neighbour entries
    does not count it.
    """
    return message(
        NEWNEIGH,
        CREATE | REPLACE,
        _ENTRY.pack(family(address), index, NUD_PERMANENT, 0, 0)
        + attr(NDA_DST, address.packed)
        + attr(NDA_LLADDR, mac_bytes(mac)),
    )


def delete_neighbour(index: int, address: IPAddress) -> bytes:
    return message(DELNEIGH, 0, _ENTRY.pack(family(address), index, 0, 0, 0) + attr(NDA_DST, address.packed))


def new_fdb(port: int, mac: str, *, sticky: bool) -> bytes:
    """Add a static entry to the bridge's forwarding table, so that a frame for a silent pod is not flooded to all pods.
    sticky: a frame from another port does not move the entry (from Linux 4.20 on).
    """
    return message(
        NEWNEIGH,
        CREATE | REPLACE,
        _ENTRY.pack(AF_BRIDGE, port, NUD_NOARP, NTF_MASTER | (NTF_STICKY if sticky else 0), 0)
        + attr(NDA_LLADDR, mac_bytes(mac)),
    )


_OF_BRIDGE = text(IFLA_INFO_SLAVE_KIND, "bridge")


def port_state(link: bytes) -> int | None:
    """Returns the bridge port state from the body of an RTM_NEWLINK message; None if the link is not a bridge port."""
    # The port's data follows about forty other attributes. This search skips them, because a pod waits for it.
    at = link.find(_OF_BRIDGE)
    state = find(find(link, IFLA_INFO_SLAVE_DATA, at), IFLA_BRPORT_STATE) if at > 0 else b""
    return state[0] if state else None


def is_up(link: bytes) -> bool:
    """Whether the link of an RTM_NEWLINK body is operationally up (RFC 2863). Only then does the link's queue accept
    packets.
    """
    return find(link, IFLA_OPERSTATE, 16)[:1] == bytes((OPER_UP,))


def is_set_up(link: bytes) -> bool:
    """Whether the link of an RTM_NEWLINK body has the flag IFF_UP. The operational state of lo is always unknown."""
    flags: int = struct.unpack_from("=I", link, 8)[0]
    return bool(flags & IFF_UP)


def carries(link: bytes) -> bool:
    """Whether the link of an RTM_NEWLINK body carries packets. A bridge port must be in the state forwarding; any other
    link must be up. attach.c has the same test.
    """
    state = port_state(link)
    return is_up(link) if state is None else state == BR_STATE_FORWARDING


def index_of(body: bytes) -> int:
    """Returns the index of the link in an RTM_NEWLINK or RTM_DELLINK body."""
    index: int = struct.unpack_from("=i", body, 4)[0]
    return index


def link_of(body: bytes) -> tuple[str, int, int]:
    """Returns (name, index, index of the master or 0) of the link in an RTM_NEWLINK or RTM_DELLINK body."""
    found = parse(body[16:])
    master = struct.unpack("=I", found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0
    return found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(), index_of(body), master


def all_links() -> bytes:
    """Returns the body of the request for all links."""
    return _link() + _NO_STATISTICS


def link_facts(body: bytes) -> tuple[int, bool, int, int, bytes]:
    """Returns (index, whether it is set up, MTU, index of its bridge or 0, MAC) of an RTM_NEWLINK body."""
    found = parse(body[16:])
    mtu, master = (int.from_bytes(found.get(kind) or b"", sys.byteorder) for kind in (IFLA_MTU, IFLA_MASTER))
    return struct.unpack_from("=i", body, 4)[0], is_set_up(body), mtu, master, found.get(IFLA_ADDRESS) or b""


def all_neighbours(fam: int) -> bytes:
    """Returns the body of the request for all neighbour entries (AF_UNSPEC) or forwarding entries (AF_BRIDGE). For the
    latter the kernel takes a struct ifinfomsg.
    """
    return _link() if fam == AF_BRIDGE else bytes(12)


def is_permanent(body: bytes) -> bool:
    """Whether an RTM_NEWNEIGH body is an entry that stays until somebody deletes it."""
    state: int = struct.unpack_from("=H", body, 8)[0]
    return bool(state & NUD_PERMANENT)


def all_addresses() -> bytes:
    """Returns the body of the request for all addresses (struct ifaddrmsg)."""
    return bytes(8)


def all_routes(fam: int) -> bytes:
    """Returns the body of the request for all routes of one IP family (struct rtmsg)."""
    return bytes((fam,)) + bytes(11)


def address_of(body: bytes) -> tuple[IPAddress, int]:
    """Returns (address, index of the address's link) of an RTM_NEWADDR body."""
    found = parse(body[8:])
    index: int = struct.unpack_from("=I", body, 4)[0]
    return ip_address(found.get(IFA_LOCAL) or found[IFA_ADDRESS]), index


_HOP_SIZE = 8  # struct rtnexthop: u16 length, u8 flags, u8 weight, s32 index; attributes follow


def default_route_of(body: bytes) -> tuple[int, int] | None:
    """Returns (metric, index of the link) of the route in an RTM_NEWROUTE body. Returns None if the route is not a
    default route of the main table. If the route has several next hops, the first next hop counts.
    """
    _, size, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    found = parse(body[_ROUTE.size :])
    if size or table != RT_TABLE_MAIN or kind != RTN_UNICAST:
        return None
    hop = found.get(RTA_OIF) or found.get(RTA_MULTIPATH, b"")[4:8]  # struct rtnexthop: its index
    return (_number(found.get(RTA_PRIORITY)), _number(hop)) if hop else None


def destination_of(body: bytes) -> IPNetwork | None:
    """Returns the destination of the route in an RTM_NEWROUTE body, of any table. Returns None for a default route."""
    size = _ROUTE.unpack_from(body)[1]
    found = parse(body[_ROUTE.size :]).get(RTA_DST)
    return ip_network((found, size)) if size and found else None


def gateways_of(body: bytes) -> tuple[IPAddress, ...]:
    """Returns the gateways of the route in an RTM_NEWROUTE body, of all next hops. Returns () if the route is not a
    default route of the main table.
    """
    if default_route_of(body) is None:
        return ()
    found = parse(body[_ROUTE.size :])
    raw = [found.get(RTA_GATEWAY)]
    hops = found.get(RTA_MULTIPATH, b"")
    while len(hops) >= _HOP_SIZE:
        size = _number(hops[:2])
        raw.append(parse(hops[_HOP_SIZE:size]).get(RTA_GATEWAY))
        hops = hops[max(size, _HOP_SIZE) :]
    return tuple(ip_address(one) for one in raw if one)


_RTA_SRC, _RTA_IIF, _RTA_VIA = 2, 3, 18


def route_question(dst: IPAddress, src: IPAddress | None = None, iif: int = 0) -> tuple[int, bytes]:
    """Returns (type, body) of the question for the route of one packet, by all tables and policy rules. iif: the index
    of the link by which it comes; 0: the machine itself sends it.
    """
    bits = dst.max_prefixlen
    head = _ROUTE.pack(family(dst), bits, bits if src else 0, 0, 0, 0, 0, 0, 0)
    body = head + attr(RTA_DST, dst.packed) + (attr(_RTA_SRC, src.packed) if src else b"")
    return GETROUTE, body + (host_u32(_RTA_IIF, iif) if iif else b"")


def route_answer(body: bytes) -> tuple[int, int, IPAddress | None, IPAddress | None, int]:
    """Returns (RTN_*, index of the link, gateway, preferred source, MTU or 0) of the answer to `route_question`."""
    found = parse(body[_ROUTE.size :])
    raw = found.get(RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:]
    source = found.get(RTA_PREFSRC)
    mtu = _number(parse(found.get(RTA_METRICS, b"")).get(RTAX_MTU))
    via, preferred = ip_address(raw) if raw else None, ip_address(source) if source else None
    return _ROUTE.unpack_from(body)[7], _number(found.get(RTA_OIF)), via, preferred, mtu


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw or b"", sys.byteorder)

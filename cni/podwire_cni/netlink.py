"""rtnetlink, packed by hand: the few messages of one pod's wiring, without the 150 ms that importing pyroute2 costs.

Encoders are plain functions that return one message; `Netlink` sends a batch and collects its acknowledgements. All
layouts are those of <linux/rtnetlink.h>, <linux/if_link.h> and <linux/neighbour.h>; the unit tests decode them with
pyroute2.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from types import TracebackType
from typing import Self

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

NLM_REQUEST, NLM_ACK, NLM_REPLACE, NLM_EXCL, NLM_CREATE, NLM_DUMP = 0x01, 0x04, 0x100, 0x200, 0x400, 0x300
NLM_DUMP_INTR = 0x10
NLM_CAPPED, NLM_ACK_TLVS = 0x100, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3
NEWLINK, DELLINK, GETLINK, SETLINK, NEWADDR, GETADDR, NEWROUTE, DELROUTE, NEWNEIGH, DELNEIGH = (
    16,
    17,
    18,
    19,
    20,
    22,
    24,
    25,
    28,
    29,
)
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
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER, IFLA_BRPORT_MODE = 1, 2, 1, 4
IFLA_OPERSTATE, OPER_UP = 16, 6
IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS = 29, 8
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES = 31, 32
IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA, IFLA_BRPORT_STATE, BR_STATE_FORWARDING = 4, 5, 1, 3
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NODAD = 1, 2, 8, 0x02
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
NDA_DST, NDA_LLADDR, NUD_PERMANENT, NUD_NOARP, NTF_MASTER = 1, 2, 0x80, 0x40, 0x04
IFF_UP, NESTED = 0x1, 0x8000
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RTN_UNICAST = 254, 4, 0, 253, 1
SOL_NETLINK, NETLINK_CAP_ACK, NETLINK_EXT_ACK = 270, 10, 11
SIOCGIFINDEX = 0x8933
IFNAMSIZ = 16
_HEAD = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_ATTR_U32 = struct.Struct("=HHI")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
_LINK = struct.Struct("=BxHiII")
_ENTRY = struct.Struct("=BxxxiHBB")  # struct ndmsg


class NetlinkError(OSError):
    """The kernel refused message number `position` of a batch. `errno` as in OSError; `strerror` has the kernel's own
    words where it gave some."""

    def __init__(self, code: int, position: int, words: str = "") -> None:
        super().__init__(code, f"{os.strerror(code)} ({words})" if words else os.strerror(code))
        self.position = position


def attr(kind: int, value: bytes) -> bytes:
    size = len(value) + 4
    return _ATTR.pack(size, kind) + value + _PADDING[size & 3]


def text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return _ATTR_U32.pack(8, kind, value)


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def family(address: IPAddress | IPNetwork) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A request; `Netlink.send` fills in the sequence number, and asks for an acknowledgement of the last one of a
    batch."""
    return _HEAD.pack(len(body) + 16, kind, flags | NLM_REQUEST, 0, 0) + body


def _link(index: int = 0, flags: int = 0, change: int = 0, fam: int = 0) -> bytes:
    return _LINK.pack(fam, 0, index, flags, change)


_ONE_QUEUE = u32(IFLA_NUM_TX_QUEUES, 1) + u32(IFLA_NUM_RX_QUEUES, 1)


def new_veth(host: str, host_mac: str, peer: str, peer_mac: str, netns_fd: int, mtu: int) -> bytes:
    """A veth pair whose peer is born inside the namespace behind `netns_fd`: no move, no rename, never seen outside.

    One queue each way: the default is one a CPU, each with objects in sysfs, which is half of the time that a veth
    takes to make. A veth sends without a lock, and on the CPU of the sender, however many queues it has.
    """
    end = text(IFLA_IFNAME, peer) + attr(IFLA_ADDRESS, mac_bytes(peer_mac)) + u32(IFLA_MTU, mtu) + _ONE_QUEUE
    info = attr(VETH_INFO_PEER | NESTED, _link() + end + u32(IFLA_NET_NS_FD, netns_fd))
    kind = text(IFLA_INFO_KIND, "veth") + attr(IFLA_INFO_DATA | NESTED, info)
    return message(
        NEWLINK,
        NLM_CREATE | NLM_EXCL,
        _link()
        + text(IFLA_IFNAME, host)
        + attr(IFLA_ADDRESS, mac_bytes(host_mac))
        + u32(IFLA_MTU, mtu)
        + _ONE_QUEUE
        + attr(IFLA_LINKINFO | NESTED, kind),
    )


def link_up(index: int, *, alias: str = "") -> bytes:
    return message(SETLINK, 0, _link(index, IFF_UP, IFF_UP) + (text(IFLA_IFALIAS, alias) if alias else b""))


def set_master(index: int, master: int) -> bytes:
    return message(SETLINK, 0, _link(index) + u32(IFLA_MASTER, master))


def port_hairpin(index: int) -> bytes:
    """Let a bridge port send frames back where they came from."""
    return message(
        SETLINK, 0, _link(index, fam=socket.AF_BRIDGE) + attr(IFLA_PROTINFO | NESTED, attr(IFLA_BRPORT_MODE, b"\1"))
    )


def delete_link(index: int) -> bytes:
    return message(DELLINK, 0, _link(index))


_NO_STATISTICS = u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)  # half of the answer


def get_link(index: int) -> bytes:
    return message(GETLINK, 0, _link(index) + _NO_STATISTICS)


def new_address(index: int, address: IPAddress, prefix: int) -> bytes:
    """IPv6 without duplicate address detection: the lease already says that the address is ours, and DAD costs 1-2
    s."""
    flags = u32(IFA_FLAGS, IFA_F_NODAD) if address.version == 6 else b""
    return message(
        NEWADDR,
        NLM_CREATE | NLM_EXCL,
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
    """A route over link `index`; without `via` a link-scope one, resolved on the link itself."""
    if scope is None:
        scope = RT_SCOPE_UNIVERSE if via or dst.version == 6 else RT_SCOPE_LINK
    table = table or RT_TABLE_MAIN
    head = struct.pack(
        "=BBBBBBBBI", family(dst), dst.prefixlen, 0, 0, table if table < 256 else 0, protocol, scope, RTN_UNICAST, 0
    )
    attrs = attr(RTA_DST, dst.network_address.packed) + u32(RTA_OIF, index)
    attrs += attr(RTA_GATEWAY, via.packed) if via else b""
    attrs += attr(RTA_PREFSRC, source.packed) if source else b""
    attrs += u32(RTA_TABLE, table) if table > 255 else b""
    attrs += b"" if priority is None else u32(RTA_PRIORITY, priority)
    metrics = b"".join(u32(kind, value) for kind, value in ((RTAX_MTU, mtu), (RTAX_ADVMSS, advmss)) if value)
    attrs += attr(RTA_METRICS | NESTED, metrics) if metrics else b""
    return message(NEWROUTE, NLM_CREATE | NLM_EXCL, head + attrs)


def delete_route(index: int, dst: IPNetwork) -> bytes:
    """Of the main table; of whatever kind it is."""
    scope_nowhere = 255
    head = struct.pack("=BBBBBBBBI", family(dst), dst.prefixlen, 0, 0, RT_TABLE_MAIN, 0, scope_nowhere, 0, 0)
    return message(DELROUTE, 0, head + attr(RTA_DST, dst.network_address.packed) + u32(RTA_OIF, index))


def new_neighbour(index: int, address: IPAddress, mac: str) -> bytes:
    """A permanent entry: no ARP before the first packet, and the kernel's limit of neighbours does not count it."""
    return message(
        NEWNEIGH,
        NLM_CREATE | NLM_REPLACE,
        _ENTRY.pack(family(address), index, NUD_PERMANENT, 0, 0)
        + attr(NDA_DST, address.packed)
        + attr(NDA_LLADDR, mac_bytes(mac)),
    )


def delete_neighbour(index: int, address: IPAddress) -> bytes:
    return message(DELNEIGH, 0, _ENTRY.pack(family(address), index, 0, 0, 0) + attr(NDA_DST, address.packed))


def new_fdb(port: int, mac: str) -> bytes:
    """A static entry in the bridge's forwarding table, so that no frame for a quiet pod is flooded to all of them."""
    return message(
        NEWNEIGH,
        NLM_CREATE | NLM_REPLACE,
        _ENTRY.pack(socket.AF_BRIDGE, port, NUD_NOARP, NTF_MASTER, 0) + attr(NDA_LLADDR, mac_bytes(mac)),
    )


def attributes(data: bytes) -> dict[int, bytes]:
    """kind -> value of a run of attributes; of repeated kinds the last."""
    found, at = {}, 0
    while at + 4 <= len(data):
        size, kind = _ATTR.unpack_from(data, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def find(data: bytes, wanted: int, at: int = 0) -> bytes:
    """The value of the first attribute of kind `wanted`, read from position `at` on; empty where there is none."""
    while at + 4 <= len(data):
        size, kind = _ATTR.unpack_from(data, at)
        if kind & 0x3FFF == wanted:
            return data[at + 4 : at + size]
        if size < 4:
            break
        at += (size + 3) & ~3
    return b""


_OF_BRIDGE = text(IFLA_INFO_SLAVE_KIND, "bridge")


def port_state(link: bytes) -> int | None:
    """The bridge port state in the body of an RTM_NEWLINK message; None where the link is no bridge port."""
    # The kernel puts the port's data behind this, and this behind some forty attributes, which a pod need not wait for.
    at = link.find(_OF_BRIDGE)
    state = find(find(link, IFLA_INFO_SLAVE_DATA, at), IFLA_BRPORT_STATE) if at > 0 else b""
    return state[0] if state else None


def is_up(link: bytes) -> bool:
    """Whether the link is operationally up (RFC 2863), so that its queue takes packets, in an RTM_NEWLINK body."""
    return find(link, IFLA_OPERSTATE, 16)[:1] == bytes((OPER_UP,))


def carries(link: bytes) -> bool:
    """Whether packets pass, in an RTM_NEWLINK body: a bridge port must forward, another link be up; as attach.c."""
    state = port_state(link)
    return is_up(link) if state is None else state == BR_STATE_FORWARDING


def index_of(body: bytes) -> int:
    """The index in an RTM_NEWLINK or RTM_DELLINK body."""
    index: int = struct.unpack_from("=i", body, 4)[0]
    return index


def link_of(body: bytes) -> tuple[str, int, int]:
    """(name, index, index of the master or 0) of an RTM_NEWLINK or RTM_DELLINK body."""
    found = attributes(body[16:])
    master = struct.unpack("=I", found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0
    return found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(), index_of(body), master


def address_of(body: bytes) -> IPAddress:
    """The address in an RTM_NEWADDR body."""
    found = attributes(body[8:])
    return ip_address(found.get(IFA_LOCAL) or found[IFA_ADDRESS])


def addresses() -> frozenset[IPAddress]:
    """Every address of the calling thread's namespace."""
    found = set()
    with Netlink() as sock:
        sock.dump(GETADDR, lambda kind, body: found.add(address_of(body)) if kind == NEWADDR else None)
    return frozenset(found)


class Netlink:
    """One rtnetlink socket, bound to the network namespace that the opening thread is in. For one thread at a time."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self.sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self.sock.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._seq = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def take(self, count: int) -> int:
        """The last sequence number that was used, for somebody who now uses the next `count` on this socket."""
        used, self._seq = self._seq, self._seq + count
        return used

    def send(
        self,
        messages: Sequence[bytes],
        on_answer: Callable[[int, bytes], None] | None = None,
        *,
        fine: Collection[int] = (),
        present: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Send a batch and wait for its end. The kernel goes on after a refused message; the first refusal is raised
        then.

        Only the last message is acknowledged, so that a batch is one system call there and one back: a refusal is
        always told, and messages are worked on in their order. Answers to what was asked go to `on_answer(kind, body)`;
        where the last message asks for a link, its answer is the end. Refusals with an errno of `fine` do not count,
        nor that something exists where `present` says so of a message's position. Raises NetlinkError.
        """
        if not messages:
            return
        first = self._seq + 1
        self._seq += len(messages)
        batch, at = bytearray(b"".join(messages)), 0
        for seq, part in enumerate(messages, first):
            _U32.pack_into(batch, at + 8, seq)
            at += len(part)
        asked = _HEAD.unpack_from(part)[1] == GETLINK
        if not asked:
            batch[at - len(part) + 6] |= NLM_ACK
        self.sock.send(batch)
        failed, over = None, False
        while not over:
            for kind, flags, seq, body in self._frames():
                if not first <= seq <= self._seq:
                    continue
                if kind == NLMSG_ERROR:
                    over = over or seq == self._seq
                    refused = _refusal(body, flags, seq - first)
                    if (
                        refused
                        and refused.errno not in fine
                        and not (refused.errno == errno.EEXIST and present(refused.position))
                    ):
                        failed = failed or refused
                else:
                    over = over or (asked and seq == self._seq)
                    if on_answer:
                        on_answer(kind, body)
        if failed:
            raise failed

    def ask(self, messages: Sequence[bytes]) -> list[bytes]:
        """The body of the one answer to each message. Raises NetlinkError."""
        answers: list[bytes] = []
        self.send(messages, lambda _, body: answers.append(body))
        return answers

    def dump(self, kind: int, on_answer: Callable[[int, bytes], None]) -> bool:
        """Every link (GETLINK) or address (GETADDR) of the namespace, one `on_answer(kind, body)` each. Raises
        NetlinkError.

        Returns whether it is whole: where others came or went meanwhile, a kernel may leave out one that stayed.
        """
        self._seq += 1
        self.sock.send(_HEAD.pack(32, kind, NLM_REQUEST | NLM_DUMP, self._seq, 0) + _link())
        whole = True
        while True:
            for found, flags, seq, body in self._frames():
                if seq != self._seq:
                    continue
                whole = whole and not flags & NLM_DUMP_INTR
                if found == NLMSG_DONE:
                    return whole
                if found == NLMSG_ERROR and (err := _refusal(body, flags, 0)):
                    raise err
                on_answer(found, body)

    def _frames(self) -> list[tuple[int, int, int, bytes]]:
        """(kind, flags, sequence number, body) of each message in the next datagram."""
        data, at, frames = self.sock.recv(1 << 16), 0, []
        while at + 16 <= len(data):
            size, kind, flags, seq, _ = _HEAD.unpack_from(data, at)
            frames.append((kind, flags, seq, data[at + 16 : at + size]))
            at += (size + 3) & ~3
        return frames

    def index(self, name: str) -> int:
        """The index of link `name` in this socket's namespace; 0 where there is none."""
        try:
            answer = fcntl.ioctl(self.sock, SIOCGIFINDEX, struct.pack("16si20x", name.encode(), 0))
        except OSError as err:
            if err.errno == errno.ENODEV:
                return 0
            raise
        found: int = struct.unpack_from("i", answer, 16)[0]
        return found


def _refusal(body: bytes, flags: int, position: int) -> NetlinkError | None:
    """nlmsgerr: errno, the request's header (its payload too unless capped), then attributes of which 1 is a
    message."""
    if body[:4] == bytes(4):
        return None
    code = -struct.unpack_from("=i", body)[0]
    words = b""
    if flags & NLM_ACK_TLVS:
        start = 20 if flags & NLM_CAPPED else 4 + struct.unpack_from("=I", body, 4)[0]
        words = attributes(body[start:]).get(1, b"")
    return NetlinkError(code, position, words.rstrip(b"\0").decode(errors="replace"))

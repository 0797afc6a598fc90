"""Token buckets: their sizes, and the traffic control messages for them and for the redirection of a pod's packets.

Sources of the layouts: <linux/pkt_sched.h>, <linux/pkt_cls.h> and <linux/tc_act/tc_mirred.h>.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

from podwire_base.kernel.netlink.codec import CREATE, EXCL, NESTED, REPLACE, attr, host_u32, message, text
from podwire_base.kernel.netlink.rtnetlink import (
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    NEWLINK,
)

NEWQDISC, NEWTFILTER = 36, 44
TCA_KIND, TCA_OPTIONS, TCA_U32_SEL, TCA_U32_ACT = 1, 2, 5, 7
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_PRATE64, TCA_TBF_BURST, TCA_TBF_PBURST = 1, 4, 5, 6, 7
TC_H_ROOT, TC_H_INGRESS, INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
TC_U32_TERMINAL, TC_ACT_STOLEN, TCA_EGRESS_REDIR, TCA_MIRRED_PARMS = 1, 4, 1, 2
EVERY_PROTOCOL = int.from_bytes(struct.pack("!H", 3), sys.byteorder)  # ETH_P_ALL


MOST = 0xFFFFFFFF  # bytes: the kernel's fields for sizes have 32 bits
TICK_NS = (
    64  # a tick of the packet scheduler (PSCHED_SHIFT); buckets and queues are reported as 32-bit numbers of ticks
)
FRAME = 18  # bytes of an Ethernet header with one VLAN tag, which a veth passes beyond its MTU
WHOLE = 65536  # bytes: the largest packet of generic segmentation offload (without BIG TCP)
PEAK = 1 << 40  # bytes a second: faster than any link, so the second bucket only segments


class Sizes(NamedTuple):
    """The sizes of a token bucket in bytes, as in ops.LimitRate."""

    burst: int
    queue: int
    packet: int


def slowest(mtu: int) -> int:
    """Returns the least rate, in bytes per second, at which a bucket with room for one packet fills within 2^32
    ticks (275 s).
    """
    return -(-(mtu + FRAME) * 10**9 // (MOST * TICK_NS))


def sizes(rate: int, burst: int, mtu: int) -> Sizes:
    """Returns the sizes of the token bucket for a rate and a burst (bytes per second, bytes). A packet larger than the
    bucket would never pass, so the bucket has room for one. At most what passes in 25 ms waits, or two packets if that
    is more. Where few whole packets of segmentation offload fit in this queue, they are segmented first: otherwise a
    TCP sender would lose 64 KB at once.
    """
    packet = mtu + FRAME
    queue = min(max(rate // 40, 2 * packet), MOST)
    return Sizes(min(max(burst, packet), MOST), queue, packet if queue < 4 * WHOLE else 0)


def new_ifb(name: str, mtu: int) -> bytes:
    return message(
        NEWLINK,
        CREATE | EXCL,
        bytes(16)
        + text(IFLA_IFNAME, name)
        + host_u32(IFLA_MTU, mtu)
        + attr(IFLA_LINKINFO | NESTED, text(IFLA_INFO_KIND, "ifb")),
    )


def _tc(index: int, parent: int, handle: int = 0, info: int = 0) -> bytes:
    return struct.pack("=BxxxiIII", 0, index, handle, parent, info)


def token_bucket(index: int, rate: int, burst: int, queue: int, packet: int = 0) -> bytes:
    """Returns the message that makes a token bucket (tbf) the root queue of a link. rate: bytes per second. burst,
    queue, packet: see ops.LimitRate.

    The kernel segments a packet that is larger than either of the two buckets. The second bucket, for the peak rate,
    has room for `packet` bytes and never delays a packet.
    """
    # struct tc_ratespec: cell_log, linklayer (1: Ethernet, so that no rate table is needed), overhead, cell_align, mpu,
    # rate
    spec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, min(rate, MOST))
    peak = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, MOST) if packet else bytes(12)
    parameters = attr(TCA_TBF_PARMS, spec + peak + struct.pack("=III", queue, 0, 0)) + host_u32(TCA_TBF_BURST, burst)
    if rate > MOST:
        parameters += attr(TCA_TBF_RATE64, struct.pack("=Q", rate))
    if packet:
        parameters += attr(TCA_TBF_PRATE64, struct.pack("=Q", PEAK)) + host_u32(TCA_TBF_PBURST, packet)
    return message(
        NEWQDISC,
        CREATE | REPLACE,
        _tc(index, TC_H_ROOT) + text(TCA_KIND, "tbf") + attr(TCA_OPTIONS | NESTED, parameters),
    )


def ingress_queue(index: int) -> bytes:
    return message(NEWQDISC, CREATE | REPLACE, _tc(index, TC_H_INGRESS, INGRESS_HANDLE) + text(TCA_KIND, "ingress"))


def redirect(index: int, to: int) -> bytes:
    """Returns the message that redirects all packets that arrive on link `index` through the queue of link `to`. The
    filter is a u32 filter that matches every packet, because not every kernel has the simpler `matchall`.
    """
    mirred = struct.pack("=IIiiiiI", 0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to)
    action = attr(1 | NESTED, text(1, "mirred") + attr(2 | NESTED, attr(TCA_MIRRED_PARMS, mirred)))
    # struct tc_u32_sel with one struct tc_u32_key whose mask is 0
    selector = struct.pack("=BBBxHHhhI", TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + bytes(16)
    options = attr(TCA_U32_SEL, selector) + attr(TCA_U32_ACT | NESTED, action)
    return message(
        NEWTFILTER,
        CREATE | EXCL,
        _tc(index, INGRESS_HANDLE, 0, 1 << 16 | EVERY_PROTOCOL)
        + text(TCA_KIND, "u32")
        + attr(TCA_OPTIONS | NESTED, options),
    )

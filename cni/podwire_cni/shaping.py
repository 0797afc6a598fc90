"""Encodes traffic control messages: token buckets, and the redirection of a pod's packets to a token bucket.

Sources of the layouts: <linux/pkt_sched.h>, <linux/pkt_cls.h> and <linux/tc_act/tc_mirred.h>.
"""

from __future__ import annotations

import struct
import sys

from podwire_base.kernel.netlink.codec import CREATE, EXCL, NESTED, REPLACE, attr, host_u32, message, text
from podwire_base.kernel.netlink.rtnetlink import (
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MTU,
    NEWLINK,
)

NEWQDISC, NEWTFILTER = 36, 44
TCA_KIND, TCA_OPTIONS, TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST, TCA_U32_SEL, TCA_U32_ACT = 1, 2, 1, 4, 6, 5, 7
TC_H_ROOT, TC_H_INGRESS, INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
TC_U32_TERMINAL, TC_ACT_STOLEN, TCA_EGRESS_REDIR, TCA_MIRRED_PARMS = 1, 4, 1, 2
EVERY_PROTOCOL = int.from_bytes(struct.pack("!H", 3), sys.byteorder)  # ETH_P_ALL


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


def token_bucket(index: int, rate: int, burst: int) -> bytes:
    """Returns the message that makes a token bucket (tbf) the root queue of a link. rate: bytes per second. burst:
    bytes. A packet that would wait longer than 25 ms is dropped.
    """
    # struct tc_ratespec: cell_log, linklayer (1: Ethernet, so that no rate table is needed), overhead, cell_align, mpu,
    # rate
    spec = struct.pack("=BBHhHI", 0, 1, 0, 0, 0, min(rate, 0xFFFFFFFF))
    limit = min(burst + rate // 40, 0xFFFFFFFF)
    parameters = attr(TCA_TBF_PARMS, spec + bytes(12) + struct.pack("=III", limit, 0, 0)) + host_u32(
        TCA_TBF_BURST, burst
    )
    if rate >= 1 << 32:
        parameters += attr(TCA_TBF_RATE64, struct.pack("=Q", rate))
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

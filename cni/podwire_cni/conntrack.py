"""UDP conntrack entries that keep packets from, or at, a hostPort: found and deleted one by one over ctnetlink.

A UDP flow keeps the translation it began with as long as packets come. One that began before the port was mapped never
reaches the pod; one that goes on after the pod went is sent to an address that nobody has, or soon somebody else.
Layouts: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from podwire_base.kernel.ip import Family
from podwire_base.kernel.netlink.codec import attr, nest, parse, to_int
from podwire_base.kernel.nft import codec
from podwire_base.kernel.nft.ruleset import host32
from podwire_base.kernel.nft.socket import open_socket

from .types import IPAddress

SUBSYS = 1 << 8
GET, DELETE = 1, 2
TUPLE_ORIG, TUPLE_REPLY, ID, ZONE, FILTER = 1, 2, 12, 18, 25
BY_PORT = 0x08 | 0x20  # CTA_FILTER_FLAG: PROTO_NUM, PROTO_DST_PORT
UDP = 17


@dataclass(frozen=True, slots=True)
class Flow:
    """dialled: the original destination; answers: where replies come from (address, port)."""

    dialled: IPAddress
    answers: tuple[IPAddress, int]


def forget(family: Family, port: int, wrong: Callable[[Flow], bool]) -> int:
    """Delete the UDP entries to destination port `port` of which `wrong` is true. Returns how many; raises OSError."""
    sock, count = open_socket(None), 0

    def call(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
        sock.send(codec.message(SUBSYS | kind, codec.REQUEST | flags, 1, codec.FAMILIES[family], body))
        while True:
            for answer, flag, seq, _, payload in codec.split(sock.recv(1 << 20)):
                if answer == 2 and (error := codec.decode_error(flag, seq, payload)):
                    raise OSError(error.errno, f"conntrack: {os.strerror(error.errno)} {error.text}")
                if answer in (2, 3):
                    return
                yield payload[4:]

    with sock:
        number = port.to_bytes(2, "big")
        only = nest(TUPLE_ORIG, nest(2, attr(1, bytes((UDP,))), attr(3, number))) + nest(
            FILTER, attr(1, host32(BY_PORT))
        )
        found = []
        for body in call(GET, codec.DUMP, only):
            got = parse(body)
            flow, asked = _flow(got)
            if asked == port and wrong(flow):
                found.append(
                    nest(TUPLE_ORIG, got[TUPLE_ORIG]) + b"".join(attr(k, got[k]) for k in (ID, ZONE) if k in got)
                )
        for ident in found:
            try:
                count += not list(call(DELETE, codec.ACK, ident))
            except FileNotFoundError:
                pass  # it ran out by itself meanwhile
    return count


def _flow(got: dict[int, bytes]) -> tuple[Flow, int]:
    """(flow, its original destination port)."""
    there, back = parse(got[TUPLE_ORIG]), parse(got[TUPLE_REPLY])
    ip, proto, answer, port = parse(there[1]), parse(there[2]), parse(back[1]), parse(back[2])
    return Flow(ip_address(ip.get(2) or ip[4]), (ip_address(answer.get(1) or answer[3]), to_int(port.get(2)))), to_int(
        proto.get(3)
    )

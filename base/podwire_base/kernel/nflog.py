"""NFLOG's messages: packets that rules of podwire refused or dropped. Pure; nflogsocket.py reads them.

Source: linux/netfilter/nfnetlink_log.h. A group has one reader in a network namespace. All rules of podwire log to one
group, with the reason as prefix.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .dropped import Packet, packet
from .netlink.codec import attr, nfgenmsg, parse, to_text, u32
from .reasons import Reason

GROUP = 0x7077  # "pw"
LENGTH = 128  # bytes of a packet: the headers
LONGEST = 127  # bytes of a prefix: NF_LOG_PREFIXLEN less the end
SUBSYS = 4 << 8  # NFNL_SUBSYS_ULOG
PACKET, CONFIG = 0, 1  # NFULNL_MSG_*
BIND, COPY_PACKET = 1, 2  # NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET
_PREFIX = "podwire "
_PAYLOAD, _PREFIX_ATTR = 9, 10  # NFULA_*
_SECONDS = 2  # in 1/100 s: for how long the kernel gathers packets


class Logged(NamedTuple):
    """words: what the rule says beside its reason, for people."""

    reason: Reason
    packet: Packet
    words: str = ""


def prefix(reason: Reason, words: str = "") -> str:
    """Returns the prefix of what a rule logs, cut to what the kernel keeps of it."""
    return f"{_PREFIX}{reason.value}{' ' if words else ''}{words}".encode()[:LONGEST].decode(errors="ignore")


def bind(group: int = GROUP) -> bytes:
    """Returns the body of the request that makes the socket the reader of a group."""
    mode = attr(2, struct.pack(">IBB", LENGTH, COPY_PACKET, 0))
    return nfgenmsg(0, group) + attr(1, bytes((BIND,))) + mode + u32(4, _SECONDS)


def read(body: bytes) -> Logged | None:
    """Returns what a message tells; None if another program's rule logged the packet, or if it is cut too short."""
    got = parse(body[4:])
    words = to_text(got.get(_PREFIX_ATTR))
    code, _, told = words.removeprefix(_PREFIX).partition(" ")
    try:
        reason = Reason(code) if words.startswith(_PREFIX) else None
    except ValueError:
        return None
    seen = packet(got.get(_PAYLOAD, b""))
    return None if reason is None or seen is None else Logged(reason, seen, told)

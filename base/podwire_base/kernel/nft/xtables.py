"""Matches and targets of x_tables as iptables-nft stores them in nf_tables, and as three-valued results. Pure.

Sources: linux/netfilter/xt_*.h (the structs of each revision). What is not here is "perhaps".
"""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .judge import Seen

_CT_ONLY_STATE = 1  # XT_CONNTRACK_STATE
_CT_FLAGS_AT = 146  # xt_conntrack_mtinfo1 to 3: eight addresses, expiry, protocol and four ports come before
_STATE_DNAT = 1 << 7  # XT_CONNTRACK_STATE_DNAT
_TCP_SYN = 2
_HOST: Literal["little", "big"] = "little" if sys.byteorder == "little" else "big"
_TERMINAL = {"REJECT": "reject", "DROP": "drop", "ACCEPT": "accept", "MASQUERADE": "masquerade", "SNAT": "masquerade"}
_PASSING = {
    "LOG",
    "NFLOG",
    "TRACE",
    "CT",
    "NOTRACK",
    "CHECKSUM",
    "TCPMSS",
    "SET",
    "AUDIT",
    "CLASSIFY",
    "DSCP",
    "CONNMARK",
}
_Match = Literal["yes", "no", "perhaps"]


def _word(good: bool) -> _Match:
    return "yes" if good else "no"


def matches(name: str, revision: int, info: bytes, seen: Seen) -> _Match:
    """Returns whether an xt match applies to the packet."""
    try:
        match name:
            case "comment":
                return "yes"
            case "tcp":
                return _tcp(info, seen)
            case "udp":
                return (
                    _word(_inside(seen, struct.unpack_from("=2H", info, 4), bool(info[8] & 2)))
                    if not _spt(info)
                    else "perhaps"
                )
            case "conntrack" if revision in (1, 2, 3):
                return _conntrack(revision, info, seen)
            case "state":
                return _word(bool(int.from_bytes(info[:4], _HOST) & seen.state))
            case "addrtype" if revision == 1:
                return _addrtype(info, seen)
            case "mark" if revision == 1:
                mark, mask, invert = struct.unpack_from("=IIB", info)
                return "perhaps" if seen.mark is None else _word((seen.mark & mask == mark) != bool(invert))
            case "multiport" if revision == 1:
                return _multiport(info, seen)
    except struct.error:
        pass
    return "perhaps"


def _port(seen: Seen) -> int | None:
    high, low = seen.transport[2], seen.transport[3]
    return None if high is None or low is None else high << 8 | low


def _inside(seen: Seen, span: tuple[int, ...], invert: bool) -> bool:
    port = _port(seen)
    return port is not None and (span[0] <= port <= span[1]) != invert


def _spt(info: bytes) -> bool:
    """Whether a match names source ports, which are not known."""
    return struct.unpack_from("=2H", info) != (0, 0xFFFF)


def _tcp(info: bytes, seen: Seen) -> _Match:
    destination = struct.unpack_from("=2H", info, 4)
    option, mask, wanted, invert = struct.unpack_from("=BBBB", info, 8)
    if not _inside(seen, destination, bool(invert & 2)):
        return "no"
    flags = seen.transport[13] if len(seen.transport) > 13 else None
    if mask and (flags is None):
        return "perhaps"
    if mask and flags is not None and (flags & mask == wanted) == bool(invert & 4):
        return "no"
    return "perhaps" if option or _spt(info) else "yes"


def _conntrack(revision: int, info: bytes, seen: Seen) -> _Match:
    flags, inverted = struct.unpack_from("=2H", info, _CT_FLAGS_AT)
    state = info[_CT_FLAGS_AT + 4] if revision == 1 else struct.unpack_from("=H", info, _CT_FLAGS_AT + 4)[0]
    if flags != _CT_ONLY_STATE:
        return "perhaps"
    hit = bool(state & seen.state) or bool(state & _STATE_DNAT and seen.translated)
    return _word(hit != bool(inverted & _CT_ONLY_STATE))


def _addrtype(info: bytes, seen: Seen) -> _Match:
    source, destination, flags = struct.unpack_from("=HHI", info)
    if flags & 12:  # limited to an interface
        return "perhaps"
    size, places = (4, (12, 16)) if len(seen.network) == 20 else (16, (8, 24))
    for wanted, at, of, invert in ((source, places[0], "saddr", 1), (destination, places[1], "daddr", 2)):
        if wanted:
            address = seen.network[at : at + size]
            if None in address:
                return "perhaps"
            kind = seen.fib(of, bytes(b for b in address if b is not None))
            if bool(wanted >> kind & 1) == bool(flags & invert):
                return "no"
    return "yes"


def _multiport(info: bytes, seen: Seen) -> _Match:
    flags, count = info[0], info[1]
    port = _port(seen)
    if flags != 1 or port is None:  # XT_MULTIPORT_DESTINATION
        return "perhaps"
    ports, ranged, invert = struct.unpack_from("=15H", info, 2), info[32:47], bool(info[47])
    at, hit = 0, False
    while at < count:
        last = ports[at + 1] if ranged[at] else ports[at]
        hit = hit or ports[at] <= port <= last
        at += 2 if ranged[at] else 1
    return _word(hit != invert)


def target(
    name: str, revision: int, info: bytes, seen: Seen
) -> str | Seen | tuple[str | tuple[int, str], tuple[bytes, int] | None]:
    """Returns the effect of an xt target: "yes" (goes on), a changed packet, or a verdict."""
    if name in _TERMINAL:
        return _TERMINAL[name], None
    if name == "MARK" and revision == 2:
        mark, mask = struct.unpack_from("=II", info)
        return replace(seen, mark=None if seen.mark is None else seen.mark & ~mask ^ mark)
    if name in ("DNAT", "REDIRECT"):
        return "translate", None
    return "yes" if name in _PASSING else ("unknown", None)

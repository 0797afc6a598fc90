"""What the kernel tells of packets with `meta nftrace set 1`: messages of NFT_MSG_TRACE as data. Pure.

Source: linux/netfilter/nf_tables.h (enum nft_trace_attributes).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..ip import unpacked
from ..netlink.codec import parse, to_int, to_signed, to_text
from . import expr as e

GROUP_NFTRACE, MSG_TRACE = 9, 17
Kind = Literal["policy", "return", "rule"]
_KINDS: dict[int, Kind] = {1: "policy", 2: "return", 3: "rule"}
_WORDS = {e.DROP: "drop", e.ACCEPT: "accept", e.JUMP: "jump", e.GOTO: "goto", e.RETURN: "return"}


class Traced(NamedTuple):
    """One rule or policy that a packet met. ident: the same for all messages of one packet in one hook. src, dst: "" in
    messages without headers; the first message of a chain has them. iif, oif: indices of links.
    """

    table: str
    chain: str
    kind: Kind
    handle: int
    verdict: str
    ident: int
    src: str = ""
    dst: str = ""
    iif: int = 0
    oif: int = 0


def decode(body: bytes) -> Traced | None:
    """Decodes the body of a message behind its nfgenmsg; None if it is of no known kind."""
    got = parse(body)
    kind = _KINDS.get(to_int(got.get(4)))
    if kind is None:
        return None
    verdict = parse(got.get(5, b""))
    code = to_signed(verdict[1]) if 1 in verdict else to_signed(got[16]) if 16 in got else e.ACCEPT
    header = got.get(8, b"")
    src = dst = ""
    if len(header) >= 40 and header[0] >> 4 == 6:
        src, dst = unpacked(header[8:24]), unpacked(header[24:40])
    elif len(header) >= 20:
        src, dst = unpacked(header[12:16]), unpacked(header[16:20])
    return Traced(
        to_text(got.get(1)), to_text(got.get(2)), kind, to_int(got.get(3)), _WORDS.get(code, str(code)),
        to_int(got.get(6)), src, dst, to_int(got.get(10)), to_int(got.get(12)),
    )  # fmt: skip

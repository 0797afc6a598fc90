"""Follows packets through a node's hooks while `--send` sends them: a table of our own marks them, and the kernel tells
of each rule that they meet. I/O.

The table has the owner flag: it belongs to this process's socket, so the kernel removes it when the process ends,
however it ends. It drops nothing and changes no packet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple, Self, get_args

from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.netlink.codec import split
from podwire_base.kernel.netlink.socket import NETFILTER, ROOM, open_socket
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import trace
from podwire_base.kernel.nft.codec import SUBSYS
from podwire_base.kernel.nft.expr import R0
from podwire_base.kernel.nft.expr import Traced as Mark
from podwire_base.kernel.nft.objects import Hook
from podwire_base.kernel.nft.socket import Connection

from .observe import read_links

TABLE = "podwire-trace"
FIRST, LAST = -450, 500  # before and behind every usual chain
_AT = {"ip": (12, 16, 4), "ip6": (8, 24, 16)}
_NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132}


class Followed(NamedTuple):
    """The packets to follow at one node. sport, dport 0: any. protocol: TCP, UDP, SCTP or ICMP."""

    src: str
    dst: str
    protocol: str
    sport: int = 0
    dport: int = 0


def plan(family: Family, flows: list[Followed]) -> nft.Transaction:
    """Returns the table. Its chains at the end of each hook tell that the packet came so far."""
    table = nft.Table(family, TABLE, owned=True)
    tx = nft.Transaction().add(table)
    for hook in get_args(Hook):
        early = hook in ("prerouting", "output")
        for priority, name in ((FIRST, "mark"), (LAST, "end")) if early else ((LAST, "end"),):
            chain = nft.Chain(table, f"{hook}-{name}", hook=hook, priority=priority)
            tx.add(chain)
            for flow in flows if name == "mark" else ():
                tx.add(nft.Rule(chain, (*_match(family, flow), nft.Immediate(b"\1", R0), Mark())))
    return tx


def _match(family: Family, flow: Followed) -> Iterator[nft.Expr]:
    source, destination, size = _AT[family]
    for ip, at in ((flow.src, source), (flow.dst, destination)):
        if ip:
            yield from (nft.Payload("network", at, size), nft.Cmp(packed(ip)))
    if number := _NUMBERS.get(flow.protocol):
        yield from (nft.Meta("l4proto"), nft.Cmp(bytes((number,))))
        for port, at in ((flow.sport, 0), (flow.dport, 2)):
            if port:
                yield from (nft.Payload("transport", at, 2), nft.Cmp(port.to_bytes(2, "big")))
    else:
        yield from (nft.Meta("l4proto"), nft.Cmp(bytes((1 if family == "ip" else 58,))))


class Tracer:
    """Traces in one network namespace, until it is left. The caller is in this namespace. Raises OSError."""

    def __init__(self, node: str, family: Family, flows: list[Followed]) -> None:
        self.node, self._found = node, list[trace.Traced]()
        self.links = {link.index: link.name for link in read_links().values()}
        with contextlib.ExitStack() as stack:
            self._sock = open_socket(NETFILTER, None, room=1 << 20, groups=[trace.GROUP_NFTRACE])
            stack.callback(self._sock.close)
            self._sock.setblocking(False)
            self._conn = stack.enter_context(Connection())
            self._conn.commit(plan(family, flows))
            self._undo = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.close()

    def read(self) -> list[trace.Traced]:
        """Returns all that the kernel told so far, in its order."""
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                for kind, _, _, _, body in split(self._sock.recv(ROOM)):
                    if kind == SUBSYS | trace.MSG_TRACE and (one := trace.decode(body[4:])):
                        self._found.append(one)
        return self._found

"""Sets of addresses (ipset) over nfnetlink. Source: linux/netfilter/ipset/ip_set.h; the set type is hash:ip."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterator, Sequence

from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.netlink.codec import attr, nest, parse, text, to_int, to_text, u8, u32, walk
from podwire_base.kernel.nft import codec
from podwire_base.kernel.nft.socket import open_socket

from .layout import PREFIX

SUBSYS = 6 << 8
CREATE, DESTROY, FLUSH, LIST, ADD, DELETE = 2, 3, 4, 7, 9, 10
PROTOCOL, SETNAME, TYPENAME, REVISION, FAMILY, FLAGS, DATA, ADT, LINENO = 1, 2, 3, 4, 5, 6, 7, 8, 9
IP, TIMEOUT, DATA_LINENO, MAXELEM, ELEMENTS = 1, 6, 9, 19, 24
NET_ORDER = 0x4000
LIST_HEADER = 1 << 2
BUSY = 4100  # IPSET_ERR_BUSY: a rule still names the set
_ERRORS = {
    4097: "the kernel speaks another version of ipset",
    4098: "the kernel has no hash:ip sets (modprobe ip_set_hash_ip)",
    4099: "too many sets",
    BUSY: "a rule still uses it",
    4102: "a set of another type has this name",
    4352: "it is full",
}
MEMBERS = 1 << 20  # at most, in the set of ClusterIPs
CLIENTS = 1 << 16  # at most, remembered for one endpoint
CHUNK = 1000  # members a message; a nested attribute holds at most 64 KiB
NLM_CREATE, NLM_DUMP, NLM_ACK = 0x400, 0x300, 4


class IpSetError(OSError):
    """errno: the kernel's, beyond 4096 one of ipset's own."""


class IpSets:
    """One socket. Every call raises IpSetError."""

    def __init__(self, ns_fd: int | None = None) -> None:
        self._sock = open_socket(ns_fd)

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> IpSets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, name: str, family: Family, *, timeout: bool) -> None:
        """Nothing happens where it is there already."""
        data = [u32(MAXELEM | NET_ORDER, CLIENTS if timeout else MEMBERS)]
        if timeout:
            data.append(u32(TIMEOUT | NET_ORDER, 0))
        body = (text(TYPENAME, "hash:ip"), u8(REVISION, 0), u8(FAMILY, codec.FAMILIES[family]), nest(DATA, *data))
        self._ask(CREATE, name, *body, flags=NLM_ACK | NLM_CREATE)

    def add(self, name: str, members: Sequence[str]) -> None:
        self._members(ADD, name, members)

    def remove(self, name: str, members: Sequence[str]) -> None:
        """Those that are not there do not matter."""
        self._members(DELETE, name, members)

    def flush(self, name: str) -> None:
        self._ask(FLUSH, name)

    def destroy(self, name: str) -> bool:
        """False where a rule still names it; one that is not there is as good as destroyed."""
        try:
            self._ask(DESTROY, name)
        except IpSetError as err:
            if err.errno == BUSY:
                return False
            if err.errno != errno.ENOENT:
                raise
        return True

    def ours(self, family: Family) -> dict[str, set[str]]:
        """Our sets of one family, with their members."""
        found: dict[str, set[str]] = {}
        try:
            answers = self._ask(LIST, "", flags=NLM_DUMP)
        except IpSetError as err:
            if err.errno == errno.EINVAL:  # a kernel without ipset has none of ours
                return found
            raise
        for got in answers:
            name = to_text(got.get(SETNAME))
            # A large set takes many answers, and only the first one tells the family.
            mine = got[FAMILY][0] == codec.FAMILIES[family] if FAMILY in got else name in found
            if name.startswith(PREFIX) and mine:
                members = found.setdefault(name, set())
                for _, one in walk(got.get(ADT, b"")):
                    address = next(value for _, value in walk(parse(one)[IP]))
                    members.add(str(ipaddress.ip_address(address)))
        return found

    def count(self, name: str) -> int:
        """The number of members; -1 where there is no such set."""
        try:
            for got in self._ask(LIST, name, u32(FLAGS | NET_ORDER, LIST_HEADER), flags=NLM_DUMP):
                return to_int(parse(got.get(DATA, b"")).get(ELEMENTS))
        except IpSetError as err:
            if err.errno != errno.ENOENT:
                raise
        return -1

    def _members(self, command: int, name: str, members: Sequence[str]) -> None:
        for start in range(0, len(members), CHUNK):
            items = []
            for index, ip in enumerate(members[start : start + CHUNK]):
                raw = packed(ip)
                items.append(
                    nest(
                        DATA,
                        nest(IP, attr((1 if len(raw) == 4 else 2) | NET_ORDER, raw)),
                        u32(DATA_LINENO | NET_ORDER, index),
                    )
                )
            self._ask(command, name, u32(LINENO, 0), nest(ADT, *items))

    def _ask(self, command: int, name: str, *body: bytes, flags: int = NLM_ACK) -> list[dict[int, bytes]]:
        start = u8(PROTOCOL, 6) + (text(SETNAME, name) if name else b"")
        self._sock.send(codec.message(SUBSYS | command, codec.REQUEST | flags, 1, 2, start + b"".join(body)))
        return list(self._answers(command, name))

    def _answers(self, command: int, name: str) -> Iterator[dict[int, bytes]]:
        found: list[dict[int, bytes]] = []
        while True:
            for kind, flag, seq, _, payload in codec.split(self._sock.recv(1 << 20)):
                if kind == 2:
                    error = codec.decode_error(flag, seq, payload)
                    if error:
                        why = _ERRORS.get(error.errno) or os.strerror(error.errno)
                        raise IpSetError(error.errno, f"ipset command {command} on {name or 'all sets'}: {why}")
                    return iter(found)
                if kind == 3:
                    return iter(found)
                found.append(parse(payload[4:]))

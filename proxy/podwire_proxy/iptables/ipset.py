"""Sets of addresses (ipset) over nfnetlink. Source: linux/netfilter/ipset/ip_set.h; the set type is hash:ip."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Sequence

from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.netlink import codec
from podwire_base.kernel.netlink.codec import (
    ACK,
    DUMP,
    NFPROTO,
    NetlinkError,
    attr,
    nest,
    nfgenmsg,
    parse,
    text,
    to_int,
    to_text,
    u8,
    u32,
    walk,
)
from podwire_base.kernel.netlink.socket import MANY_ANSWERS, NETFILTER, Netlink

from .layout import PREFIX

SUBSYS = 6 << 8
CREATE, DESTROY, FLUSH, LIST, ADD, DELETE = 2, 3, 4, 7, 9, 10
PROTOCOL, SETNAME, TYPENAME, REVISION, FAMILY, FLAGS, DATA, ADT, LINENO = 1, 2, 3, 4, 5, 6, 7, 8, 9
IP, TIMEOUT, DATA_LINENO, MAXELEM, ELEMENTS = 1, 6, 9, 19, 24
NET_ORDER = 0x4000
LIST_HEADER = 1 << 2
BUSY = 4100  # IPSET_ERR_BUSY: a rule still uses the set
_ERRORS = {
    4097: "the kernel speaks another version of ipset",
    4098: "the kernel has no hash:ip sets (modprobe ip_set_hash_ip)",
    4099: "too many sets",
    BUSY: "a rule still uses it",
    4102: "a set of another type has this name",
    4352: "it is full",
}
MEMBERS = 1 << 20  # the maximum size of the set of ClusterIPs
CLIENTS = 1 << 16  # the maximum number of remembered clients per endpoint
CHUNK = 1000  # members per message; a nested attribute holds at most 64 KiB


class IpSetError(OSError):
    """The kernel refused an operation on a set. errno: an errno of the kernel; above 4096 an error code of ipset."""


class IpSets:
    """A netlink socket for operations on sets. Every call raises IpSetError."""

    def __init__(self, ns_fd: int | None = None) -> None:
        self._netlink = Netlink(NETFILTER, ns_fd, room=MANY_ANSWERS)

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> IpSets:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def create(self, name: str, family: Family, *, timeout: bool) -> None:
        """Creates a set. Does nothing if the set exists."""
        data = [u32(MAXELEM | NET_ORDER, CLIENTS if timeout else MEMBERS)]
        if timeout:
            data.append(u32(TIMEOUT | NET_ORDER, 0))
        body = (text(TYPENAME, "hash:ip"), u8(REVISION, 0), u8(FAMILY, NFPROTO[family]), nest(DATA, *data))
        self._ask(CREATE, name, *body, flags=ACK | codec.CREATE)

    def add(self, name: str, members: Sequence[str]) -> None:
        self._members(ADD, name, members)

    def remove(self, name: str, members: Sequence[str]) -> None:
        """Removes members. A missing member is not an error."""
        self._members(DELETE, name, members)

    def flush(self, name: str) -> None:
        self._ask(FLUSH, name)

    def destroy(self, name: str) -> bool:
        """Destroys a set. Returns False if a rule still uses the set. A missing set counts as destroyed."""
        try:
            self._ask(DESTROY, name)
        except IpSetError as err:
            if err.errno == BUSY:
                return False
            if err.errno != errno.ENOENT:
                raise
        return True

    def ours(self, family: Family) -> dict[str, set[str]]:
        """Returns the PODWIRE-* sets of one family, with their members."""
        found: dict[str, set[str]] = {}
        try:
            answers = self._ask(LIST, "", flags=DUMP)
        except IpSetError as err:
            if err.errno == errno.EINVAL:  # a kernel without ipset has no sets
                return found
            raise
        for got in answers:
            name = to_text(got.get(SETNAME))
            # A large set needs many answers. Only the first answer has the family.
            mine = got[FAMILY][0] == NFPROTO[family] if FAMILY in got else name in found
            if name.startswith(PREFIX) and mine:
                members = found.setdefault(name, set())
                for _, one in walk(got.get(ADT, b"")):
                    address = next(value for _, value in walk(parse(one)[IP]))
                    members.add(str(ipaddress.ip_address(address)))
        return found

    def count(self, name: str) -> int:
        """Returns the number of members; -1 if the set does not exist."""
        try:
            for got in self._ask(LIST, name, u32(FLAGS | NET_ORDER, LIST_HEADER), flags=DUMP):
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

    def _ask(self, command: int, name: str, *body: bytes, flags: int = ACK) -> list[dict[int, bytes]]:
        start = nfgenmsg(NFPROTO["ip"]) + u8(PROTOCOL, 6) + (text(SETNAME, name) if name else b"")
        try:
            answers = self._netlink.request(SUBSYS | command, start + b"".join(body), flags)
            return [parse(payload[4:]) for _, payload in answers]
        except NetlinkError as err:
            why = _ERRORS.get(err.errno or 0) or err.strerror
            raise IpSetError(err.errno, f"ipset command {command} on {name or 'all sets'}: {why}") from err

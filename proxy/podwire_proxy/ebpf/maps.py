"""The content of the maps as bytes, in the structures of native/look.h. Pure.

An address is in its mapped form (::ffff:a.b.c.d for IPv4): 16 bytes in network byte order, for both families.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from ..dataplane import Key
from ..model import PROTOCOLS, Destination

POD, NODE = 1, 2  # who of look.h: sockets of pods, sockets of the node
SERVICES, ENDPOINTS, MAX_COUNT = 1 << 17, 1 << 20, 0xFFFF  # elements of the maps; endpoints of one frontend
LAYOUT = 1  # raised by a change that another version's programs or planner would misread

_PLACE, _PORT = struct.Struct("16s2sBB"), struct.Struct(">H")
_SERVICE = struct.Struct("<20sIQ")
_ENDPOINT = struct.Struct("<16s2sHI")
_CLIENT = struct.Struct("<I4s16s")
_QUESTION = struct.Struct("<20sIII")
SIZES = {
    "place": _PLACE.size,
    "service": _SERVICE.size,
    "endpoint": _ENDPOINT.size,
    "client": _CLIENT.size,
    "question": _QUESTION.size,
}
ENDPOINT = _ENDPOINT.size
_NAMES = {number: name for name, number in PROTOCOLS.items()}
SERVED = ("TCP", "UDP")  # the protocols whose sockets the hooks see


class Row(NamedTuple):
    """An element of the map `services`: the block of the frontend's endpoints, and who is served from it; all 0 for a
    frontend that stays with nftables.
    """

    base: int
    number: int
    flags: int


@dataclass(frozen=True, slots=True)
class Client:
    """A network namespace whose sockets are served. cookie: the kernel's number of the namespace (SO_NETNS_COOKIE).
    who: POD or NODE. ip, ip6: the pod's own addresses; "" if it has none, and for the node.
    """

    cookie: int
    who: int
    ip: str = ""
    ip6: str = ""


@cache
def mapped(ip: str) -> bytes:
    found = ipaddress.ip_address(ip)
    return bytes(10) + b"\xff\xff" + found.packed if found.version == 4 else found.packed


def unmapped(data: bytes) -> str:
    found = ipaddress.IPv6Address(data)
    return str(found.ipv4_mapped or found)


def place(key: Key) -> bytes:
    return _PLACE.pack(mapped(key.ip), _PORT.pack(key.port), PROTOCOLS[key.protocol], 0)


def key_of(data: bytes) -> Key:
    ip, number, protocol, _ = _PLACE.unpack(data)
    return Key(unmapped(ip), _NAMES[protocol], _PORT.unpack(number)[0])  # type: ignore[arg-type]  # a Protocol


def service(key: Key, row: Row) -> bytes:
    return _SERVICE.pack(place(key), 0, row.base | row.number << 32 | row.flags << 48)


def row_of(data: bytes) -> Row:
    word: int = _SERVICE.unpack(data)[2]
    return Row(word & 0xFFFFFFFF, word >> 32 & 0xFFFF, word >> 48)


@cache
def endpoint(destination: Destination) -> bytes:
    return _ENDPOINT.pack(mapped(destination.ip), _PORT.pack(destination.port), 0, 0)


@cache
def destination_of(data: bytes) -> Destination:
    ip, number, _, _ = _ENDPOINT.unpack(data)
    return Destination(unmapped(ip), _PORT.unpack(number)[0])


def client(one: Client) -> tuple[bytes, bytes]:
    """Returns the key and the value of the element."""
    ip = ipaddress.IPv4Address(one.ip).packed if one.ip else bytes(4)
    return struct.pack("<Q", one.cookie), _CLIENT.pack(one.who, ip, mapped(one.ip6) if one.ip6 else bytes(16))


def client_of(key: bytes, value: bytes) -> Client:
    who, ip, ip6 = _CLIENT.unpack(value)
    one = str(ipaddress.IPv4Address(ip)) if any(ip) else ""
    return Client(struct.unpack("<Q", key)[0], who, one, unmapped(ip6) if any(ip6) else "")


UNKNOWN, CHOSEN = 0, 1  # answers of look.h: no frontend's address; an endpoint was chosen
WHY_LEFT = {  # the other answers: why nftables serves the frontend
    2: "unserved",
    3: "unknown-namespace",
    4: "bound-socket",
    5: "nested-service",
    6: "full-memory",
    7: "changing",
}


def question(key: Key, who: int, random: int) -> bytes:
    """Returns the packet that the program `ask` reads."""
    return bytes(14) + _QUESTION.pack(place(key), who, random, 0)


def answer(packet: bytes) -> tuple[int, Destination | None]:
    """Returns (UNKNOWN, CHOSEN or a key of WHY_LEFT; the endpoint that was chosen)."""
    data, _, _, found = _QUESTION.unpack(packet[14 : 14 + _QUESTION.size])
    key = key_of(data)
    return found, Destination(key.ip, key.port) if found == CHOSEN else None

"""Converts names between text and wire form, and forms the names of Services, endpoints and pods.

Text names are lower case, end in a dot, and contain only the characters that Kubernetes allows: letters, digits, '-',
'_' and '.'.
Names in queries stay in wire form (RFC 1035 section 3.1), where any byte is allowed.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Container, Iterator
from functools import lru_cache

ROOT = b"\0"
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
MAX_WIRE = 255


class BadName(ValueError):
    """A name or an address cannot be in the DNS. The text names the value and the reason."""


def fqdn(name: str) -> str:
    """Returns the name in lower case with one trailing dot. Raises BadName if the text is not a DNS name."""
    text = name.lower().rstrip(".")
    labels = text.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise BadName(f"{name!r} is not a DNS name: the label {label!r} must be 1 to 63 of a-z, 0-9, '-' and '_'")
    if len(text) + 2 > MAX_WIRE:
        raise BadName(f"{name!r} is not a DNS name: it is longer than 253 characters")
    return text + "."


def label(text: str, what: str) -> str:
    """Returns one label in lower case. `what` names the field in the error. Raises BadName."""
    low = text.lower()
    if not _LABEL.fullmatch(low):
        raise BadName(f"{what} {text!r} cannot be a DNS label: 1 to 63 of a-z, 0-9, '-' and '_'")
    return low


def to_wire(name: str) -> bytes:
    """Converts text form to wire form. "a.b." -> b"\\x01a\\x01b\\x00"; "." -> b"\\x00"."""
    if name in (".", ""):
        return b"\0"
    first, _, rest = name.partition(".")
    wire = bytes((len(first),)) + first.encode("ascii") + _suffix(rest)
    if len(wire) > MAX_WIRE:
        raise BadName(f"{name!r} is longer than 255 bytes on the wire")
    return wire


@lru_cache(maxsize=16384)
def _suffix(name: str) -> bytes:
    """Returns a name without its first label, in wire form; cached, because thousands of names share this part."""
    raw = name.rstrip(".").encode("ascii")
    return b"".join(bytes((len(part),)) + part for part in raw.split(b".") if part) + b"\0"


def from_wire(wire: bytes) -> str:
    """Converts uncompressed wire form to text. Bytes that Kubernetes never uses become RFC 1035 escapes."""
    out, at = [], 0
    while wire[at]:
        part = wire[at + 1 : at + 1 + wire[at]]
        out.append("".join(chr(c) if 0x21 <= c <= 0x7E and c not in b'.\\"' else f"\\{c:03d}" for c in part))
        at += 1 + wire[at]
    return ".".join(out) + "."


def inside(name: bytes, zones: Container[bytes]) -> bytes | None:
    """Returns the longest of `zones` that contains `name`; None if no zone does. All names are in wire form."""
    at = 0
    while True:
        if name[at:] in zones:
            return name[at:]
        if not name[at]:
            return None
        at += 1 + name[at]


def parents(name: str) -> Iterator[str]:
    """Yields the name, then each name above the name except the root."""
    while name and name != ".":
        yield name
        name = name.partition(".")[2]


def within(name: str, origins: frozenset[str]) -> str | None:
    """Returns the longest of `origins` that contains `name`; None if `name` is outside all of them."""
    return next((above for above in parents(name) if above in origins), None)


def reverse_name(address: str) -> str:
    """Returns the reverse name of an address: 10.96.0.1 -> 1.0.96.10.in-addr.arpa.

    Source: RFC 1035 section 3.5; for IPv6 RFC 3596 section 2.5 (nibbles under ip6.arpa.). address: canonical text, as
    `canonical` returns it.
    """
    if ":" not in address:
        return ".".join(address.split(".")[::-1]) + ".in-addr.arpa."
    return ipaddress.IPv6Address(address).reverse_pointer + "."


def packed(address: str) -> bytes:
    """Returns the 4 or 16 bytes of an A or AAAA record."""
    if ":" in address:
        return ipaddress.IPv6Address(address).packed
    a, b, c, d = address.split(".")
    return bytes((_OCTETS[a], _OCTETS[b], _OCTETS[c], _OCTETS[d]))


_OCTETS = {str(number): number for number in range(256)}
_OCTET_TEXTS = [str(number).encode() for number in range(256)]
_OCTET_LABELS = [bytes((len(str(number)),)) + str(number).encode() for number in range(256)]
_NIBBLE_LABELS = [b"\x01" + b"%x" % number for number in range(16)]
IN_ADDR, IP6 = b"\x07in-addr\x04arpa\0", b"\x03ip6\x04arpa\0"


def is_canonical_ipv4(text: str) -> bool:
    """Whether the text is four octets without leading zeros. A fast check that avoids the ipaddress module."""
    parts = text.split(".")
    return len(parts) == 4 and all(part in _OCTETS for part in parts)


def reverse_wire(address: bytes) -> bytes:
    """Returns the reverse name, in wire form, of a packed address."""
    labels = _OCTET_LABELS
    if len(address) == 4:
        a, b, c, d = address
        return labels[d] + labels[c] + labels[b] + labels[a] + IN_ADDR
    nibbles = _NIBBLE_LABELS
    return b"".join(nibbles[octet & 15] + nibbles[octet >> 4] for octet in reversed(address)) + IP6


def unreversed(name: bytes) -> bytes | None:
    """Returns the packed address of a reverse name (lower-case wire form); None for every other name."""
    labels, at = [], 0
    while name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    try:
        if name.endswith(IN_ADDR) and len(labels) == 6:
            found = bytes(int(each) for each in labels[3::-1])
        elif name.endswith(IP6) and len(labels) == 34:
            found = bytes.fromhex(b"".join(labels[31::-1]).decode("ascii"))
        else:
            return None
    except ValueError:
        return None
    return found if reverse_wire(found) == name else None


def prefixed(first: str, rest: bytes) -> bytes:
    """Returns the name `first`.`rest` in wire form. Raises BadName if the name is too long."""
    raw = first.encode("ascii")
    wire = bytes((len(raw),)) + raw + rest
    if len(raw) > 63 or len(wire) > MAX_WIRE:
        raise BadName(f"{first}.{from_wire(rest)} is longer than a DNS name may be (253 characters, 63 in a label)")
    return wire


def parents_wire(name: bytes) -> Iterator[bytes]:
    """Yields each name above `name` except the root, in wire form."""
    name = name[1 + name[0] :]
    while name[0]:
        yield name
        name = name[1 + name[0] :]


def canonical(text: str) -> str:
    """Returns the canonical text of an address. Raises BadName, also for IPv4 with leading zeros."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as err:
        raise BadName(f"{text!r} is not an IP address") from err


def reverse_zones(cidr: str) -> list[str]:
    """Returns the reverse zones that together cover `cidr` exactly.

    The result has several zones if the prefix length ends inside an octet (IPv6: a nibble).
    """
    try:
        network = ipaddress.ip_network(cidr)
    except ValueError as err:
        raise BadName(f"{cidr!r} is not a CIDR: {err}") from err
    step = 8 if network.version == 4 else 4
    whole = -(-network.prefixlen // step) * step
    if whole == 0:
        return ["in-addr.arpa." if network.version == 4 else "ip6.arpa."]
    strip = (network.max_prefixlen - whole) // step
    parts = (part.network_address.reverse_pointer.split(".")[strip:] for part in network.subnets(new_prefix=whole))
    return [".".join(labels) + "." for labels in parts]


def dashed(address: str) -> str:
    """Returns the label of an endpoint or pod for an address: 10.1.2.3 -> 10-1-2-3, fd00::1 -> fd00--1.

    A label must not begin or end with '-': the function adds a 0 in these places (::1 -> 0--1).
    """
    if ":" not in address:
        return address.replace(".", "-")
    text = address.replace(":", "-")
    return ("0" if text[0] == "-" else "") + text + ("0" if text[-1] == "-" else "")


def dashed_label(address: bytes) -> bytes:
    """Returns the result of `dashed` for a packed address."""
    if len(address) == 4:
        a, b, c, d = address
        return b"%b-%b-%b-%b" % (_OCTET_TEXTS[a], _OCTET_TEXTS[b], _OCTET_TEXTS[c], _OCTET_TEXTS[d])
    return dashed(str(ipaddress.IPv6Address(address))).encode()


def undashed(text: str) -> str | None:
    """Returns the address of a label that `dashed` made; None if `text` is not such a label."""
    for candidate in (text.replace("-", "."), text.replace("-", ":")):
        try:
            return str(ipaddress.ip_address(candidate))
        except ValueError:
            continue
    return None

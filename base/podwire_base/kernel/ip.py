"""Converts IP families and addresses to and from the formats of the kernel's interfaces. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

IPAddress = IPv4Address | IPv6Address
Family = Literal["ip", "ip6"]  # the names that nft(8) uses
FAMILIES: tuple[Family, ...] = ("ip", "ip6")


def family_of(address: IPAddress) -> Family:
    return "ip" if address.version == 4 else "ip6"


def packed(ip: str) -> bytes:
    """Returns the bytes of an address in network order."""
    return ip_address(ip).packed if ":" in ip else bytes(map(int, ip.split(".")))


def unpacked(raw: bytes) -> str:
    """Returns the canonical text of an address of 4 or 16 bytes in network order. Raises ValueError for another number
    of bytes.
    """
    return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}" if len(raw) == 4 else str(ip_address(raw))


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))

"""IP families and addresses in the forms of the kernel's interfaces. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

IPAddress = IPv4Address | IPv6Address
Family = Literal["ip", "ip6"]  # as nft(8) and ipset name them
FAMILIES: tuple[Family, ...] = ("ip", "ip6")


def family_of(address: IPAddress) -> Family:
    return "ip" if address.version == 4 else "ip6"


def packed(ip: str) -> bytes:
    """Network-order bytes of a canonical address."""
    return ip_address(ip).packed if ":" in ip else bytes(map(int, ip.split(".")))


def unpacked(raw: bytes) -> str:
    """The canonical text of 4 or 16 bytes in network order. Raises ValueError for another number of bytes."""
    return f"{raw[0]}.{raw[1]}.{raw[2]}.{raw[3]}" if len(raw) == 4 else str(ip_address(raw))


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))

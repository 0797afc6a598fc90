"""Chooses the addresses of a Node that other machines use. Pure; all roles share this choice.

As in kube-proxy and kubelet (GetNodeHostIPs): in each family the InternalIPs, and only where the Node has none its
ExternalIPs. Nodes of some clouds and of hosts with one public address have no InternalIP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

KINDS = INTERNAL, EXTERNAL = "InternalIP", "ExternalIP"
NodeIP = IPv4Address | IPv6Address


def listed(
    node: Mapping[str, Any] | None, kind: str, bad: Callable[[str], None] = lambda _: None
) -> tuple[NodeIP, ...]:
    """Returns the addresses of type `kind` in the Node's order. bad: gets a text for each entry that is not an address.

    IPv4 octets with leading zeros are decimal, as in Kubernetes.
    """
    found: dict[NodeIP, None] = {}
    entries = ((node or {}).get("status") or {}).get("addresses") or []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            bad(f"status.addresses: {entry!r} is not an address")
        elif entry.get("type") == kind:
            text = str(entry.get("address"))
            try:
                if "%" in text:
                    raise ValueError("a zone means nothing on another machine")
                found[ip_address(text if ":" in text else ".".join(_octet(part) for part in text.split(".")))] = None
            except ValueError:
                bad(f"status.addresses: {entry!r} is not an address")
    return tuple(found)


def _octet(text: str) -> str:
    return text.lstrip("0") or "0" if text.isdecimal() else text


def usable(node: Mapping[str, Any] | None, bad: Callable[[str], None] = lambda _: None) -> tuple[NodeIP, ...]:
    """Returns the InternalIPs in the Node's order, then the ExternalIPs of each family without an InternalIP."""
    internal, external = listed(node, INTERNAL, bad), listed(node, EXTERNAL, bad)
    families = {ip.version for ip in internal}
    return (*internal, *(ip for ip in external if ip.version not in families))


def primary(node: Mapping[str, Any] | None, bad: Callable[[str], None] = lambda _: None) -> tuple[NodeIP, ...]:
    """Returns the first usable address of each family, in the Node's order."""
    found: dict[int, NodeIP] = {}
    for ip in usable(node, bad):
        found.setdefault(ip.version, ip)
    return tuple(found.values())

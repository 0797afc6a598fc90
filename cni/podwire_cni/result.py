"""Parses and encodes results in the format of each cniVersion.

The formats differ (CNI spec, "Success" of each version). `ips[].version` exists up to 0.4.0. From 1.1.0 on, interfaces
have `mtu`, `socketPath` and `pciID`, and routes have `mtu`, `advmss`, `priority`, `table` and `scope`. The result has
the version of the request.
"""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

from .errors import CNIError, ErrorCode
from .types import Dns, Interface, IPConfig, Result, Route

_ROUTE_NUMBERS = ("mtu", "advmss", "priority", "table", "scope")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _dns(dns: Dns) -> dict[str, Any]:
    pairs = (
        ("nameservers", list(dns.nameservers)),
        ("domain", dns.domain),
        ("search", list(dns.search)),
        ("options", list(dns.options)),
    )
    return {key: value for key, value in pairs if value}


def to_json(result: Result, version: str) -> dict[str, Any]:
    """Returns the result as a JSON object in the format of `version` (one of types.VERSIONS)."""
    newest, old = _version(version) >= (1, 1, 0), _version(version) < (1, 0, 0)
    interfaces, ips, routes = [], [], []
    for link in result.interfaces:
        entry: dict[str, Any] = {"name": link.name}
        entry.update({"mac": link.mac} if link.mac else {})
        entry.update({"mtu": link.mtu} if newest and link.mtu else {})
        entry.update({"sandbox": link.sandbox} if link.sandbox else {})
        if newest:
            entry.update({k: v for k, v in (("socketPath", link.socket_path), ("pciID", link.pci_id)) if v})
        interfaces.append(entry)
    for ip in result.ips:
        entry = {"version": str(ip.address.version)} if old else {}
        entry["address"] = str(ip.address)
        entry.update({"gateway": str(ip.gateway)} if ip.gateway else {})
        entry.update({"interface": ip.interface} if ip.interface is not None else {})
        ips.append(entry)
    for route in result.routes:
        entry = {"dst": str(route.dst), **({"gw": str(route.gw)} if route.gw else {})}
        if newest:
            entry.update({k: v for k in _ROUTE_NUMBERS if (v := getattr(route, k)) is not None})
        routes.append(entry)
    return {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": _dns(result.dns)}


def _bad(field: str, found: Any, want: str) -> CNIError:
    return CNIError(ErrorCode.INVALID_CONFIG, f"{field}: {json.dumps(found, default=str)[:200]} is not {want}")


def _items(raw: Any, field: str) -> list[dict[str, Any]]:
    if raw is None:
        return []
    if not isinstance(raw, list) or not all(isinstance(entry, dict) for entry in raw):
        raise _bad(field, raw, "a list of objects")
    return raw


def parse_route(raw: Any, field: str) -> Route:
    if not isinstance(raw, dict):
        raise _bad(field, raw, "a route object with dst")
    try:
        dst = ip_network(str(raw.get("dst", "")), strict=False)
    except ValueError:
        raise _bad(f"{field}.dst", raw.get("dst"), "a subnet such as 0.0.0.0/0") from None
    try:
        gw = ip_address(str(raw["gw"])) if raw.get("gw") else None
    except ValueError:
        raise _bad(f"{field}.gw", raw["gw"], "an IP address") from None
    if gw and gw.version != dst.version:
        raise _bad(f"{field}.gw", str(gw), f"an address of {dst}'s IP family")
    numbers = {}
    for key in _ROUTE_NUMBERS:
        if raw.get(key) is not None:
            most = 255 if key == "scope" else 0xFFFFFFFF
            if type(raw[key]) is not int or not 0 <= raw[key] <= most:
                raise _bad(f"{field}.{key}", raw[key], f"a number from 0 to {most}")
            numbers[key] = raw[key]
    return Route(dst, gw, **numbers)


def parse_result(raw: Any, field: str = "prevResult") -> Result:
    """Parse a result of any version, as a runtime passes it in prevResult. Raises CNIError with code 7."""
    if not isinstance(raw, dict):
        raise _bad(field, raw, "a result object")
    interfaces = tuple(
        Interface(
            str(i.get("name", "")),
            str(i.get("mac") or "").lower(),
            i.get("mtu") or None,
            *(str(i.get(key) or "") for key in ("sandbox", "socketPath", "pciID")),
        )
        for i in _items(raw.get("interfaces"), field + ".interfaces")
    )
    ips = []
    for n, entry in enumerate(_items(raw.get("ips"), field + ".ips")):
        where = f"{field}.ips[{n}]"
        try:
            address = ip_interface(str(entry.get("address", "")))
            gateway = ip_address(str(entry["gateway"])) if entry.get("gateway") else None
        except ValueError as err:
            raise _bad(where, entry, f"an address with its prefix length and a gateway ({err})") from None
        index = entry.get("interface")
        if index is not None and (type(index) is not int or not 0 <= index < len(interfaces)):
            raise _bad(where + ".interface", index, "a position in prevResult.interfaces")
        ips.append(IPConfig(address, gateway, index))
    routes = tuple(
        parse_route(r, f"{field}.routes[{n}]") for n, r in enumerate(_items(raw.get("routes"), field + ".routes"))
    )
    dns: dict[str, Any] = raw["dns"] if isinstance(raw.get("dns"), dict) else {}
    return Result(
        interfaces,
        tuple(ips),
        routes,
        Dns(
            tuple(dns.get("nameservers") or ()),
            str(dns.get("domain") or ""),
            tuple(dns.get("search") or ()),
            tuple(dns.get("options") or ()),
        ),
    )


def merge(before: Result, ours: Result) -> Result:
    """Append our result to the result of the earlier plugins in the chain. Their interfaces keep their positions."""
    shift = len(before.interfaces)
    ips = tuple(replace(ip, interface=ip.interface + shift) if ip.interface is not None else ip for ip in ours.ips)
    return Result(
        before.interfaces + ours.interfaces,
        before.ips + ips,
        before.routes + ours.routes,
        ours.dns if ours.dns != Dns() else before.dns,
    )

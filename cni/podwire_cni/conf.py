"""The network configuration on stdin, checked field by field. (call.py checks the CNI_* variables.)

Every error names the field, the value found and an acceptable value. An unknown field is an error (code 2), because a
misspelt field must not silently select a default. An unknown key with a "/" belongs to the runtime and is ignored.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Any

from .bridgeplugin import BRIDGE_KEYS, IPAM_KEYS, taken, with_reasons
from .capabilities import bandwidth, capabilities, not_capabilities, port_mappings
from .errors import CNIError, ErrorCode
from .fields import Odd, a_list, an_address, an_object, bad, no_case, no_other, others, refuse
from .result import parse_result, parse_route
from .types import (
    BRIDGE,
    VERSIONS,
    Attachment,
    Dns,
    IPAddress,
    IPNetwork,
    NetConf,
    Range,
    RangeSet,
)

_KEYS = {
    "cniVersion",
    "cniVersions",
    "name",
    "type",
    "mtu",
    "ipam",
    "dns",
    "args",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "socket",
    "standalone",
    "pythonPlugin",
    "disableCheck",
    "disableGC",
    "ipMasq",
    "bridge",
    "addressing",
    "isGateway",
    "nonMasqueradeCIDRs",
}
_IPAM_KEYS = {"type", "ranges", "subnet", "rangeStart", "rangeEnd", "gateway", "routes"}
_DNS_KEYS = {"nameservers", "domain", "search", "options"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")


def ifname_is_good(name: str) -> bool:
    """Whether the kernel accepts `name` as an interface name and keeps it unchanged. (The kernel would replace "%d" by
    a number.)
    """
    return 0 < len(name.encode(errors="replace")) < 16 and name not in (".", "..") and not re.search(r"[/:%\s\0]", name)


def _subnet(value: Any, field: str, least: int = 4) -> IPNetwork:
    try:
        net = ip_network(value if isinstance(value, str) else "", strict=False)
    except ValueError:
        raise bad(field, value, "a subnet such as 10.244.1.0/24") from None
    if net.num_addresses < least:
        raise bad(field, value, "a subnet of at least four addresses")
    return net


def parse_range(raw: Any, field: str) -> Range:
    """Parse one range with the keys of host-local: subnet, rangeStart, rangeEnd, gateway. The default gateway is the
    first address of the subnet.
    """
    keys = an_object(raw, field)
    no_other(keys, {"subnet", "rangeStart", "rangeEnd", "gateway"}, field + ".")
    net = _subnet(keys.get("subnet"), field + ".subnet")
    gateway = an_address(keys["gateway"], field + ".gateway") if keys.get("gateway") else net[1]
    # The network address and IPv4's broadcast address are not allocated, because other software treats them as special.
    start = an_address(keys["rangeStart"], field + ".rangeStart") if keys.get("rangeStart") else net[1]
    end = (
        an_address(keys["rangeEnd"], field + ".rangeEnd")
        if keys.get("rangeEnd")
        else net[-2]
        if net.version == 4
        else net[-1]
    )
    for name, address in (("gateway", gateway), ("rangeStart", start), ("rangeEnd", end)):
        if address not in net:
            raise bad(f"{field}.{name}", str(address), f"an address of {net}")
    if int(start) > int(end):
        raise bad(f"{field}.rangeStart", str(start), f"at or before rangeEnd {end}")
    return Range(net, start, end, gateway)


def range_sets(raw: Any, field: str) -> tuple[RangeSet, ...]:
    """Parse a list of range sets; each set is a list of ranges. All ranges of a set must have the same IP family, and
    no two ranges may overlap.
    """
    sets, seen = [], list[tuple[str, Range]]()
    for i, entry in enumerate(a_list(raw, field)):
        ranges = tuple(parse_range(r, f"{field}[{i}][{j}]") for j, r in enumerate(a_list(entry, f"{field}[{i}]")))
        if not ranges:
            raise bad(f"{field}[{i}]", entry, "a list with at least one range")
        if len({r.subnet.version for r in ranges}) > 1:
            raise bad(f"{field}[{i}]", [str(r.subnet) for r in ranges], "ranges of one IP family")
        for j, r in enumerate(ranges):
            for where, other in seen:
                if other.start in r or other.end in r or r.start in other:
                    raise bad(f"{field}[{i}][{j}]", str(r.subnet), f"apart from {where} ({other.start} - {other.end})")
            seen.append((f"{field}[{i}][{j}]", r))
        sets.append(ranges)
    return tuple(sets)


def _ipam(raw: Any) -> tuple[tuple[RangeSet, ...], dict[str, Any]]:
    ipam = an_object(raw, "ipam")
    if ipam.get("type", "podwire") not in ("podwire", PLUGIN_IPAM):
        raise bad(
            "ipam.type", ipam["type"], f'"{PLUGIN_IPAM}" (this plugin assigns addresses itself; leave the key out)'
        )
    if ipam.get("subnet"):  # the older, flat form of host-local's configuration
        flat = {k: ipam[k] for k in ("subnet", "rangeStart", "rangeEnd", "gateway") if k in ipam}
        return ((parse_range(flat, "ipam"),), *range_sets(ipam.get("ranges"), "ipam.ranges")), ipam
    return range_sets(ipam.get("ranges"), "ipam.ranges"), ipam


PLUGIN_IPAM = "podwire-cni"


def parse_dns(raw: Any, field: str) -> Dns:
    dns = an_object(raw, field)
    no_other(dns, _DNS_KEYS, field + ".")
    lists = {}
    for key in ("nameservers", "search", "options"):
        lists[key] = tuple(a_list(dns.get(key), f"{field}.{key}"))
        if not all(isinstance(entry, str) for entry in lists[key]):
            raise bad(f"{field}.{key}", dns[key], "a list of strings")
    return Dns(domain=str(dns.get("domain") or ""), **lists)


def capability_dns(raw: Any, field: str) -> Dns:
    """Parse the capability "dns". CNI's conventions call its lists "servers" and "searches". Some runtimes use the
    names of the network configuration instead ("nameservers" and "search").
    """
    keys = no_case(an_object(raw, field), ("servers", "searches", "options", "nameservers", "search", "domain"), field)
    return parse_dns(
        {
            "nameservers": keys.get("servers") or keys.get("nameservers"),
            "options": keys.get("options"),
            "search": keys.get("searches") or keys.get("search"),
            "domain": keys.get("domain"),
        },
        field,
    )


def aliases(raw: Any, network: str) -> tuple[str, ...]:
    """Parse the capability "aliases": an object that maps a network to other names of the container in that network."""
    names = a_list(an_object(raw, "runtimeConfig.aliases").get(network), f"runtimeConfig.aliases.{network}")
    for name in names:
        if not isinstance(name, str) or not NAME.match(name):
            raise bad(f"runtimeConfig.aliases.{network}", name, "a list of names")
    return tuple(names)


def addresses(raw: Any, field: str) -> tuple[IPAddress, ...]:
    """Parse a list of addresses. Each address may have a prefix length."""
    return tuple(an_address(str(ip).split("/")[0], f"{field}[{i}]") for i, ip in enumerate(a_list(raw, field)))


def mac_address(raw: Any, field: str) -> str:
    """Parse a MAC address. Returns it in lower case; "" if no MAC is requested."""
    mac = str(raw or "").lower()
    if mac and (not _MAC.match(mac) or int(mac[1], 16) & 1 or not mac.strip("0:")):
        raise bad(field, mac, "a unicast MAC address such as 0a:58:0a:f4:01:05")
    return mac


def _attachments(raw: Any, field: str) -> frozenset[Attachment]:
    found = set()
    for i, entry in enumerate(a_list(raw, field)):
        keys = an_object(entry, f"{field}[{i}]")
        for key in ("containerID", "ifname"):
            if not isinstance(keys.get(key), str) or not keys[key]:
                raise bad(f"{field}[{i}].{key}", keys.get(key), "a string")
        found.add(Attachment(keys["containerID"], keys["ifname"]))
    return frozenset(found)


def _loads(stdin: bytes) -> Any:
    try:
        return json.loads(stdin)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_others(conf: Mapping[str, Any]) -> None:
    """Raise one CNIError with code 2 for all keys that this plugin does not have, of the configuration, `ipam`, `dns`
    and `runtimeConfig`: one call tells everything that must be changed. Keys of the reference plugins are no errors if
    their values mean what this plugin does.
    """
    ipam = an_object(conf.get("ipam"), "ipam")
    odd = with_reasons(others(conf, _KEYS | taken(conf, BRIDGE_KEYS), ""), BRIDGE_KEYS)
    odd += with_reasons(others(ipam, _IPAM_KEYS | taken(ipam, IPAM_KEYS), "ipam."), IPAM_KEYS, "ipam.")
    odd += others(an_object(conf.get("dns"), "dns"), _DNS_KEYS, "dns.")
    if odd and ipam.get("type") == "host-local":
        odd.append(Odd("ipam.type", "this plugin assigns addresses itself; leave the key out"))
    refuse([*odd, *(not_capabilities(conf) if odd else ())])


def version_of(stdin: bytes) -> str:
    """Returns the cniVersion for the answer, even if the rest of the configuration is invalid."""
    try:
        version = _loads(stdin).get("cniVersion")
    except (ValueError, AttributeError):
        return VERSIONS[-1]
    return version if version in VERSIONS else VERSIONS[-1]


def rest_of(stdin: bytes) -> NetConf:
    """Returns what a DEL needs of a configuration that parse_conf refuses."""
    try:
        raw = _loads(stdin)
    except ValueError:
        raw = None
    socket = raw.get("socket") if isinstance(raw, dict) else None
    return NetConf(version_of(stdin), "", socket=socket if isinstance(socket, str) else "")


@functools.lru_cache(maxsize=64)  # a runtime passes the same configuration for most pods
def parse_conf(stdin: bytes) -> NetConf:
    """Parse the network configuration from stdin. Raises CNIError with code 6 (not JSON), 1 (version), 2 (unknown
    field) or 7 (invalid value).
    """
    try:
        conf = _loads(stdin)
    except ValueError as err:
        raise CNIError(
            ErrorCode.DECODE_FAILURE,
            f"network configuration: not JSON: {err}",
            "pass the plugin's configuration on stdin",
        ) from None
    if not isinstance(conf, dict):
        raise CNIError(ErrorCode.DECODE_FAILURE, "network configuration: not a JSON object")
    version = conf.get("cniVersion", "")
    if version not in VERSIONS:
        raise CNIError(
            ErrorCode.INCOMPATIBLE_VERSION,
            f"network configuration: cniVersion {json.dumps(version)} is not supported",
            "supported are " + ", ".join(VERSIONS),
        )
    _refuse_others(conf)
    name = conf.get("name", "")
    if not isinstance(name, str) or not NAME.match(name):
        raise bad("name", name, "a name of letters, digits, '.', '_' and '-' that starts with a letter or digit")
    mtu = conf.get("mtu")
    if mtu is not None and (type(mtu) is not int or not (mtu == 0 or 68 <= mtu <= 65535)):
        raise bad("mtu", mtu, "a number of bytes from 68 to 65535, or 0 for the uplink's")
    for key in ("ipMasq", "standalone", "isGateway"):
        if key in conf and not isinstance(conf[key], bool):
            raise bad(key, conf[key], "true or false")
    if conf.get("addressing", "routed") not in ("routed", "subnet"):
        raise bad("addressing", conf["addressing"], '"routed" or "subnet"')
    bridge = conf.get("bridge") or ""
    if bridge and (not isinstance(bridge, str) or not ifname_is_good(bridge)):
        raise bad("bridge", bridge, "an interface name of at most 15 bytes")
    ranges, ipam = _ipam(conf.get("ipam"))
    if mtu and mtu < 1280 and any(r.subnet.version == 6 for ranges_of in ranges for r in ranges_of):
        raise bad("mtu", mtu, "at least 1280 bytes, which IPv6 needs (RFC 8200, section 5)")
    routes = tuple(parse_route(r, f"ipam.routes[{i}]") for i, r in enumerate(a_list(ipam.get("routes"), "ipam.routes")))
    if conf.get("isDefaultGateway") and (
        conf.get("isGateway") is False or (routes and all(r.dst.prefixlen for r in routes))
    ):
        raise bad(
            "isDefaultGateway", True, "left out without isGateway, and with ipam.routes that lack 0.0.0.0/0 or ::/0"
        )
    caps = capabilities(conf)
    more = an_object(
        an_object(conf.get("args"), "args").get("cni"), "args.cni"
    )  # the older form of the request, see CNI's CONVENTIONS.md
    mac = (
        mac_address(caps["mac"], "runtimeConfig.mac")
        if caps.get("mac")
        else mac_address(more.get("mac"), "args.cni.mac")
    )
    return NetConf(
        version=version,
        name=name,
        mtu=mtu or None,
        socket=str(conf.get("socket") or ""),
        ranges=range_sets(caps["ipRanges"], "runtimeConfig.ipRanges") if caps.get("ipRanges") else ranges,
        routes=routes,
        dns=capability_dns(caps["dns"], "runtimeConfig.dns") if caps.get("dns") else parse_dns(conf.get("dns"), "dns"),
        aliases=aliases(caps.get("aliases"), name),
        ips=addresses(caps["ips"], "runtimeConfig.ips")
        if caps.get("ips")
        else addresses(more.get("ips"), "args.cni.ips"),
        mac=mac,
        ip_masq=conf.get("ipMasq") is True,
        bridge="" if bridge == BRIDGE else bridge,
        routed=conf.get("addressing") != "subnet",
        is_gateway=conf.get("isGateway") is not False,
        spoof_check=conf.get("macspoofchk") is True,
        native=tuple(
            str(_subnet(c, f"nonMasqueradeCIDRs[{i}]", 1))
            for i, c in enumerate(a_list(conf.get("nonMasqueradeCIDRs"), "nonMasqueradeCIDRs"))
        ),
        ports=port_mappings(caps.get("portMappings"), "runtimeConfig.portMappings"),
        bandwidth=bandwidth(caps.get("bandwidth"), "runtimeConfig.bandwidth"),
        prev_result=parse_result(conf["prevResult"]) if conf.get("prevResult") is not None else None,
        valid_attachments=_attachments(conf["cni.dev/valid-attachments"], "cni.dev/valid-attachments")
        if "cni.dev/valid-attachments" in conf
        else None,
    )

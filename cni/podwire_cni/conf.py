"""The network configuration on stdin, checked field by field. (call.py checks the CNI_* variables.)

Every error names the field, the value found and an acceptable value. An unknown field is an error (code 2), because a
misspelt field must not silently select a default. An unknown key with a "/" belongs to the runtime and is ignored.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from .errors import CNIError, ErrorCode
from .result import parse_result, parse_route
from .types import (
    BRIDGE,
    VERSIONS,
    Attachment,
    Bandwidth,
    Dns,
    IPAddress,
    IPNetwork,
    Limit,
    NetConf,
    PortMapping,
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
_CAPABILITIES = {"ips", "mac", "ipRanges", "dns", "aliases", "cgroupPath", "portMappings", "bandwidth"}
PROTOCOLS = ("tcp", "udp", "sctp")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*\Z")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")


def _bad(field: str, found: Any, want: str, code: ErrorCode = ErrorCode.INVALID_CONFIG) -> CNIError:
    return CNIError(
        code,
        f"network configuration: {field}: {json.dumps(found, default=str)[:200]} is not {want}",
        f"set {field} to {want}",
    )


def _object(value: Any, field: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(field, value, "an object")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _bad(field, value, "a list")
    return value


def _known(keys: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in keys:
        if key not in known and "/" not in key:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else "known are " + ", ".join(sorted(known))
            raise CNIError(
                ErrorCode.UNSUPPORTED_FIELD, f"network configuration: {where}{key} is not a field of this plugin", hint
            )


def _address(value: Any, field: str) -> IPAddress:
    try:
        return ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise _bad(field, value, "an IP address") from None


def ifname_is_good(name: str) -> bool:
    """Whether the kernel accepts `name` as an interface name and keeps it unchanged. (The kernel would replace "%d" by
    a number.)
    """
    return 0 < len(name.encode(errors="replace")) < 16 and name not in (".", "..") and not re.search(r"[/:%\s\0]", name)


def _subnet(value: Any, field: str, least: int = 4) -> IPNetwork:
    try:
        net = ip_network(value if isinstance(value, str) else "", strict=False)
    except ValueError:
        raise _bad(field, value, "a subnet such as 10.244.1.0/24") from None
    if net.num_addresses < least:
        raise _bad(field, value, "a subnet of at least four addresses")
    return net


def parse_range(raw: Any, field: str) -> Range:
    """Parse one range with the keys of host-local: subnet, rangeStart, rangeEnd, gateway. The default gateway is the
    first address of the subnet.
    """
    keys = _object(raw, field)
    _known(keys, {"subnet", "rangeStart", "rangeEnd", "gateway"}, field + ".")
    net = _subnet(keys.get("subnet"), field + ".subnet")
    gateway = _address(keys["gateway"], field + ".gateway") if keys.get("gateway") else net[1]
    # The network address and IPv4's broadcast address are not allocated, because other software treats them as special.
    start = _address(keys["rangeStart"], field + ".rangeStart") if keys.get("rangeStart") else net[1]
    end = (
        _address(keys["rangeEnd"], field + ".rangeEnd")
        if keys.get("rangeEnd")
        else net[-2]
        if net.version == 4
        else net[-1]
    )
    for name, address in (("gateway", gateway), ("rangeStart", start), ("rangeEnd", end)):
        if address not in net:
            raise _bad(f"{field}.{name}", str(address), f"an address of {net}")
    if int(start) > int(end):
        raise _bad(f"{field}.rangeStart", str(start), f"at or before rangeEnd {end}")
    return Range(net, start, end, gateway)


def range_sets(raw: Any, field: str) -> tuple[RangeSet, ...]:
    """Parse a list of range sets; each set is a list of ranges. All ranges of a set must have the same IP family, and
    no two ranges may overlap.
    """
    sets, seen = [], list[tuple[str, Range]]()
    for i, entry in enumerate(_list(raw, field)):
        ranges = tuple(parse_range(r, f"{field}[{i}][{j}]") for j, r in enumerate(_list(entry, f"{field}[{i}]")))
        if not ranges:
            raise _bad(f"{field}[{i}]", entry, "a list with at least one range")
        if len({r.subnet.version for r in ranges}) > 1:
            raise _bad(f"{field}[{i}]", [str(r.subnet) for r in ranges], "ranges of one IP family")
        for j, r in enumerate(ranges):
            for where, other in seen:
                if other.start in r or other.end in r or r.start in other:
                    raise _bad(f"{field}[{i}][{j}]", str(r.subnet), f"apart from {where} ({other.start} - {other.end})")
            seen.append((f"{field}[{i}][{j}]", r))
        sets.append(ranges)
    return tuple(sets)


def _ipam(raw: Any) -> tuple[tuple[RangeSet, ...], dict[str, Any]]:
    ipam = _object(raw, "ipam")
    _known(ipam, _IPAM_KEYS, "ipam.")
    if ipam.get("type", "podwire") not in ("podwire", PLUGIN_IPAM):
        raise _bad(
            "ipam.type", ipam["type"], f'"{PLUGIN_IPAM}" (this plugin assigns addresses itself; leave the key out)'
        )
    if ipam.get("subnet"):  # the older, flat form of host-local's configuration
        flat = {k: ipam[k] for k in ("subnet", "rangeStart", "rangeEnd", "gateway") if k in ipam}
        return ((parse_range(flat, "ipam"),), *range_sets(ipam.get("ranges"), "ipam.ranges")), ipam
    return range_sets(ipam.get("ranges"), "ipam.ranges"), ipam


PLUGIN_IPAM = "podwire-cni"


def parse_dns(raw: Any, field: str) -> Dns:
    dns = _object(raw, field)
    _known(dns, {"nameservers", "domain", "search", "options"}, field + ".")
    lists = {}
    for key in ("nameservers", "search", "options"):
        lists[key] = tuple(_list(dns.get(key), f"{field}.{key}"))
        if not all(isinstance(entry, str) for entry in lists[key]):
            raise _bad(f"{field}.{key}", dns[key], "a list of strings")
    return Dns(domain=str(dns.get("domain") or ""), **lists)


def capability_dns(raw: Any, field: str) -> Dns:
    """Parse the capability "dns". CNI's conventions call its lists "servers" and "searches". Some runtimes use the
    names of the network configuration instead ("nameservers" and "search").
    """
    keys = _no_case(_object(raw, field), ("servers", "searches", "options", "nameservers", "search", "domain"), field)
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
    names = _list(_object(raw, "runtimeConfig.aliases").get(network), f"runtimeConfig.aliases.{network}")
    for name in names:
        if not isinstance(name, str) or not NAME.match(name):
            raise _bad(f"runtimeConfig.aliases.{network}", name, "a list of names")
    return tuple(names)


def addresses(raw: Any, field: str) -> tuple[IPAddress, ...]:
    """Parse a list of addresses. Each address may have a prefix length."""
    return tuple(_address(str(ip).split("/")[0], f"{field}[{i}]") for i, ip in enumerate(_list(raw, field)))


def mac_address(raw: Any, field: str) -> str:
    """Parse a MAC address. Returns it in lower case; "" if no MAC is requested."""
    mac = str(raw or "").lower()
    if mac and (not _MAC.match(mac) or int(mac[1], 16) & 1 or not mac.strip("0:")):
        raise _bad(field, mac, "a unicast MAC address such as 0a:58:0a:f4:01:05")
    return mac


def _attachments(raw: Any, field: str) -> frozenset[Attachment]:
    found = set()
    for i, entry in enumerate(_list(raw, field)):
        keys = _object(entry, f"{field}[{i}]")
        for key in ("containerID", "ifname"):
            if not isinstance(keys.get(key), str) or not keys[key]:
                raise _bad(f"{field}[{i}].{key}", keys.get(key), "a string")
        found.add(Attachment(keys["containerID"], keys["ifname"]))
    return frozenset(found)


def _capabilities(conf: Mapping[str, Any]) -> dict[str, Any]:
    runtime = _object(conf.get("runtimeConfig"), "runtimeConfig")
    found = {}
    for key, value in runtime.items():
        # containerd writes some capability names in another case
        name = next((c for c in _CAPABILITIES if c.lower() == key.lower()), None)
        if name is None:
            raise CNIError(
                ErrorCode.UNSUPPORTED_FIELD,
                f"network configuration: runtimeConfig.{key} is not a capability of this plugin",
                f'remove {key} from "capabilities", or set it at a plugin that supports it; '
                "this plugin supports " + ", ".join(sorted(_CAPABILITIES)),
            )
        found[name] = value
    return found


def _no_case(raw: Mapping[str, Any], known: tuple[str, ...], where: str) -> dict[str, Any]:
    """Returns the object with this plugin's spelling of the keys, because containerd marshals Go's field names
    ("HostPort").
    """
    found = {}
    for key, value in raw.items():
        name = next((k for k in known if k.lower() == key.lower()), None)
        if name is None:
            raise CNIError(
                ErrorCode.UNSUPPORTED_FIELD,
                f"network configuration: {where}.{key} is not a field of this plugin",
                "known are " + ", ".join(known),
            )
        found[name] = value
    return found


def _port(value: Any, field: str) -> int:
    if type(value) is not int or not 1 <= value <= 65535:
        raise _bad(field, value, "a port number from 1 to 65535")
    return value


def port_mapping(raw: Any, field: str) -> PortMapping:
    """Parse one entry of the capability "portMappings" (CNI conventions): hostPort, containerPort, protocol, hostIP."""
    keys = _no_case(_object(raw, field), ("hostPort", "containerPort", "protocol", "hostIP"), field)
    protocol = str(keys.get("protocol") or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise _bad(f"{field}.protocol", keys["protocol"], "one of " + ", ".join(PROTOCOLS))
    host_ip = _address(keys["hostIP"], f"{field}.hostIP") if keys.get("hostIP") else None
    return PortMapping(
        _port(keys.get("hostPort"), f"{field}.hostPort"),
        _port(keys.get("containerPort"), f"{field}.containerPort"),
        protocol,
        host_ip,
    )


def port_mappings(raw: Any, field: str) -> tuple[PortMapping, ...]:
    """Parse the capability "portMappings". Entries without a hostPort are skipped: containerd passes every
    containerPort of a pod.
    """
    found: list[PortMapping] = []
    for i, entry in enumerate(_list(raw, field)):
        where = f"{field}[{i}]"
        asked = _no_case(_object(entry, where), ("hostPort", "containerPort", "protocol", "hostIP"), where)
        if type(asked.get("hostPort")) is int and asked["hostPort"] == 0:
            continue
        mapping = port_mapping(entry, where)
        twin = next((other for other in found if other.clashes(mapping) and other != mapping), None)
        if twin is not None:
            raise _bad(where, str(mapping), f"different from {twin}, which the same pod requests")
        if mapping not in found:
            found.append(mapping)
    return tuple(found)


def bandwidth(raw: Any, field: str) -> Bandwidth:
    """Parse the capability "bandwidth" (CNI conventions): ingressRate and egressRate in bits per second, ingressBurst
    and egressBurst in bits.

    A rate of 0 means no limit. The default burst is the amount of a tenth of a second at the rate.
    """
    names = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
    keys = _no_case(_object(raw, field), names, field)
    for key, value in keys.items():
        if value is not None and (type(value) is not int or value < 0 or value >> 63):
            raise _bad(f"{field}.{key}", value, "a number of bits")

    def limit(way: str) -> Limit | None:
        rate, burst = keys.get(f"{way}Rate") or 0, keys.get(f"{way}Burst") or 0
        if not rate and burst:
            raise _bad(f"{field}.{way}Burst", burst, f"left out without {way}Rate")
        if rate and rate < 1000:
            raise _bad(f"{field}.{way}Rate", rate, "at least 1000 bits a second")
        return Limit(rate, burst or rate // 10) if rate else None

    return Bandwidth(limit("ingress"), limit("egress"))


def _loads(stdin: bytes) -> Any:
    try:
        return json.loads(stdin)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def version_of(stdin: bytes) -> str:
    """Returns the cniVersion for the answer, even if the rest of the configuration is invalid."""
    try:
        version = _loads(stdin).get("cniVersion")
    except (ValueError, AttributeError):
        return VERSIONS[-1]
    return version if version in VERSIONS else VERSIONS[-1]


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
    _known(conf, _KEYS, "")
    name = conf.get("name", "")
    if not isinstance(name, str) or not NAME.match(name):
        raise _bad("name", name, "a name of letters, digits, '.', '_' and '-' that starts with a letter or digit")
    mtu = conf.get("mtu")
    if mtu is not None and (type(mtu) is not int or not (mtu == 0 or 68 <= mtu <= 65535)):
        raise _bad("mtu", mtu, "a number of bytes from 68 to 65535, or 0 for the uplink's")
    for key in ("ipMasq", "standalone", "isGateway"):
        if key in conf and not isinstance(conf[key], bool):
            raise _bad(key, conf[key], "true or false")
    if conf.get("addressing", "routed") not in ("routed", "subnet"):
        raise _bad("addressing", conf["addressing"], '"routed" or "subnet"')
    bridge = conf.get("bridge") or ""
    if bridge and (not isinstance(bridge, str) or not ifname_is_good(bridge)):
        raise _bad("bridge", bridge, "an interface name of at most 15 bytes")
    ranges, ipam = _ipam(conf.get("ipam"))
    if mtu and mtu < 1280 and any(r.subnet.version == 6 for ranges_of in ranges for r in ranges_of):
        raise _bad("mtu", mtu, "at least 1280 bytes, which IPv6 needs (RFC 8200, section 5)")
    caps = _capabilities(conf)
    more = _object(
        _object(conf.get("args"), "args").get("cni"), "args.cni"
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
        routes=tuple(
            parse_route(r, f"ipam.routes[{i}]") for i, r in enumerate(_list(ipam.get("routes"), "ipam.routes"))
        ),
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
        native=tuple(
            str(_subnet(c, f"nonMasqueradeCIDRs[{i}]", 1))
            for i, c in enumerate(_list(conf.get("nonMasqueradeCIDRs"), "nonMasqueradeCIDRs"))
        ),
        ports=port_mappings(caps.get("portMappings"), "runtimeConfig.portMappings"),
        bandwidth=bandwidth(caps.get("bandwidth"), "runtimeConfig.bandwidth"),
        prev_result=parse_result(conf["prevResult"]) if conf.get("prevResult") is not None else None,
        valid_attachments=_attachments(conf["cni.dev/valid-attachments"], "cni.dev/valid-attachments")
        if "cni.dev/valid-attachments" in conf
        else None,
    )

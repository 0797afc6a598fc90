"""The capabilities: what a runtime asks for one pod in `runtimeConfig` (CNI's CONVENTIONS.md). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import CNIError, ErrorCode
from .fields import Odd, a_list, an_address, an_object, bad, no_case
from .types import Bandwidth, Limit, PortMapping

CAPABILITIES = {"ips", "mac", "ipRanges", "dns", "aliases", "cgroupPath", "portMappings", "bandwidth"}
PROTOCOLS = ("tcp", "udp", "sctp")


def _name(key: str) -> str | None:
    """Returns this plugin's spelling of a capability. (containerd writes some capability names in another case.)"""
    return next((c for c in CAPABILITIES if c.lower() == key.lower()), None)


def not_capabilities(conf: Mapping[str, Any]) -> list[Odd]:
    return [
        Odd(
            f"runtimeConfig.{key}",
            f'remove {key} from "capabilities", or set it at a plugin that supports it; '
            "this plugin supports " + ", ".join(sorted(CAPABILITIES)),
        )
        for key in an_object(conf.get("runtimeConfig"), "runtimeConfig")
        if _name(key) is None
    ]


def capabilities(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of `runtimeConfig`. Raises CNIError if one is not a capability of this plugin."""
    if odd := not_capabilities(conf):
        raise CNIError(
            ErrorCode.UNSUPPORTED_FIELD,
            f"network configuration: {', '.join(key for key, _ in odd)} "
            f"{'is not a capability' if len(odd) == 1 else 'are not capabilities'} of this plugin",
            "; ".join(hint for _, hint in odd),
        )
    runtime = an_object(conf.get("runtimeConfig"), "runtimeConfig")
    return {name: value for key, value in runtime.items() if (name := _name(key))}


def _port(value: Any, field: str) -> int:
    if type(value) is not int or not 1 <= value <= 65535:
        raise bad(field, value, "a port number from 1 to 65535")
    return value


def port_mapping(raw: Any, field: str) -> PortMapping:
    """Parse one entry of the capability "portMappings" (CNI conventions): hostPort, containerPort, protocol, hostIP."""
    keys = no_case(an_object(raw, field), ("hostPort", "containerPort", "protocol", "hostIP"), field)
    protocol = str(keys.get("protocol") or "tcp").lower()
    if protocol not in PROTOCOLS:
        raise bad(f"{field}.protocol", keys["protocol"], "one of " + ", ".join(PROTOCOLS))
    host_ip = an_address(keys["hostIP"], f"{field}.hostIP") if keys.get("hostIP") else None
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
    for i, entry in enumerate(a_list(raw, field)):
        where = f"{field}[{i}]"
        asked = no_case(an_object(entry, where), ("hostPort", "containerPort", "protocol", "hostIP"), where)
        if type(asked.get("hostPort")) is int and asked["hostPort"] == 0:
            continue
        mapping = port_mapping(entry, where)
        twin = next((other for other in found if other.clashes(mapping) and other != mapping), None)
        if twin is not None:
            raise bad(where, str(mapping), f"different from {twin}, which the same pod requests")
        if mapping not in found:
            found.append(mapping)
    return tuple(found)


# What runtimes send where nobody chose a burst: containerd math.MaxUint32, kubenet math.MaxInt32, CRI-O
# math.MaxUint32 * 8.
NOT_CHOSEN = ((1 << 31) - 1, (1 << 32) - 1, ((1 << 32) - 1) * 8)


def bandwidth(raw: Any, field: str) -> Bandwidth:
    """Parse the capability "bandwidth" (CNI conventions): ingressRate and egressRate in bits per second, ingressBurst
    and egressBurst in bits.

    A rate of 0 means no limit. The default burst is the amount of a tenth of a second at the rate. A burst has at most
    the amount of one second: a larger one would be no limit in a pod's first seconds. The value that a runtime sends
    where no burst was chosen counts as the default if it is larger than that.
    """
    names = ("ingressRate", "ingressBurst", "egressRate", "egressBurst")
    keys = no_case(an_object(raw, field), names, field)
    for key, value in keys.items():
        if value is not None and (type(value) is not int or value < 0 or value >> 63):
            raise bad(f"{field}.{key}", value, "a number of bits")

    def limit(way: str) -> Limit | None:
        rate, burst = keys.get(f"{way}Rate") or 0, keys.get(f"{way}Burst") or 0
        if not rate and burst and burst not in NOT_CHOSEN:
            raise bad(f"{field}.{way}Burst", burst, f"left out without {way}Rate")
        if not rate:
            return None
        if rate < 1000:
            raise bad(f"{field}.{way}Rate", rate, "at least 1000 bits a second")
        chosen = burst and not (burst in NOT_CHOSEN and burst > rate)
        return Limit(rate, min(burst, rate) if chosen else rate // 10, burst)

    return Bandwidth(limit("ingress"), limit("egress"))

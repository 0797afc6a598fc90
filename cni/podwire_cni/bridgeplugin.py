"""The keys of the reference `bridge` plugin and of `host-local` that this plugin does not have itself. Pure.

A configuration that was written for the reference plugins often carries such keys. A key is taken if its value means
what this plugin does anyway. Source: plugins/main/bridge and plugins/ipam/host-local of containernetworking/plugins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .fields import Odd


class Foreign(NamedTuple):
    """accepted: the values that mean what this plugin does. why: what this plugin does instead of the other values."""

    accepted: tuple[Any, ...]
    why: str


BRIDGE_KEYS = {
    "isDefaultGateway": Foreign((True,), "pods get a default route; list ipam.routes for others, or set isGateway"),
    # the bridge's addresses always are those of the configuration
    "forceAddress": Foreign((True, False), "set it to true or false, or leave it out"),
    "hairpinMode": Foreign((True,), "hairpin mode is always on: a pod reaches itself through its Service"),
    "promiscMode": Foreign((False,), "the bridge is never in promiscuous mode, hairpin mode takes its place"),
    "ipMasqBackend": Foreign(("nftables", ""), "masquerading is done by nftables"),
    "vlan": Foreign((0,), "bridges have no VLANs; the ports of all pods are untagged"),
    "vlanTrunk": Foreign(((),), "bridges have no VLANs; the ports of all pods are untagged"),
    # without VLANs it has no effect
    "preserveDefaultVlan": Foreign((True, False), "set it to true or false, or leave it out"),
    "macspoofchk": Foreign((True,), "routed pods send from their own MAC alone; see --no-anti-spoofing"),
    "enabledad": Foreign((False,), "addresses are unique by their lease and have no duplicate address detection"),
    "disableContainerInterface": Foreign((False,), "the pod's interface is always up"),
    "portIsolation": Foreign((False,), "pods of one node reach each other; use NetworkPolicies to prevent it"),
}
IPAM_KEYS = {
    "dataDir": Foreign(("",), "leases are in the run directory of the agent (--run-dir)"),
    "resolvConf": Foreign(("",), 'name the servers in "dns", or let the runtime write resolv.conf'),
}


def taken(conf: Mapping[str, Any], keys: Mapping[str, Foreign]) -> set[str]:
    """Returns the keys of `conf` whose values mean what this plugin does anyway. Null is the same as no key."""
    return {key for key in keys.keys() & conf.keys() if conf[key] is None or _accepts(keys[key], conf[key])}


def _accepts(key: Foreign, value: Any) -> bool:
    value = tuple(value) if isinstance(value, list) else value
    return any(type(value) is type(good) and value == good for good in key.accepted)


def with_reasons(odd: list[Odd], keys: Mapping[str, Foreign], where: str = "") -> list[Odd]:
    """Returns the refused keys, with what this plugin does instead as the hint of those of the reference plugins."""
    return [
        Odd(key, keys[name].why) if (name := key.removeprefix(where)) in keys else Odd(key, why) for key, why in odd
    ]

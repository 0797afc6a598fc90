"""Further networks: bridges besides the node's own. A conflist that names a bridge defines a network, and the ADD of
the first pod creates the bridge. This module is pure; networkstore.py stores the networks in files and in the kernel.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_network

from .conf import range_sets
from .errors import CNIError, ErrorCode
from .nodetable import OtherNet
from .overlay import TUNNELS
from .plan import NodeNet
from .types import NetConf, RangeSet


@dataclass(frozen=True, slots=True)
class Network:
    """One further bridge. native: the destinations to which its pods send without masquerading; None: its pods are
    never masqueraded.
    """

    net: NodeNet
    native: frozenset[str] | None = None

    def rules(self) -> OtherNet:
        return OtherNet(
            self.net.bridge,
            tuple(str(r.subnet) for ranges in self.net.ranges for r in ranges),
            self.native,
            self.net.bridge_mac if self.net.routed and self.net.is_gateway else "",
        )

    def to_json(self) -> dict[str, object]:
        sets = [
            [
                {"subnet": str(r.subnet), "rangeStart": str(r.start), "rangeEnd": str(r.end), "gateway": str(r.gateway)}
                for r in ranges
            ]
            for ranges in self.net.ranges
        ]
        return {
            "bridge": self.net.bridge,
            "ranges": sets,
            "mtu": self.net.mtu,
            "routed": self.net.routed,
            "isGateway": self.net.is_gateway,
            "native": None if self.native is None else sorted(self.native),
        }


def asked(conf: NetConf, mtu: int, *, ipv6: bool = True) -> Network:
    """Returns the network that the configuration requests. ipv6: whether the kernel has IPv6. Raises CNIError with code
    7.
    """
    if conf.bridge in (*TUNNELS.values(), "all", "default"):
        raise CNIError(
            ErrorCode.INVALID_CONFIG,
            f"network configuration: bridge {conf.bridge} has another meaning on a node",
            "choose another name",
        )
    if not conf.ranges:
        raise CNIError(
            ErrorCode.INVALID_CONFIG,
            f"network configuration: ipam.ranges is missing, and the bridge {conf.bridge} has none",
            "name its addresses there: the node's podCIDRs belong to the node's own bridge",
        )
    native = frozenset(conf.native) if conf.ip_masq else None
    return Network(
        NodeNet(conf.ranges, conf.mtu or mtu, conf.bridge, routed=conf.routed, is_gateway=conf.is_gateway, ipv6=ipv6),
        native,
    )


def clash(new: Network, ranges: tuple[RangeSet, ...], bridge: str) -> None:
    """Raise CNIError with code 7 if the address ranges of `new` overlap `ranges`, the ranges of the bridge `bridge`."""
    for mine in (r.subnet for s in new.net.ranges for r in s):
        for theirs in (r.subnet for s in ranges for r in s):
            if mine.version == theirs.version and mine.overlaps(theirs):
                raise CNIError(
                    ErrorCode.INVALID_CONFIG,
                    f"network configuration: ipam.ranges: {mine} of the bridge "
                    f"{new.net.bridge} lies over {theirs} of {bridge}",
                    "give each bridge addresses of its own",
                )


def parse(text: str) -> Network | None:
    """Parse the JSON of `Network.to_json`. Returns None for any other text."""
    try:
        raw = json.loads(text)
        native = None if raw["native"] is None else frozenset(str(ip_network(c)) for c in raw["native"])
        net = NodeNet(
            range_sets(raw["ranges"], "ranges"),
            int(raw["mtu"]),
            str(raw["bridge"]),
            routed=bool(raw["routed"]),
            is_gateway=bool(raw["isGateway"]),
        )
    except (ValueError, LookupError, TypeError, RecursionError, CNIError):
        return None
    return Network(net, native)

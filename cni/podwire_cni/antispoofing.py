"""The rules that keep a pod to its own MAC and addresses, and on a routed bridge to the node as its only neighbour.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from podwire_base.kernel.ip import mac_bytes
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.reasons import Reason, carrying

from .tablesets import BRIDGE_TABLE, PORTS, R0, RAW, SUBNET_PORTS
from .types import PORT_GROUP


def _spoofed(words: str) -> str:
    return carrying(words, Reason.SPOOFED)


def reserved() -> Iterator[nft.Chain | nft.Rule]:
    """Yields the chain and the rule for frames to the group addresses of IEEE 802.1D. The bridge delivers such a frame
    to the node with the *port* as input device, so no rule that matches the bridge applies. This hook sees these
    frames, except those to 01:80:c2:00:00:0e (LLDP), which `ports` drops.
    """
    chain = nft.Chain(BRIDGE_TABLE, "reserved", hook="input", priority=RAW)
    yield chain
    yield nft.Rule(
        chain,
        (
            nft.Meta("iifname"),
            nft.Lookup("ports"),
            nft.Payload("link", 0, 6),
            nft.Bitwise(b"\xff\xff\xff\xff\xff\xf0", bytes(6)),
            nft.Cmp(b"\x01\x80\xc2\0\0\0"),
            nft.Counter(),
            nft.drop(),
        ),
        comment=_spoofed("a pod sends to a reserved group address of 802.1D"),
    )


def _first(macs: Sequence[str]) -> str:
    """Returns the MACs as words of a comment, which has room for three, or for four and no more words."""
    return " ".join(macs) if len(macs) <= 4 else f"{' '.join(macs[:3])} and {len(macs) - 3} others"


def _neighbours(macs: Sequence[str]) -> Iterator[nft.Chain | nft.Rule]:
    """Yields the rules by which pods of a routed bridge send only to the node. Without br_netfilter, a frame to the MAC
    of another pod, or a broadcast, would reach other pods without passing a hook of IP.
    """
    forward = nft.Chain(BRIDGE_TABLE, "forward", hook="forward", priority=RAW)
    spoofing = nft.Chain(BRIDGE_TABLE, "spoofing", hook="prerouting", priority=RAW)
    routed = (nft.Meta("iifname"), nft.Lookup(SUBNET_PORTS.name, invert=True))
    to_all = (nft.Payload("link", 0, 1), nft.Bitwise(b"\x01", b"\0"))
    yield forward
    if macs:
        yield nft.Rule(
            spoofing,
            (
                *routed,
                *to_all,
                nft.Cmp(b"\0"),
                nft.Payload("link", 0, 6),
                *(nft.Cmp(mac_bytes(mac), "!=") for mac in macs),
                nft.Counter(),
                nft.drop(),
            ),
            comment=_spoofed(f"a pod sends to another MAC than {_first(macs)}"),
        )
    yield nft.Rule(
        forward,
        (nft.Meta("iifname"), nft.Lookup(PORTS.name), *routed, *to_all, nft.Cmp(b"\1"), nft.Counter(), nft.drop()),
        comment=_spoofed("a pod sends to all others"),
    )


def ports(table: nft.Table) -> Iterator[nft.Chain | nft.Rule]:
    """Yields the chain that drops packets whose input device is a pod's port. A pod's packets normally arrive on a
    bridge. The input device is the port if the port is not on a bridge, or if the bridge delivered the frame with the
    port as device. Such a packet has passed none of the bridge table's rules.
    """
    chain = nft.Chain(table, "ports", hook="prerouting", priority=RAW)
    yield chain
    yield nft.Rule(
        chain,
        (nft.Meta("iifgroup"), nft.Cmp(nft.host32(PORT_GROUP)), nft.Counter(), nft.drop()),
        comment=_spoofed("a pod's packet came past the bridge"),
    )


def spoofing(macs: Sequence[str]) -> Iterator[nft.Chain | nft.Rule]:
    chain = nft.Chain(BRIDGE_TABLE, "spoofing", hook="prerouting", priority=RAW)
    behind = R0 + 4  # the register behind the port's name
    yield chain
    yield nft.Rule(
        chain, (nft.Meta("iifname"), nft.Lookup("ports", invert=True), nft.accept()), comment="not from a pod"
    )
    yield nft.Rule(
        chain,
        (
            nft.Meta("iifname"),
            nft.Payload("link", 6, 6, dreg=behind),
            nft.Lookup("macs", invert=True),
            nft.Counter(),
            nft.drop(),
        ),
        comment=_spoofed("a pod sends from a MAC that is not its own"),
    )
    yield from _neighbours(macs)
    six = (nft.Meta("protocol"), nft.Cmp(b"\x86\xdd"))
    icmp6 = (*six, nft.Meta("l4proto"), nft.Cmp(b"\x3a"), nft.Payload("transport", 0, 1))
    # Router advertisements and redirects come from link-local sources, which every pod may use. Without these rules,
    # pods and the node would accept a default route from a pod.
    for kind, name in ((b"\x86", "a router"), (b"\x89", "a router that redirects")):
        yield nft.Rule(
            chain,
            (*icmp6, nft.Cmp(kind), nft.Counter(), nft.drop()),
            comment=_spoofed(f"a pod says that it is {name}"),
        )
    # Pods that resolve each other's addresses may have any link-local address.
    target = nft.Payload("transport", 8, 16), nft.Bitwise(b"\xff\xc0" + bytes(14), bytes(16))
    strange = (
        nft.Meta("iifname"),
        nft.Payload("transport", 8, 16, dreg=behind),
        nft.Lookup("senders-ip6", invert=True),
    )
    routed = nft.Lookup(SUBNET_PORTS.name, invert=True)
    said = (*icmp6, nft.Cmp(b"\x88"), *target)
    yield nft.Rule(
        chain,
        (*said, nft.Cmp(b"\xfe\x80" + bytes(14)), *strange, routed, nft.drop()),
        comment="a pod says that it has a link-local address",
    )
    yield nft.Rule(
        chain,
        (*said, nft.Cmp(b"\xfe\x80" + bytes(14), "!="), *strange, nft.Counter(), nft.drop()),
        comment=_spoofed("a pod says that it has an address that is not its own"),
    )
    # the source of an IPv4 packet, and the sender's address in an ARP packet
    for kind, at, name in (
        (b"\x08\x00", 12, "senders-ip"),
        (b"\x08\x06", 14, "senders-ip"),
        (b"\x86\xdd", 8, "senders-ip6"),
    ):
        yield nft.Rule(
            chain,
            (
                nft.Meta("protocol"),
                nft.Cmp(kind),
                nft.Meta("iifname"),
                nft.Payload("network", at, 4 if name == "senders-ip" else 16, dreg=behind),
                nft.Lookup(name),
                nft.accept(),
            ),
            comment=f"{'ARP from' if at == 14 else 'from'} its own address",
        )
    # No router forwards these sources. A routed pod needs none: its only neighbour is the node, which has a permanent
    # entry for it. With made-up ones it could fill the node's table of neighbours, an entry for each.
    link_local = (
        *six,
        nft.Payload("network", 8, 16),
        nft.Bitwise(b"\xff\xc0" + bytes(14), bytes(16)),
        nft.Cmp(b"\xfe\x80" + bytes(14)),
    )
    yield nft.Rule(
        chain,
        (*link_local, nft.Meta("iifname"), nft.Lookup(SUBNET_PORTS.name), nft.accept()),
        comment="from a link-local address",
    )
    yield nft.Rule(chain, (*link_local, nft.drop()), comment="from a link-local address, to the node alone")
    yield nft.Rule(chain, (*six, nft.Payload("network", 8, 16), nft.Cmp(bytes(16)), nft.accept()), comment="from ::")
    yield nft.Rule(
        chain,
        (nft.Counter(), nft.drop()),
        comment=_spoofed("a pod sends from an address that is not its own"),
    )

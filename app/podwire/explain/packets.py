"""A packet as one node is asked about it, and as its rules see it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from podwire_base.kernel.ip import packed
from podwire_base.kernel.nft.judge import CT_ESTABLISHED, CT_NEW, CT_RELATED, Seen
from podwire_proxy.model import PROTOCOLS

from .facts import Link

ICMP = {False: 1, True: 58}
_FLAGS = {"": 0x02, "answer": 0x12, "refusal": 0x14}  # SYN; SYN, ACK; RST, ACK
# the kernel attaches what refuses a packet to the refused flow
_STATES = {"": CT_NEW, "answer": CT_ESTABLISHED, "refusal": CT_RELATED}


@dataclass(frozen=True, slots=True)
class Asked:
    """One packet at one node.

    src "": the address that the node itself sends from. origin: the node's own, or one that comes by a link; auto: by
    the source. interface: that link, "" for the one that leads to its source. reply: an answer of a flow that conntrack
    knows, or the reset or ICMP error that refuses a first packet; then port is that of its source. translated: the
    flow's destination was translated, for a reply. claim: (Service, endpoints, ready) of the address and port in the
    API.
    """

    src: str
    dst: str
    protocol: str
    port: int = 0
    origin: Literal["auto", "node", "link"] = "auto"
    interface: str = ""
    reply: Literal["", "answer", "refusal"] = ""
    translated: bool = False
    claim: tuple[str, int, int] | None = None

    @property
    def family(self) -> str:
        return "ip6" if ":" in self.dst else "ip"

    def __str__(self) -> str:
        at = f"[{self.dst}]" if ":" in self.dst and self.port else self.dst
        return f"{self.src} -> {at}{f':{self.port}' if self.port else ''}/{self.protocol.lower()}"


def destination(seen: Seen) -> bytes:
    size, at = (4, 16) if len(seen.network) == 20 else (16, 24)
    return bytes(b or 0 for b in seen.network[at : at + size])


def redirected(seen: Seen, dst: str, port: int) -> Seen:
    """Returns the packet with another destination, as a translated flow."""
    size, at = (4, 16) if len(seen.network) == 20 else (16, 24)
    network = (*seen.network[:at], *packed(dst), *seen.network[at + size :])
    transport = (*seen.transport[:2], *port.to_bytes(2, "big"), *seen.transport[4:])
    return replace(seen, network=network, transport=transport, translated=True)


def first_seen(addresses: Iterable[str], links: Mapping[str, Link], asked: Asked, iif: str) -> Seen:
    """Returns the packet as the first rules see it. addresses, links: of the namespace whose rules see it."""
    src, dst = packed(asked.src), packed(asked.dst)
    v6 = len(dst) == 16
    size, source_at, target_at, length = (16, 8, 24, 40) if v6 else (4, 12, 16, 20)
    network: list[int | None] = [None] * length
    network[source_at : source_at + size], network[target_at : target_at + size] = src, dst
    number = PROTOCOLS.get(asked.protocol, ICMP[v6])
    if asked.reply == "refusal" and asked.protocol != "TCP":
        number = ICMP[v6]
    network[6 if v6 else 9] = number
    transport: list[int | None] = [None] * 20
    if number in PROTOCOLS.values():
        where = 0 if asked.reply else 2  # an answer comes from the port
        transport[where : where + 2] = asked.port.to_bytes(2, "big")
        transport[13] = _FLAGS[asked.reply] if asked.protocol == "TCP" else None
    elif asked.reply == "refusal":
        transport[0:2] = (1, 4) if v6 else (3, 3)
    else:
        transport[0:2] = (129 if v6 else 0, 0) if asked.reply else (128 if v6 else 8, 0)
    here = {packed(ip) for ip in addresses}

    def fib(of: str, address: bytes) -> int:
        return 2 if address in here or (address[:1] == b"\x7f" and len(address) == 4) else 1

    return Seen(
        asked.family,
        tuple(network),
        tuple(transport),
        number,
        "" if asked.origin == "node" else iif,
        "",
        _STATES[asked.reply],
        asked.translated,
        (b"", b"", 0) if asked.reply else (src, dst, asked.port),
        indices={link.name: link.index for link in links.values()},
        groups={link.name: link.group for link in links.values()},
        fib=fib,
    )

"""Folds packets that were dropped into rows, and writes rows as text. Pure.

Packets that differ only in time and source port are one row. Rows are bounded: what has no room is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from podwire_base.kernel.dropped import Dropped, Packet
from podwire_base.role.logtext import printable
from podwire_proxy.dataplane import Key

MOST = 500  # rows of one interval
# The kernel's reasons that people meet most, in words; include/net/dropreason-core.h has them all
WORDS = {
    "NO_SOCKET": "nobody listens at this port",
    "SOCKET_RCVBUFF": "the receiver reads too slowly: its buffer is full",
    "SOCKET_BACKLOG": "the receiver's queue is full",
    "TCP_LISTEN_OVERFLOW": "the server accepts too slowly: its backlog is full",
    "NETFILTER_DROP": "a rule of the firewall dropped or refused it",
    "IP_INNOROUTES": "no route leads to the destination",
    "IP_OUTNOROUTES": "no route leads to the destination",
    "IP_RPFILTER": "the source does not belong to the link that it came by (rp_filter)",
    "IP_LOCALNET": "an address of this machine's loopback came from outside",
    "IP_INADDRERRORS": "the destination is not of this machine, which does not forward it",
    "NEIGH_FAILED": "nobody answers for the address on this link",
    "NEIGH_QUEUEFULL": "too many packets wait for an answer for the address",
    "PKT_TOO_BIG": "it is greater than the MTU of the way",
    "TTL_EXCEEDED": "it went over too many routers: a loop?",
    "TCP_CSUM": "its checksum is wrong",
    "UDP_CSUM": "its checksum is wrong",
    "TCP_INVALID_SEQUENCE": "it does not belong to the connection any more",
    "TCP_RESET": "the connection was reset",
    "QDISC_DROP": "the queue of the link is full, or its rate limit is reached",
    "CPU_BACKLOG": "the machine is too busy to take it",
    "DEV_READY": "the link is down",
    "OTHERHOST": "it is for another machine on this link",
    "UNHANDLED_PROTO": "nothing here understands its protocol",
    "TC_INGRESS": "a program at the link dropped it",
    "NOMEM": "the machine has no memory left",
}


@dataclass(slots=True)
class Names:
    """pods: address -> "namespace/name". services: frontend -> "namespace/name"; a NodePort has the address ""."""

    pods: Mapping[str, str] = field(default_factory=dict)
    services: Mapping[Key, str] = field(default_factory=dict)

    def service(self, packet: Packet) -> str:
        key = Key(packet.dst, packet.named, packet.dport)  # type: ignore[arg-type]  # other protocols find nothing
        return self.services.get(key) or self.services.get(key._replace(ip=""), "")


@dataclass(slots=True)
class Row:
    """first: the first of its packets. node: where. rule, cause: of the rule of ours that decided, and why."""

    first: Dropped
    node: str
    number: int = 0
    rule: str = ""
    cause: str = ""


class Fold:
    """The rows of one interval. others: packets for which there was no room."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.others = 0

    def add(self, node: str, one: Dropped) -> None:
        key = node, one.reason, one.interface, one.packet._replace(sport=0)
        if (row := self.rows.get(key)) is None:
            if len(self.rows) >= MOST:
                self.others += one.number
                return
            row = self.rows[key] = Row(one, node)
        row.number += one.number

    def take(self) -> tuple[list[Row], int]:
        """Returns the rows, most packets first, and the number of others; both start anew."""
        rows, others = sorted(self.rows.values(), key=lambda row: -row.number), self.others
        self.rows, self.others = {}, 0
        return rows, others


def record(row: Row, names: Names) -> dict[str, Any]:
    packet = row.first.packet
    return {
        "time": datetime.fromtimestamp(row.first.at, UTC).isoformat(timespec="milliseconds"),
        "node": row.node,
        "packets": row.number,
        "reason": row.rule or row.first.reason,
        "kernelReason": row.first.reason,
        "why": row.cause or WORDS.get(row.first.reason, ""),
        "protocol": packet.named,
        "source": packet.src,
        "sourcePort": packet.sport,
        "sourcePod": names.pods.get(packet.src, ""),
        "destination": packet.dst,
        "destinationPort": packet.dport,
        "destinationPod": names.pods.get(packet.dst, ""),
        "service": names.service(packet),
        "interface": row.first.interface,
    }


def _end(ip: str, port: int, name: str) -> str:
    at = f"[{ip}]" if ":" in ip and port else ip
    return f"{at}{f':{port}' if port else ''}{f' ({name})' if name else ''}"


def line(row: Row, names: Names) -> str:
    """Returns the row for people: characters that a terminal obeys are left out."""
    told = record(row, names)
    clock = datetime.fromtimestamp(row.first.at).strftime("%H:%M:%S")
    source = _end(told["source"], told["sourcePort"], told["sourcePod"])
    to = _end(told["destination"], told["destinationPort"], told["service"] or told["destinationPod"])
    where = f"{row.node} {row.first.interface}".strip()
    many = f"{row.number} packets, " if row.number > 1 else ""
    why = f": {told['why']}" if told["why"] else ""
    return printable(
        f"{clock}  {where}  {told['reason']}  {source} -> {to} {told['protocol']}  {many}".rstrip(", ") + why
    )


def as_json(row: Row, names: Names) -> str:
    return json.dumps(record(row, names))

"""Conntrack entries over ctnetlink: dump and delete by exact tuple. Source: linux/netfilter/nfnetlink_conntrack.h."""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Collection, Iterator, Sequence

from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.netlink.codec import attr, nest, parse, to_int
from podwire_base.kernel.nft import codec
from podwire_base.kernel.nft.socket import ROOM, open_socket

from .conntrack import Flow
from .dataplane import Key
from .model import PROTOCOLS, Destination, Protocol, normal_ip

SUBSYS = 1 << 8
GET, DELETE = 1, 2
TUPLE_ORIG, TUPLE_REPLY, STATUS, PROTOINFO, ID, ZONE, FILTER, STATUS_MASK = 1, 2, 3, 4, 12, 18, 25, 26
SEEN_REPLY = 2  # IPS_SEEN_REPLY
SYN_SENT, TIME_WAIT, CLOSE = 1, 7, 8  # TCP_CONNTRACK_*
BY_DESTINATION = 0x02 | 0x08 | 0x20  # CTA_FILTER_FLAG: IP_DST, PROTO_NUM, PROTO_DST_PORT
BY_PORT = 0x08 | 0x20  # for IPv6: there the kernel (6.18 and before) compares addresses the wrong way round
BY_PROTOCOL = 0x08
AT_ONCE = 100  # deletions in one message: their acknowledgements must fit the socket's queue
FEW = 8  # up to so many frontends the kernel is asked for each; more: for all entries of a protocol at once


def _tuple(raw: bytes) -> tuple[str, str, int, int]:
    """(source, destination, source port, destination port)."""
    parts = parse(raw)
    ip, proto = parse(parts[1]), parse(parts[2])
    source, destination = ip.get(1) or ip[3], ip.get(2) or ip[4]
    return (
        normal_ip(str(ipaddress.ip_address(source))),
        normal_ip(str(ipaddress.ip_address(destination))),
        to_int(proto.get(2)),
        to_int(proto.get(3)),
    )


def _state(raw: bytes) -> int:
    """CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE."""
    return to_int(parse(parse(raw).get(1, b"")).get(1))


def _filter(protocol: Protocol, frontend: Key | None) -> bytes:
    number = attr(1, bytes((PROTOCOLS[protocol],)))
    if frontend is None:
        return nest(TUPLE_ORIG, nest(2, number)) + nest(FILTER, u32_host(1, BY_PROTOCOL))
    ip = packed(frontend.ip)
    address = nest(1, attr(2 if len(ip) == 4 else 4, ip))
    port = attr(3, frontend.port.to_bytes(2, "big"))
    flags = BY_DESTINATION if len(ip) == 4 else BY_PORT
    return nest(TUPLE_ORIG, address, nest(2, number, port)) + nest(FILTER, u32_host(1, flags))


def u32_host(kind: int, value: int) -> bytes:
    """CTA_FILTER's flags are in host order, unlike all else here."""
    from podwire_base.kernel.nft.objects import host32

    return attr(kind, host32(value))


class Conntrack:
    """One ctnetlink socket."""

    def __init__(self, ns_fd: int | None = None) -> None:
        self._sock = open_socket(ns_fd)
        self.dumps = self.entries = 0  # what the kernel was asked for, and told

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def flows(self, family: Family, frontends: Collection[Key]) -> Iterator[Flow]:
        """Entries whose original destination is among `frontends` (and perhaps others)."""
        wanted: list[tuple[Protocol, Key | None]] = [(key.protocol, key) for key in frontends]
        if len(wanted) > FEW:
            wanted = [(protocol, None) for protocol in sorted({key.protocol for key in frontends})]
        for protocol, one in wanted:
            yield from self._dump(family, protocol, _filter(protocol, one))

    def opening(self, family: Family) -> Iterator[Flow]:
        """TCP that nobody has answered. The kernel leaves the others out (since 5.18; before, they are passed over
        here)."""
        body = _filter("TCP", None) + attr(STATUS, bytes(4)) + attr(STATUS_MASK, SEEN_REPLY.to_bytes(4, "big"))
        return (flow for flow in self._dump(family, "TCP", body) if flow.opening)

    def _dump(self, family: Family, protocol: Protocol, body: bytes) -> Iterator[Flow]:
        self.dumps += 1
        for payload in self._call(GET, codec.DUMP, family, body):
            self.entries += 1
            got = parse(payload)
            source, destination, sport, dport = _tuple(got[TUPLE_ORIG])
            answers = _tuple(got[TUPLE_REPLY])
            # The nested flag is stripped by parse; the kernel takes tuples with or without it.
            ident = nest(TUPLE_ORIG, got[TUPLE_ORIG]) + b"".join(attr(k, got[k]) for k in (ID, ZONE) if k in got)
            state = _state(got.get(PROTOINFO, b"")) if protocol == "TCP" else 0
            opening = state == SYN_SENT and not to_int(got.get(STATUS)) & SEEN_REPLY
            yield Flow(
                Key(destination, protocol, dport),
                Destination(answers[0], answers[2]),
                (source, sport),
                ident,
                (answers[1], answers[3]),
                state in (TIME_WAIT, CLOSE),
                opening,
            )

    def delete(self, family: Family, flows: Sequence[Flow]) -> list[Flow]:
        """Delete these entries, many in one message; returns those that were still there."""
        gone: list[Flow] = []
        for first in range(0, len(flows), AT_ONCE):
            part = flows[first : first + AT_ONCE]
            self._sock.send(
                b"".join(
                    codec.message(SUBSYS | DELETE, codec.REQUEST | codec.ACK, seq, codec.FAMILIES[family], flow.ident)
                    for seq, flow in enumerate(part)
                )
            )
            left = len(part)
            while left:
                for answer, flag, seq, _, payload in codec.split(self._sock.recv(ROOM)):
                    if answer != 2:
                        continue
                    left -= 1
                    error = codec.decode_error(flag, seq, payload)
                    if error is None:
                        gone.append(part[seq])
                    elif error.errno != errno.ENOENT:
                        raise OSError(error.errno, f"conntrack: {os.strerror(error.errno)} {error.text}")
        return gone

    def _call(self, kind: int, flags: int, family: Family, body: bytes) -> Iterator[bytes]:
        self._sock.send(codec.message(SUBSYS | kind, codec.REQUEST | flags, 1, codec.FAMILIES[family], body))
        answers: list[bytes] = []
        while True:
            for answer, flag, seq, _, payload in codec.split(self._sock.recv(ROOM)):
                if answer == 2:
                    error = codec.decode_error(flag, seq, payload)
                    if error:
                        raise OSError(
                            error.errno,
                            f"conntrack: {errno.errorcode.get(error.errno)} {os.strerror(error.errno)} {error.text}",
                        )
                    return iter(answers)
                if answer == 3:
                    return iter(answers)
                answers.append(payload[4:])

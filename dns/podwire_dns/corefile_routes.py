"""Computes the zones of a Corefile's server blocks, and the upstreams of each name.

CoreDNS chooses the block with the longest zone that matches a name. In that block, the first matching `forward` takes
the name: its FROM contains the name, and none of its `except` zones does. If no `forward` of the block takes the name,
CoreDNS forwards it to no upstream, whatever other blocks say. The result changes only at zones that the file names, so
one route per named zone is equivalent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from ipaddress import ip_network

from . import names
from .config import LAST_PORT, Forward
from .corefile_text import Directive, bad, number
from .forward import TLS, Tls
from .names import ROOT, inside

DNS = "dns"
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}")


def zone_names(words: Iterable[str], item: Directive) -> list[str]:
    """Returns zones as text without their final dot. A CIDR becomes its reverse zones. Raises BadConfig."""
    found = []
    for word in words:
        try:
            if "/" in word:
                found += names.reverse_zones(str(ip_network(word, strict=False)))
            else:
                found.append(names.fqdn(word) if word.strip(".") else ".")
        except names.BadName as err:
            raise bad(item, str(err)) from err
        except ValueError as err:
            raise bad(item, f"{word!r} is not a CIDR: {err}") from err
    return [zone.rstrip(".") or "." for zone in found]


def wire(zones: Iterable[str]) -> tuple[bytes, ...]:
    """Converts the result of `zone_names` to wire form."""
    return tuple(names.to_wire(zone + "." if zone != "." else zone) for zone in zones)


@dataclass(frozen=True, slots=True)
class Key:
    """One zone before a server block: "dns://ZONE:PORT". port: 0 without a port."""

    word: str
    scheme: str
    zones: tuple[str, ...]
    port: int


def key(word: str, block: Directive) -> Key:
    """Parses one zone before a server block. Raises BadConfig."""
    scheme, _, rest = word.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if not colon or (not port.isdecimal() and "/" in port):  # the last colon belongs to the CIDR
        host, port = rest, ""
    elif ":" in host and "/" not in host:
        raise bad(block, f"{word!r} is an address; a reverse zone is written as CIDR, such as 2001:db8::/32")
    elif not 0 < number(port, block) <= LAST_PORT:
        raise bad(block, f"{port!r} is not a port; it must be from 1 to {LAST_PORT}")
    if _ADDRESS.fullmatch(host):
        raise bad(block, f"{word!r} is an address; a reverse zone is written as CIDR, such as 192.0.2.0/24")
    return Key(word, scheme.lower() or DNS, tuple(zone_names([host], block)), int(port or 0))


@dataclass(frozen=True, slots=True)
class Sending:
    """One `forward`. It takes the names in `sources` that are not in `excepts`.

    source: a directive that answers these names from a source that this server does not read. No upstream gets them.
    """

    item: Directive
    sources: tuple[bytes, ...]
    excepts: tuple[bytes, ...]
    forward: Forward
    source: bool = False

    def takes(self, name: bytes) -> bool:
        return inside(name, self.sources) is not None and inside(name, self.excepts) is None


@dataclass(slots=True)
class Block:
    """The zones of a server block, and its forwards in order. rewrites: its rules may make names outside its zones."""

    zones: tuple[bytes, ...]
    sendings: list[Sending] = field(default_factory=list)
    rewrites: bool = False

    def first(self, name: bytes) -> Sending | None:
        return next((each for each in self.sendings if each.takes(name)), None)

    def chosen(self, name: bytes) -> Sending | None:
        """Returns the forward of a name; None if no upstream gets the name."""
        found = self.first(name)
        return None if found is None or found.source else found

    def hidden(self, name: bytes) -> bool:
        """Whether a source takes the name before any forward."""
        found = self.first(name)
        return found is not None and found.source


Note = Callable[[Directive, str], None]


def routes(blocks: list[Block], ours: tuple[bytes, ...], note: Note) -> tuple[Forward, ...]:
    """Returns the routes. The longest domain that matches a name decides; a route without upstreams refuses its names.

    ours: the zones that this server answers. Raises BadConfig for a forward whose names all go to an earlier forward.
    """
    owners = {zone: block for block in blocks for zone in block.zones}
    made: dict[bytes, Sending | None] = {}
    for block in blocks:
        points = [point for each in block.sendings for point in (*each.sources, *each.excepts)]
        mine = [
            p for p in dict.fromkeys((*block.zones, *points)) if owners.get(inside(p, tuple(owners)) or b"") is block
        ]
        chosen = {point: block.chosen(point) for point in mine}
        made |= {point: found for point, found in chosen.items() if inside(point, ours) is None}
        for sending in block.sendings:
            held = [point for point, found in chosen.items() if found is sending]
            if not sending.source and (held or not block.rewrites):
                _tell(sending, held, [point for point in mine if not block.hidden(point)], ours, note)
    moved = [(b.zones[0], {p: b.chosen(p) for p in _points(b, ours)}) for b in blocks if b.rewrites]
    return tuple(
        replace(
            sending.forward if sending else Forward("", ()), domain=names.from_wire(point).rstrip(".") or ".", home=home
        )
        for home, own in ((b"", made), *moved)
        for point, sending in own.items()
        if sending is not _above(point, own)
    )


def _points(block: Block, ours: tuple[bytes, ...]) -> list[bytes]:
    """Returns the zones at which the forward of a name changes that the block's rules made."""
    points = dict.fromkeys(point for each in block.sendings for point in (*each.sources, *each.excepts))
    return [point for point in points if inside(point, ours) is None]


def _above(point: bytes, made: dict[bytes, Sending | None]) -> Sending | None:
    """Returns the forward of the closest zone above a point."""
    above = inside(point[1 + point[0] :], tuple(made)) if point != ROOT else None
    return made[above] if above is not None else None


def _tell(sending: Sending, held: list[bytes], mine: list[bytes], ours: tuple[bytes, ...], note: Note) -> None:
    """Reports a forward that has no effect for some or all of its names."""
    here = [names.from_wire(point) for point in held if inside(point, ours) is not None]
    if here:
        note(sending.item, f"is not used for {', '.join(here)}: such names are answered here")
    elif not held and any(sending.takes(point) for point in mine):
        raise bad(sending.item, f"{sending.item.args[0]!r} is forwarded twice; one of the two must go")
    elif not held:
        note(sending.item, "is never used: it forwards no name of this server block")


def tls(item: Directive, servername: str) -> Tls:
    """Reads the option `tls`, `tls CA`, `tls CERT KEY` or `tls CERT KEY CA`."""
    match item.args:
        case []:
            return Tls(servername)
        case [ca]:
            return Tls(servername, ca)
        case [cert, key]:
            return Tls(servername, "", cert, key)
        case [cert, key, ca]:
            return Tls(servername, ca, cert, key)
    raise bad(item, "tls takes at most a certificate, its key and a CA")


def upstream(word: str, item: Directive) -> str:
    """Converts "IP", "IP:port" or "[IPv6]:port", with or without "tls://", to "IP", "IP#port" or "tls://IP"."""
    scheme = TLS if word.startswith(TLS) else ""
    text = word.removeprefix(TLS)
    if "://" in text:
        raise bad(item, f"{word!r}: upstreams can use UDP, TCP or tls://")
    found = re.fullmatch(r"\[(.+)\](?::([0-9]+))?", text) or re.fullmatch(r"([^:]+):([0-9]+)", text)
    host, port = (found[1], found[2]) if found else (text, None)
    try:
        names.canonical(host)
    except names.BadName as err:
        raise bad(item, f"upstream: {err}") from err
    if port and not 0 < number(port, item) <= LAST_PORT:
        raise bad(item, f"upstream {word!r} has a bad port; it must be from 1 to {LAST_PORT}")
    return scheme + host + (f"#{port}" if port else "")

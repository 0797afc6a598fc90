"""Computes the zones of a Corefile's server blocks, and the upstreams of each name.

CoreDNS chooses the block with the longest zone that contains the name. In that block, CoreDNS uses the first `forward`
whose FROM zone contains the name and whose `except` zones do not contain it. If the block has no such `forward`,
CoreDNS sends the name to no upstream, even if another block has one. The chosen `forward` differs only between names on
different sides of a zone that the Corefile names, so one route for each of these zones gives the same result.
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
    """Converts zone names to text without a final dot ("." for the root), and CIDRs to zones. Raises BadConfig."""
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
    """One key of a server block: "SCHEME://ZONE:PORT". word: the key as text. zones: several for a CIDR. port: 0
    without a port.
    """

    word: str
    scheme: str
    zones: tuple[str, ...]
    port: int


def key(word: str, block: Directive) -> Key:
    """Parses one key of a server block. Raises BadConfig."""
    scheme, _, rest = word.rpartition("://")
    host, colon, port = rest.rpartition(":")
    if not colon or (not port.isdecimal() and "/" in port):  # no port: the last colon, if any, belongs to a CIDR
        host, port = rest, ""
    elif ":" in host and "/" not in host:
        raise bad(block, f"{word!r} is an address; write a reverse zone as a CIDR, such as 2001:db8::/32")
    elif not 0 < number(port, block) <= LAST_PORT:
        raise bad(block, f"{port!r} is not a port; it must be from 1 to {LAST_PORT}")
    if _ADDRESS.fullmatch(host):
        raise bad(block, f"{word!r} is an address; write a reverse zone as a CIDR, such as 192.0.2.0/24")
    return Key(word, scheme.lower() or DNS, tuple(zone_names([host], block)), int(port or 0))


@dataclass(frozen=True, slots=True)
class Sending:
    """One `forward` of a block. It applies to the names in the zones `sources` and outside the zones `excepts`.

    source: True if the directive is not a `forward`, but a plugin (such as `file`) whose data this server does not
    read. No upstream then gets these names.
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
    """The zones and forwards of a server block. rewrites: the block's rewrite rules may produce names outside its
    zones.
    """

    zones: tuple[bytes, ...]
    sendings: list[Sending] = field(default_factory=list)
    rewrites: bool = False

    def first(self, name: bytes) -> Sending | None:
        return next((each for each in self.sendings if each.takes(name)), None)

    def chosen(self, name: bytes) -> Sending | None:
        """Returns the `forward` that applies to a name; None if no upstream gets the name."""
        found = self.first(name)
        return None if found is None or found.source else found

    def hidden(self, name: bytes) -> bool:
        """Whether the first entry of `sendings` that applies to the name is a plugin whose data this server does not
        read.
        """
        found = self.first(name)
        return found is not None and found.source


Note = Callable[[Directive, str], None]


def routes(blocks: list[Block], ours: tuple[bytes, ...], note: Note) -> tuple[Forward, ...]:
    """Returns the routes. The server uses the route with the longest domain that contains a name. It refuses the name
    if this route has no upstreams.

    ours: the zones that this server answers. note: reports a forward without effect. Raises BadConfig for a forward
    whose names all go to earlier directives, unless the block has rewrite rules.
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
    """Returns the zones at which the choice of a forward can change for names that the block's rewrite rules produce.
    The result excludes zones that this server answers.
    """
    points = dict.fromkeys(point for each in block.sendings for point in (*each.sources, *each.excepts))
    return [point for point in points if inside(point, ours) is None]


def _above(point: bytes, made: dict[bytes, Sending | None]) -> Sending | None:
    """Returns the forward of the closest parent zone in `made`; None without a parent zone or without a forward."""
    above = inside(point[1 + point[0] :], tuple(made)) if point != ROOT else None
    return made[above] if above is not None else None


def _tell(sending: Sending, held: list[bytes], mine: list[bytes], ours: tuple[bytes, ...], note: Note) -> None:
    """Reports a forward that has no effect for some or all of its names. Raises BadConfig for a repeated one."""
    here = [names.from_wire(point) for point in held if inside(point, ours) is not None]
    if here:
        note(sending.item, f"is not used for {', '.join(here)}: this server answers such names itself")
    elif not held and any(sending.takes(point) for point in mine):
        raise bad(sending.item, f"{sending.item.args[0]!r} is forwarded twice in this server block; remove one forward")
    elif not held:
        note(sending.item, "is never used: it forwards no name of this server block")


def tls(item: Directive, servername: str) -> Tls:
    """Parses the option `tls`, `tls CA`, `tls CERT KEY` or `tls CERT KEY CA`. Raises BadConfig."""
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
    """Converts "IP", "IP:port" or "[IPv6]:port", with or without "tls://", to "IP" or "IP#port", and keeps "tls://".
    Raises BadConfig.
    """
    scheme = TLS if word.startswith(TLS) else ""
    text = word.removeprefix(TLS)
    if "://" in text:
        raise bad(item, f"{word!r}: an upstream is IP, IP:port or [IPv6]:port, with tls:// for TLS")
    found = re.fullmatch(r"\[(.+)\](?::([0-9]+))?", text) or re.fullmatch(r"([^:]+):([0-9]+)", text)
    host, port = (found[1], found[2]) if found else (text, None)
    try:
        names.canonical(host)
    except names.BadName as err:
        raise bad(item, f"upstream: {err}") from err
    if port and not 0 < number(port, item) <= LAST_PORT:
        raise bad(item, f"upstream {word!r} has a bad port; it must be from 1 to {LAST_PORT}")
    return scheme + host + (f"#{port}" if port else "")

"""The rules of a Corefile: `rewrite name`, `template` and `hosts` change or answer a question. Pure: callers read the
files.

A question belongs to the block with the longest matching zone. The rewrite rules of the block apply in order (a rule
with `continue` leads to the next rule). Then the templates and hosts of the block may answer. If they do not answer,
the cluster or an upstream does. The answer to a rewritten question gets the original question again, and its names
become the names that the rule defines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from . import names
from .names import inside
from .pack import PTR_IN, Packer
from .rewriting import Rewrite, Rewritten
from .templates import Local, Template, by_template
from .wire import EMPTY, IN, NOERROR, SERVFAIL

REMEMBERED = 20_000  # maximum number of questions whose rules are cached
HOSTS_TTL = 3600


@dataclass(frozen=True, slots=True)
class Hosts:
    """One `hosts` of a block. inline: lines in the format of /etc/hosts. path: a hosts file. text: its content."""

    zones: tuple[bytes, ...]
    inline: str = ""
    path: str = ""
    text: str = ""
    ttl: int = HOSTS_TTL
    reverse: bool = True
    fallthrough: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A server block: its zones in wire form, and its rules in order."""

    zones: tuple[bytes, ...]
    rewrites: tuple[Rewrite, ...] = ()
    templates: tuple[Template, ...] = ()
    hosts: tuple[Hosts, ...] = ()


def host_lines(text: str) -> Iterator[tuple[bytes, list[str]]]:
    """Yields (packed address, names) for each valid line. The function skips other lines, as resolvers do."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        try:
            address = ip_address(words[0].partition("%")[0]).packed if words else b""
            found = [names.fqdn(word) for word in words[1:]]
        except ValueError:
            continue
        if found:
            yield address, found


class _Table:
    """A compiled Hosts."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts, self.answers, self.names = hosts, dict[bytes, bytes](), set[bytes]()
        addresses: dict[bytes, list[bytes]] = {}
        pointers: dict[bytes, list[bytes]] = {}
        for packed, found in (*host_lines(hosts.inline), *host_lines(hosts.text)):
            for name in map(names.to_wire, found):
                addresses.setdefault(name, []).append(packed)
                if hosts.reverse:
                    pointers.setdefault(names.reverse_wire(packed) + PTR_IN, []).append(name)
        self.entries = sum(map(len, (*addresses.values(), *pointers.values())))
        pack = Packer(hosts.ttl)
        for name, every in addresses.items():
            self.names.add(name)
            self.answers.update({name + kind: value for kind, value in pack.addresses(every).items()})
        self.answers.update({key: pack.pointers(targets) for key, targets in pointers.items()})
        self.reverse = {key[:-4] for key in pointers}

    def find(self, key: bytes) -> Local | None:
        value, name = self.answers.get(key), key[:-4]
        covered = name in self.reverse or inside(name, self.hosts.zones) is not None
        if not covered:
            return None
        if value is not None:
            return Local(NOERROR, value, plugin="hosts")
        if name in self.names or name in self.reverse:  # no type of these names goes to an upstream
            return Local(NOERROR, EMPTY, plugin="hosts")
        if key[-4:] == PTR_IN or inside(name, self.hosts.fallthrough) is not None:
            return None
        return Local(SERVFAIL, EMPTY, plugin="")


@dataclass(slots=True)
class Rules:
    """Compiled blocks; the result for a question is cached (`find`)."""

    blocks: tuple[Block, ...]
    _tables: dict[int, list[_Table]] = field(init=False)
    _by_zone: dict[bytes, Block] = field(init=False)
    _known: dict[bytes, Rewritten | Local | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tables = {id(block): [_Table(hosts) for hosts in block.hosts] for block in self.blocks}
        self._by_zone = {zone: block for block in reversed(self.blocks) for zone in block.zones}

    @property
    def any(self) -> bool:
        return any(block.rewrites or block.templates or block.hosts for block in self.blocks)

    @property
    def host_entries(self) -> int:
        """Returns the number of entries of the hosts rules, counted as CoreDNS does: the addresses of each name, and
        the names of each address.
        """
        return sum(table.entries for tables in self._tables.values() for table in tables)

    def find(self, key: bytes) -> Rewritten | Local | None:
        """Returns the effect of the rules on a lower-case question; None if no rule applies."""
        known = self._known.get(key, self)  # one operation, because another thread may clear the cache
        if not isinstance(known, Rules):
            return known
        found = self._rewrite(key) or self.local(key)
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[key] = found
        return found

    def block(self, name: bytes) -> Block | None:
        zone = inside(name, self._by_zone)
        return None if zone is None else self._by_zone[zone]

    def _rewrite(self, key: bytes) -> Rewritten | None:
        block = self.block(key[:-4])
        name = names.from_wire(key[:-4])
        steps = []
        for rule in block.rewrites if block is not None and "\\" not in name else ():
            new = rule.apply(name)
            if new is None:
                continue
            try:
                new = names.fqdn(new)
            except names.BadName:
                continue  # the rewritten name is not a valid question
            steps.append((name, new, rule))
            name = new
            if not rule.more:
                break
        if block is None or not steps:
            return None
        made = names.to_wire(name)
        return Rewritten(made + key[-4:], tuple(steps), block.zones[0] if self.block(made) is not block else b"")

    def local(self, key: bytes, home: bytes = b"") -> Local | None:
        """Returns the answer of the block's templates and hosts; None if they do not answer.

        home: a zone of the block; b"": the block is the one of the question's name.
        """
        block = self.block(home or key[:-4])
        if block is None or int.from_bytes(key[-2:]) != IN:
            return None
        for template in block.templates:
            found = by_template(template, key)
            if found is not None:
                return found
        for table in self._tables[id(block)]:
            found = table.find(key)
            if found is not None:
                return found
        return None

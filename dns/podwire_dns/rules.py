"""The rules of a Corefile: `rewrite name`, `template` and `hosts` change or answer a question. Pure: callers read the
files.

A question belongs to the block with the longest matching zone. The rewrite rules of the block apply in order (a rule
with `continue` leads to the next rule). Then the templates and hosts of the block may answer. If they do not answer,
the cluster or an upstream does. The answer to a rewritten question gets the original question again, and its names
become the names that the rule defines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address

from dnslib import QTYPE, RR, DNSHeader, DNSLabel, DNSQuestion, DNSRecord
from dnslib.label import DNSLabelError

from . import names
from .pack import PTR_IN, Packer
from .wire import COUNTS, EMPTY, HEADER, IN, NOERROR, NXDOMAIN, QR, SERVFAIL

ROOT = b"\0"
KINDS = ("exact", "prefix", "suffix", "substring", "regex")
REMEMBERED = 20_000  # maximum number of questions whose rules are cached
HOSTS_TTL = TEMPLATE_TTL = 3600
LONGEST_TTL = 2**31 - 1  # RFC 2181 section 8
_EXPRESSION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}")
_CLASS_AND_TYPE = re.compile(r"(?<=\s)(?:in\s+(?:[0-9]+\s+)?)?[a-z][a-z0-9]*(?=\s)", re.IGNORECASE)
_GROUP = re.compile(r"\{(\d+)\}")


class BadRule(ValueError):
    """An invalid rule; the text gives the reason."""


def inside(name: bytes, zones: tuple[bytes, ...]) -> bytes | None:
    """Returns the longest of `zones` that contains `name`; None if no zone does. All names are in wire form."""
    at = 0
    while True:
        if name[at:] in zones:
            return name[at:]
        if not name[at]:
            return None
        at += 1 + name[at]


def pattern(text: str) -> re.Pattern[str]:
    """Compiles a Go regular expression for Python. Raises BadRule."""
    try:
        return re.compile(
            text.replace("(?<", "(?P<") if "(?<" in text and "(?<=" not in text and "(?<!" not in text else text
        )
    except re.error as err:
        raise BadRule(f"{text!r} is not a regular expression: {err}") from err


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One `rewrite name` rule.

    kind: an entry of KINDS. answers: (regular expression, replacement) for the owner names of the answer's records;
    values: the same for the names in the records' data. auto: the rewritten name becomes the original name in the data
    too; in owner names it always does.
    """

    kind: str
    old: str
    new: str
    more: bool = False  # "continue"
    auto: bool = False
    answers: tuple[tuple[re.Pattern[str], str], ...] = ()
    values: tuple[tuple[re.Pattern[str], str], ...] = ()

    def apply(self, name: str) -> str | None:
        """Returns the new name; None if the rule does not match. name: in lower case, with the final dot."""
        match self.kind:
            case "exact":
                return self.new if name == self.old else None
            case "prefix":
                return self.new + name.removeprefix(self.old) if name.startswith(self.old) else None
            case "suffix":
                return name.removesuffix(self.old) + self.new if name.endswith(self.old) else None
            case "substring":
                return name.replace(self.old, self.new) if self.old in name else None
        found = re.search(self.old, name)
        return None if found is None else _fill(self.new, found)


def _fill(text: str, found: re.Match[str]) -> str:
    """Replaces group references in the text: {1} is the first group, as in CoreDNS."""
    return _GROUP.sub(lambda number: (found[int(number[1])] or "") if int(number[1]) <= (found.re.groups) else "", text)


@dataclass(frozen=True, slots=True)
class Template:
    """One `template` of a block.

    qtype: a number; None: all types. fallthrough: in these zones, a name that no expression matches goes to the next
    step; in other zones, the answer is NXDOMAIN. most_ttl: the upper bound of the records' TTLs, in seconds.
    """

    zones: tuple[bytes, ...]
    qtype: int | None
    matches: tuple[re.Pattern[str], ...]
    answers: tuple[str, ...] = ()
    authority: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()
    rcode: int = NOERROR
    fallthrough: tuple[bytes, ...] = ()
    most_ttl: int = LONGEST_TTL


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


@dataclass(frozen=True, slots=True)
class Rewritten:
    """key: the question to answer instead of the original one. steps: (name before, name after, rule), in order."""

    key: bytes
    steps: tuple[tuple[str, str, Rewrite], ...]


@dataclass(frozen=True, slots=True)
class Local:
    """An answer from a template or from hosts. value: as in wire.py."""

    rcode: int
    value: bytes


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
        pack = Packer(hosts.ttl)
        for name, every in addresses.items():
            self.names.add(name)
            self.answers.update({name + kind: value for kind, value in pack.addresses(every).items()})
        self.answers.update({key: pack.pointers(targets) for key, targets in pointers.items()})

    def find(self, key: bytes) -> Local | None:
        value = self.answers.get(key)
        name = key[:-4]
        if value is not None:
            covered = key[-4:] == PTR_IN or inside(name, self.hosts.zones) is not None
            return Local(NOERROR, value) if covered else None
        if inside(name, self.hosts.zones) is None:
            return None
        if name in self.names:  # hosts answers all types of this name: no type goes to an upstream
            return Local(NOERROR, EMPTY)
        if key[-4:] == PTR_IN or inside(name, self.hosts.fallthrough) is not None:
            return None
        return Local(SERVFAIL, EMPTY)


@dataclass(slots=True)
class Rules:
    """Compiled blocks; the result for a question is cached (`find`)."""

    blocks: tuple[Block, ...]
    _tables: dict[int, list[_Table]] = field(init=False)
    _known: dict[bytes, Rewritten | Local | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tables = {id(block): [_Table(hosts) for hosts in block.hosts] for block in self.blocks}

    @property
    def any(self) -> bool:
        return any(block.rewrites or block.templates or block.hosts for block in self.blocks)

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
        best = {zone: block for block in reversed(self.blocks) for zone in block.zones}
        zone = inside(name, tuple(best))
        return None if zone is None else best[zone]

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
        return Rewritten(names.to_wire(name) + key[-4:], tuple(steps)) if steps else None

    def local(self, key: bytes) -> Local | None:
        """Returns the answer of the block's templates and hosts; None if they do not answer."""
        block = self.block(key[:-4])
        if block is None or int.from_bytes(key[-2:]) != IN:
            return None
        for template in block.templates:
            found = _by_template(template, key)
            if found is not None:
                return found
        for table in self._tables[id(block)]:
            found = table.find(key)
            if found is not None:
                return found
        return None


def _by_template(template: Template, key: bytes) -> Local | None:
    zone, qtype = inside(key[:-4], template.zones), int.from_bytes(key[-4:-2])
    if zone is None or template.qtype not in (None, qtype):
        return None
    name = names.from_wire(key[:-4])
    for expression in template.matches:
        found = expression.search(name)
        if found is not None:
            try:
                return Local(template.rcode, _sections(key, template, scope(name, names.from_wire(zone), qtype, found)))
            except BadRule:
                return Local(SERVFAIL, EMPTY)
    return None if inside(key[:-4], template.fallthrough) is not None else Local(NXDOMAIN, EMPTY)


def type_name(qtype: int) -> str:
    """Returns the name of a record type, such as "A"; "TYPE65280" (RFC 3597) for a type without a name."""
    return str(QTYPE.forward.get(qtype, f"TYPE{qtype}"))


def scope(name: str, zone: str, qtype: int, found: re.Match[str]) -> Callable[[str], str]:
    """Returns a function that evaluates a template expression such as ".Name" or "index .Match 1".

    The returned function raises BadRule for an unknown expression.
    """
    plain = {".Name": name, ".Question.Name": name, ".Zone": zone, ".Class": "IN", ".Type": type_name(qtype)}

    def value(text: str) -> str:
        if text in plain:
            return plain[text]
        group = re.fullmatch(r"\.Group\.(\w+)", text)
        number = re.fullmatch(r"(?:index\s+\.Match\s+|\.Match\[)(\d+)\]?", text)
        try:
            if group or number:
                return found[group[1] if group else int(number[1])] or ""  # type: ignore[index]  # one of the two fits
        except IndexError as err:
            raise BadRule(f"{{{{ {text} }}}}: the expression has no such group") from err
        raise BadRule(
            f"{{{{ {text} }}}} is not supported; supported are {', '.join(plain)}, .Group.NAME and index .Match N"
        )

    return value


def render(line: str, value: Callable[[str], str]) -> list[RR]:
    """Returns the records of one line of a template. Raises BadRule."""
    text = _EXPRESSION.sub(lambda found: value(found[1]), line)
    text = _CLASS_AND_TYPE.sub(lambda found: found[0].upper(), text, count=1)
    try:
        return list(RR.fromZone(text, ttl=TEMPLATE_TTL))
    except Exception as err:  # dnslib raises its own errors, ValueError, KeyError and IndexError on malformed input
        raise BadRule(f"{text!r} is not a record: {err}") from err


def _sections(key: bytes, template: Template, value: Callable[[str], str]) -> bytes:
    made = [
        [record for line in lines for record in render(line, value)]
        for lines in (template.answers, template.authority, template.additional)
    ]
    for record in (record for section in made for record in section):
        record.ttl = min(record.ttl, template.most_ttl)
    return packed(key, *made)


def packed(key: bytes, answer: list[RR], authority: list[RR], additional: list[RR]) -> bytes:
    """Packs records into a value for the question `key`. Raises BadRule."""
    try:
        out = DNSRecord(DNSHeader(qr=1), q=DNSQuestion(label(key[:-4]), int.from_bytes(key[-4:-2])))
        out.add_answer(*answer)
        out.add_auth(*authority)
        out.add_ar(*additional)
        return COUNTS.pack(len(answer), len(authority), len(additional)) + bytes(out.pack())[12 + len(key) :]
    except Exception as err:  # as above
        raise BadRule(f"the records cannot be packed: {err}") from err


def label(name: bytes) -> DNSLabel:
    """Converts a name in wire form to a name of dnslib."""
    parts, at = [], 0
    while name[at]:
        parts.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    return DNSLabel(parts)


def restore(asked: bytes, rewritten: Rewritten, value: bytes) -> bytes:
    """Turns a value for the rewritten question into a value for the original question.

    Raises BadRule if the value is malformed.
    """
    an, ns, ar = COUNTS.unpack_from(value)
    try:
        message = DNSRecord.parse(HEADER.pack(0, QR, 1, an, ns, ar) + rewritten.key + value[6:])
    except Exception as err:  # as above
        raise BadRule(f"unreadable answer: {err}") from err
    for record in (*message.rr, *message.auth, *message.ar):
        try:
            record.rname = _back(record.rname, rewritten, data=False)
            for attribute in ("label", "target", "mname"):
                if isinstance(getattr(record.rdata, attribute, None), DNSLabel):
                    setattr(record.rdata, attribute, _back(getattr(record.rdata, attribute), rewritten, data=True))
        except DNSLabelError as err:
            raise BadRule(f"a rule turns {record.rname} into an invalid name: {err}") from err
    return packed(asked, message.rr, message.auth, message.ar)


def _back(owner: DNSLabel, rewritten: Rewritten, *, data: bool) -> DNSLabel:
    """Undoes the rules in one name of an answer, the last rule first."""
    name = before = str(owner)
    for old, new, rule in reversed(rewritten.steps):
        if name.lower() == new and (not data or rule.auto):
            name = old
        for expression, text in rule.values if data else rule.answers:
            found = expression.search(name.lower())
            if found is not None:
                name = _fill(text, found)
    return owner if name == before else DNSLabel(name.rstrip(".") + ".")

"""The `template` of a Corefile: answers made from the text of a question. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import names
from .aliases import FOLLOWED
from .patterns import BadRule, Found, Pattern
from .rtypes import CNAME, type_name
from .wire import COUNTS, EMPTY, NOERROR, NXDOMAIN, OPT_BYTES, SERVFAIL, TCP_SIZE
from .zonetext import LONGEST_TTL, TextRecord, record

TEMPLATE_TTL = 3600
_GROUP = re.compile(
    r"""\.Group\.(\w{1,64})|index\s+\.Group\s+"(\w{1,64})"|(?:index\s+\.Match\s+|\.Match\[)(\d{1,4})\]?""", re.ASCII
)
_SIGNS = re.compile(
    r"[;()]"
)  # signs of zone-file text, which clients may put into names; Go's DNS library escapes them


@dataclass(frozen=True, slots=True)
class Template:
    """One `template` of a block.

    qtype: a number; None: all types. fallthrough: in these zones, a name that no expression matches goes to the next
    step; in other zones, the answer is NXDOMAIN. most_ttl: the upper bound of the records' TTLs, in seconds.
    """

    zones: tuple[bytes, ...]
    qtype: int | None
    matches: tuple[Pattern, ...]
    answers: tuple[str, ...] = ()
    authority: tuple[str, ...] = ()
    additional: tuple[str, ...] = ()
    rcode: int = NOERROR
    fallthrough: tuple[bytes, ...] = ()
    most_ttl: int = LONGEST_TTL


@dataclass(frozen=True, slots=True)
class Whole:
    """The match of a template without `match`: group 0 is the name."""

    name: str

    def __getitem__(self, group: int | str) -> str | None:
        if group != 0:
            raise IndexError(group)
        return self.name


@dataclass(frozen=True, slots=True)
class Local:
    """An answer from a template, from hosts or from the cluster. value: as in wire.py.

    alias: the name that the question must be asked for next, because the answer is an alias; in lower-case wire form.
    plugin: the CoreDNS plugin that answers like this, for metrics.
    """

    rcode: int
    value: bytes
    alias: bytes = b""
    plugin: str = "template"


def by_template(template: Template, key: bytes) -> Local | None:
    """Returns the answer of a template; None if the template does not answer this question."""
    zone, qtype = names.inside(key[:-4], template.zones), int.from_bytes(key[-4:-2])
    if zone is None or template.qtype not in (None, qtype):
        return None
    name = _SIGNS.sub(r"\\\g<0>", names.from_wire(key[:-4]))
    for expression in template.matches or (None,):  # without `match`, the template has all names
        found = Whole(name) if expression is None else expression.search(name)
        if found is not None:
            try:
                return _answer(key, template, scope(name, names.from_wire(zone), qtype, found))
            except BadRule:
                return Local(SERVFAIL, EMPTY, plugin="")
    return None if names.inside(key[:-4], template.fallthrough) is not None else Local(NXDOMAIN, EMPTY)


def scope(name: str, zone: str, qtype: int, found: Found) -> Callable[[str], str]:
    """Returns a function that evaluates a template expression such as ".Name" or "index .Match 1".

    The returned function raises BadRule for an unknown expression.
    """
    plain = {".Name": name, ".Question.Name": name, ".Zone": zone, ".Class": "IN", ".Type": type_name(qtype)}

    def value(text: str) -> str:
        if text in plain:
            return plain[text]
        group = _GROUP.fullmatch(text)
        try:
            if group is not None:
                key = group[1] or group[2] or group[3]
                return found[int(key) if key.isdecimal() else key] or ""
        except IndexError as err:
            raise BadRule(f"{{{{ {text} }}}}: the expression has no such group") from err
        raise BadRule(
            f"{{{{ {text} }}}} is not supported; supported are {', '.join(plain)}, .Group.NAME and index .Match N"
        )

    return value


def pieces(line: str) -> Iterator[tuple[str, str | None]]:
    """Yields (text, the expression behind it) of a line; None: the line ends. "{{- " and " -}}" remove the space beside
    them. The time is linear in the length of the line.
    """
    at, trimmed = 0, False
    while True:
        start = line.find("{{", at)
        end = line.find("}}", start + 2) if start >= 0 else -1
        text = line[at:start] if end >= 0 else line[at:]
        if trimmed:
            text = text.lstrip()
        if end < 0:
            yield text, None
            return
        inner = line[start + 2 : end]
        if inner[:1] == "-" and inner[1:2].isspace():
            text, inner = text.rstrip(), inner[2:]
        trimmed = inner[-1:] == "-" and inner[-2:-1].isspace()
        yield text, (inner[:-1] if trimmed else inner).strip()
        at = end + 2


def render(line: str, value: Callable[[str], str]) -> TextRecord:
    """Returns the record of one line of a template. Raises BadRule."""
    made = [text + ("" if inner is None else value(inner)) for text, inner in pieces(line)]
    return record("".join(made), TEMPLATE_TTL)


def _answer(key: bytes, template: Template, value: Callable[[str], str]) -> Local:
    sections = [
        [render(line, value) for line in lines] for lines in (template.answers, template.authority, template.additional)
    ]
    made = b"".join(each.wire(key[:-4], template.most_ttl) for section in sections for each in section)
    if len(made) > TCP_SIZE - 12 - len(key) - OPT_BYTES:
        raise BadRule("the records are larger than a DNS message may be")
    alias = _alias(key, sections[0]) if template.rcode == NOERROR else b""
    return Local(template.rcode, COUNTS.pack(*map(len, sections)) + made, alias)


def _alias(key: bytes, answer: list[TextRecord]) -> bytes:
    """Returns the name at the end of the aliases from the name of the question, if the answer has no data for it."""
    name, qtype = key[:-4], int.from_bytes(key[-4:-2])
    targets = {each.owner.lower(): each.data.lower() for each in answer if each.rtype == CNAME}
    owners = {each.owner.lower() for each in answer if each.rtype == qtype}
    seen = {name}
    while name not in owners and targets.get(name, name) not in seen:
        name = targets[name]
        seen.add(name)
    return name if qtype in FOLLOWED and name != key[:-4] and name not in owners and name not in targets else b""

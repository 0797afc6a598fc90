"""The `rewrite name` of a Corefile: the new question, and the way back of the names in its answer. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dnslib import RR, DNSHeader, DNSLabel, DNSQuestion, DNSRecord
from dnslib.label import DNSLabelError

from .patterns import BadRule, Found, Pattern
from .wire import COUNTS, HEADER, QR

KINDS = ("exact", "prefix", "suffix", "substring", "regex")
_GROUP = re.compile(r"\{(\d{1,4})\}", re.ASCII)


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
    answers: tuple[tuple[Pattern, str], ...] = ()
    values: tuple[tuple[Pattern, str], ...] = ()
    expression: Pattern | None = None  # of the kind "regex"

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
        found = self.expression.search(name) if self.expression is not None else None
        return None if found is None or self.expression is None else _fill(self.new, found, self.expression.groups)


def _fill(text: str, found: Found, groups: int) -> str:
    """Replaces group references in the text: {1} is the first group, as in CoreDNS."""
    return _GROUP.sub(lambda number: (found[int(number[1])] or "") if int(number[1]) <= groups else "", text)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """key: the question to answer instead of the original one. steps: (name before, name after, rule), in order.

    home: a zone of the block with the rules, if the new name lies in another block; else b"". The new name stays in the
    block with the rules, as in CoreDNS: its templates, hosts and upstreams apply, not those of the other block.
    """

    key: bytes
    steps: tuple[tuple[str, str, Rewrite], ...]
    home: bytes = b""


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
                name = _fill(text, found, expression.groups)
    return owner if name == before else DNSLabel(name.rstrip(".") + ".")

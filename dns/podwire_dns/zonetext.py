"""Reads one record in the text form of zone files (RFC 1035 section 5.1, RFC 3597 for unknown types). Pure."""

from __future__ import annotations

from typing import NamedTuple

from .patterns import BadRule
from .wire import FIXED, IN

LONGEST_TTL = 2**31 - 1  # RFC 2181 section 8


class TextRecord(NamedTuple):
    """One record of class IN. owner: in wire form, in the case of the text. data: without compression."""

    owner: bytes
    rtype: int
    ttl: int
    data: bytes

    def wire(self, question: bytes, most_ttl: int) -> bytes:
        """Returns the record for an answer. question: the name that stands at offset 12 of the message."""
        owner = b"\xc0\x0c" if self.owner.lower() == question else self.owner
        return owner + FIXED.pack(self.rtype, IN, min(self.ttl, most_ttl), len(self.data)) + self.data


def record(text: str, default_ttl: int) -> TextRecord:
    """Returns the record of a line "NAME [TTL] [CLASS] TYPE DATA". A name without a final dot is absolute.

    TTL and class stand in any order. Parentheses, quotes, escapes and comments are those of zone files. Raises BadRule.
    """
    # dnspython knows every type and takes 0.1 s to import, which only a Corefile with `template` needs.
    import dns.name
    import dns.rdata
    import dns.rdataclass
    import dns.rdatatype
    import dns.tokenizer
    import dns.ttl

    words = dns.tokenizer.Tokenizer(text)
    ttl = default_ttl
    try:
        owner = words.as_name(words.get(), dns.name.root)
        word = words.get_string()
        for _ in range(2):
            if word[:1].isdecimal():
                ttl, word = dns.ttl.from_text(word), words.get_string()
            elif word.upper() in ("IN", "CH", "HS", "ANY", "NONE"):
                if word.upper() != "IN":
                    raise BadRule(f"{text!r} is not a record of class IN")
                word = words.get_string()
        rtype = dns.rdatatype.from_text(word)
        data = dns.rdata.from_text(dns.rdataclass.IN, rtype, words, dns.name.root, False)
        if not words.get().is_eof():
            raise BadRule(f"{text!r} is more than one record")
        if ttl > LONGEST_TTL:
            raise BadRule(f"{text!r} has a TTL above {LONGEST_TTL} seconds")
        if dns.rdatatype.is_metatype(rtype):
            raise BadRule(f"{text!r} is not a record: {word} is a type of questions only")
        return TextRecord(owner.to_wire() or b"", int(rtype), ttl, data.to_wire() or b"")
    except BadRule:
        raise
    except Exception as err:  # clients make the text, and each type has a parser with errors of its own
        raise BadRule(f"{text!r} is not a record: {err}") from err


def type_number(text: str) -> int | None:
    """Returns the number of a record type, such as 65 for "HTTPS" and 65280 for "TYPE65280"; None if there is none."""
    import dns.rdatatype

    try:
        return int(dns.rdatatype.from_text(text))
    except (dns.rdatatype.UnknownRdatatype, ValueError):
        return None

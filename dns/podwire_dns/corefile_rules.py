"""Converts the `rewrite`, `template` and `hosts` of a Corefile to the dataclasses of rules.py. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dnslib import RCODE

from . import rewriting, rules, templates
from .corefile_routes import wire, zone_names
from .corefile_text import Directive, bad, number, seconds
from .names import ROOT
from .patterns import BadRule, Pattern, pattern
from .zonetext import LONGEST_TTL, type_number

REWRITTEN = ("name", "type", "class", "edns0", "ttl", "rcode", "cname")  # podwire supports only `name`
HOSTS_FILE = "/etc/hosts"
Note = Callable[..., None]  # (directive, why)


def zones_of(words: Iterable[str], item: Directive) -> tuple[bytes, ...]:
    """Returns zone names in wire form. A CIDR becomes its reverse zones. Raises BadConfig."""
    return wire(zone_names(words, item))


def _full(text: str) -> str:
    return text.lower().rstrip(".") + "."


def rewrite(item: Directive, note: Note) -> rewriting.Rewrite | None:
    """Returns the rule; adds a note and returns None if the rule rewrites something other than the name."""
    words, more = list(item.args), False
    if words and words[0] in ("continue", "stop"):
        more = words.pop(0) == "continue"
    lines = [words, *(option.words for option in item.block)]
    words = [word for line in lines for word in line]
    if words[:1] != ["name"]:
        if not words or words[0] not in REWRITTEN:
            raise bad(item, f"rewrite needs one of {', '.join(REWRITTEN)}")
        note(item)
        return None
    kind = words[1] if words[1:] and words[1] in rewriting.KINDS else "exact"
    rest = words[2:] if words[1:] and words[1] in rewriting.KINDS else words[1:]
    if len(rest) < 2:
        raise bad(item, "rewrite name needs a name and its replacement")
    old, new, rest = rest[0], rest[1], rest[2:]
    auto = kind == "exact"
    answers: list[tuple[Pattern, str]] = []
    values: list[tuple[Pattern, str]] = []
    expression: Pattern | None = None
    try:
        while rest:
            if rest[:2] == ["answer", "auto"]:
                auto, rest = True, rest[2:]
            elif rest[0] == "answer" and rest[1:2] in (["name"], ["value"]) and len(rest) > 3:
                (answers if rest[1] == "name" else values).append((pattern(rest[2], fold=True), rest[3]))
                rest = rest[4:]
            else:
                raise bad(
                    item, f"{' '.join(rest)!r} is not understood; write answer auto, or answer name|value FROM TO"
                )
        if kind == "regex":
            expression = pattern(old)
        elif kind in ("exact", "suffix"):
            old, new = _full(old), _full(new)
        else:
            old, new = old.lower(), new.lower()
    except BadRule as err:
        raise bad(item, str(err)) from err
    return rewriting.Rewrite(kind, old, new, more, auto, tuple(answers), tuple(values), expression)


def template(item: Directive, block_zones: tuple[bytes, ...], note: Note) -> templates.Template | None:
    """Returns the template; adds a note and returns None for a class other than IN.

    Raises BadConfig, also for invalid records.
    """
    if len(item.args) < 2:
        raise bad(item, "template needs a class and a type")
    qclass, kind = item.args[0].upper(), item.args[1].upper()
    if qclass not in ("IN", "ANY"):
        note(item)
        return None
    qtype = None if kind == "ANY" else type_number(kind)
    if kind != "ANY" and qtype is None:
        raise bad(item, f"{kind!r} is not a record type")
    zones = zones_of(item.args[2:], item) or block_zones
    matches: list[Pattern] = []
    lines: dict[str, list[str]] = {"answer": [], "authority": [], "additional": []}
    rcode = 0
    fallthrough: tuple[bytes, ...] = ()
    for option in item.block:
        try:
            if option.name == "match" and option.args:
                matches += map(pattern, option.args)
            elif option.name in lines and option.args:
                for line in option.args:
                    _check(line, qtype)
                lines[option.name] += option.args
            elif option.name == "rcode" and option.args:
                if option.args[0].upper() not in RCODE.reverse:
                    raise bad(option, f"{option.args[0]!r} is not a response code")
                rcode = int(RCODE.reverse[option.args[0].upper()])
            elif option.name == "fallthrough":
                fallthrough = zones_of(option.args, option) or (ROOT,)
            else:
                note(option)
        except BadRule as err:
            raise bad(option, str(err)) from err
    return templates.Template(
        zones,
        qtype,
        tuple(matches),
        tuple(lines["answer"]),
        tuple(lines["authority"]),
        tuple(lines["additional"]),
        rcode,
        fallthrough,
    )


def _check(line: str, qtype: int | None) -> None:
    """Renders the line once with an example name. Raises BadRule.

    An error that depends on groups, or on the type of the question, appears only with a query.
    """
    value = templates.scope("a.example.", "example.", qtype or 1, templates.Whole("a.example."))
    expressions = [inner for _, inner in templates.pieces(line) if inner is not None]
    later = [text for text in expressions if "Group" in text or "Match" in text or (text == ".Type" and qtype is None)]
    for text in expressions:
        if text not in later:
            value(text)
    if not later:
        templates.render(line, value)


def hosts(item: Directive, block_zones: tuple[bytes, ...], note: Note) -> tuple[rules.Hosts, float | None]:
    """Returns the rule, whose file is not read yet, and its `reload` in seconds; None without `reload`."""
    ttl, reverse = rules.HOSTS_TTL, True
    inline: list[str] = []
    fallthrough: tuple[bytes, ...] = ()
    again: float | None = None
    zones = zones_of(item.args[1:], item) or block_zones
    for option in item.block:
        if option.name == "ttl" and option.args:
            ttl = number(option.args[0], option)
            if ttl > LONGEST_TTL:
                raise bad(option, f"ttl is {ttl}; it must be at most {LONGEST_TTL} seconds")
        elif option.name == "no_reverse":
            reverse = False
        elif option.name == "fallthrough":
            fallthrough = zones_of(option.args, option) or (ROOT,)
        elif option.name == "reload" and option.args:
            again = seconds(option.args[0], option)
        elif list(rules.host_lines(" ".join(option.words))):
            inline.append(" ".join(option.words))
        else:
            note(option)
    path = item.args[0] if item.args else HOSTS_FILE
    return rules.Hosts(zones, "\n".join(inline), path, "", ttl, reverse, fallthrough), again

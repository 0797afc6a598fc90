"""Parses the output of iptables-save. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import lru_cache

from .layout import PREFIX, Chain, Rules, is_ours

_TO_OURS = (f"-j {PREFIX}", f"-g {PREFIX}")


def parse(saved: str) -> dict[Chain, Rules]:
    """Returns the PODWIRE-* chains, and the rules in other chains that jump to them."""
    found: dict[Chain, list[str]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("-A "):
            _, name, rule = line.split(" ", 2)
            if is_ours(name) or any(jump in rule for jump in _TO_OURS):
                # other tables have none of our rules
                found.setdefault(Chain(table, name), []).append(rule)  # type: ignore[arg-type]
        elif line.startswith(":"):
            name = line[1:].split(" ", 1)[0]
            if is_ours(name):
                found.setdefault(Chain(table, name), [])  # type: ignore[arg-type]  # as above
        elif line.startswith("*"):
            table = line[1:]
    return {chain: tuple(rules) for chain, rules in found.items()}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed rule. options: (name, arguments, negated) of each match. target: "" without a target."""

    options: tuple[tuple[str, tuple[str, ...], bool], ...]
    target: str
    arguments: tuple[tuple[str, tuple[str, ...], bool], ...]
    comment: str


@lru_cache(maxsize=1 << 16)
def take_apart(rule: str) -> Parsed:
    """Parses a rule such as "! -s 10.0.0.0/8 -m addrtype --dst-type LOCAL -j X --y z"."""
    found: list[tuple[str, tuple[str, ...], bool]] = []
    name, arguments, negated, invert = "", [], False, False  # type: tuple[str, list[str], bool, bool]
    for word in [*shlex.split(rule), "-end"]:
        if word == "!":
            invert = True
        elif word.startswith("-") and len(word) > 1:
            if name:
                found.append((name, tuple(arguments), negated))
            name, arguments, negated, invert = word, [], invert, False
        else:
            arguments.append(word)
    at = next((i for i, (option, _, _) in enumerate(found) if option in ("-j", "-g")), len(found))
    comment = next((args[0] for option, args, _ in found if option == "--comment"), "")
    matches = tuple(item for item in found[:at] if item[0] not in ("-m", "--comment"))
    return Parsed(matches, found[at][1][0] if at < len(found) else "", tuple(found[at + 1 :]), comment)


def count_rules(saved: str) -> int:
    """Returns the number of rules of all tables and all owners."""
    return sum(line.startswith("-A ") for line in saved.splitlines())

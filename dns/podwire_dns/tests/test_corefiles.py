"""Corefiles in the shapes that distributions and people use: what is understood, and which lines are named.

corefiles.txt has them, each with what it must say in comments: `set` (settings), `sent` (name=upstreams), `named` (the
beginnings of what the notes quote, in any order, and no other note), `error`, and `flags` that it starts with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

import pytest

from podwire_dns import corefile, names
from podwire_dns.config import BadConfig, DnsConfig
from podwire_dns.corefile_parse import Place
from podwire_dns.corefile_routes import wire
from podwire_dns.names import inside
from podwire_dns.testing import builders

MAIN = "/etc/coredns/Corefile"


@dataclass
class Case:
    files: dict[str, str] = field(default_factory=dict)
    wanted: dict[str, str] = field(default_factory=dict)

    @property
    def named(self) -> list[str]:
        return [part.strip() for part in self.wanted.get("named", "").split("|") if part.strip()]

    def read(self) -> tuple[DnsConfig, list[str]]:
        def read(path: str) -> str:
            return self.files[path]

        def fitting(pattern: str) -> list[str]:
            return sorted(path for path in self.files if path != MAIN and fnmatch(path, pattern))

        place = Place(MAIN, read, fitting, {"UP": "192.0.2.9", "PORT": "53"})
        base = replace(builders.CONFIG, ignore_access=self.wanted.get("flags") == "ignore_access")
        return corefile.apply(self.files[MAIN], base, place)


def _cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for part in re.split(r"^=== ", Path(__file__).with_name("corefiles.txt").read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        head, *files = re.split(r"^--- (.*)\n", text, flags=re.MULTILINE)
        wanted = dict(re.findall(r"^# (set|sent|named|error|flags): ?(.*)$", head, re.MULTILINE))
        bare = re.sub(r"^# (?:set|sent|named|error|flags):.*\n", "", head, flags=re.MULTILINE)
        pairs = zip(files[::2], files[1::2], strict=True) if files else [("Corefile", bare)]
        found[title] = Case({f"/etc/coredns/{name}": content for name, content in pairs}, wanted)
    return found


CASES = _cases()


def sent(config: DnsConfig, name: str) -> str:
    domains = {wire([each.domain])[0]: each for each in config.forwards}
    best = inside(names.to_wire(name + "."), tuple(domains))
    return ",".join(domains[best].upstreams) if best is not None else ""


def told(config: DnsConfig, setting: str) -> str:
    value = getattr(config, setting)
    return ",".join(value) if isinstance(value, tuple) else str(value)


def test_there_are_enough() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize("title", [title for title, case in CASES.items() if "error" not in case.wanted])
def test_what_is_understood_and_what_is_named(title: str) -> None:
    case = CASES[title]
    config, notes = case.read()
    wanted = dict(pair.split("=", 1) for pair in case.wanted.get("set", "").split())
    assert {name: told(config, name) for name in wanted} == wanted
    wanted = dict(pair.rsplit("=", 1) for pair in case.wanted["sent"].split())
    assert {name: sent(config, name) for name in wanted} == wanted
    left = list(notes)
    for part in case.named:
        fitting = [note for note in left if part in note.split(": ", 1)[1]]
        assert fitting, (part, left)
        left.remove(fitting[0])
    assert left == []
    assert all(re.match(r"(Corefile|/etc/coredns/\S+) line [1-9]", note) for note in notes)


@pytest.mark.parametrize("title", [title for title, case in CASES.items() if "error" in case.wanted])
def test_what_is_refused(title: str) -> None:
    with pytest.raises(BadConfig) as caught:
        CASES[title].read()
    assert CASES[title].wanted["error"] in str(caught.value)

"""Splits the text of a Corefile into lines of tokens, and parses the values of tokens. Pure."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field

from podwire_base.kube.times import duration

from .config import BadConfig

_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|#[^\n]*|(")|([^\s"#][^\s#]*)', re.DOTALL)
LONGEST_DURATION = 64  # characters
TOP = "Corefile"  # the name of the given file in errors


@dataclass(slots=True)
class Directive:
    """One line of a Corefile, with the lines of its block. file: "Corefile", or the path of an imported file."""

    line: int
    words: list[str]
    block: list[Directive] = field(default_factory=list)
    file: str = TOP

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def args(self) -> list[str]:
        return self.words[1:]

    @property
    def at(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass(frozen=True, slots=True)
class Token:
    """One token. quoted: a quoted brace is plain text. end: the line of the last character."""

    text: str
    file: str
    line: int
    end: int
    quoted: bool = False

    @property
    def at(self) -> str:
        return f"{self.file} line {self.line}"


def bad(item: Directive | Token, why: str) -> BadConfig:
    return BadConfig(f"{item.at}: {why}")


def lines(text: str, file: str) -> list[list[Token]]:
    """Returns the tokens of each line. A quoted token may extend over several lines.

    A # outside of quotes ends the line. Raises BadConfig for an unterminated quote.
    """
    found: list[list[Token]] = []
    line, counted = 1, 0
    for match in _TOKEN.finditer(text.removeprefix("\ufeff")):
        line, counted = line + match.string.count("\n", counted, match.start()), match.start()
        quoted, lone, plain = match.groups()
        if quoted is None and plain is None and lone is None:
            continue
        if lone is not None:
            raise BadConfig(f"{file} line {line}: the quote is not closed")
        content = plain if quoted is None else quoted.replace('\\"', '"')
        token = Token(content, file, line, line + content.count("\n"), quoted is not None)
        if found and found[-1][-1].end == line:
            found[-1].append(token)
        else:
            found.append([token])
    return found


def seconds(text: str, item: Directive) -> float:
    """Parses a duration: "5s", "1m30s", or a bare number of seconds. Raises BadConfig."""
    if len(text) <= LONGEST_DURATION:
        if re.fullmatch(r"[0-9]+", text):
            return float(text)
        with contextlib.suppress(ValueError):
            return duration(text)
    raise bad(item, f"{text!r} is not a duration; write 5s, 1m or 1h")


def number(text: str, item: Directive) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > LONGEST_DURATION:
        raise bad(item, f"{text!r} is not a number")
    return int(text)

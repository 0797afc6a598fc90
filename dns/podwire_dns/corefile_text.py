"""The Corefile's text -> lines of tokens, and the values that stand in them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .config import BadConfig

_UNITS = {"us": 0.000001, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|#[^\n]*|(")|([^\s"#][^\s#]*)', re.DOTALL)
LONGEST_DURATION = 64  # characters
TOP = "Corefile"  # how errors call the file that was given


@dataclass(slots=True)
class Directive:
    """One line, with the lines of its block. file: "Corefile", or the path of an imported file."""

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
    """quoted: a brace in quotes is no brace. end: the line of its last character."""

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
    """The tokens by line; quotes may go over several. A # ends its line wherever it stands outside of quotes. Raises
    BadConfig for a quote without its end."""
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
    """ "5s", "1m30s", or a bare number of seconds."""
    if len(text) <= LONGEST_DURATION:
        if re.fullmatch(r"[0-9]+", text):
            return float(text)
        parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h)", text)
        if parts and "".join(a + b for a, b in parts) == text:
            return sum(float(amount) * _UNITS[unit] for amount, unit in parts)
    raise bad(item, f"{text!r} is no duration; write 5s, 1m or 1h")


def number(text: str, item: Directive) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > LONGEST_DURATION:
        raise bad(item, f"{text!r} is no number")
    return int(text)

"""The Corefile's text -> directives with their lines. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .config import BadConfig

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([{}])(?=\s|$)|(\S+)')
_COMMENT = re.compile(r'("(?:[^"\\]|\\.)*")|(?:^|(?<=\s))#.*')


@dataclass(slots=True)
class Directive:
    """One line, with the lines of its block."""

    line: int
    words: list[str]
    block: list[Directive] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.words[0]

    @property
    def args(self) -> list[str]:
        return self.words[1:]


def bad(item: Directive, why: str) -> BadConfig:
    return BadConfig(f"Corefile line {item.line}: {why}")


def parse(text: str) -> list[Directive]:
    """The server blocks: `words` are their zones. Raises BadConfig for braces that do not match."""
    root = Directive(0, [""])
    stack = [root]
    for line, words in _lines(text):
        opens = words[-1] == "{"
        plain = words[:-1] if opens else words
        if words == ["}"]:
            if len(stack) == 1:
                raise BadConfig(f"Corefile line {line}: a }} without a {{")
            stack.pop()
            continue
        if any(word in ("{", "}") for word in plain) or not plain:
            raise BadConfig(f"Corefile line {line}: a brace must end its line, and }} must stand alone")
        made = Directive(line, plain)
        stack[-1].block.append(made)
        if opens:
            stack.append(made)
    if len(stack) > 1:
        raise BadConfig(f"Corefile line {stack[-1].line}: the {{ is not closed")
    return _imported(root.block)


def _imported(blocks: list[Directive]) -> list[Directive]:
    """Expand snippets, "(name) {", where they are imported."""
    snippets = {block.name.strip("()"): block.block for block in blocks if re.fullmatch(r"\(.+\)", block.name)}
    for block in blocks:
        block.block = [
            line
            for item in block.block
            for line in (snippets.get(item.args[0], [item]) if item.name == "import" and item.args else [item])
        ]
    return [block for block in blocks if not re.fullmatch(r"\(.+\)", block.name)]


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for line, content in enumerate(text.splitlines(), 1):
        plain = _COMMENT.sub(lambda found: found[1] or "", content)
        found = [
            quoted.replace('\\"', '"') if quoted else brace or word for quoted, brace, word in _TOKEN.findall(plain)
        ]
        if found:
            yield line, found


def seconds(text: str, line: int) -> float:
    """ "5s", "1m30s", or a bare number of seconds."""
    if re.fullmatch(r"\d+", text):
        return float(text)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(a + b for a, b in parts) != text:
        raise BadConfig(f"Corefile line {line}: {text!r} is no duration; write 5s, 1m or 1h")
    return sum(float(amount) * _UNITS[unit] for amount, unit in parts)


def number(text: str, item: Directive) -> int:
    if not (text.isascii() and text.isdigit()):
        raise bad(item, f"{text!r} is no number")
    return int(text)

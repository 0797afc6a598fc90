"""Parses the lines of a Corefile into server blocks. Pure except for `Place`.

The parser replaces imports, snippets and environment variables. The grammar is the grammar of CoreDNS's Caddyfile
(github.com/coredns/caddy, caddyfile/parse.go).
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from podwire_base.numerals import decimal

from .corefile_text import TOP, Directive, Token, bad, lines

MOST_IMPORTS, MOST_DEPTH = 1000, 32
Line = list[Token]
_ENVIRONMENT = re.compile(r"\{\$([^{}\s]+)\}|\{%([^{}%\s]+)%\}")
_ARGUMENT = re.compile(r"\{args(?:\[([0-9]{1,4})\]|\.([0-9]{1,4}))\}")
_SNIPPET = re.compile(r"\((.*)\)", re.DOTALL)


def _no_file(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory", path)


@dataclass(frozen=True, slots=True)
class Place:
    """The files and the environment around a Corefile.

    path: the path of the Corefile, the base of relative imports. read: returns the text of a file; raises OSError.
    matching: returns the paths that match a pattern, in order, without directories. environment: the values of {$NAME}.
    """

    path: str = ""
    read: Callable[[str], str] = _no_file
    matching: Callable[[str], list[str]] = lambda pattern: []
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Reader:
    place: Place
    notes: list[str] = field(default_factory=list)
    snippets: dict[str, list[Line]] = field(default_factory=dict)
    imports: int = 0
    depth: int = 0

    def expand(self, given: list[Line], trail: tuple[str, ...]) -> Iterator[Line]:
        """Yields the lines, with each import replaced by its content. trail: the enclosing imports."""
        rest = iter(given)
        for line in rest:
            name = self._snippet(line)
            if line[0].text == "import" and not line[0].quoted:
                yield from self._imported(line, trail)
            elif name is not None:
                if name in self.snippets:
                    raise bad(line[0], f"the snippet {name!r} is declared twice")
                self.snippets[name] = _body(line, rest)
            else:
                self.depth += sum(_turn(token) for token in line)
                yield [self._filled(token) for token in line]

    def _snippet(self, line: Line) -> str | None:
        words = [token.text for token in line if not _turn(token)]
        found = _SNIPPET.fullmatch(words[0]) if self.depth == 0 and len(words) == 1 else None
        return found[1] if found else None

    def _filled(self, token: Token) -> Token:
        """Replaces environment variables. An unset variable becomes empty text, as in CoreDNS, and adds a note."""

        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2]
            if name not in self.place.environment:
                self.notes.append(f"{token.at}: the environment has no {name}; {found[0]} counts as empty")
            return self.place.environment.get(name, "")

        if "{" not in token.text:
            return token
        return _with_text(token, _ENVIRONMENT.sub(value, token.text))

    def _imported(self, line: Line, trail: tuple[str, ...]) -> Iterator[Line]:
        """Yields the lines of an import: a snippet declared above, else a file, else the files that match a pattern."""
        if len(line) < 2:
            raise bad(line[0], "import needs a snippet, a file or a pattern")
        pattern, *args = [self._filled(token).text for token in line[1:]]
        if not pattern or any(_turn(token) for token in line):
            raise bad(line[0], "import needs a snippet, a file or a pattern, and stands on a line of its own")
        self.imports += 1
        if self.imports > MOST_IMPORTS:
            raise bad(line[0], f"there are more than {MOST_IMPORTS} imports")
        if pattern in self.snippets:
            _enter(line[0], f"({pattern})", trail)
            yield from self._inside(line[0], f"({pattern})", self.snippets[pattern], args, trail)
            return
        for path in self._files(line[0], pattern):
            _enter(line[0], path, trail)
            try:
                text = self.place.read(path)
            except OSError as err:
                raise bad(line[0], f"{path} cannot be imported: {err.strerror}") from err
            yield from self._inside(line[0], path, lines(text, path), args, trail)

    def _files(self, token: Token, pattern: str) -> list[str]:
        base = self.place.path if token.file == TOP else token.file
        path = os.path.normpath(Path(base).parent / pattern)
        if not any(sign in path for sign in "*?["):
            return [path]
        if path.count("*") > 1 or path.count("?") > 1 or "[" in path:
            raise bad(token, f"{pattern!r} is not a pattern for import; it may have one * and one ?, and no [")
        return self.place.matching(path)

    def _inside(
        self, token: Token, name: str, body: list[Line], args: list[str], trail: tuple[str, ...]
    ) -> Iterator[Line]:

        def argument(found: re.Match[str]) -> str:
            index = decimal(found[1] or found[2])
            if index is None or index >= len(args):
                raise bad(token, f"{name} wants {found[0]}, and the import gives {len(args)} arguments")
            return args[index]

        if args or name.startswith("("):  # a file without arguments may declare snippets with arguments
            body = [[_with_text(word, _ARGUMENT.sub(argument, word.text)) for word in row] for row in body]
        yield from self.expand(body, (*trail, name))


def _enter(token: Token, name: str, trail: tuple[str, ...]) -> None:
    if name in trail:
        raise bad(token, f"import of {name} comes back to itself")
    if len(trail) > MOST_DEPTH:
        raise bad(token, f"imports lie more than {MOST_DEPTH} deep in one another")


def _with_text(token: Token, text: str) -> Token:
    """Returns the token with new text. A brace in replaced text is plain text."""
    return token if text == token.text else replace(token, text=text, quoted=True)


def _turn(token: Token) -> int:
    """Returns 1 for an opening brace, -1 for a closing brace, else 0."""
    return 0 if token.quoted else {"{": 1, "}": -1}.get(token.text, 0)


def _body(head: Line, rest: Iterator[Line]) -> list[Line]:
    """Returns the lines of a snippet up to its closing brace."""
    opening = head if len(head) > 1 else next(rest, head)
    if [_turn(token) for token in opening][-1:] != [1] or len(opening) > 2:
        raise bad(head[0], "a snippet needs a { at the end of its line")
    depth, found = 1, list[Line]()
    for line in rest:
        depth += sum(map(_turn, line))
        if depth <= 0:
            if len(line) > 1:
                raise bad(line[0], "a } must stand alone")
            return found
        found.append(line)
    raise bad(head[0], "the { is not closed")


@dataclass(slots=True)
class _Blocks:
    """Collects server blocks.

    head: a server block that still lacks its {. more: a comma ended the line of `head`. bare: the only server block has
    no braces.
    """

    found: list[Directive] = field(default_factory=list)
    stack: list[Directive] = field(default_factory=list)
    head: Directive | None = None
    more: bool = False
    bare: bool = False

    def take(self, line: Line) -> None:
        turns = [_turn(token) for token in line]
        first, words = line[0], [token.text for token, turn in zip(line, turns, strict=True) if not turn]
        if any(turns[:-1]) or (turns[-1] == -1 and words):
            raise bad(first, "a brace must end its line, and } must stand alone")
        if turns == [-1]:
            if len(self.stack) == self.bare:
                raise bad(first, "a } without a {")
            self.stack.pop()
            return
        if self.head is not None and not self.more and words:
            self._begin_without_brace(self.head)
        if self.stack:
            self._directive(first, words, opens=turns[-1] == 1)
        else:
            self._zones(first, words, opens=turns[-1] == 1)

    def _begin_without_brace(self, head: Directive) -> None:
        if len(self.found) > 1:
            raise bad(head, "a { must follow the zones; only a single server block may do without")
        self.bare, self.head = True, None
        self.stack.append(head)

    def _directive(self, first: Token, words: list[str], *, opens: bool) -> None:
        if not words:
            raise bad(first, "a brace must end its line, and } must stand alone")
        made = Directive(first.line, words, file=first.file)
        self.stack[-1].block.append(made)
        self.stack += [made] if opens else []

    def _zones(self, first: Token, words: list[str], *, opens: bool) -> None:
        if self.head is None:
            self.head = Directive(first.line, [], file=first.file)
            self.found.append(self.head)
        self.head.words += [word.removesuffix(",") for word in words if word.strip(",")]
        self.more = words[-1].endswith(",") if words else self.more
        if opens:
            if self.more or not self.head.words:
                raise bad(first, "a { without a zone before it")
            self.stack.append(self.head)
            self.head = None

    def end(self) -> list[Directive]:
        if self.head is not None and self.more:
            raise bad(self.head, "a zone must follow the comma")
        if len(self.stack) > self.bare:
            raise bad(self.stack[-1], "the { is not closed")
        return [block for block in self.found if block.words]


def parse(text: str, place: Place | None = None) -> tuple[list[Directive], list[str]]:
    """Returns the server blocks and the notes. The `words` of a server block are its zones.

    Raises BadConfig for unbalanced braces, a missing file, or an import cycle.
    """
    reader, blocks = _Reader(place or Place()), _Blocks()
    for line in reader.expand(lines(text, TOP), (os.path.normpath(reader.place.path),)):
        blocks.take(line)
    return blocks.end(), reader.notes

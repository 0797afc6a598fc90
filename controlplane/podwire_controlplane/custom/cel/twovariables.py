"""The macros of two variables, which the engine does not have (cel-spec, extension "two-variable comprehensions";
Kubernetes has them since 1.33). They are written as macros of one variable over pairs of key and value. Pure.

    m.all(k, v, P)                    m.__pairs().all(__two1, P)
    m.transformList(k, v, F, E)       m.__pairs().map(__two1, F, E)
    m.transformMap(k, v, E)           m.__pairs().map(__two1, {"k": __two1.k, "v": E}).__mapped()
    m.transformMapEntry(k, v, E)      m.__pairs().map(__two1, E).__merged()

In P, F and E, k becomes __two1.k, and v becomes __two1.v. A list has its indices for keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from .types import BadExpression

PAIRS, MAPPED, MERGED, PAIR = "__pairs", "__mapped", "__merged", "__two"
_WHOLE = {"all": "all", "exists": "exists", "existsOne": "exists_one", "exists_one": "exists_one"}
_TRANSFORMS = ("transformList", "transformMap", "transformMapEntry")
_TOKEN = re.compile(
    r"""[rRbB]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|//[^\n]*|\s+|[A-Za-z_]\w*|"""
    r"""\d[\w.]*|.""",
    re.DOTALL,
)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_OPEN, _CLOSE = ("(", "[", "{"), (")", "]", "}")
Tokens = list[str]


def expand(source: str) -> str:
    """Return an expression without macros of two variables. Raises BadExpression for a name that only this uses."""
    if "," not in source and "__" not in source:
        return source
    tokens = _TOKEN.findall(source)
    for token in tokens:
        if token in (PAIRS, MAPPED, MERGED) or token.startswith(PAIR):
            raise BadExpression(f"undeclared reference to '{token}'")
    return "".join(_expanded(tokens, count(1)))


def _expanded(tokens: Tokens, numbers: Iterator[int]) -> Tokens:
    """Return tokens with each macro of two variables written out, the outer ones first."""
    made, at = Tokens(), 0
    while at < len(tokens):
        token, before = tokens[at], _last(made)
        if before == "." and (token in _WHOLE or token in _TRANSFORMS):
            arguments, end = _arguments(tokens, at + 1)
            if _two(token, arguments):
                made += _expanded(_written(token, arguments, f"{PAIR}{next(numbers)}"), numbers)
                at = end
                continue
        made.append(token)
        at += 1
    return made


def _last(tokens: Tokens) -> str:
    return next((token for token in reversed(tokens) if not token.isspace()), "")


def _arguments(tokens: Tokens, at: int) -> tuple[list[Tokens], int]:
    """Return the arguments of the call whose parenthesis is at `at`, and where the call ends. None of them: no call."""
    while at < len(tokens) and tokens[at].isspace():
        at += 1
    if at >= len(tokens) or tokens[at] != "(":
        return [], at
    found, depth = [Tokens()], 0
    for end in range(at, len(tokens)):
        token = tokens[end]
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return found, end + 1
        if depth == 1 and token == ",":
            found.append([])
        elif end > at:
            found[-1].append(token)
    return [], at


def _two(name: str, arguments: list[Tokens]) -> bool:
    """Whether a call is a macro of two variables."""
    if len(arguments) not in ((3,) if name in _WHOLE else (3, 4)):
        return False
    return all(_IDENTIFIER.fullmatch("".join(words).strip()) for words in arguments[:2])


def _written(name: str, arguments: list[Tokens], pair: str) -> Tokens:
    """Return the tokens that stand for a macro, from its name on."""
    key, value = ("".join(words).strip() for words in arguments[:2])
    if key == value:
        raise BadExpression(f"{name}: its two variables have one name, '{key}'")
    *conditions, last = (_renamed(words, {key: f"{pair}.k", value: f"{pair}.v"}) for words in arguments[2:])
    if name == "transformMap":
        last = ["{", '"k"', ":", f"{pair}.k", ",", '"v"', ":", "(", *last, ")", "}"]
    inner = [word for words in (*conditions, last) for word in (",", *words)]
    after = {"transformMap": MAPPED, "transformMapEntry": MERGED}.get(name)
    made = [PAIRS, "(", ")", ".", _WHOLE.get(name, "map"), "(", pair, *inner, ")"]
    return [*made, ".", after, "(", ")"] if after else made


def _renamed(tokens: Tokens, names: Mapping[str, str]) -> Tokens:
    """Replace variables, but not fields of their names."""
    made, before = Tokens(), ""  # before: the last two words
    for token in tokens:
        made.append(token if before[-1:] == "." or before == ".?" else names.get(token, token))
        if not token.isspace():
            before = (before + token)[-2:]
    return made


# ---- the functions behind them


def pairs(value: Any) -> list[dict[str, Any]]:
    """Return the keys and values of a map, or the indices and items of a list."""
    rows = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [{"k": key, "v": inner} for key, inner in rows]


def mapped(rows: list[dict[str, Any]]) -> dict[Any, Any]:
    return {row["k"]: row["v"] for row in rows}


def merged(rows: list[dict[Any, Any]]) -> dict[Any, Any]:
    """Return the entries as one map. Raises ValueError for a key that comes twice, as upstream."""
    made: dict[Any, Any] = {}
    for row in rows:
        for key, value in row.items():
            if key in made:
                raise ValueError(f"insert failed: key {key} already exists")
            made[key] = value
    return made

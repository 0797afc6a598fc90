"""The JSON paths of additionalPrinterColumns: the part of kubectl's JSONPath that a column needs. Pure.

Names (.a, ['a.b'], a\\.b), indices ([0], [-1], [1:3]), all items ([*], .*), and filters ([?(@.type=="Ready")]).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Step = Callable[[Any], Iterator[Any]]
_TOKEN = re.compile(
    r"\.(?P<name>(?:\\.|[^.\[\]\\*])+)"
    r"|(?P<all>\.\*|\[\*\])"
    r"|\[(?P<quoted>'[^']*'|\"[^\"]*\")\]"
    r"|\[(?P<slice>-?\d*:-?\d*)\]"
    r"|\[(?P<index>-?\d+)\]"
    r"|\[\?\(\s*(?P<filter>.+?)\s*\)\]"
)
_FILTER = re.compile(r"@(?P<path>[^=!<>\s]*)\s*(?:(?P<op>==|!=|<=|>=|<|>)\s*(?P<value>.+))?")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    ">": lambda a, b: bool(a > b),
    "<=": lambda a, b: bool(a <= b),
    ">=": lambda a, b: bool(a >= b),
}


class BadPath(ValueError):
    """The text is no path that a column may have."""


def _name(name: str) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]

    return step


def _all(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield from value.values() if isinstance(value, dict) else value


def _index(at: int) -> Step:
    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list) and -len(value) <= at < len(value):
            yield value[at]

    return step


def _slice(text: str) -> Step:
    start, _, end = text.partition(":")

    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from value[int(start) if start else None : int(end) if end else None]

    return step


def _literal(text: str) -> Any:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        raise BadPath(f"{text}: not a string, number or boolean") from None


def _filter(text: str) -> Step:
    found = _FILTER.fullmatch(text)
    if found is None:
        raise BadPath(f"{text}: not a filter")
    inner, compare = parse(found["path"]), _COMPARE.get(found["op"] or "")
    want = _literal(found["value"]) if compare else None

    def takes(item: Any) -> bool:
        values = list(inner(item))
        if compare is None:
            return bool(values)
        try:
            return any(compare(value, want) for value in values)
        except TypeError:
            return False

    def step(value: Any) -> Iterator[Any]:
        if isinstance(value, list):
            yield from (item for item in value if takes(item))

    return step


def _step(found: re.Match[str]) -> Step:
    if found["name"] is not None:
        return _name(re.sub(r"\\(.)", r"\1", found["name"]))
    if found["all"]:
        return _all
    if found["quoted"]:
        return _name(found["quoted"][1:-1])
    if found["slice"]:
        return _slice(found["slice"])
    if found["index"]:
        return _index(int(found["index"]))
    return _filter(found["filter"])


def parse(path: str) -> Step:
    """Return a function that yields the values at a path. Raises BadPath."""
    steps, at = list[Step](), 0
    while at < len(path):
        found = _TOKEN.match(path, at)
        if found is None:
            raise BadPath(f"{path}: cannot read {path[at:]!r}")
        steps.append(_step(found))
        at = found.end()

    def values(value: Any) -> Iterator[Any]:
        current = [value]
        for step in steps:
            current = [inner for one in current for inner in step(one)]
        yield from current

    return values

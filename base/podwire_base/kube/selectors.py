"""Parses label selectors (query strings and LabelSelector objects) and field selectors into predicates.

A query string is read one token after another (apimachinery, pkg/labels/selector.go and pkg/fields/selector.go), so the
time grows with its length only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .errors import bad_request
from .meta import Object, labels

Predicate = Callable[[Object], bool]
LabelTest = Callable[[Mapping[str, str]], bool]

MAX_TERMS = 2000  # of one query string; every object is compared with each of them
_TOKEN = re.compile(r"\s*(==|!=|[=!(),<>]|[^\s=!(),<>]+)")
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_KEY = re.compile(rf"(?P<prefix>{_LABEL}(\.{_LABEL})*/)?{_NAME}", re.ASCII)
_VALUE = re.compile(rf"({_NAME})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_END = ""


def _in(key: str, values: set[str], negate: bool) -> LabelTest:
    if negate:
        return lambda have: have.get(key) not in values
    return lambda have: key in have and have[key] in values


def _has(key: str, negate: bool) -> LabelTest:
    return lambda have: (key in have) is not negate


def _than(key: str, bound: str, operator: str) -> LabelTest:
    limit = int(bound)

    def test(have: Mapping[str, str]) -> bool:
        value = have.get(key, "")
        return bool(_INTEGER.fullmatch(value)) and (int(value) > limit if operator == ">" else int(value) < limit)

    return test


class _Parser:
    """The tokens of one label selector, and the requirements that they make."""

    def __init__(self, text: str) -> None:
        self.text, self._tokens = text, self._split(text)
        self.needles: list[bytes] = []
        self.token = next(self._tokens)

    def _split(self, text: str) -> Iterator[str]:
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            assert match is not None  # every character but white space begins a token
            yield match[1]
            at = match.end()
        while True:
            yield _END

    def bad(self, expected: str) -> Exception:
        found = f"found {self.token!r}" if self.token else "the text ends"
        return bad_request(f"unable to parse requirement: {self.text[:200]!r}: {found}, expected {expected}")

    def take(self) -> str:
        taken, self.token = self.token, next(self._tokens)
        return taken

    def is_word(self) -> bool:
        return self.token not in (_END, "=", "==", "!=", "!", "(", ")", ",", "<", ">")

    def requirements(self) -> list[LabelTest]:
        found: list[LabelTest] = []
        if self.token == _END:
            return found
        while True:
            found.append(self._requirement())
            if len(found) > MAX_TERMS:
                raise bad_request(f"a selector has at most {MAX_TERMS} requirements")
            if self.token == _END:
                return found
            if self.take() != ",":
                raise self.bad("',' or the end")

    def _requirement(self) -> LabelTest:
        negate = self.token == "!"
        if negate:
            self.take()
        key = self._key()
        if negate or self.token in (_END, ","):
            if self.token not in (_END, ","):
                raise self.bad("',' or the end")
            if not negate:
                self.needles.append(f'"{key}":"'.encode())
            return _has(key, negate)
        operator = self.take()
        if operator in ("in", "notin"):
            return _in(key, self._values(), operator == "notin")
        if operator in ("=", "==", "!="):
            value = self._value()
            if operator != "!=":
                self.needles.append(f'"{key}":"{value}"'.encode())
            return _in(key, {value}, operator == "!=")
        if operator in ("<", ">"):
            bound = self._value()
            if not _INTEGER.fullmatch(bound):
                raise bad_request(f"unable to parse requirement: {bound[:80]!r} is not an integer")
            return _than(key, bound, operator)
        self.token = operator
        raise self.bad("=, ==, !=, in, notin, < or >")

    def _key(self) -> str:
        if not self.is_word():
            raise self.bad("a key or !key")
        key = self.take()
        match = _KEY.fullmatch(key)
        if not match or len(match["prefix"] or "") > 254:
            raise bad_request(f"unable to parse requirement: {key[:320]!r} is not the key of a label")
        return key

    def _value(self) -> str:
        value = self.take() if self.is_word() else ""
        if not _VALUE.fullmatch(value):
            raise bad_request(f"unable to parse requirement: {value[:80]!r} is not the value of a label")
        return value

    def _values(self) -> set[str]:
        if self.take() != "(":
            raise self.bad("'(' and values")
        found = {self._value()}
        while self.token == ",":
            self.take()
            found.add(self._value())
        if self.take() != ")":
            raise self.bad("',' or ')'")
        return found


def label_query(text: str) -> Predicate | None:
    """Parse a labelSelector query string. Returns None if the string is empty (every object matches). Raises
    StatusError 400.
    """
    tests = _Parser(text).requirements()
    if not tests:
        return None
    if len(tests) == 1:
        only = tests[0]
        return lambda obj: only(labels(obj))

    def matches(obj: Object) -> bool:
        have = labels(obj)
        return all(test(have) for test in tests)

    return matches


def label_needles(text: str) -> tuple[bytes, ...]:
    """Returns texts that the compact JSON of every matching object contains (keys and values of labels are ASCII)."""
    parser = _Parser(text)
    parser.requirements()
    return tuple(parser.needles)


def label_selector(selector: Mapping[str, Any] | None) -> LabelTest:
    """Parse a meta/v1 LabelSelector. All of matchLabels and matchExpressions must match. None matches no object, {}
    matches every object.
    """
    if selector is None:
        return lambda have: False
    tests = [_in(k, {v}, False) for k, v in (selector.get("matchLabels") or {}).items()]
    for term in selector.get("matchExpressions") or []:
        key, values = term["key"], set(term.get("values") or [])
        op = term["operator"]
        presence = op in ("Exists", "DoesNotExist")
        tests.append(_has(key, op == "DoesNotExist") if presence else _in(key, values, op == "NotIn"))
    return lambda have: all(test(have) for test in tests)


def selector_text(selector: Mapping[str, Any]) -> str:
    """Returns a meta/v1 LabelSelector in the form of a labelSelector query, the keys in order."""
    rows = [(key, f"{key}={value}") for key, value in (selector.get("matchLabels") or {}).items()]
    for term in selector.get("matchExpressions") or []:
        key, values = str(term.get("key")), ",".join(sorted(term.get("values") or []))
        texts = {"Exists": key, "DoesNotExist": f"!{key}", "In": f"{key} in ({values})"}
        rows.append((key, texts.get(str(term.get("operator")), f"{key} notin ({values})")))
    return ",".join(text for _, text in sorted(rows))


def equality(selector: Mapping[str, str]) -> LabelTest:
    """Parse the selector of a Service or ReplicationController: all labels must be equal."""
    pairs = tuple(selector.items())
    return lambda have: all(have.get(k) == v for k, v in pairs)


# ---- fields


def _field(obj: Object, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _field_terms(text: str) -> Iterator[str]:
    """Yield the terms between commas. A backslash takes the meaning from the next character."""
    start = at = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == ",":
            yield text[start:at]
            start = at + 1
        at += 1
    yield text[start:]


def _unescape(text: str, term: str) -> str:
    out, at = [], 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
            if text[at : at + 1] not in ("\\", ",", "="):
                raise bad_request(f"invalid field selector {term[:200]!r}: a backslash stands before \\ , or = only")
        elif text[at] == "=":
            raise bad_request(f"invalid field selector {term[:200]!r}: write = in a value as \\=")
        out.append(text[at])
        at += 1
    return "".join(out)


def field_terms(text: str) -> list[tuple[str, str, bool]]:
    """Parse a fieldSelector query string: PATH=VALUE, PATH==VALUE or PATH!=VALUE, separated by commas. Returns (path,
    value, whether the value must differ) of each term. Raises StatusError 400.
    """
    found: list[tuple[str, str, bool]] = []
    for term in _field_terms(text):
        if not term:
            continue
        if len(found) == MAX_TERMS:
            raise bad_request(f"a selector has at most {MAX_TERMS} terms")
        at = term.find("=")
        if at < 0:
            raise bad_request(f"invalid field selector {term[:200]!r}: expected PATH=VALUE or PATH!=VALUE")
        negate = at > 0 and term[at - 1] == "!"
        path, value = term[: at - negate], term[at + 1 :]
        if not negate:
            value = value.removeprefix("=")
        if path or value:  # upstream takes "=" for everything
            found.append((path, _unescape(value, term), negate))
    return found


def field_query(text: str, known: Callable[[str], bool] = lambda _: True) -> Predicate | None:
    """Parse a fieldSelector query string into a predicate. Returns None if the string is empty. known: whether the kind
    has a field. Raises StatusError 400 for an unknown field, because an empty list would mislead the user.
    """
    tests = field_terms(text)
    for path, _, _ in tests:
        if not known(path):
            raise bad_request(
                f"field label not supported: {path[:200]!r} is not a field by which this kind is selected"
            )
    if not tests:
        return None
    return lambda obj: all((_field(obj, path) == value) is not negate for path, value, negate in tests)


def both(label: Predicate | None, field: Predicate | None) -> Predicate | None:
    if label and field:
        return lambda obj: label(obj) and field(obj)
    return label or field

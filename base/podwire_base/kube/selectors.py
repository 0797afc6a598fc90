"""Parses label selectors (query strings and LabelSelector objects) and field selectors into predicates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from .errors import bad_request
from .meta import Object, labels

Predicate = Callable[[Object], bool]
LabelTest = Callable[[Mapping[str, str]], bool]

_SET = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<op>in|notin)\s*\(\s*(?P<values>[^()]*)\)\s*$")
_EQ = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s*(?P<op>==|=|!=)\s*(?P<value>[^\s,()=!]*)\s*$")
_HAS = re.compile(r"^\s*(?P<not>!?)\s*(?P<key>[^\s!=,()]+)\s*$")


def _terms(text: str) -> list[str]:
    """Split a selector at the commas outside parentheses."""
    return [t for t in re.split(r",(?![^()]*\))", text) if t.strip()]


def _in(key: str, values: set[str], negate: bool) -> LabelTest:
    if negate:
        return lambda have: have.get(key) not in values
    return lambda have: key in have and have[key] in values


def _has(key: str, negate: bool) -> LabelTest:
    return lambda have: (key in have) is not negate


def _label_term(term: str) -> LabelTest:
    if match := _SET.match(term):
        return _in(match["key"], {v.strip() for v in match["values"].split(",")}, match["op"] == "notin")
    if match := _EQ.match(term):
        return _in(match["key"], {match["value"]}, match["op"] == "!=")
    if match := _HAS.match(term):
        return _has(match["key"], match["not"] == "!")
    raise bad_request(
        f"unable to parse requirement: {term!r}: expected KEY, !KEY, KEY=VALUE, KEY!=VALUE or KEY in (A,B)"
    )


def label_query(text: str) -> Predicate | None:
    """Parse a labelSelector query string. Returns None if the string is empty (every object matches). Raises
    StatusError 400.
    """
    tests = [_label_term(term) for term in _terms(text)]
    if not tests:
        return None
    return lambda obj: all(test(labels(obj)) for test in tests)


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


def equality(selector: Mapping[str, str]) -> LabelTest:
    """Parse the selector of a Service or ReplicationController: all labels must be equal."""
    pairs = tuple(selector.items())
    return lambda have: all(have.get(k) == v for k, v in pairs)


def _field(obj: Object, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def field_query(text: str, known: Callable[[str], bool] = lambda _: True) -> Predicate | None:
    """Parse a fieldSelector query string: PATH=VALUE, PATH==VALUE or PATH!=VALUE, separated by commas. Returns None if
    the string is empty. known: whether the kind has a field. Raises StatusError 400 for an unknown field, because an
    empty list would mislead the user.
    """
    tests: list[tuple[str, str, bool]] = []
    for term in text.split(","):
        if not term.strip():
            continue
        match = re.match(r"^\s*([A-Za-z.]+)\s*(!=|==|=)\s*(.*?)\s*$", term)
        if not match:
            raise bad_request(f"invalid field selector {term!r}: expected PATH=VALUE or PATH!=VALUE")
        if not known(match[1]):
            raise bad_request(
                f"field label not supported: {match[1]!r} is not a field with a single value of this kind"
            )
        tests.append((match[1], match[3], match[2] == "!="))
    if not tests:
        return None
    return lambda obj: all((_field(obj, path) == value) is not negate for path, value, negate in tests)


def both(label: Predicate | None, field: Predicate | None) -> Predicate | None:
    if label and field:
        return lambda obj: label(obj) and field(obj)
    return label or field

"""Quantities: numbers with a unit, such as "500m", "1.5Gi" and "2e3" (k8s.io/apimachinery, pkg/api/resource).

The API stores them in canonical form: no fraction, no precision lost, and the largest unit that allows both.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import ceil

_MOST_DIGITS = 1000  # int() refuses more than 4,300
_FORM = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(|[KMGTPE]i|[numkMGTPE]|[eE][+-]?\d{1,4})")
_DECIMAL = {-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}
_EXPONENT = {unit: exponent for exponent, unit in _DECIMAL.items()}
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_NANO = Fraction(1, 10**9)  # the smallest amount: anything finer is rounded up
_MAX = 2**63 - 1  # larger amounts are capped


class BadQuantity(ValueError):
    """The text is no quantity."""


def _split(text: str) -> tuple[Fraction, str]:
    """Return (value, format): "binary", "exponent" or "decimal"."""
    match = _FORM.fullmatch(text)
    if not match:
        raise BadQuantity("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    sign, digits, unit = match.groups()
    if len(digits) > _MOST_DIGITS:
        raise BadQuantity(f"a quantity has at most {_MOST_DIGITS} digits")
    value = Fraction(digits if digits[-1] != "." else digits[:-1]) * (-1 if sign == "-" else 1)
    if unit.endswith("i"):
        value *= 1024 ** _BINARY.index(unit)
        form = "binary"
    elif unit in _EXPONENT:
        value *= Fraction(10) ** _EXPONENT[unit]
        form = "decimal"
    else:
        value *= Fraction(10) ** int(unit[1:])
        form = "exponent"
    if value % _NANO:
        value = _away(value / _NANO) * _NANO
    return max(min(value, Fraction(_MAX)), Fraction(-_MAX)), form


def _away(value: Fraction) -> int:
    return ceil(value) if value >= 0 else -ceil(-value)


@lru_cache(maxsize=4096)  # the same few quantities come with every pod
def parse(text: str) -> Fraction:
    """Return the value of a quantity. Raises BadQuantity."""
    return _split(text)[0]


def to_milli(text: str) -> str:
    """Return a quantity rounded up to thousandths, in canonical form. Raises BadQuantity."""
    return canonical(f"{_away(parse(text) * 1000)}m")


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """Return the canonical form of a quantity. Raises BadQuantity."""
    value, form = _split(text.strip())
    if not value:
        return "0"
    if form == "binary" and abs(value) >= 1024:
        whole, power = _away(value), 0
        while whole % 1024 == 0 and power < len(_BINARY) - 1:
            whole, power = whole // 1024, power + 1
        return f"{whole}{_BINARY[power]}"
    amount, exponent = int(value / _NANO), -9
    while amount % 1000 == 0 and exponent < 18:
        amount, exponent = amount // 1000, exponent + 3
    if form == "exponent":
        return f"{amount}e{exponent}" if exponent else str(amount)
    return f"{amount}{_DECIMAL[exponent]}"

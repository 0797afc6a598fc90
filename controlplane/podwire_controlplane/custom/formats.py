"""The formats of strings that a custom resource's schema may ask for (apiextensions-apiserver,
pkg/apiserver/validation/formats.go; go-openapi/strfmt). A format that upstream does not know is ignored.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from datetime import date, datetime
from email.utils import parseaddr
from functools import cache
from urllib.parse import urlsplit

from ..rules import fields

_HOST = (
    r"([a-zA-Z0-9\u00a1-\uffff]([-a-zA-Z0-9\u00a1-\uffff]{0,61}[a-zA-Z0-9\u00a1-\uffff])?)"
    r"(\.[a-zA-Z0-9\u00a1-\uffff]([-a-zA-Z0-9\u00a1-\uffff]{0,61}[a-zA-Z0-9\u00a1-\uffff])?)*\.?"
)
_MAC = (r"(?i)[0-9a-f]{2}([:-][0-9a-f]{2}){5}(([:-][0-9a-f]{2}){2}|([:-][0-9a-f]{2}){14})?|"
                  r"([0-9a-f]{4}\.){2}[0-9a-f]{4}(\.[0-9a-f]{4}|(\.[0-9a-f]{4}){7})?")  # fmt: skip
_GO_DURATION = r"[-+]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)"
_SCALA = (
    r"\d+\s*(d|days?|h|hours?|m|mins?|minutes?|s|secs?|seconds?|ms|millis?|milliseconds?|µs|us|micros?|"
    r"microseconds?|ns|nanos?|nanoseconds?|w|weeks?|hrs?)"
)
_DATETIME = r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}([.,]\d+)?([zZ]|[+-]\d{2}:?\d{2})?"
_CARD = (
    r"(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|"
    r"3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})"
)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern at its first use: all of them cost a start of the server 20 ms."""
    return re.compile(pattern)


def _matches(pattern: str, text: str) -> bool:
    return _compiled(pattern).fullmatch(text) is not None


def _whole(pattern: str) -> Callable[[str], bool]:
    return lambda text: _matches(pattern, text)


def _uri(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    return bool(text) and (text.startswith("/") or bool(parts.scheme)) and not re.search(r"[\x00-\x20\x7f]", text)


def _email(text: str) -> bool:
    local, at, domain = parseaddr(text)[1].rpartition("@")
    return bool(at and local and domain) and " " not in local


def _address(kind: type) -> Callable[[str], bool]:
    return lambda text: isinstance(fields.parsed_ip(text), kind)


def _mapped(text: str) -> bool:
    return isinstance(fields.parsed_ip(text), ipaddress.IPv6Address)


def _byte(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _date(text: str) -> bool:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _datetime(text: str) -> bool:
    if not _matches(_DATETIME, text):
        return False
    try:
        datetime.fromisoformat(text[:10] + "T" + text[11:19])
    except ValueError:
        return False
    return True


def _duration(text: str) -> bool:
    return _matches(_GO_DURATION, text) or _matches(_SCALA, text)


def _isbn10(text: str) -> bool:
    digits = re.sub(r"[ -]", "", text)
    if not re.fullmatch(r"[0-9]{9}[0-9X]", digits):
        return False
    total = sum((n + 1) * (10 if c == "X" else int(c)) for n, c in enumerate(digits))
    return total % 11 == 0


def _isbn13(text: str) -> bool:
    digits = re.sub(r"[ -]", "", text)
    if not re.fullmatch(r"[0-9]{13}", digits):
        return False
    return sum(int(c) * (1, 3)[n % 2] for n, c in enumerate(digits)) % 10 == 0


def _creditcard(text: str) -> bool:
    digits = re.sub(r"[^0-9]", "", text)
    if not _matches(_CARD, digits):
        return False
    doubled = [int(c) * (1 + n % 2) for n, c in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _rgb(text: str) -> bool:
    made = re.fullmatch(r"rgb\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)", text)
    return made is not None and all(int(part) <= 255 for part in made.groups())


_HEX = "[0-9a-f]"


def _uuid(version: str, variant: str) -> Callable[[str], bool]:
    return _whole(rf"(?i){_HEX}{{8}}-?{_HEX}{{4}}-?{version}-?{variant}-?{_HEX}{{12}}")


_CHECKS: dict[str, Callable[[str], bool]] = {
    "bsonobjectid": _whole(r"(?i)[0-9a-f]{24}"),
    "uri": _uri,
    "email": _email,
    "hostname": lambda text: len(text) <= 255 and _matches(_HOST, text),
    "ipv4": _address(ipaddress.IPv4Address),
    "ipv6": _mapped,
    "cidr": lambda text: fields.parsed_cidr(text) is not None,
    "mac": lambda text: _matches(_MAC, text),
    "uuid": _uuid(f"{_HEX}{{4}}", f"{_HEX}{{4}}"),
    "uuid3": _uuid(f"3{_HEX}{{3}}", f"{_HEX}{{4}}"),
    "uuid4": _uuid(f"4{_HEX}{{3}}", f"[89ab]{_HEX}{{3}}"),
    "uuid5": _uuid(f"5{_HEX}{{3}}", f"[89ab]{_HEX}{{3}}"),
    "isbn": lambda text: _isbn10(text) or _isbn13(text),
    "isbn10": _isbn10,
    "isbn13": _isbn13,
    "creditcard": _creditcard,
    "ssn": _whole(r"\d{3}[- ]?\d{2}[- ]?\d{4}"),
    "hexcolor": _whole(r"#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})"),
    "rgbcolor": _rgb,
    "byte": _byte,
    "password": lambda text: True,
    "date": _date,
    "duration": _duration,
    "datetime": _datetime,
    "k8sshortname": lambda text: not fields.label(text),
    "k8slongname": lambda text: not fields.subdomain(text),
}


def check_of(name: str) -> Callable[[str], bool] | None:
    """Return the check of a format, None for one that is ignored. Dashes in the name count for nothing."""
    return _CHECKS.get(name.replace("-", ""))


# ---- CEL's format.named: name -> what is wrong with a text, [] if nothing is

NAMED: dict[str, Callable[[str], list[str]]] = {
    "dns1123Label": fields.label,
    "dns1123Subdomain": fields.subdomain,
    "dns1035Label": fields.label_1035,
    "qualifiedName": fields.qualified,
    "dns1123LabelPrefix": lambda text: fields.label(fields.masked(text)),
    "dns1123SubdomainPrefix": lambda text: fields.subdomain(fields.masked(text)),
    "dns1035LabelPrefix": lambda text: fields.label_1035(fields.masked(text)),
    "labelValue": fields.label_value,
    "uri": lambda text: [] if _uri(text) else ["invalid URI"],
    "uuid": lambda text: [] if _CHECKS["uuid"](text) else ["does not match the UUID format"],
    "byte": lambda text: [] if _byte(text) else ["invalid base64"],
    "date": lambda text: [] if _date(text) else ["invalid date"],
    "datetime": lambda text: [] if _datetime(text) else ["invalid datetime"],
}


def named(name: str) -> Callable[[str], list[str]] | None:
    return NAMED.get(name)

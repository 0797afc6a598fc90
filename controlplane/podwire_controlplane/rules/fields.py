"""Field errors, and the forms of texts that many fields share (k8s.io/apimachinery: pkg/util/validation).

A check of a form returns the list of what is wrong with the text, [] if it is right: one error for each, as upstream.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from podwire_base.kube.errors import Cause

Causes = Iterator[Cause]
Form = Callable[[str], list[str]]

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_ENV = re.compile(r"[ -<>-~]+")
_CONFIG_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_HEADER = re.compile(r"[-A-Za-z0-9]+")
_WILDCARD = re.compile(r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PERCENT = re.compile(r"[0-9]+%")
LABEL_MAX, SUBDOMAIN_MAX = 63, 253


# ---- errors


def invalid(path: str, value: Any, why: str) -> Cause:
    return Cause(path, f"Invalid value: {_shown(value)}: {why}", "FieldValueInvalid")


def required(path: str, why: str = "") -> Cause:
    return Cause(path, "Required value" + (f": {why}" if why else ""), "FieldValueRequired")


def duplicate(path: str, value: Any) -> Cause:
    return Cause(path, f"Duplicate value: {_shown(value)}", "FieldValueDuplicate")


def forbidden(path: str, why: str) -> Cause:
    return Cause(path, f"Forbidden: {why}", "FieldValueForbidden")


def not_supported(path: str, value: Any, allowed: Iterable[str]) -> Cause:
    listed = ", ".join(f'"{a}"' for a in sorted(allowed))
    return Cause(path, f"Unsupported value: {_shown(value)}: supported values: {listed}", "FieldValueNotSupported")


def not_found(path: str, value: Any) -> Cause:
    return Cause(path, f"Not found: {_shown(value)}", "FieldValueNotFound")


def too_long(path: str, limit: int) -> Cause:
    return Cause(path, f"Too long: may not be more than {limit} bytes", "FieldValueTooLong")


def too_many(path: str, count: int, limit: int) -> Cause:
    return Cause(path, f"Too many: {count}: must have at most {limit} items", "FieldValueTooMany")


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def all_invalid(path: str, value: Any, problems: Iterable[str]) -> Causes:
    for why in problems:
        yield invalid(path, value, why)


def one_of(path: str, value: Any, allowed: Collection[str]) -> Causes:
    if value not in allowed:
        yield not_supported(path, value, allowed)


def not_negative(path: str, value: Any) -> Causes:
    if isinstance(value, int) and value < 0:
        yield invalid(path, value, "must be greater than or equal to 0")


def positive(path: str, value: Any) -> Causes:
    if isinstance(value, int) and value <= 0:
        yield invalid(path, value, "must be greater than zero")


# ---- forms


def label(text: str) -> list[str]:
    """A DNS label (RFC 1123)."""
    return _form(text, _LABEL, LABEL_MAX, "a lowercase RFC 1123 label")


def label_1035(text: str) -> list[str]:
    return _form(text, _LABEL_1035, LABEL_MAX, "a DNS-1035 label")


def subdomain(text: str) -> list[str]:
    """A DNS subdomain (RFC 1123)."""
    return _form(text, _SUBDOMAIN, SUBDOMAIN_MAX, "a lowercase RFC 1123 subdomain")


def wildcard(text: str) -> list[str]:
    return _form(text, _WILDCARD, SUBDOMAIN_MAX, "a wildcard DNS-1123 subdomain (such as *.example.com)")


def _form(text: str, pattern: re.Pattern[str], limit: int, what: str) -> list[str]:
    problems = []
    if len(text) > limit:
        problems.append(f"must be no more than {limit} characters")
    if not pattern.fullmatch(text):
        problems.append(f"{what} is expected: lower case letters, digits and '-'; it starts and ends with one of them")
    return problems


def qualified(text: str) -> list[str]:
    """A name with an optional prefix: "example.com/name"."""
    parts = text.split("/")
    if len(parts) > 2:
        return ["a qualified name has at most one '/': an optional DNS subdomain prefix and the name"]
    problems = []
    if len(parts) == 2:
        prefix = parts[0]
        problems += [f"prefix part {why}" for why in subdomain(prefix)] if prefix else ["prefix part must be non-empty"]
    name = parts[-1]
    if not name:
        problems.append("name part must be non-empty")
    elif len(name) > LABEL_MAX:
        problems.append(f"name part must be no more than {LABEL_MAX} characters")
    if not _QUALIFIED.fullmatch(name):
        problems.append(
            "name part consists of letters, digits, '-', '_' or '.', and starts and ends with a letter or digit"
        )
    return problems


def domain_prefixed(text: str) -> list[str]:
    """A path below a domain: "example.com/name"."""
    if not text:
        return ["must not be empty"]
    domain, _, path = text.partition("/")
    if not domain or not path:
        return ["must be a domain-prefixed path (such as example.com/foo)"]
    return subdomain(domain) or ([] if re.fullmatch(r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", path) else ["invalid path"])


def label_value(text: str) -> list[str]:
    problems = []
    if len(text) > LABEL_MAX:
        problems.append(f"must be no more than {LABEL_MAX} characters")
    if not _LABEL_VALUE.fullmatch(text):
        problems.append(
            "a label value is empty, or letters, digits, '-', '_' or '.', with a letter or digit at both ends"
        )
    return problems


def env_name(text: str) -> list[str]:
    return [] if _ENV.fullmatch(text) else ["an environment variable's name is printable ASCII without '='"]


def config_key(text: str) -> list[str]:
    problems = []
    if len(text) > SUBDOMAIN_MAX:
        problems.append(f"must be no more than {SUBDOMAIN_MAX} characters")
    if not _CONFIG_KEY.fullmatch(text):
        problems.append("a key consists of letters, digits, '-', '_' or '.'")
    if text in (".", ".."):
        problems.append(f"must not be '{text}'")
    elif text.startswith(".."):
        problems.append("must not start with '..'")
    return problems


def header_name(text: str) -> list[str]:
    return [] if _HEADER.fullmatch(text) else ["an HTTP header's name consists of letters, digits and '-'"]


def port_name(text: str) -> list[str]:
    """An IANA service name (RFC 6335): at most 15 characters, lower case, at least one letter."""
    problems = []
    if len(text) > 15:
        problems.append("must be no more than 15 characters")
    if not re.fullmatch(r"[-a-z0-9]+", text):
        problems.append("must contain only lower case letters, digits and '-'")
    if not re.search(r"[a-z]", text):
        problems.append("must contain at least one letter")
    if "--" in text:
        problems.append("must not contain consecutive hyphens")
    if text and (text[0] == "-" or text[-1] == "-"):
        problems.append("must not begin or end with a hyphen")
    return problems


def port_number(value: int) -> list[str]:
    return [] if 1 <= value <= 65535 else ["must be between 1 and 65535, inclusive"]


def parsed_ip(text: str) -> Any:
    """Return the address; None for what is none, also for octets with leading zeros and for zones."""
    try:
        return ipaddress.ip_address(text) if "%" not in text else None
    except ValueError:
        return None


def ip(text: str) -> list[str]:
    return [] if parsed_ip(text) is not None else ["must be a valid IP address (such as 10.9.8.7 or 2001:db8::ffff)"]


def parsed_cidr(text: str) -> Any:
    if "/" not in text or not text.rpartition("/")[2].isdigit():
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def cidr(text: str) -> list[str]:
    return (
        [] if parsed_cidr(text) is not None else ["must be a valid CIDR value (such as 10.9.8.0/24 or 2001:db8::/64)"]
    )


def percent(text: str) -> list[str]:
    return [] if _PERCENT.fullmatch(text) else ["a percentage is digits and '%', such as 25%"]


def path_segment(text: str) -> list[str]:
    """A name that can be one segment of a URL."""
    if text in (".", ".."):
        return [f"may not be '{text}'"]
    return [f"may not contain '{bad}'" for bad in ("/", "%") if bad in text]


def masked(text: str) -> str:
    """Return a prefix for generated names in a form that the rule for whole names accepts."""
    return text[:-2] + "a" if len(text) > 1 and text.endswith("-") else text

"""Checks of single fields of a JSON object. Each error names the field, the value found and an acceptable one. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

from .errors import CNIError, ErrorCode
from .types import IPAddress


def bad(field: str, found: Any, want: str, code: ErrorCode = ErrorCode.INVALID_CONFIG) -> CNIError:
    return CNIError(
        code,
        f"network configuration: {field}: {json.dumps(found, default=str)[:200]} is not {want}",
        f"set {field} to {want}",
    )


def an_object(value: Any, field: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad(field, value, "an object")
    return value


def a_list(value: Any, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad(field, value, "a list")
    return value


class Odd(NamedTuple):
    """A key that is refused, and what to do about it."""

    key: str
    hint: str


def others(keys: Mapping[str, Any], known: Collection[str], where: str) -> list[Odd]:
    """Returns the keys that are not known. A key with a "/" belongs to the runtime and counts as known."""
    found = []
    for key in keys:
        if key not in known and "/" not in key:
            near = difflib.get_close_matches(key, known, 1)
            found.append(
                Odd(where + key, f"did you mean {near[0]}?" if near else "known are " + ", ".join(sorted(known)))
            )
    return found


def refuse(odd: Sequence[Odd]) -> None:
    """Raise one CNIError that names all of these keys; do nothing if there is none."""
    if not odd:
        return
    names = ", ".join(key for key, _ in odd)
    raise CNIError(
        ErrorCode.UNSUPPORTED_FIELD,
        f"network configuration: {names} {'is not a field' if len(odd) == 1 else 'are not fields'} of this plugin",
        odd[0].hint if len(odd) == 1 else "; ".join(f"{key}: {hint}" for key, hint in odd),
    )


def no_other(keys: Mapping[str, Any], known: Collection[str], where: str) -> None:
    refuse(others(keys, known, where))


def an_address(value: Any, field: str) -> IPAddress:
    try:
        return ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise bad(field, value, "an IP address") from None


def no_case(raw: Mapping[str, Any], known: tuple[str, ...], where: str) -> dict[str, Any]:
    """Returns the object with this plugin's spelling of the keys, because containerd marshals Go's field names
    ("HostPort").
    """
    found = {}
    for key, value in raw.items():
        name = next((k for k in known if k.lower() == key.lower()), None)
        if name is None:
            raise CNIError(
                ErrorCode.UNSUPPORTED_FIELD,
                f"network configuration: {where}.{key} is not a field of this plugin",
                "known are " + ", ".join(known),
            )
        found[name] = value
    return found

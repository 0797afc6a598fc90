"""Keys that a body has twice. Pure.

JSON and YAML decoders keep the last value of a repeated key. kube-apiserver does so too and tells the client: with a
warning, or with an error where the client asks for strict validation (KEP-2885). Its texts differ for JSON and YAML,
and so do those here.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import yaml

MAX_TOLD = 100  # of one body: the answer carries a header for each
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_encode = msgspec.json.Encoder().encode


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON with all its pairs."""


def in_json(raw: bytes, decoded: Any) -> tuple[str, ...]:
    """Return a text for each repeated key of a JSON text. decoded: its value.

    A text without blanks that equals the encoding of its own value repeats no key. That holds for most bodies, and
    only the others are read once more.
    """
    try:
        if msgspec.json.format(raw, indent=-1) == _encode(decoded):
            return ()
        found: list[str] = []
        _walk(json.loads(raw, object_pairs_hook=_Pairs), "", found)
    except (ValueError, RecursionError):
        return ()  # the body itself was read: what is left are texts that only this check refuses
    return tuple(found)


def _walk(value: Any, path: str, found: list[str]) -> None:
    if isinstance(value, _Pairs):
        seen: set[str] = set()
        for key, inner in value:
            where = f"{path}.{key}" if path else key
            if key in seen and len(found) < MAX_TOLD:
                found.append(f'duplicate field "{where}"')
            seen.add(key)
            _walk(inner, where, found)
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            _walk(inner, f"{path}[{n}]", found)


def in_yaml(raw: bytes) -> tuple[str, ...]:
    """Return a text for each repeated key of the first document of a YAML text that `yamltext` accepts."""
    found: list[str] = []
    holders: list[set[str] | None] = []  # the keys of each open map, None for a list
    key_next: list[bool] = []  # whether the next value of an open map is a key
    try:
        for event in yaml.parse(raw, _LOADER):
            if isinstance(event, yaml.DocumentEndEvent):
                break
            if isinstance(event, yaml.CollectionEndEvent):
                holders.pop()
                key_next.pop()
                continue
            if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent | yaml.CollectionStartEvent):
                continue
            if holders and (seen := holders[-1]) is not None:
                if key_next[-1] and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
                    if event.value in seen and len(found) < MAX_TOLD:
                        line = event.start_mark.line + 1 if event.start_mark else 0
                        found.append(f'line {line}: key "{event.value}" already set in map')
                    seen.add(event.value)
                key_next[-1] = not key_next[-1]
            if isinstance(event, yaml.CollectionStartEvent):
                holders.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
                key_next.append(True)
    except (yaml.YAMLError, ValueError):
        return ()
    return tuple(found)

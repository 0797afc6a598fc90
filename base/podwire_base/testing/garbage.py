"""Objects with garbage in each of their places, for the converters of every role."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

_NAMED = (("metadata",), ("metadata", "name"), ("metadata", "namespace"))


def _places(obj: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, list) else ()
    for name, value in inner:
        yield from _places(value, (*path, name))


def spoiled(obj: Any, garbage: Iterable[Any]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield ((*path, value), copy of `obj` with `value` at `path`) for each place and each value of `garbage`. The
    name and the namespace stay: the informer passes no object without them.
    """
    values = list(garbage)
    for path in _places(obj):
        if path and path not in _NAMED:
            for value in values:
                made = copy.deepcopy(obj)
                at = made
                for name in path[:-1]:
                    at = at[name]
                at[path[-1]] = value
                yield (*path, value), made

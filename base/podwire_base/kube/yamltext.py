"""Parses YAML as the Kubernetes API does: only the data types of JSON. Dates stay text, and keys become text.

The text may come from an attacker. libyaml splits it into events, and a loop over them builds the values, so that the
depth, the number of values and what aliases repeat are bounded while the text is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

MAX_DEPTH = 256  # values within each other
MAX_VALUES = 2_000_000  # of one document, with all that its aliases repeat
_TAG = "tag:yaml.org,2002:"
_TAGS = tuple(_TAG + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it
_CONSTRUCT: Any = yaml.SafeLoader("")
_RESOLVE = {
    first: [(tag, pattern) for tag, pattern in rows if tag in _TAGS or tag.endswith(":merge")]
    for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PLAIN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9./:-]*", re.ASCII)
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null"))


class BadYaml(ValueError):
    """The YAML is invalid. The text names the problem and the position."""


def _bad(why: str, event: Any) -> BadYaml:
    mark = event.start_mark
    return BadYaml(f"line {mark.line + 1}, column {mark.column + 1}: {why}" if mark else why)


def _tag_of(event: Any) -> str:
    if event.tag and event.tag != "!":
        return str(event.tag)
    if not event.implicit[0] or event.tag == "!":
        return _TAG + "str"
    for tag, pattern in _RESOLVE.get(event.value[:1], ()):
        if pattern.match(event.value):
            # "1:30" is 90 in YAML 1.1; go-yaml reads text, and long ones take quadratic time
            return _TAG + "str" if ":" in event.value else str(tag)
    return _TAG + "str"


def _scalar(event: Any) -> Any:
    text = event.value
    if event.tag is None and event.implicit[0]:
        if _PLAIN_TEXT.fullmatch(text) and text.lower() not in _WORDS:
            return text  # most scalars of a manifest
    elif event.tag is None:
        return text  # in quotes
    tag = _tag_of(event)
    if tag == _TAG + "str":
        return text
    maker: Callable[[Any, Any], Any] | None = yaml.SafeLoader.yaml_constructors.get(tag)
    if tag not in _TAGS or maker is None:
        raise _bad(f"the tag {tag!r} is not supported", event)
    try:
        return maker(_CONSTRUCT, yaml.ScalarNode(tag, text))
    except (ValueError, KeyError, yaml.YAMLError):
        raise _bad(f"{text[:80]!r} is not a value of {tag.removeprefix(_TAG)}", event) from None


def _key(key: Any, event: Any) -> str:
    if isinstance(key, bool):
        return str(key).lower()
    if not isinstance(key, str | int | float):
        raise _bad(f"{str(key)[:80]!r} is not a valid key; expected text", event)
    return str(key)


class _Builder:
    """Builds the values of one document from its events. repeats: how many values its aliases may repeat."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.anchors: dict[str, tuple[Any, int]] = {}  # anchor -> (value, number of values in it)
        self.count = 0
        self.value: Any = None
        self._open: list[tuple[Any, str | None, int]] = []  # list or dict, anchor, count when it began
        self._keys: list[Any] = []  # the key that waits for its value, of each open dict

    def _add(self, value: Any, event: Any, *, pair: bool = False) -> None:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _bad(f"the document has more than {MAX_VALUES} values", event)
        if not self._open:
            self.value = value
            return
        holder = self._open[-1][0]
        if isinstance(holder, list):
            holder.append(value)
        elif self._keys[-1] is _NONE:
            self._keys[-1] = "<<" if pair else _key(value, event)
        else:
            key, self._keys[-1] = self._keys[-1], _NONE
            if key == "<<" and isinstance(value, dict | list):
                for part in reversed(value) if isinstance(value, list) else [value]:
                    holder |= {k: v for k, v in part.items() if k not in holder}
            else:
                holder[key] = value

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            merge = event.value == "<<" and event.implicit[0] and event.tag is None
            value = "<<" if merge else _scalar(event)
            if event.anchor:
                self.anchors[event.anchor] = (value, 1)
            self._add(value, event, pair=merge)
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.CollectionStartEvent):
            made: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            if event.tag and event.tag not in (_TAG + "seq", _TAG + "map", "!"):
                raise _bad(f"the tag {event.tag!r} is not supported", event)
            if self._open and self._open[-1][0].__class__ is dict and self._keys[-1] is _NONE:
                raise _bad("a list or map is not a valid key; expected text", event)
            if len(self._open) >= MAX_DEPTH:
                raise _bad(f"more than {MAX_DEPTH} values are nested", event)
            self._add(made, event)
            self._open.append((made, event.anchor, self.count))
            self._keys.append(_NONE)
        elif isinstance(event, yaml.CollectionEndEvent):
            made, anchor, before = self._open.pop()
            self._keys.pop()
            if anchor:
                self.anchors[anchor] = (made, self.count - before + 1)

    def _alias(self, event: Any) -> None:
        if event.anchor not in self.anchors:
            raise _bad(f"the alias {event.anchor!r} has no anchor before it", event)
        value, size = self.anchors[event.anchor]
        self.count += size - 1
        self.repeats -= size
        if self.repeats < 0:
            raise _bad("the aliases repeat too many values", event)
        self._add(value, event)


class _None:
    """Stands for no key."""


_NONE = _None()


def documents(text: str | bytes, *, repeats: int = MAX_VALUES) -> Iterator[Any]:
    """Yields the documents of a YAML stream. repeats: how many values the aliases of a document may repeat. Raises
    BadYaml.
    """
    builder = _Builder(repeats)
    try:
        for event in yaml.parse(text, _LOADER):
            if isinstance(event, yaml.DocumentStartEvent):
                builder = _Builder(repeats)
            elif isinstance(event, yaml.DocumentEndEvent):
                yield builder.value
            else:
                builder.take(event)
    except BadYaml:
        raise
    except RecursionError:
        raise BadYaml("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as err:
        raise BadYaml(" ".join(str(err).split())) from err

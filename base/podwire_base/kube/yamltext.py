"""Parses YAML as the Kubernetes API does: only the data types of JSON. Dates stay text, and keys become text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))


class BadYaml(ValueError):
    """The YAML is invalid. The text names the problem and the position."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it as this
        first: [(tag, pattern) for tag, pattern in rows if tag in _TAGS or tag.endswith(":merge")]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {  # noqa: RUF012 - the base class declares it as this
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in (*_TAGS, None)
    }


class _NoAliases(_Loader):
    """A loader that refuses aliases. A few lines with aliases can expand to gigabytes, and the text may come from the
    network.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not supported", None)
        return super().compose_node(parent, index)


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return str(key).lower()
    if not isinstance(key, str | int | float):
        raise BadYaml(f"{key!r} is not a valid key; expected text")
    return str(key)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def documents(text: str | bytes, *, aliases: bool = True) -> Iterator[Any]:
    """Yields the documents of a YAML stream. aliases: whether the text may contain aliases. Raises BadYaml."""
    try:
        for document in yaml.load_all(text, _Loader if aliases else _NoAliases):
            yield _plain(document)
    except BadYaml:
        raise
    except RecursionError:
        raise BadYaml("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as err:
        raise BadYaml(" ".join(str(err).split())) from err

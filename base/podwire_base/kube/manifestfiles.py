"""Reads manifests from files, folders and standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .manifests import BadManifest, parse
from .meta import Object


def read_files(paths: Iterable[str]) -> Iterator[Object]:
    """Yields the objects of files and directories. Of a directory, the *.yaml, *.yml and *.json files are read in the
    order of their names. "-" is standard input.
    """
    for path in paths:
        if path == "-":
            try:
                text = sys.stdin.buffer.read().decode()
            except UnicodeDecodeError as err:
                raise BadManifest(f"standard input: not UTF-8 text: {err}") from err
            yield from parse(text, "standard input")
            continue
        start = Path(path)
        files = (
            sorted(f for f in start.iterdir() if f.suffix in (".yaml", ".yml", ".json")) if start.is_dir() else [start]
        )
        for file in files:
            try:
                yield from parse(file.read_text(), str(file))
            except (OSError, UnicodeDecodeError) as err:
                raise BadManifest(f"{file}: cannot be read: {err}") from err

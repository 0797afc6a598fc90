"""Bytes that are encoded once and used many times: the parts that differ are holes, which are filled in later.

Encoding is the slowest part of Python's work, and nearly all bytes of a pod are the same for the next one. A template
knows nothing of its content. It is cut from the encoder's output for one example, and kept only if filling it for a
second example gives the encoder's output for that one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Template:
    """`text` with holes in the places of `marks`, wherever one occurs; if marks overlap, the longest counts."""

    def __init__(self, text: bytes, marks: Sequence[bytes]) -> None:
        longest_first = sorted(dict.fromkeys(marks), key=len, reverse=True)
        parts = re.split(b"(" + b"|".join(map(re.escape, longest_first)) + b")", text)
        self._holes = [marks.index(mark) for mark in parts[1::2]]
        self._parts: list[bytes] = parts

    def fill(self, values: Sequence[bytes]) -> bytes:
        """The bytes with `values` in the places of the marks, in the same order."""
        parts = self._parts.copy()
        parts[1::2] = [values[hole] for hole in self._holes]
        return b"".join(parts)


def cut(make: Callable[[T], bytes], marks: Callable[[T], Sequence[bytes]], one: T, other: T) -> Template | None:
    """A template of the output of `make`; `marks` gives the values of an example that differ. None if the output
    differs in other places too.
    """
    found = Template(make(one), marks(one))
    return found if found.fill(marks(other)) == make(other) else None

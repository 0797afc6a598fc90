"""Templates: bytes that are encoded once and used many times. The parts that differ between uses are holes, which are
filled at each use.

Encoding is the slowest part of Python's work, and nearly all encoded bytes are the same for every pod. A template does
not depend on the meaning of its bytes. It is made from the encoder's output for one example. It is used only if filling
it with the values of a second example gives exactly the encoder's output for the second example.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


class Template:
    """`text` with a hole at each occurrence of one of `marks`. If marks overlap, the longest mark is the hole."""

    def __init__(self, text: bytes, marks: Sequence[bytes]) -> None:
        longest_first = sorted(dict.fromkeys(marks), key=len, reverse=True)
        parts = re.split(b"(" + b"|".join(map(re.escape, longest_first)) + b")", text)
        self._holes = [marks.index(mark) for mark in parts[1::2]]
        self._parts: list[bytes] = parts

    def fill(self, values: Sequence[bytes]) -> bytes:
        """Returns the bytes with `values` in the holes. The values have the order of the marks."""
        parts = self._parts.copy()
        parts[1::2] = [values[hole] for hole in self._holes]
        return b"".join(parts)


def cut(make: Callable[[T], bytes], marks: Callable[[T], Sequence[bytes]], one: T, other: T) -> Template | None:
    """Returns a template of the output of `make`. marks: returns the values of an example that differ between examples.
    Returns None if the outputs for `one` and `other` also differ elsewhere.
    """
    found = Template(make(one), marks(one))
    return found if found.fill(marks(other)) == make(other) else None

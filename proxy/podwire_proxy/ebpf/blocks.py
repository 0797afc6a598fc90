"""Blocks of endpoints in one array. Pure.

The sizes are powers of two: a free block then fits many frontends. A block that is released waits for the second
`settle` from then on, because a program that runs may still read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def size_of(count: int) -> int:
    """Returns the size of the block that holds `count` endpoints."""
    return 1 << (count - 1).bit_length()


class Blocks:
    """The blocks of one range of the array. taken: (base, size) of those in use."""

    def __init__(self, first: int, end: int, taken: Iterable[tuple[int, int]] = ()) -> None:
        self.waiting: list[tuple[int, int]] = []
        self._settled: list[tuple[int, int]] = []
        self._free: dict[int, list[int]] = {}  # size -> bases
        self._end, at = end, first
        for base, size in sorted(taken):
            self._spare(at, base)
            at = max(at, base + size)
        self._next = at

    def take(self, size: int) -> int | None:
        """Returns the base of a free block; None if there is none."""
        fits = size
        while fits <= self._end:
            if bases := self._free.get(fits):
                base = bases.pop()
                self._spare(base + size, base + fits)
                return base
            if fits == size and self._next + size <= self._end:
                self._next += size
                return self._next - size
            fits *= 2
        return None

    def release(self, base: int, size: int) -> None:
        self.waiting.append((base, size))

    def settle(self) -> None:
        """Makes the blocks free that were released before the last `settle`."""
        for base, size in self._settled:
            self._free.setdefault(size, []).append(base)
        self._settled, self.waiting = self.waiting, []

    def _spare(self, start: int, end: int) -> None:
        for base, size in _pieces(start, end):
            self._free.setdefault(size, []).append(base)


def _pieces(start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        size = 1 << (end - start).bit_length() - 1
        yield start, size
        start += size

"""Progress of long pure work. The role's beat (role/beat.py) hears of it; without a beat nothing happens. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
BATCH = 500


class _Listener:
    call: Callable[[], object] = staticmethod(lambda: None)


def listen(call: Callable[[], object]) -> None:
    """Call `call` after each batch of long work in this process."""
    _Listener.call = staticmethod(call)


def every(items: Iterable[T], number: int = BATCH) -> Iterator[T]:
    """Yields the items and tells progress after each `number` of them."""
    for count, item in enumerate(items, 1):
        yield item
        if count % number == 0:
            _Listener.call()

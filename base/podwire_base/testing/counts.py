"""What a test may cost: how many examples it draws, and memory that nobody searches for garbage."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

LONG = bool(os.environ.get("PODWIRE_LONG"))


def examples(quick: int, whole: int) -> int:
    """Returns how many examples a property or fuzz test draws: `whole` in `make test-long`, else `quick`."""
    return whole if LONG else quick


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """While a test makes many objects that stay (syntax trees of all files, say), the collector would go through them
    again and again: 8 seconds of CPU where 3 are enough.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()

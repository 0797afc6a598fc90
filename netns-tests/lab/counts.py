"""How many cases of a long series run: every one in `make test-long`, a few in `make test`."""

from __future__ import annotations

import os

# From one case to the next. Five is odd, so that what alternates from case to case still does.
STRIDE = 1 if os.environ.get("PODWIRE_LONG") else 5


def some(last: int) -> list[int]:
    """Return the numbers of the cases 1 to `last` that run. `make test` runs every fifth and the last."""
    return sorted({*range(1, last + 1, STRIDE), last})

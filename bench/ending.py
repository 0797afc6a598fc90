"""A bench ends what it started, also when it is ended itself.

SIGINT, SIGTERM and SIGHUP raise SystemExit in the main thread, so that `finally` and `with` end processes, namespaces
and clusters. Python does so by itself for SIGINT alone, and a second signal would interrupt the undoing.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A prefix of a command: the kernel ends the process when the bench ends without any undoing (SIGKILL).
WITH_ME = ("setpriv", "--pdeathsig", "TERM", "--")


@contextlib.contextmanager
def undone_by_signals() -> Iterator[None]:
    """Within the block, the first signal raises SystemExit(128 + its number) and later ones are ignored."""

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

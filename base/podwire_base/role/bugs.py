"""Logs bugs of podwire in a role that continues. The first log line of a bug has the traceback.

A bug is an exception that no code expects. The role skips the object or call that caused the exception, and serves the
others. A watch may repeat an object often. So the traceback of each kind of bug (exception type and line that raised
it) is logged only once.
"""

from __future__ import annotations

import traceback
from typing import Any

from .logs import Logger

_told: set[tuple[str, str, int]] = set()


def report(log: Logger, event: str, err: BaseException, **fields: Any) -> None:
    """Log a bug. event: the activity that failed. fields: the names of the object or the call."""
    last = traceback.extract_tb(err.__traceback__)[-1:]
    kind = (type(err).__name__, last[0].filename if last else "", (last[0].lineno or 0) if last else 0)
    if kind in _told:
        log.error(f"bug of podwire: {event}", **fields, error=repr(err))
        return
    _told.add(kind)
    trace = "".join(traceback.format_exception(err))
    log.error(f"bug of podwire: {event}", **fields, error=repr(err), traceback=trace)


def forget() -> None:
    """Log every traceback again; for tests."""
    _told.clear()

"""Bugs of our own in a role that continues: logged as bugs, with the traceback the first time.

A bug is an exception that no code expects. The object or call that caused it is skipped; the role serves the others. A
watch repeats an object often, so the traceback of each kind of bug (its type and the line that raised it) is logged
once.
"""

from __future__ import annotations

import traceback
from typing import Any

from .logs import Logger

_told: set[tuple[str, str, int]] = set()


def report(log: Logger, event: str, err: BaseException, **fields: Any) -> None:
    """event: the activity that failed. fields: name the object or the call."""
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

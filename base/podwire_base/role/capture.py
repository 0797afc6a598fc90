"""Brings into the log of podwire what Python and its libraries would write to stderr in their own forms.

These are the lines of `logging` (asyncio, aiohttp), warnings, and the tracebacks of uncaught exceptions in threads,
finalizers, callbacks of the event loop and the main thread. Each becomes one `key=value` line, and so has the limit of
repeated lines.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any

from . import bugs, logs

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

_LEVELS = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"))
log = logs.get("python")


class _Lines(logging.Handler):
    """Writes the records of `logging` as lines of podwire. The logger's name takes the place of the role."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            told = logs.get(record.name)
            message = record.getMessage()
            error = record.exc_info[1] if record.exc_info else None
            if error is not None:
                bugs.report(told, message, error)
                return
            level = next((name for least, name in _LEVELS if record.levelno >= least), "debug")
            # The template is the event and the filled text a field, so that lines of one kind count as one event.
            more = {"text": message} if record.args else {}
            getattr(told, level)(str(record.msg), **more)
        except Exception:  # a wrong record of a library must not end the role
            self.handleError(record)


def everything() -> None:
    """Take over logging, warnings and the hooks for uncaught exceptions, once for each process."""
    root = logging.getLogger()
    if any(isinstance(handler, _Lines) for handler in root.handlers):
        return
    root.addHandler(_Lines())
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False
    sys.excepthook = _uncaught
    sys.unraisablehook = _unraisable
    threading.excepthook = _in_thread


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    bugs.report(log, "uncaught exception", error.with_traceback(trace))


def _unraisable(found: Any) -> None:
    error = found.exc_value or found.exc_type()
    bugs.report(log, found.err_msg or "exception ignored", error, object=repr(found.object)[:200])


def _in_thread(found: Any) -> None:
    if found.exc_value is not None and found.exc_type is not SystemExit:
        bugs.report(log, "a thread ended", found.exc_value, thread=getattr(found.thread, "name", ""))


def of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The exception handler of the event loop: one line, and the traceback only the first time."""
    about = {key: repr(context[key])[:200] for key in ("task", "future", "socket") if key in context}
    error, message = context.get("exception"), str(context.get("message") or "error in the event loop")
    if error is None:
        log.error(message, **about)
    else:
        bugs.report(log, message, error, **about)

"""Structured logs: one line per event on stderr, `key=value` or JSON. Every line names the object concerned.

log = logs.get("proxy")
log.info("synced", services=12, took_ms=3.2)
2026-11-23T05:00:00.123Z info proxy synced services=12 took_ms=3.2

A line that repeats is written a few times, then once in ten seconds with the number of the others as `repeated=N`
(logtext.py).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from . import logtext
from .rotate import LogFile

JSON = "PODWIRE_LOG_JSON_LINES"
LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40}


class _Settings:
    stream: TextIO | None = None  # None: the value of sys.stderr at the time of the line
    json = False
    level = LEVELS["info"]
    node = ""
    repeats = logtext.Repeats()
    lock = threading.Lock()
    file: LogFile | None = None


def _after_fork() -> None:
    _Settings.lock = threading.Lock()  # another thread of the parent may have held it
    _Settings.repeats = logtext.Repeats()


os.register_at_fork(after_in_child=_after_fork)


def configure(*, json_lines: bool = False, level: str = "info", node: str = "", stream: TextIO | None = None) -> None:
    """Set the format of the log lines of this process. node: added to every line if it is not empty. An environment
    variable can also select JSON, for all roles of an agent.
    """
    json_lines = json_lines or os.environ.get(JSON) == "1"
    _Settings.json, _Settings.level, _Settings.node, _Settings.stream = json_lines, LEVELS[level], node, stream
    _Settings.repeats = logtext.Repeats()


def to_file(path: Path) -> None:
    """Write the log, and everything else that this process and its children write to stdout and stderr, to a file that
    is replaced when it is large (rotate.py). Raises OSError.
    """
    _Settings.file = LogFile(path)


def _put(level: str, role: str, event: str, fields: dict[str, Any]) -> None:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    if _Settings.node:
        fields = {"node": _Settings.node, **fields}
    line = (logtext.as_json if _Settings.json else logtext.plain)(stamp, level, role, event, fields)
    stream = _Settings.stream or sys.stderr
    try:
        stream.write(line + "\n")
        stream.flush()
        if _Settings.file is not None and stream is sys.stderr:
            with _Settings.lock:
                _Settings.file.wrote(len(line) + 1)
    except (OSError, ValueError):
        pass  # a closed log stream must not stop the role


class Logger:
    """The logger of one role. The keyword arguments become the fields of the line, in their order."""

    def __init__(self, role: str) -> None:
        self.role = role

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] < _Settings.level:
            return
        with _Settings.lock:
            now = time.monotonic()
            late = _Settings.repeats.overdue(now)
            held = _Settings.repeats.allow(level, self.role, event, fields, now)
        for old_level, role, old, number in late:
            _put(old_level, role, old, {"repeated": number})
        if held is not None:
            _put(level, self.role, event, {**fields, "repeated": held} if held else fields)

    def debug(self, event: str, /, **fields: Any) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, /, **fields: Any) -> None:
        self._write("info", event, fields)

    def warn(self, event: str, /, **fields: Any) -> None:
        self._write("warn", event, fields)

    def error(self, event: str, /, **fields: Any) -> None:
        self._write("error", event, fields)


def get(role: str) -> Logger:
    return Logger(role)

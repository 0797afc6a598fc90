"""Structured logs: one line per event on stderr, `key=value` or JSON. Every line names the object concerned.

log = logs.get("proxy")
log.info("synced", services=12, took_ms=3.2)
2026-11-23T05:00:00.123Z info proxy synced services=12 took_ms=3.2
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

JSON = "PODWIRE_LOG_JSON_LINES"
LEVELS = {"debug": 10, "info": 20, "warn": 30, "error": 40}


class _Settings:
    stream: TextIO | None = None  # None: the value of sys.stderr at the time of the line
    json = False
    level = LEVELS["info"]
    node = ""


def configure(*, json_lines: bool = False, level: str = "info", node: str = "", stream: TextIO | None = None) -> None:
    """Set the format of the log lines of this process. node: added to every line if it is not empty. An environment
    variable can also select JSON, for all roles of an agent.
    """
    json_lines = json_lines or os.environ.get(JSON) == "1"
    _Settings.json, _Settings.level, _Settings.node, _Settings.stream = json_lines, LEVELS[level], node, stream


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if text == "" or any(c in text for c in ' ="\n\t'):
        return json.dumps(text)
    return text


class Logger:
    """The logger of one role. The keyword arguments become the fields of the line, in their order."""

    def __init__(self, role: str) -> None:
        self.role = role

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] < _Settings.level:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if _Settings.node:
            fields = {"node": _Settings.node, **fields}
        if _Settings.json:
            line = json.dumps({"time": stamp, "level": level, "role": self.role, "event": event, **fields}, default=str)
        else:
            line = " ".join([stamp, level, self.role, _value(event), *(f"{k}={_value(v)}" for k, v in fields.items())])
        stream = _Settings.stream or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            pass  # a closed log stream must not stop the role

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

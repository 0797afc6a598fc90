"""Whether a start can still succeed: a role that ends again and again by itself does not become ready. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

TRIES = 2  # ends of a role; the first one may have a passing cause, such as a process of an earlier run that still ends


def ended(states: Mapping[str, Mapping[str, int]]) -> str:
    """Return the name of a role that cannot start, "" if there is none. states: role -> what the supervisor says of it.
    A role that another process killed (negative status) says nothing about the next try.
    """
    return next(
        (name for name, row in states.items() if row.get("restarts", 0) >= TRIES and row.get("status", 0) > 0), ""
    )


def reason(log: str) -> str:
    """Return the last error in the text of a role's log, "" if there is none."""
    for line in reversed(log.splitlines()):
        words = line.split(" ", 3)
        if len(words) == 4 and words[1] == "error":
            found = re.search(r'(?:^| )error=("(?:[^"\\]|\\.)*"|\S+)', words[3])
            text = found[1] if found else words[3]
            return str(json.loads(text)) if text.startswith('"') else text
    return ""

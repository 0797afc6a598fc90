"""Go's regular expressions (RE2), for `pattern` and CEL's `matches`. Without a wheel of google-re2, Python's engine
takes their place: it knows the same common syntax, but not its guarantee of linear time.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

try:
    import re2

    _engine: Any = re2
except ImportError:  # a platform without a wheel
    _engine = re


class BadPattern(ValueError):
    """The text is no regular expression."""


def _options() -> Any:
    if _engine is re:
        return re.NOFLAG
    options = re2.Options()
    options.log_errors = False
    return options


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Any:
    """Return a pattern with `search`. Raises BadPattern."""
    try:
        return _engine.compile(pattern, _options())
    except _engine.error as err:
        raise BadPattern(str(err)) from None


def problem(pattern: str) -> str:
    """Return why the text is no regular expression, "" if it is one."""
    try:
        compiled(pattern)
    except BadPattern as err:
        return str(err) or "it does not parse"
    return ""


def found(pattern: str, text: str) -> bool:
    """Whether the pattern matches a part of the text."""
    return compiled(pattern).search(text) is not None

"""The regular expressions of a Corefile. CoreDNS reads them with Go's package regexp, whose syntax is that of RE2.

Python's own `re` differs: it has no [[:alpha:]], \\pL or \\z, its \\d and \\w match more than ASCII, and an expression
can take exponential time. RE2 needs linear time, whatever a client asks for.
"""

from __future__ import annotations

import re
from typing import Protocol

MISSING = "regular expressions need the Python package google-re2 (pip install google-re2)"
_QUOTED_OR_ESCAPE = re.compile(r"\\Q.*?(?:\\E|$)|\\(.)", re.DOTALL)


class BadRule(ValueError):
    """An invalid rule; the text gives the reason."""


class Found(Protocol):
    """A match. A group without a match is None. Raises IndexError for a group that the expression lacks."""

    def __getitem__(self, group: int | str, /) -> str | None: ...


class Pattern(Protocol):
    """A compiled regular expression. groups: the number of its groups."""

    @property
    def groups(self) -> int: ...

    def search(self, text: str, /) -> Found | None: ...


def pattern(text: str, *, fold: bool = False) -> Pattern:
    """Compiles a regular expression of Go. fold: upper and lower case are equal. Raises BadRule."""
    try:
        import re2  # only a Corefile with a regular expression needs it
    except ImportError as err:
        raise BadRule(f"{text!r}: {MISSING}: {err}") from err
    options = re2.Options()
    options.log_errors = False  # the library would write to stderr
    options.case_sensitive = not fold
    try:
        if any(found[1] == "C" for found in _QUOTED_OR_ESCAPE.finditer(text)):
            raise re2.error(r"Go has no \C")
        made: Pattern = re2.compile(text, options)
    except (re2.error, UnicodeError) as err:
        raise BadRule(f"{text!r} is not a regular expression: {_told(err)}") from err
    return made


def _told(err: Exception) -> str:
    """Returns the text of an error; RE2 gives bytes."""
    why = err.args[0] if err.args else err
    return why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)

"""Numbers in texts that people and other programs write. Pure."""

from __future__ import annotations

PORT = 65535
INT32 = 2**31 - 1


def decimal(text: str, most: int = PORT) -> int | None:
    """Returns the number from 0 to `most` that ASCII digits stand for; None for every other text.

    int() takes signs, blanks, underscores and the digits of all scripts, and raises ValueError for a text of more than
    4,300 digits, which str.isdecimal() lets pass.
    """
    if not (text.isascii() and text.isdecimal()):
        return None
    digits = text.lstrip("0") or "0"
    number = int(digits) if len(digits) <= len(str(most)) else most + 1
    return number if number <= most else None

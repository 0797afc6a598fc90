"""The join tokens, in the file join.json: {"token", "made", "expires", "bound": [{"token", "made", "expires", "node"}
...]}.

The token at the top admits machines with new names. Each token in "bound" admits one node only. A token ends after 24
hours at the latest, whatever the file says.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MIN_TOKEN = 32  # characters: the MAC is public, so the token must resist a brute-force search
LIFE = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Token:
    """node: the only name for which the token counts, "" for any new name. made, expires: seconds since 1970."""

    secret: str
    node: str = ""
    made: float = 0.0
    expires: float = 0.0

    def valid(self, now: float) -> bool:
        return len(self.secret) >= MIN_TOKEN and now < min(self.expires, self.made + LIFE)

    def to_json(self) -> dict[str, Any]:
        row = {"token": self.secret, "made": self.made, "expires": self.expires}
        return {**row, "node": self.node} if self.node else row


def _token(row: Any, made: float) -> Token:
    return Token(str(row["token"]), str(row.get("node", "")), float(row.get("made", made)), float(row["expires"]))


def parse(text: str, changed: float) -> list[Token]:
    """Read join.json, whether or not its tokens are valid. changed: when the file was written; it counts for tokens
    without "made", which versions before 0.3 wrote. A damaged file has no tokens.
    """
    try:
        body = json.loads(text)
        rows = [_token(body, changed)] if body.get("token") else []
        return rows + [_token(row, changed) for row in body.get("bound", []) if row["node"]]
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


def encode(tokens: Iterable[Token]) -> str:
    """Return the text of join.json. At most one token is for new names."""
    rows = list(tokens)
    general = next((row.to_json() for row in rows if not row.node), {})
    return json.dumps({**general, "bound": [row.to_json() for row in rows if row.node]})


def find(tokens: Iterable[Token], given: str, now: float) -> Token | None:
    """Return the valid token that a client sent, None if there is none. Each comparison takes constant time."""
    found = None
    for token in tokens:
        if hmac.compare_digest(token.secret.encode(), given.encode(errors="replace")) and token.valid(now):
            found = token
    return found

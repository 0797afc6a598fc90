"""Which requests the page's server answers. Pure.

A page of another origin may send requests to 127.0.0.1, and by DNS rebinding even read the answers as its own. So the
Host must be ours, the browser must not name another origin, and data needs the key. Cookies would not do: they ignore
ports, so every local server would get them.

Source: Fetch Metadata Request Headers (W3C), RFC 9110 section 15.5.20 (421), RFC 6750 section 2.1.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    words: str


def hosts(port: int) -> frozenset[str]:
    """Returns the Host headers of a browser that was given our address."""
    return frozenset(f"{name}:{port}" for name in ("127.0.0.1", "[::1]", "localhost"))


def refused(method: str, path: str, headers: Mapping[str, str], port: int, key: str) -> Refusal | None:
    """Returns why a request is not answered, None if it is. headers: case-insensitive. key: what /api/ needs."""
    if headers.get("Host", "").lower() not in hosts(port):
        return Refusal(421, "this is not the address of this server: open the one that `podwire ui` printed")
    if method != "GET":
        return Refusal(405, "this server only answers GET: nothing can be changed here")
    origin = headers.get("Origin")
    if origin is not None and origin.lower() not in {f"http://{host}" for host in hosts(port)}:
        return Refusal(403, "another origin may not ask here")
    if not _from_us(path, headers):
        return Refusal(403, "another site may not ask here")
    if path.startswith("/api/") and not _has_key(headers.get("Authorization", ""), key):
        return Refusal(401, "the key is missing or of an earlier `podwire ui`: open the address that it printed")
    return None


def _from_us(path: str, headers: Mapping[str, str]) -> bool:
    """Whether the browser says that our own page asks. The page itself, which holds no data, may be opened from
    anywhere (a link, the file of --open), but not into a frame. A program that is no browser says nothing.
    """
    site = headers.get("Sec-Fetch-Site")
    if site in (None, "same-origin", "none"):
        return headers.get("Sec-Fetch-Dest") not in ("iframe", "frame", "embed", "object")
    return path == "/" and headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"


def _has_key(authorization: str, key: str) -> bool:
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())

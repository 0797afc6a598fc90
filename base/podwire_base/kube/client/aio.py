"""Imports aiohttp. The package reads the machine's certificate authorities twice when it is imported, which takes 40 to
100 ms and 2 MB of each process. No client of podwire uses them so: a ClientConfig has an SSLContext of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

__all__ = ["aiohttp", "web"]
_FILE = "SSL_CERT_FILE"  # OpenSSL's variable: the file with the certificate authorities of the machine


@contextlib.contextmanager
def _no_authorities() -> Iterator[None]:
    before = os.environ.get(_FILE)
    os.environ[_FILE] = os.devnull
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FILE]
        else:
            os.environ[_FILE] = before


with _no_authorities():
    import aiohttp
    from aiohttp import web

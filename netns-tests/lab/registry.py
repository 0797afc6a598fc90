"""A registry of one image, with the calls that a pull makes (OCI distribution specification 1.1), on loopback in a
network namespace. It asks for a name and a password.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from podwire_base.kernel.netns import call_in


class Registry(ThreadingHTTPServer):
    """archive: an OCI archive. It serves each name with its manifest. asked: paths of the calls with credentials."""

    daemon_threads = True

    def __init__(self, archive: bytes, user: str, password: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            for member in files.getmembers():
                if (found := files.extractfile(member)) and member.name.startswith("blobs/sha256/"):
                    self.blobs[f"sha256:{member.name.rpartition('/')[2]}"] = found.read()
                elif found and member.name == "index.json":
                    self.manifest = json.loads(found.read())["manifests"][0]["digest"]
        self.wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.asked: list[str] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != self.server.wanted:
            return self._answer(401, b"", "text/plain", ("WWW-Authenticate", 'Basic realm="lab"'))
        self.server.asked.append(self.path)
        own = self.path.rpartition("/")[2]
        if "/manifests/" in self.path:
            kind = "application/vnd.oci.image.manifest.v1+json"
            body = self.server.blobs[self.server.manifest]
            return self._answer(200, body, kind, ("Docker-Content-Digest", self.server.manifest))
        if "/blobs/" in self.path and own in self.server.blobs:
            return self._answer(200, self.server.blobs[own], "application/octet-stream")
        return self._answer(200 if self.path.rstrip("/") == "/v2" else 404, b"", "text/plain")

    do_HEAD = do_GET

    def _answer(self, status: int, body: bytes, kind: str, *more: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *more):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(netns: str, archive: bytes, user: str, password: str) -> Iterator[Registry]:
    """Yield the registry, which listens in a network namespace."""
    made = call_in(netns, lambda: Registry(archive, user, password))
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        made.server_close()
        thread.join()

"""A fake Kubernetes API server that is small enough to check by reading. It serves lists and watches of the objects
that a test adds.

The server uses plain HTTP inside a namespace. It stores every change and can replay a watch from any resourceVersion.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from podwire_base.kube.meta import Object
from podwire_base.kube.registry import of

from .netns import NetNS


def _key(obj: Mapping[str, Any]) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


class FakeApi:
    """Use as `with FakeApi(ns) as api: api.put("/api/v1/services", {...})`. `api.kubeconfig(path)` writes a kubeconfig
    for clients.
    """

    def __init__(self, ns: NetNS, address: str = "127.0.0.1", port: int = 0) -> None:
        self.changed = threading.Condition()
        self.version = 1
        self.objects: dict[str, dict[tuple[str, str], Object]] = {}
        self.log: list[tuple[str, str, Object]] = []
        self.posted: list[tuple[str, Object]] = []  # (path, object) that clients created; they are not served
        self.watches = 0
        self.closing = False
        self.unknown: set[str] = set()  # paths that this server does not have
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(url.query).items()}
                try:
                    if url.path in api.unknown:
                        self.send_error(404)
                    elif "sendInitialEvents" in query:
                        self.send_error(422)  # a server without the feature WatchList answers like this
                    elif query.get("watch") == "true":
                        api.stream(self, url.path, int(query["resourceVersion"]))
                    else:
                        api.list(self, url.path)
                except OSError:
                    pass  # the client disconnected

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                api.posted.append((self.path, json.loads(body)))
                self.send_response(201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def serve() -> ThreadingHTTPServer:
            server = ThreadingHTTPServer((address, port), Handler)
            server.daemon_threads = True
            return server

        self.server = ns.call(serve)
        self.port = int(self.server.server_address[1])
        self.url = f"http://{address}:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> FakeApi:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the server and end all watches. A second call does nothing."""
        if self.closing:
            return
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        self.server.shutdown()
        self.server.server_close()

    def restart(self, ns: NetNS) -> FakeApi:
        """Return a new server with the same address and objects, as after a kill -9. Close this server first."""
        fresh = FakeApi(ns, port=self.port)
        fresh.version, fresh.objects, fresh.log = self.version, self.objects, self.log
        return fresh

    def kubeconfig(self, path: Path) -> Path:
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": {"server": self.url}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "users": [{"name": "u", "user": {}}],
                }
            )
        )
        return path

    def put(self, path: str, obj: Object) -> None:
        """Create or replace an object. path: of the collection."""
        with self.changed:
            known = self.objects.setdefault(path, {})
            kind = "MODIFIED" if _key(obj) in known else "ADDED"
            self._log(kind, path, obj)
            known[_key(obj)] = self.log[-1][2]

    def apply(self, *objects: Object) -> None:
        """Create or replace objects that contain their kind."""
        for obj in objects:
            self.put(of(obj["kind"]).path(), obj)

    def remove(self, obj: Object) -> None:
        """Delete an object that contains its kind."""
        self.delete(of(obj["kind"]).path(), obj["metadata"]["name"], obj["metadata"].get("namespace", ""))

    def delete(self, path: str, name: str, namespace: str = "") -> None:
        with self.changed:
            self._log("DELETED", path, self.objects[path].pop((namespace, name)))

    def _log(self, kind: str, path: str, obj: Object) -> None:
        self.version += 1
        stamped = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        self.log.append((path, kind, stamped))
        self.changed.notify_all()

    def noise(self, path: str, line: bytes) -> None:
        """Send exactly these bytes to every watch of `path` from now on."""
        with self.changed:
            self.log.append((path, "RAW", {"raw": line}))
            self.changed.notify_all()

    def list(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        with self.changed:
            body = json.dumps(
                {
                    "kind": "List",
                    "metadata": {"resourceVersion": str(self.version)},
                    "items": list(self.objects.get(path, {}).values()),
                }
            ).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def stream(self, handler: BaseHTTPRequestHandler, path: str, since: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        at, begun = 0, len(self.log)
        while True:
            with self.changed:
                while not self.closing and len(self.log) == at:
                    self.changed.wait()
                fresh, at = (
                    [row for row in self.log[at:begun] if row[1] != "RAW"] + self.log[max(at, begun) :],
                    len(self.log),
                )
                if self.closing:
                    handler.close_connection = True
                    return
            for where, kind, obj in fresh:
                if where == path and (kind == "RAW" or int(obj["metadata"]["resourceVersion"]) > since):
                    line = obj["raw"] if kind == "RAW" else json.dumps({"type": kind, "object": obj}).encode() + b"\n"
                    handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    handler.wfile.flush()

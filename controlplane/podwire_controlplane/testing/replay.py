"""Sends recorded requests to a server. recordings.py compares the answers with those of kube-apiserver 1.36.2.

A record has requests to send before, one request (or steps), the recorded answer, and requests that clean up after it.
A request may keep parts of its answer (`keep`), which later requests name as ${name} or ${name+5}; `until` repeats it
until that code.
"""

from __future__ import annotations

import gzip
import http.client
import json
import re
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from podwire_base.kube.meta import Object

TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
    "pb": "application/vnd.kubernetes.protobuf",
}
Kept = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    headers: http.client.HTTPMessage
    raw: bytes

    @property
    def json(self) -> Any:
        """The decoded body; None if it is no JSON."""
        try:
            return json.loads(self.raw)
        except ValueError:
            return None

    @property
    def warnings(self) -> list[str]:
        return [text.split('"', 1)[-1].rsplit('"', 1)[0] for text in self.headers.get_all("Warning") or []]


def fill(value: Any, kept: Kept) -> Any:
    """Put kept values in the place of ${name} and ${name+N}."""

    def one(match: re.Match[str]) -> str:
        found = kept.get(match[1], "")
        return str(int(found or 0) + int(match[2]) if match[2] else found)

    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)([+-]\d+)?\}", one, value)
    if isinstance(value, dict):
        return {k: fill(v, kept) for k, v in value.items()}
    return [fill(v, kept) for v in value] if isinstance(value, list) else value


def look(value: Any, path: str) -> Any:
    for part in re.split(r"(?<!\\)\.", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part.replace("\\.", ".")]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return value


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield value


def _body(request: Object) -> bytes | None:
    if "body" in request:
        return json.dumps(request["body"]).encode()
    if "text" in request:
        return str(request["text"]).encode()
    if "hex" in request:
        return bytes.fromhex(request["hex"])
    if "big" in request:  # n letters in data.a
        return json.dumps({**request["big"]["body"], "data": {"a": "x" * request["big"]["n"]}}).encode()
    if "bigAnnotation" in request:
        metadata = {"name": "g1", "annotations": {"a": "x" * request["bigAnnotation"]}}
        return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}).encode()
    if "repeat" in request:
        row = request["repeat"]
        return json.dumps({**row["body"], row["field"]: [row["item"]] * row["n"]}).encode()
    return None


class Connection:
    """One kept connection to the server at 127.0.0.1."""

    def __init__(self, port: int, context: ssl.SSLContext, token: str) -> None:
        self._link = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        self._token = token

    def close(self) -> None:
        self._link.close()

    def send(self, request: Object, kept: Kept | None = None) -> Answer:
        r = fill(request, kept or {})
        headers = {} if r.get("anonymous") else {"Authorization": f"Bearer {self._token}"}
        body = _body(r)
        if body is not None and r.get("type") != "":
            headers["Content-Type"] = TYPES.get(r.get("type", ""), r.get("type") or "application/json")
        target = r["path"] + (f"?{r['query']}" if r.get("query") else "")
        self._link.request(r.get("method", "GET"), target, body, headers | r.get("headers", {}))
        answer = self._link.getresponse()
        raw = answer.read()
        if answer.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        return Answer(answer.status, answer.headers, raw)

    def quietly(self, requests: list[Object] | None, kept: Kept) -> None:
        """Send requests whose answers do not matter, but for what they keep."""
        for request in requests or []:
            for _ in range(40):
                answer = self.send(request, kept)
                if request.get("until") in (None, answer.code) or answer.code in (404, 405, 415):
                    break
                time.sleep(0.05)
            keep(request, answer, kept)


def keep(request: Object, answer: Answer, kept: Kept) -> None:
    for name, path in (request.get("keep") or {}).items():
        found = look(answer.json, path)
        kept[name] = quote(found, safe="") if name.endswith("_q") and isinstance(found, str) else found

"""Replays recorded requests against a server, and compares the answers with those of kube-apiserver 1.36.2.

A record has requests to send before, one request, the recorded answer, and requests that clean up after it. A request
may keep parts of its answer (`keep`), which later requests name as ${name} or ${name+5}.
"""

from __future__ import annotations

import gzip
import http.client
import json
import re
import ssl
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
    "pb": "application/vnd.kubernetes.protobuf",
}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
Answer = tuple[int, http.client.HTTPMessage, bytes]


def fill(value: Any, kept: dict[str, Any]) -> Any:
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


def blank(value: Any, key: str = "", parent: str = "") -> Any:
    """Replace what is new with each run."""
    if isinstance(value, dict):
        return {k: blank(v, k, key) for k, v in value.items()}
    if isinstance(value, list):
        return [blank(v, key, parent) for v in value]
    if not isinstance(value, str) or not value:
        return value
    if key == "resourceVersion":
        return "<rv>"
    return _UUID.sub("<uid>", "<time>" if _TIME.fullmatch(value) and value[:4] >= "2025" else value)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


class Replayer:
    """One client of the server at 127.0.0.1."""

    def __init__(self, port: int, context: ssl.SSLContext, token: str) -> None:
        self._link = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
        self._token = token

    def close(self) -> None:
        self._link.close()

    def send(self, request: dict[str, Any], kept: dict[str, Any]) -> Answer:
        r = fill(request, kept)
        headers = {} if r.get("anonymous") else {"Authorization": f"Bearer {self._token}"}
        body = r["text"].encode() if "text" in r else bytes.fromhex(r["hex"]) if "hex" in r else None
        if "big" in r:  # n letters in data.a
            r["body"] = {**r["big"]["body"], "data": {"a": "x" * r["big"]["n"]}}
        body = json.dumps(r["body"]).encode() if "body" in r else body
        if body is not None and r.get("type") != "":
            headers["Content-Type"] = TYPES.get(r.get("type", ""), r.get("type") or "application/json")
        query = "?" + r["query"] if r.get("query") else ""
        self._link.request(r.get("method", "GET"), r["path"] + query, body, headers | r.get("headers", {}))
        answer = self._link.getresponse()
        raw = answer.read()
        if answer.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        return answer.status, answer.headers, raw

    def quietly(self, requests: list[dict[str, Any]] | None, kept: dict[str, Any]) -> None:
        for request in requests or []:
            for _ in range(40):
                code, _, raw = self.send(request, kept)
                if request.get("until") in (None, code) or code in (404, 405, 415):
                    break
                time.sleep(0.05)
            for name, path in (request.get("keep") or {}).items():
                found = look(_json(raw), path)
                kept[name] = quote(found, safe="") if name.endswith("_q") and isinstance(found, str) else found

    def differences(self, record: dict[str, Any]) -> list[str]:
        """Return what differs from the recorded answer, field by field."""
        kept: dict[str, Any] = {}
        self.quietly(record.get("before"), kept)
        answer = self.send(record["request"], kept)
        self.quietly(record.get("after"), kept)
        return list(compare(record, answer, kept))


def compare(record: dict[str, Any], answer: Answer, kept: dict[str, Any]) -> Iterator[str]:
    (code, headers, raw), want = answer, record["answer"]
    media = (headers.get("Content-Type") or "").replace(" ", "").replace(";charset=utf-8", "")
    got: dict[str, Any] = {"code": code, "media": media}
    body = _json(raw)
    if isinstance(body, dict):
        got |= {"kind": body.get("kind"), "apiVersion": body.get("apiVersion"), "reason": body.get("reason", "")}
        got |= _list_of(body)
        rows = ((body.get("details") or {}).get("causes") or []) if body.get("kind") == "Status" else []
        got["causes"] = sorted((row.get("field", ""), row.get("reason", "")) for row in rows)
        version = str(look(body, "metadata.resourceVersion") or "")
        if version.isdigit() and str(kept.get("rv", "")).isdigit():
            got["rv"] = "=" if int(version) == int(kept["rv"]) else ">" if int(version) > int(kept["rv"]) else "<"
        got["look"] = {path: _looked(body, path) for path in want.get("look") or ()}
    elif code < 400:
        got["starts"] = (
            raw[:12].decode(errors="replace") if raw[:1].isalpha() and raw[:4] != b"k8s\0" else raw[:4].hex()
        )
    got["heads"] = {name: name in headers for name in want.get("heads") or ()}
    for field in ("code", "media", "kind", "apiVersion", "reason", "names", "continue", "remaining", "rv", "starts"):
        if want.get(field) not in (None, "", got.get(field)):
            yield f"{field}: want {want[field]!r}, got {got.get(field)!r}"
    if sorted((c["field"], c["type"]) for c in want.get("causes") or []) != got.get("causes", []):
        yield f"causes: want {want.get('causes')}, got {got.get('causes')}"
    for field in ("look", "heads"):
        if (want.get(field) or {}) != got.get(field, {}):
            yield f"{field}: want {want.get(field)}, got {got.get(field)}"


def _list_of(body: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(body.get("items"), list) or not str(body.get("kind")).endswith("List"):
        return {}
    return {
        "names": [look(item, "metadata.name") for item in body["items"]],
        "continue": bool(look(body, "metadata.continue")),
        "remaining": look(body, "metadata.remainingItemCount"),
    }


def _looked(body: Any, path: str) -> Any:
    mark = path[0] if path[0] in "!#?" else ""
    found = look(body if mark else blank(body), path.lstrip("!#?"))
    if mark == "#":
        return None if found is None else len(found)
    return found is not None if mark == "?" else found

"""Replays recorded answers of kube-apiserver 1.36.2 against a server, and says where they differ.

A record has `before` (requests to send first), `request`, `answer` and `after` (requests that clean up). What no two
servers have in common is blanked on both sides: uids, times, versions, addresses and ports that nobody asked for.
Messages are not compared; code, reason, the fields and types of causes, whether there are warnings, and objects are.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from podwire_base.kube.meta import Object

TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
    "pb": "application/vnd.kubernetes.protobuf",
}
# What controllers decide is left out of the comparison.
_APPS = ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicationController")
_WORKLOADS = (*_APPS, "Scale", "PodDisruptionBudget", "HorizontalPodAutoscaler")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ACCESS = re.compile(r"kube-api-access-[a-z0-9]{5}\b")


def read(path: Path) -> list[Object]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


class Connection:
    """One kept connection to a server."""

    def __init__(self, port: int, context: ssl.SSLContext, token: str) -> None:
        self._link = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=60)
        self._token = token

    def send(self, request: Object) -> tuple[int, list[str], Any]:
        """Return (code, warnings, decoded body)."""
        headers = {"Authorization": f"Bearer {self._token}", **request.get("headers", {})}
        body = _body(request)
        if body is not None and request.get("type") != "":
            kind = request.get("type") or "application/json"
            headers["Content-Type"] = TYPES.get(kind, kind)
        target = request["path"] + (f"?{request['query']}" if request.get("query") else "")
        self._link.request(request.get("method", "GET"), target, body, headers)
        answer = self._link.getresponse()
        raw = answer.read()
        told = [text.split('"', 1)[-1].rsplit('"', 1)[0] for text in answer.headers.get_all("Warning") or []]
        try:
            return answer.status, told, json.loads(raw)
        except ValueError:
            return answer.status, told, None

    def close(self) -> None:
        self._link.close()


def _body(request: Object) -> bytes | None:
    if "body" in request:
        return json.dumps(request["body"]).encode()
    if "text" in request:
        return str(request["text"]).encode()
    if "hex" in request:
        return bytes.fromhex(request["hex"])
    if "big" in request:
        return json.dumps({**request["big"]["body"], "data": {"a": "x" * request["big"]["n"]}}).encode()
    if "bigAnnotation" in request:
        metadata = {"name": "g1", "annotations": {"a": "x" * request["bigAnnotation"]}}
        return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}).encode()
    if "repeat" in request:
        row = request["repeat"]
        return json.dumps({**row["body"], row["field"]: [row["item"]] * row["n"]}).encode()
    return None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield value


def blank(value: Any, sent: set[Any], key: str = "", parent: str = "") -> Any:
    """Return a value with everything blanked that the server made up. sent: all values of the requests."""
    if isinstance(value, dict):
        out = {k: blank(v, sent, k, key) for k, v in value.items() if k != "managedFields"}
        prefix, own = value.get("generateName"), value.get("name")
        if key == "metadata" and prefix and isinstance(own, str) and own.startswith(prefix) and own not in sent:
            text = json.dumps({**out, "name": f"{prefix}<x>"})
            return json.loads(text.replace(json.dumps(own), json.dumps(f"{prefix}<x>")))
        return {k: f"<{k}>" for k in value} if key == "userInfo" else out
    if isinstance(value, list):
        return [blank(v, sent, key, parent) for v in value]
    if key in ("nodePort", "healthCheckNodePort") and value and value not in sent:
        return "<port>"
    return _blank_text(value, sent, key, parent) if isinstance(value, str) else value


def _blank_text(value: str, sent: set[Any], key: str, parent: str) -> str:
    if key == "resourceVersion" and (parent == "metadata" or value not in sent):
        return "<rv>"
    if key in ("creationTimestamp", "deletionTimestamp") and parent == "metadata" and value:
        return "<time>"
    if value in sent or not value:
        return value
    if key in ("clusterIP", "clusterIPs") and value != "None":
        return "<ip>"
    if _TIME.fullmatch(value) and value[:4] >= "2025":
        return "<time>"
    value = _UID.sub(lambda m: m[0] if m[0] in sent else "<uid>", value)
    return _ACCESS.sub("kube-api-access-<x>", value)


def _soft(obj: Any) -> Any:
    if not isinstance(obj, dict) or not isinstance(obj.get("metadata"), dict):
        return obj
    metadata = {k: v for k, v in obj["metadata"].items() if k not in ("resourceVersion", "managedFields")}
    notes = {
        k: v for k, v in (metadata.pop("annotations", None) or {}).items() if k != "deployment.kubernetes.io/revision"
    }
    out = {**obj, "metadata": {**metadata, **({"annotations": notes} if notes else {})}}
    if obj.get("kind") in _WORKLOADS:
        out.pop("status", None)
    return out


def differ(want: Any, got: Any, path: str = "") -> str:
    """Return the first difference of two JSON values, "" if there is none."""
    if isinstance(want, dict) and isinstance(got, dict):
        for key in sorted(want.keys() | got.keys()):
            if key not in want or key not in got:
                return f"{path}.{key}: {'too much' if key not in want else 'missing'}"
            if found := differ(want[key], got[key], f"{path}.{key}"):
                return found
        return ""
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        return next(
            filter(None, (differ(a, b, f"{path}[{n}]") for n, (a, b) in enumerate(zip(want, got, strict=True)))), ""
        )
    return "" if want == got and type(want) is type(got) else f"{path}: want {want!r:.120} got {got!r:.120}"


def replay(link: Connection, record: Object) -> str:
    """Send the requests of one record, and return where the answer differs; "" if it agrees."""
    sent: set[Any] = set()
    for request in record.get("before") or []:
        link.send(request)
        sent |= set(_leaves(request.get("body")))
    code, warnings, body = link.send(record["request"])
    sent |= set(_leaves(record["request"].get("body"))) | set(_leaves(record.get("sent")))
    for request in record.get("after") or []:
        link.send(request)
    return _compare(record["answer"], code, warnings, body, sent)


def _compare(want: Object, code: int, warnings: list[str], body: Any, sent: set[Any]) -> str:
    if want["code"] != code:
        return f"code: want {want['code']} got {code} {body if code >= 400 else ''!s:.300}"
    failed = isinstance(body, dict) and body.get("kind") == "Status" and body.get("status") != "Success"
    causes = (body.get("details") or {}).get("causes") or [] if failed else []
    if failed and (want.get("reason") or "") != (body.get("reason") or ""):
        return f"reason: want {want.get('reason')} got {body.get('reason')}"
    ours = sorted((c.get("field", ""), c.get("reason", "")) for c in causes)
    theirs = sorted((c["field"], c["type"]) for c in want.get("causes") or [])
    if ours != theirs:
        return f"causes: want {theirs} got {ours}"
    if bool(want.get("warnings")) != bool(warnings):
        return f"warnings: want {want.get('warnings')} got {warnings}"
    if failed or not isinstance(body, dict):
        return ""
    return differ(_soft(want.get("object")), _soft(blank(body, sent)))

"""Compares a server's answers with those that kube-apiserver 1.36.2 gave to the same requests (replay.py sends them).

What no two servers have in common is blanked on both sides: uids, times, versions, addresses and ports that nobody
asked for. Messages are not compared, but for conflicts of server-side apply. There are three kinds of records:
`replay` for one answer with an object, `replay_steps` for several in a row with their managedFields, and `shape` for
what an answer looks like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from podwire_base.kube.meta import Object

from .replay import Answer, Connection, Kept, keep, leaves, look

# What controllers decide is left out of the comparison.
_APPS = ("Deployment", "ReplicaSet", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicationController")
_WORKLOADS = (*_APPS, "Scale", "PodDisruptionBudget", "HorizontalPodAutoscaler")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ACCESS = re.compile(r"kube-api-access-[a-z0-9]{5}\b")


def read(path: Path) -> list[Object]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


# ---- what is left out


def blank(value: Any, sent: Collection[Any], key: str = "", parent: str = "") -> Any:
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


def _blank_text(value: str, sent: Collection[Any], key: str, parent: str) -> str:
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


# ---- one answer with an object


def replay(link: Connection, record: Object) -> str:
    """Send the requests of one record, and return where the answer differs; "" if it agrees."""
    kept: Kept = {}
    link.quietly(record.get("before"), kept)
    answer = link.send(record["request"], kept)
    link.quietly(record.get("after"), kept)
    asked = [*(record.get("before") or []), record["request"]]
    sent = {*leaves([request.get("body") for request in asked]), *leaves(record.get("sent"))}
    return _compare(record["answer"], answer, sent)


def _compare(want: Object, answer: Answer, sent: Collection[Any]) -> str:
    code, body, warnings = answer.code, answer.json, answer.warnings
    if want["code"] != code:
        return f"code: want {want['code']} got {code} {body if code >= 400 else ''!s:.300}"
    failed = isinstance(body, dict) and body.get("kind") == "Status" and body.get("status") != "Success"
    if failed and (want.get("reason") or "") != (body.get("reason") or ""):
        return f"reason: want {want.get('reason')} got {body.get('reason')}"
    ours, theirs = _causes(body, "reason") if failed else [], _causes({"details": want}, "type")
    if ours != theirs:
        return f"causes: want {theirs} got {ours}"
    if bool(want.get("warnings")) != bool(warnings):
        return f"warnings: want {want.get('warnings')} got {warnings}"
    if failed or not isinstance(body, dict):
        return ""
    return differ(_soft(want.get("object")), _soft(blank(body, sent)))


def _causes(status: Object, reason: str) -> list[tuple[str, str, str]]:
    rows = (status.get("details") or {}).get("causes") or []
    return sorted(
        (row.get("field", ""), row.get(reason, ""), row["message"] if row.get(reason) == "FieldManagerConflict" else "")
        for row in rows
    )


# ---- steps of several managers


def replay_steps(link: Connection, record: Object) -> str:
    """Send the steps of one record, and return where the first answer differs; "" if all agree."""
    kept: Kept = {}
    sent, found = set[Any](), ""
    link.quietly(record.get("before"), kept)
    for n, step in enumerate(record["steps"]):
        answer = link.send(step["request"], kept)
        sent |= set(leaves(step["request"].get("body")))
        keep(step["request"], answer, kept)
        why = _compare(step["answer"], answer, sent) or _compare_managers(record, step["answer"], answer)
        found = found or (why and f"step {n}: {why}")
    link.quietly(record.get("after"), kept)
    return found


def _compare_managers(record: Object, want: Object, answer: Answer) -> str:
    """Entries of managers that the record did not use are left out, and so are times."""

    def entries(found: Any) -> list[Object]:
        rows = [
            {k: v for k, v in row.items() if k != "time"}
            for row in found or []
            if row.get("manager") in record["managers"]
        ]
        return sorted(rows, key=lambda row: [row.get(k, "") for k in ("manager", "operation", "subresource")])

    theirs, ours = entries(want.get("managedFields")), entries(look(answer.json, "metadata.managedFields"))
    return differ(theirs, ours, "managedFields") if answer.code < 400 else ""


# ---- what an answer looks like


def replay_shape(link: Connection, record: Object) -> list[str]:
    """Send the requests of one record of the protocol, and return what differs, field by field."""
    kept: Kept = {}
    link.quietly(record.get("before"), kept)
    answer = link.send(record["request"], kept)
    link.quietly(record.get("after"), kept)
    return list(_compare_shape(record["answer"], answer, kept))


def _compare_shape(want: Object, answer: Answer, kept: Kept) -> Iterator[str]:
    headers, raw, body = answer.headers, answer.raw, answer.json
    media = (headers.get("Content-Type") or "").replace(" ", "").replace(";charset=utf-8", "")
    got: Object = {"code": answer.code, "media": media}
    if isinstance(body, dict):
        got |= {"kind": body.get("kind"), "apiVersion": body.get("apiVersion"), "reason": body.get("reason", "")}
        got |= _list_of(body)
        rows = ((body.get("details") or {}).get("causes") or []) if body.get("kind") == "Status" else []
        got["causes"] = sorted((row.get("field", ""), row.get("reason", "")) for row in rows)
        version = str(look(body, "metadata.resourceVersion") or "")
        if version.isdigit() and str(kept.get("rv", "")).isdigit():
            got["rv"] = "=" if int(version) == int(kept["rv"]) else ">" if int(version) > int(kept["rv"]) else "<"
        got["look"] = {path: _looked(body, path) for path in want.get("look") or ()}
    elif answer.code < 400:
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


def _list_of(body: Object) -> Object:
    if not isinstance(body.get("items"), list) or not str(body.get("kind")).endswith("List"):
        return {}
    return {
        "names": [look(item, "metadata.name") for item in body["items"]],
        "continue": bool(look(body, "metadata.continue")),
        "remaining": look(body, "metadata.remainingItemCount"),
    }


def _looked(body: Any, path: str) -> Any:
    """!path: not blanked; #path: how many; ?path: is it there."""
    mark = path[0] if path[0] in "!#?" else ""
    found = look(body if mark else blank(body, ()), path.lstrip("!#?"))
    if mark == "#":
        return None if found is None else len(found)
    return found is not None if mark == "?" else found

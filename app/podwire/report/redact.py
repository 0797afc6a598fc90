"""What leaves a cluster in a bug report: no Secret, no token, no key; environment, command lines and ConfigMaps only on
request. Pure.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from podwire_base.kube.meta import Object

Kind = Literal["environment", "command-lines", "configmaps"]
KINDS: tuple[Kind, ...] = ("environment", "command-lines", "configmaps")
REDACTED = "(redacted)"
# kubectl writes the whole object into the first one; the others are of tools that do the same.
_WHOLE_OBJECTS = ("kubectl.kubernetes.io/last-applied-configuration", "podwire.io/last-applied-configuration")
_SECRET_WORD = r"(?:token|password|passwd|secret|api[-_]?key|credential|authorization|client-key-data|private[-_]?key)"
_PATTERNS = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S), REDACTED),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?"), REDACTED),  # JSON web tokens
    (re.compile(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"), REDACTED),  # bootstrap tokens (kubeadm's and ours)
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\1 {REDACTED}"),
    (
        re.compile(rf"(?i)({_SECRET_WORD}[\w.-]{{0,40}}\"?\s{{0,8}}[=:]\s{{0,8}})(\"[^\"]*\"|'[^']*'|[^\s,;}}\]]+)"),
        rf"\1{REDACTED}",
    ),
    (
        re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://[^\s/:@]{1,200}):[^\s/@]{1,200}@"),
        rf"\1:{REDACTED}@",
    ),  # a password in a URL
)


def scrub(text: str) -> str:
    """Return a text, such as a log, without what looks like a token, a key or a password."""
    for pattern, by in _PATTERNS:
        text = pattern.sub(by, text)
    return text


def _container(container: Object, include: frozenset[Kind]) -> Object:
    made = dict(container)
    if "environment" not in include and made.get("env"):
        made["env"] = [
            {"name": e.get("name"), **({"value": REDACTED} if "value" in e else {"valueFrom": e.get("valueFrom")})}
            for e in made["env"]
        ]
    if "command-lines" not in include:
        for field in ("command", "args"):
            if made.get(field):
                made[field] = [REDACTED]
        for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
            if isinstance(made.get(probe), dict) and made[probe].get("exec"):
                made[probe] = {**made[probe], "exec": {"command": [REDACTED]}}
        if made.get("lifecycle"):
            made["lifecycle"] = REDACTED
    return made


def _pod_spec(spec: Object, include: frozenset[Kind]) -> Object:
    fields = ("containers", "initContainers", "ephemeralContainers")
    return {**spec, **{f: [_container(c, include) for c in spec[f]] for f in fields if spec.get(f)}}


def redact(obj: Object, include: frozenset[Kind]) -> Object | None:
    """Return an object of the API as a report may have it; None if it may not have it at all."""
    if obj.get("kind") == "Secret":
        return None
    made: dict[str, Any] = dict(obj)
    metadata = {k: v for k, v in (made.get("metadata") or {}).items() if k != "managedFields"}
    if metadata.get("annotations"):
        metadata["annotations"] = {
            k: REDACTED if k in _WHOLE_OBJECTS else v for k, v in metadata["annotations"].items()
        }
    made["metadata"] = metadata
    if made.get("kind") == "ConfigMap" and "configmaps" not in include:
        for field in ("data", "binaryData"):
            if made.get(field):
                made[field] = dict.fromkeys(made[field], REDACTED)
    spec = made.get("spec")
    if isinstance(spec, dict):
        if made.get("kind") == "Pod":
            made["spec"] = _pod_spec(spec, include)
        elif isinstance((spec.get("template") or {}).get("spec"), dict):  # Deployment, ReplicaSet, DaemonSet, Job
            template = spec["template"]
            made["spec"] = {**spec, "template": {**template, "spec": _pod_spec(template["spec"], include)}}
    cleaned: Object = json.loads(scrub_values(json.dumps(made)))
    return cleaned


def scrub_values(text: str) -> str:
    """Return JSON text whose strings are scrubbed of tokens and keys. Names of fields stay: `token` may be a field."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return scrub(value)
        if isinstance(value, list):
            return [walk(one) for one in value]
        if isinstance(value, dict):
            return {key: walk(one) for key, one in value.items()}
        return value

    return json.dumps(walk(json.loads(text)))

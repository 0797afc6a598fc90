"""Projected volumes, and with them the token of a pod's ServiceAccount: what each asks for, and its files. Pure.

Source: Kubernetes' documentation "Projected Volumes" and KEP-1205 (a token is renewed when 80 % of its life is over).
"""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from podwire_base.kube.meta import Object

from .podspec import Refused

RENEWED = 0.8  # part of a token's life
_SECONDS = 3600
_WHY = "CreateContainerConfigError"


@dataclass(frozen=True, slots=True)
class Token:
    """A token that a volume asks for. audience: "" for that of the API server."""

    audience: str
    seconds: int


@dataclass(frozen=True, slots=True)
class Held:
    """A ConfigMap or Secret of the pod's namespace. optional: the pod starts without it too."""

    kind: str
    name: str
    optional: bool


Need = Token | Held


def mounts(pod: Object, container: Object) -> list[tuple[str, str]]:
    """Return (name of the volume, mountPath) of a container's projected volumes."""
    own = {volume["name"] for volume in pod["spec"].get("volumes") or () if volume.get("projected") is not None}
    rows = [mount for mount in container.get("volumeMounts") or () if mount["name"] in own]
    for mount in rows:
        if mount.get("subPath") or mount.get("subPathExpr"):
            raise Refused(_WHY, f"volume {mount['name']}: subPath is not supported by the netns runtime")
    return [(str(mount["name"]), str(mount["mountPath"])) for mount in rows]


def sources(pod: Object, volume: str) -> list[Object]:
    found = next(one for one in pod["spec"]["volumes"] if one["name"] == volume)
    return list(found["projected"].get("sources") or ())


def needs(pod: Object, volume: str) -> Iterator[Need]:
    """Yield what a volume is made of. Raises Refused for a source that this runtime does not have."""
    for source in sources(pod, volume):
        if (token := source.get("serviceAccountToken")) is not None:
            yield Token(str(token.get("audience") or ""), int(token.get("expirationSeconds") or _SECONDS))
        elif (held := _held(source)) is not None:
            yield held
        elif source.get("downwardAPI") is None:
            known = ", ".join(source) or "an empty source"
            raise Refused(_WHY, f"volume {volume}: {known} is not supported by the netns runtime")


def _held(source: Object) -> Held | None:
    for field, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
        if (part := source.get(field)) is not None:
            return Held(kind, str(part.get("name") or ""), bool(part.get("optional")))
    return None


def files(
    pod: Object, volume: str, found: Mapping[Need, Any], field: Callable[[str], str]
) -> dict[str, tuple[bytes, int]]:
    """Return path in the volume -> (content, mode). found: the text of each Token, and the object of each Held, without
    those that are absent. field: returns the value of a field of the pod. Raises Refused.
    """
    part = next(one for one in pod["spec"]["volumes"] if one["name"] == volume)["projected"]
    usual, made = part.get("defaultMode") or 0o644, dict[str, tuple[bytes, int]]()
    for source in part.get("sources") or ():
        if (token := source.get("serviceAccountToken")) is not None:
            text = found[Token(str(token.get("audience") or ""), int(token.get("expirationSeconds") or _SECONDS))]
            made[_inside(volume, token["path"])] = str(text).encode(), usual
        elif (held := _held(source)) is not None:
            made |= _of_object(volume, source.get("configMap") or source.get("secret") or {}, held, found, usual)
        else:
            for item in (source.get("downwardAPI") or {}).get("items") or ():
                value = field(str((item.get("fieldRef") or {}).get("fieldPath") or ""))
                made[_inside(volume, item["path"])] = value.encode(), item.get("mode") or usual
    return made


def _of_object(
    volume: str, part: Object, held: Held, found: Mapping[Need, Any], usual: int
) -> dict[str, tuple[bytes, int]]:
    obj = found.get(held)
    if obj is None:
        if held.optional:
            return {}
        raise Refused(_WHY, f"volume {volume}: there is no {held.kind} {held.name!r}")
    data = _data(held.kind, obj)
    rows = part.get("items") or [{"key": key, "path": key} for key in sorted(data)]
    made = dict[str, tuple[bytes, int]]()
    for row in rows:
        if row["key"] in data:
            made[_inside(volume, row["path"])] = data[row["key"]], row.get("mode") or usual
        elif not held.optional:
            raise Refused(_WHY, f"volume {volume}: {held.kind} {held.name!r} has no key {row['key']!r}")
    return made


def _data(kind: str, obj: Object) -> dict[str, bytes]:
    raw = obj.get("binaryData" if kind == "ConfigMap" else "data") or {}
    try:
        made = {key: base64.b64decode(value) for key, value in raw.items()}
    except (binascii.Error, ValueError) as err:
        raise Refused(_WHY, f"{kind} {obj['metadata'].get('name')}: a value is not base64: {err}") from None
    texts = obj.get("data") or {} if kind == "ConfigMap" else {}
    return made | {key: value.encode() for key, value in texts.items()}


def _inside(volume: str, path: Any) -> str:
    """Return a path of a file in a volume, which leads nowhere else."""
    clean = posixpath.normpath(str(path))
    if clean.startswith(("/", "..")) or clean == ".":
        raise Refused(_WHY, f"volume {volume}: path {str(path)!r} is not inside the volume")
    return clean

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
MISSING = "FailedMount"  # the reason of the event; the container waits with ContainerCreating


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


def as_projected(volume: Object) -> Object | None:
    """Return a volume's `projected` part: that of a configMap, secret or downwardAPI volume has one source. None: the
    volume is not made of API objects.
    """
    if (part := volume.get("projected")) is not None:
        return dict(part)
    for field in ("configMap", "secret", "downwardAPI"):
        if (part := volume.get(field)) is not None:
            own = {key: value for key, value in part.items() if key not in ("defaultMode", "secretName")}
            if field == "secret":
                own["name"] = part.get("secretName")
            return {"defaultMode": part.get("defaultMode"), "sources": [{field: own}]}
    return None


def part_of(pod: Object, volume: str) -> Object:
    """Return the `projected` part of a pod's volume, by the volume's name."""
    found = next(one for one in pod["spec"]["volumes"] if one["name"] == volume)
    return as_projected(found) or {}


def needs(pod: Object, volume: str) -> Iterator[Need]:
    """Yield what a volume is made of. Raises Refused for a source that this runtime does not have."""
    for source in part_of(pod, volume).get("sources") or ():
        if (token := source.get("serviceAccountToken")) is not None:
            yield Token(str(token.get("audience") or ""), int(token.get("expirationSeconds") or _SECONDS))
        elif (held := _held(source)) is not None:
            yield held
        elif source.get("downwardAPI") is None:
            known = ", ".join(source) or "an empty source"
            raise Refused(_WHY, f"volume {volume}: {known} is not supported")


def _held(source: Object) -> Held | None:
    for field, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
        if (part := source.get(field)) is not None:
            return Held(kind, str(part.get("name") or ""), bool(part.get("optional")))
    return None


def files(
    pod: Object,
    volume: str,
    found: Mapping[Need, Any],
    field: Callable[[str], str],
    resource: Callable[[Object], str] = lambda _: "",
) -> dict[str, tuple[bytes, int]]:
    """Return path in the volume -> (content, mode). found: the text of each Token, and the object of each Held, without
    those that are absent. field: returns the value of a field of the pod. resource: of a resourceFieldRef. Raises
    Refused.
    """
    part = part_of(pod, volume)
    usual, made = part.get("defaultMode") or 0o644, dict[str, tuple[bytes, int]]()
    for source in part.get("sources") or ():
        if (token := source.get("serviceAccountToken")) is not None:
            text = found[Token(str(token.get("audience") or ""), int(token.get("expirationSeconds") or _SECONDS))]
            made[_inside(volume, token["path"])] = str(text).encode(), usual
        elif (held := _held(source)) is not None:
            made |= _of_object(volume, source.get("configMap") or source.get("secret") or {}, held, found, usual)
        else:
            for item in (source.get("downwardAPI") or {}).get("items") or ():
                ref = item.get("resourceFieldRef")
                value = resource(ref) if ref else field(str((item.get("fieldRef") or {}).get("fieldPath") or ""))
                made[_inside(volume, item["path"])] = value.encode(), item.get("mode") or usual
    return made


def _of_object(
    volume: str, part: Object, held: Held, found: Mapping[Need, Any], usual: int
) -> dict[str, tuple[bytes, int]]:
    obj = found.get(held)
    if obj is None:
        if held.optional:
            return {}
        raise Refused(
            MISSING,
            f'MountVolume.SetUp failed for volume "{volume}" : {held.kind.lower()} "{held.name}" not found',
            1.0,
        )
    texts = data(held.kind, obj)
    rows = part.get("items") or [{"key": key, "path": key} for key in sorted(texts)]
    made = dict[str, tuple[bytes, int]]()
    for row in rows:
        if row["key"] in texts:
            made[_inside(volume, row["path"])] = texts[row["key"]], row.get("mode") or usual
        elif not held.optional:
            raise Refused(
                MISSING,
                f'MountVolume.SetUp failed for volume "{volume}" : references non-existent config key: {row["key"]}',
                1.0,
            )
    return made


def data(kind: str, obj: Object) -> dict[str, bytes]:
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

"""A container's environment: Service links, envFrom and env, in this order. Pure.

Source: core/v1 EnvVar, EnvFromSource; Kubernetes' documentation "Accessing the Service". Messages are the kubelet's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from podwire_base.kube import quantity
from podwire_base.kube.meta import Object, name, namespace

from .podspec import Refused, expand
from .projected import Held, data

CONFIG_ERROR = "CreateContainerConfigError"
_KEY_REFS = (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret"))
_FROM_REFS = (("configMapRef", "ConfigMap"), ("secretRef", "Secret"))
AGAIN = 2.0  # seconds until a ConfigMap or Secret that is missing is looked for again


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has for pods: the limits of a container that names none. cpu: cores. memory: bytes."""

    cpu: int
    memory: int


def _held(ref: Object, kind: str) -> Held:
    return Held(kind, str(ref.get("name") or ""), bool(ref.get("optional")))


def needs(container: Object) -> list[Held]:
    """Return the ConfigMaps and Secrets of a container's variables."""
    found = []
    for source in container.get("envFrom") or []:
        found += [_held(source[field], kind) for field, kind in _FROM_REFS if source.get(field)]
    for entry in container.get("env") or []:
        value = entry.get("valueFrom") or {}
        found += [_held(value[field], kind) for field, kind in _KEY_REFS if value.get(field)]
    return list(dict.fromkeys(found))


def environment(
    pod: Object,
    container: Object,
    links: Mapping[str, str],
    found: Mapping[Held, Object],
    field: Callable[[str], str],
    room: Room,
) -> dict[str, str]:
    """Return the variables that a pod asks for. links: of Services. found: the objects of `needs` that exist. field:
    returns the value of a field of the pod. Raises Refused.
    """
    env = dict(links)
    for source in container.get("envFrom") or []:
        for ref, kind in _FROM_REFS:
            if source.get(ref):
                prefix = str(source.get("prefix") or "")
                env |= {prefix + key: value for key, value in _all(_held(source[ref], kind), found).items()}
    for entry in container.get("env") or []:
        value = _value(pod, container, entry, env, found, field, room)
        if value is not None:
            env[str(entry["name"])] = value
    return env


def _all(held: Held, found: Mapping[Held, Object]) -> dict[str, str]:
    if held not in found:
        if held.optional:
            return {}
        raise Refused(CONFIG_ERROR, f'{held.kind.lower()} "{held.name}" not found', AGAIN)
    binary = held.kind == "Secret"
    texts = data(held.kind, found[held]) if binary else {k: str(v).encode() for k, v in _texts(found[held]).items()}
    return {key: raw.decode(errors="replace") for key, raw in texts.items()}


def _texts(obj: Object) -> dict[str, Any]:
    """Return a ConfigMap's texts; its binaryData never becomes a variable."""
    return obj.get("data") or {}


def _value(
    pod: Object,
    container: Object,
    entry: Object,
    env: dict[str, str],
    found: Mapping[Held, Object],
    field: Callable[[str], str],
    room: Room,
) -> str | None:
    source = entry.get("valueFrom")
    if not source:
        return expand(str(entry.get("value") or ""), env)
    if ref := source.get("fieldRef"):
        return field(str(ref.get("fieldPath") or ""))
    if ref := source.get("resourceFieldRef"):
        return resource(pod, container, ref, room)
    for key_ref, kind in _KEY_REFS:
        if ref := source.get(key_ref):
            held, key = _held(ref, kind), str(ref.get("key") or "")
            if key in (texts := _all(held, found)):
                return texts[key]
            if held.optional:
                return None
            raise Refused(CONFIG_ERROR, f"couldn't find key {key} in {kind} {namespace(pod)}/{held.name}", AGAIN)
    raise Refused(CONFIG_ERROR, f"env {entry['name']}: {', '.join(source)} is not supported")


def resource(pod: Object, container: Object, ref: Object, room: Room) -> str:
    """Return the value of a resourceFieldRef, in units of its divisor and rounded up. Raises Refused."""
    wanted, where = str(ref.get("resource") or ""), str(ref.get("containerName") or container.get("name"))
    rows = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    own = next((row for row in rows if row["name"] == where), None)
    part, _, kind = wanted.partition(".")
    if own is None or part not in ("limits", "requests"):
        raise Refused(CONFIG_ERROR, f"resourceFieldRef: no {wanted!r} of container {where!r}")
    resources = own.get("resources") or {}
    usual: dict[str, object] = {"cpu": room.cpu, "memory": room.memory} if part == "limits" else {}
    value = (resources.get(part) or {}).get(kind, usual.get(kind, 0))
    return str(math.ceil(quantity.parse(str(value)) / (quantity.parse(str(ref.get("divisor") or 1)) or 1)))


def service_links(services: Iterable[Object]) -> dict[str, str]:
    """Return the variables of a namespace's Services with an address, the older first."""
    made: dict[str, str] = {}
    for service in services:
        address = str(service["spec"].get("clusterIP") or "")
        ports = service["spec"].get("ports") or []
        if address in ("", "None") or not ports:
            continue
        own = re.sub(r"[^A-Z0-9]", "_", name(service).upper())
        host = f"[{address}]" if ":" in address else address
        made |= {f"{own}_SERVICE_HOST": address, f"{own}_SERVICE_PORT": str(ports[0]["port"])}
        first = ports[0]
        made[f"{own}_PORT"] = f"{str(first.get('protocol') or 'TCP').lower()}://{host}:{first['port']}"
        for port in ports:
            protocol, number = str(port.get("protocol") or "TCP"), str(port["port"])
            if port.get("name"):
                made[f"{own}_SERVICE_PORT_{str(port['name']).upper().replace('-', '_')}"] = number
            prefix = f"{own}_PORT_{number}_{protocol}"
            made |= {
                prefix: f"{protocol.lower()}://{host}:{number}",
                f"{prefix}_PROTO": protocol.lower(),
                f"{prefix}_PORT": number,
                f"{prefix}_ADDR": address,
            }
    return made

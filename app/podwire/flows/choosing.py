"""Turns the words of `podwire flows` into a query. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from typing import Any

from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, controller_of, labels, name, namespace
from podwire_base.kube.selectors import label_query
from podwire_observe.record import End, Ends, Flow

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORT = {"deploy": "deployment", "ds": "daemonset", "sts": "statefulset", "rs": "replicaset"}


class BadChoice(ValueError):
    """The message names the option, its value, and what it may be."""


def moment(option: str, text: str, now: float) -> float:
    """Returns seconds since 1970 of "90s", "5m", "1h30m" before now, or of an RFC 3339 time. Raises BadChoice."""
    if re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        return now - sum(float(n) * _UNITS[u] for n, _, u in re.findall(r"(\d+(\.\d+)?)([smhd])", text))
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise BadChoice(
            f"{option}: {text!r} is neither a time ago, such as 5m, nor a time, such as 2026-01-31T10:00:00Z"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()


def pods_with(selector: str, pods: Iterable[Object], option: str) -> tuple[str, ...]:
    """Returns the pods that a label selector chooses, as "namespace/name". Raises BadChoice."""
    try:
        wanted = label_query(selector)
    except StatusError as err:
        raise BadChoice(f"{option}: {err.message}") from err
    return tuple(f"{namespace(pod)}/{name(pod)}" for pod in pods if wanted is None or wanted(pod))


def workload_of(pod: Object) -> tuple[str, str]:
    """Returns (kind in lower case, name) of what made a pod: the Deployment behind a ReplicaSet."""
    owner = controller_of(pod)
    if owner is None:
        return "pod", name(pod)
    kind, own = str(owner.get("kind")).lower(), str(owner.get("name"))
    digest = labels(pod).get("pod-template-hash", "")
    if kind == "replicaset" and digest and own.endswith(f"-{digest}"):
        return "deployment", own[: -len(digest) - 1]
    return kind, own


def pods_of_workload(text: str, pods: Iterable[Object]) -> tuple[str, ...]:
    """Returns the pods of [NAMESPACE/]NAME, or [NAMESPACE/]KIND/NAME."""
    parts = text.split("/")
    kind = SHORT.get(parts[-2].lower(), parts[-2].lower()) if len(parts) > 1 else ""
    kinds = {"deployment", "daemonset", "statefulset", "replicaset", "job", "pod", "replicationcontroller"}
    space = parts[0] if len(parts) == 3 or (len(parts) == 2 and kind not in kinds) else ""
    found = []
    for pod in pods:
        own = workload_of(pod)
        if own[1] == parts[-1] and kind in ("", own[0], space.lower()) and space in ("", namespace(pod)):
            found.append(f"{namespace(pod)}/{name(pod)}")
    return tuple(found)


def pods_of_service(text: str, slices: Iterable[Object]) -> tuple[str, ...]:
    """Returns the pods behind the Services that a filter names: [NAMESPACE/]NAME, by prefix."""
    space, slash, own = text.rpartition("/")
    found: dict[str, None] = {}
    for one in slices:
        service = labels(one).get("kubernetes.io/service-name", "")
        if not service.startswith(own) or (slash and space != namespace(one)):
            continue
        for row in one.get("endpoints") or []:
            ref: Mapping[str, Any] = row.get("targetRef") or {}
            if ref.get("kind") == "Pod":
                found[f"{ref.get('namespace') or namespace(one)}/{ref.get('name')}"] = None
    return tuple(found)


class Later:
    """Names the addresses that a node could not name, by the reader's own list of pods."""

    def __init__(self, pods: Iterable[Object]) -> None:
        self._pods: dict[str, tuple[float, End]] = {}
        for pod in pods:
            status, spec = pod.get("status") or {}, pod.get("spec") or {}
            if spec.get("hostNetwork"):
                continue
            began = _seconds(str((pod.get("metadata") or {}).get("creationTimestamp") or ""))
            end = End("pod", namespace(pod), name(pod), str(spec.get("nodeName") or ""))
            for row in status.get("podIPs") or []:
                self._pods[str(row.get("ip"))] = began, end

    def name(self, flow: Flow) -> Flow:
        source, target, service, probe = flow.ends
        flow.ends = Ends(
            self._end(source, flow.source_ip, flow.changed),
            self._end(target, flow.endpoint_ip, flow.changed),
            service,
            probe,
        )
        return flow

    def _end(self, end: End, ip: str, when: float) -> End:
        if end.kind:
            return end
        began, found = self._pods.get(ip, (0.0, end))
        return found if began <= when else end  # a pod that came later got the address


def _seconds(text: str) -> float:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0

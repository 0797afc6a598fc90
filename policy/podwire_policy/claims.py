"""Addresses that wiring gave to pods, before the API says so. Pure.

An ADD asks for its pod to be judged (base/podwire_base/role/judging.py). The pod's labels are known by then in most
cases, because the node agent read the same object; its address is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from podwire_base.kube.meta import Object
from podwire_base.role.judging import Asked

from .convert import pod as pod_of
from .model import Pod


@dataclass(slots=True)
class Claims:
    """objects: the pods that the API has, by key. closed: whether a policy may select pods of a Namespace, so that one
    without labels cannot be judged.
    """

    node: str
    objects: Callable[[], Mapping[str, Object]]
    closed: Callable[[str], bool]
    _given: dict[str, Asked] = field(default_factory=dict)  # key of a pod -> its last ADD
    _ended: dict[str, str] = field(default_factory=dict)  # key of a pod -> uid of the one that DEL took the address of

    def pod(self, key: str) -> Pod | None:
        """Returns the pod as it is judged now; None if it has no address, or cannot be judged yet."""
        obj, asked = self.objects().get(key), self._given.get(key)
        if obj is None:
            if asked is None or self.closed(asked.namespace):
                return None
            return Pod(key, asked.namespace, (), self.node, asked.ips)
        uid = str(obj["metadata"].get("uid") or "")
        if asked is None or (asked.uid and uid and asked.uid != uid):
            return None if key in self._ended and self._ended[key] == uid else pod_of(obj)
        return pod_of(obj, asked.ips)

    def add(self, asked: Asked) -> str:
        """Notes an ADD. Returns the key of the pod."""
        key = asked.pod or f"/{asked.container}"
        self._given[key] = asked
        self._ended.pop(key, None)
        return key

    def remove(self, asked: Asked) -> str:
        """Notes a DEL. Returns the key of the pod; "" if the address is another sandbox's by now, or nobody's."""
        key = asked.pod or f"/{asked.container}"
        held = self._given.get(key)
        if held is None or held.container != asked.container:
            return ""
        del self._given[key]
        if (obj := self.objects().get(key)) is not None:
            self._ended[key] = str(obj["metadata"].get("uid") or "")
        return key

    def gone(self, key: str) -> None:
        """Notes that the API has the pod no longer. Its address goes with DEL."""
        self._ended.pop(key, None)

    def settled(self, key: str) -> bool:
        """Whether the pod can be judged: the API has it, or no policy can select it."""
        asked = self._given.get(key)
        return key in self.objects() or asked is None or not self.closed(asked.namespace)

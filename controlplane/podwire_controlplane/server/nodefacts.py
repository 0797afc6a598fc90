"""What the API server knows of pods, Nodes and volumes when it judges a node. Changes are read when they are asked for:
nodes ask seldom, and pods change often.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from podwire_base.kube import codec
from podwire_base.kube.meta import Object, name, namespace
from podwire_base.kube.registry import of

from ..rbac import nodes
from ..rbac.references import of_pod
from ..store.base import Item, Store, StoredChange

_PODS, _NODES, _VOLUMES = (of(kind).prefix() for kind in ("Pod", "Node", "PersistentVolume"))
_PREFIXES = (_PODS, _NODES, _VOLUMES)


class NodeFacts:
    """Implements rbac.nodes.Facts. `await start()` before the first question."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._unread: dict[str, Item | None] = {}
        self._pods: dict[str, tuple[str, list[tuple[str, str, str]]]] = {}  # key -> node, what the pod refers to
        self._refers: defaultdict[tuple[str, str, str, str], int] = defaultdict(int)
        self._addresses: dict[str, list[str]] = {}
        self._holders: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._claims: dict[str, tuple[str, str]] = {}  # volume -> namespace and name of its claim

    async def start(self) -> None:
        self.store.subscribe(self._changed)
        for prefix in _PREFIXES:
            for item in await self.store.scan(prefix):
                self._unread.setdefault(item.key, item)

    def _changed(self, change: StoredChange) -> None:
        if change.key.startswith(_PREFIXES):
            self._unread[change.key] = change.item

    def _read(self) -> None:
        while self._unread:
            key, item = self._unread.popitem()
            obj = codec.decode(item.value) if item is not None else None
            if key.startswith(_PODS):
                self._read_pod(key, obj)
            elif key.startswith(_NODES):
                self._read_node(key, obj)
            else:
                claim = ((obj or {}).get("spec") or {}).get("claimRef") or {}
                self._claims[key.removeprefix(_VOLUMES)] = (claim.get("namespace") or "", claim.get("name") or "")

    def _read_pod(self, key: str, pod: Object | None) -> None:
        node, refers = self._pods.pop(key, ("", []))
        for kind, space, own in refers:
            self._refers[node, kind, space, own] -= 1
            if not self._refers[node, kind, space, own]:
                del self._refers[node, kind, space, own]
        if pod is None or not pod["spec"].get("nodeName"):
            return
        node = pod["spec"]["nodeName"]
        refers = [(kind, namespace(pod), own) for kind, own in of_pod(pod)]
        for kind, space, own in refers:
            self._refers[node, kind, space, own] += 1
        self._pods[key] = node, refers

    def _read_node(self, key: str, node: Object | None) -> None:
        own = key.removeprefix(_NODES)
        for address in self._addresses.pop(own, []):
            del self._holders[address][own]
            if not self._holders[address]:
                del self._holders[address]
        if node is not None:
            self._addresses[own] = nodes.held(node)
            for address in self._addresses[own]:
                self._holders[address][name(node)] = 1

    # ---- questions

    def refers(self, node: str, kind: str, namespace: str, own: str) -> bool:
        self._read()
        if kind == "PersistentVolume":
            claim = self._claims.get(own, ("", ""))
            return (node, "PersistentVolumeClaim", *claim) in self._refers
        return (node, kind, namespace, own) in self._refers

    def node_of(self, namespace: str, pod: str) -> str:
        self._read()
        return self._pods.get(of("Pod").key(namespace, pod), ("", []))[0]

    def holder(self, address: str) -> str:
        self._read()
        return next(iter(sorted(self._holders.get(address, ()))), "")

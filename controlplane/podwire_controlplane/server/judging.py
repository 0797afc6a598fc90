"""Built-in admission that judges: it sees an object after its defaults, its validation and, later, the webhooks that
change it. In upstream's order: LimitRanger, growing claims, PodSecurity, (here webhooks and policies will judge,)
ResourceQuota last, because it counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from fractions import Fraction
from typing import TYPE_CHECKING

from podwire_base.kube import codec, errors
from podwire_base.kube.meta import Object, deleting, labels, name
from podwire_base.kube.registry import Resource, of

from .. import limitranges, podsecurity, quota
from ..store.base import Conflict, Item, Store
from ..strategies.base import forbidden

if TYPE_CHECKING:
    from .writes import Scope

_CLASSES = of("StorageClass")
_RANGES, _SPACES, _QUOTAS, _PODS = of("LimitRange"), of("Namespace"), of("ResourceQuota"), of("Pod")
_NOTHING = nullcontext()
_JUDGED = frozenset(("namespaces", "persistentvolumeclaims", "pods", "podtemplates", "replicationcontrollers",
                     "daemonsets.apps", "deployments.apps", "replicasets.apps", "statefulsets.apps", "cronjobs.batch",
                     "jobs.batch"))  # fmt: skip
_RETRIES = 64  # each retry means that another writer's charge succeeded


def _load(item: Item) -> Object:
    obj: Object = codec.decode(codec.with_revision(item.value, item.revision))
    return obj


class Judges:
    """The judging plugins over one store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def _all(self, resource: Resource, namespace: str) -> list[Object]:
        return [_load(item) for item in await self.store.scan(resource.prefix(namespace))]

    async def judge(self, scope: Scope, obj: Object, before: Object | None) -> list[str]:
        """Return warnings. Raises StatusError 403, or 422 for labels of a Namespace."""
        resource = scope.resource
        if resource.qualified not in _JUDGED or scope.sub not in ("", "ephemeralcontainers", "resize"):
            return []
        if resource.qualified == "namespaces":
            return await self._namespace(obj, before)
        await self._limits(scope, obj, before)
        if before is not None and resource.qualified == "persistentvolumeclaims":
            await self._resize(scope, obj, before)
        return await self._security(scope, obj, before)

    async def _limits(self, scope: Scope, obj: Object, before: Object | None) -> None:
        kind = scope.resource.kind
        if scope.resource.group or kind not in ("Pod", "PersistentVolumeClaim") or (before and deleting(before)):
            return
        if before is not None and kind == "Pod" and scope.sub != "resize":
            return
        if found := limitranges.problems(kind, obj, await self._all(_RANGES, scope.namespace)):
            raise forbidden(scope.resource, name(obj), ", ".join(found))

    async def _resize(self, scope: Scope, claim: Object, before: Object) -> None:
        """A claim grows only once it is bound, and where its StorageClass allows that."""
        new, old = (limitranges.storage(one) for one in (claim, before))
        if new is None or old is None or new <= old:
            return
        if (before.get("status") or {}).get("phase") != "Bound":
            raise forbidden(scope.resource, name(claim), "Only bound persistent volume claims can be expanded")
        item = await self.store.get(_CLASSES.key("", before["spec"].get("storageClassName") or "-"))
        if item is None or not _load(item).get("allowVolumeExpansion"):
            why = (
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must "
                "support resize"
            )
            raise forbidden(scope.resource, name(claim), why)

    async def _security(self, scope: Scope, obj: Object, before: Object | None) -> list[str]:
        group, kind = scope.resource.group, scope.resource.kind
        pod = podsecurity.pod_of(group, kind, obj)
        if pod is None:
            return []
        old = podsecurity.pod_of(group, kind, before) if before is not None else None
        if old is not None and old.get("spec") == pod.get("spec"):
            return []
        item = await self.store.get(_SPACES.key("", scope.namespace))
        space = _load(item) if item else {"metadata": {}}
        if kind == "Pod" and (why := podsecurity.refusal(pod, space)):
            raise forbidden(scope.resource, name(obj), why)
        told = podsecurity.warning(pod, space)
        return [told] if told else []

    async def _namespace(self, obj: Object, before: Object | None) -> list[str]:
        if before is not None and labels(obj) == labels(before):
            return []
        if causes := list(podsecurity.check_labels(obj)):
            raise errors.invalid(_SPACES, name(obj), causes)
        if before is None or podsecurity.level(obj, "enforce") == podsecurity.level(before, "enforce"):
            return []
        return podsecurity.judge(await self._all(_PODS, name(obj)), obj)

    # ---- quota

    async def counting(
        self, scope: Scope, new: Object | None, old: Object | None, *, dry_run: bool = False
    ) -> AbstractAsyncContextManager[None]:
        """Return a context in which a change is written: it charges the quotas of the namespace first. new: None for a
        deletion.
        """
        items = await self.store.scan(_QUOTAS.prefix(scope.namespace)) if scope.namespace else []
        return self._counted(items, scope, new, old, dry_run=dry_run) if items else _NOTHING

    @asynccontextmanager
    async def _counted(
        self, items: list[Item], scope: Scope, new: Object | None, old: Object | None, *, dry_run: bool
    ) -> AsyncIterator[None]:
        """Charge by compare-and-swap, before the object is written; take the charge back if the write fails. Raises
        StatusError 403.
        """
        done: list[tuple[str, dict[str, Fraction]]] = []
        resource = scope.resource
        try:
            for item in items:
                delta = self._delta(_load(item), resource, new, old)
                if new is not None and old is None and resource.qualified == "pods":
                    self._must_tell(_load(item), scope, new)
                if delta and await self._charge(item.key, delta, scope, new, dry_run=dry_run):
                    done.append((item.key, delta))
            yield
        except BaseException:
            for key, delta in done:
                await self._charge(key, {k: -v for k, v in delta.items()}, scope, None)
            raise

    @staticmethod
    def _must_tell(found: Object, scope: Scope, pod: Object) -> None:
        counted = quota.counts(found, "", "pods", pod)
        if counted and (why := quota.missing(found, pod.get("spec") or {})):
            raise forbidden(scope.resource, name(pod), why)

    @staticmethod
    def _delta(found: Object, resource: Resource, new: Object | None, old: Object | None) -> dict[str, Fraction]:
        sides = [
            quota.usage(resource.group, resource.plural, obj)
            if obj is not None and quota.counts(found, resource.group, resource.plural, obj)
            else {}
            for obj in (new, old)
        ]
        return quota.change(*sides)

    async def _charge(
        self, key: str, delta: dict[str, Fraction], scope: Scope, new: Object | None, *, dry_run: bool = False
    ) -> bool:
        """Return whether the usage of a quota was changed."""
        for _ in range(_RETRIES):
            item = await self.store.get(key)
            if item is None:
                return False
            found = _load(item)
            if new is not None and (why := quota.refusal(found, delta)):
                raise forbidden(scope.resource, name(new), why)
            changed = quota.charged(found, delta)
            if changed is None or dry_run:
                return False
            try:
                await self.store.put(key, codec.encode(changed), item.revision)
                return True
            except Conflict:
                continue
        raise errors.conflict(_QUOTAS, key.rpartition("/")[2], "other clients keep changing the object; try again")

"""Serves what CustomResourceDefinitions define. Each definition is a source of rows of the server's registry.

A definition is served from the moment at which it is stored; its conditions follow by a write of its status. A
definition that is deleted waits (finalizer customresourcecleanup.apiextensions.k8s.io) until its objects are gone, and
a namespace that is deleted loses its custom objects here: the server alone knows all kinds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from podwire_base.kube import codec
from podwire_base.kube.errors import StatusError
from podwire_base.kube.meta import Object, deleting, name, namespace
from podwire_base.kube.patch import MERGE_PATCH
from podwire_base.kube.registry import BUILTIN, Resource, of
from podwire_base.kube.times import timestamp
from podwire_base.role import logs

from ..custom import definition as checks
from ..custom import names
from ..custom.rows import rows
from ..store.base import StoredChange
from .writes import Scope, WriteOptions

if TYPE_CHECKING:
    from .objects import Objects

log = logs.get("apiserver")
_CRDS, _NAMESPACES = of("CustomResourceDefinition"), of("Namespace")
_RETRY_SECONDS = 1.0


class Definitions:
    """The definitions of one store. Call `start()` before requests are served."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.known: dict[str, Object] = {}
        self._built: dict[str, Any] = {}  # definition -> what its rows were made of
        self._ending: dict[str, str] = {}  # definition that is deleted -> prefix of its objects
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again = set[str]()

    async def start(self) -> None:
        store = self.objects.store
        for item in await store.scan(_CRDS.prefix()):
            found = codec.decode(codec.with_revision(item.value, item.revision))
            self.known[name(found)] = found
        for own in self.known:
            self._serve(own)
        store.subscribe(self._observe)
        for item in await store.scan(_NAMESPACES.prefix()):
            space = codec.decode(item.value)
            if deleting(space):
                self._later(f"namespace {name(space)}", self._purge(name(space)))

    def _observe(self, change: StoredChange) -> None:
        if change.key.startswith(_CRDS.prefix()):
            own = change.key.removeprefix(_CRDS.prefix())
            if change.item is None:
                self._forget(own)
            else:
                self.known[own] = codec.decode(codec.with_revision(change.item.value, change.item.revision))
                self._serve(own)
        elif change.key.startswith(_NAMESPACES.prefix()):
            if change.item is not None and deleting(space := codec.decode(change.item.value)):
                self._later(f"namespace {name(space)}", self._purge(name(space)))
        elif self._ending and change.item is None:
            for own, prefix in self._ending.items():
                if change.key.startswith(prefix):
                    self._later(own, self._end(own))

    # ---- rows

    def _serve(self, own: str) -> None:
        """Bring the registry in line with a definition, and write its status if that follows from it."""
        found = self.known[own]
        group = found["spec"].get("group")
        builtin = [(row.plural, row.kind) for row in BUILTIN.resources if row.group == group]
        status = names.accept(found, self.known.values(), builtin, timestamp(self.objects.clock()))
        stored, self.known[own] = found.get("status"), {**found, "status": status}
        if deleting(found):
            self._ending[own] = f"/{group}/{found['spec']['names']['plural']}/"
        made_of = (found["metadata"].get("uid"), found["spec"], status["acceptedNames"], deleting(found))
        established = names.holds(self.known[own], names.ESTABLISHED)
        if self._built.get(own) != (made_of if established else None) or not established:
            self._built[own] = made_of if established else None
            self.objects.registry.put(own, self._rows(self.known[own]) if established else ())
        if status != stored or deleting(found):
            self._later(own, self._end(own) if deleting(found) else self._write_status(own))

    def _rows(self, found: Object) -> tuple[Resource, ...]:
        """Return the rows of a definition; none for one that an older server stored and that is not valid."""
        wrong = list(checks.update(found, found))
        if wrong:
            text = "; ".join(f"{cause.field}: {cause.message}" for cause in wrong[:3])
            log.warn("a CustomResourceDefinition is not served", name=name(found), error=text)
            return ()
        return rows(found, found["status"]["acceptedNames"])

    def _forget(self, own: str) -> None:
        """Remove a definition. Others of its group may have waited for its names."""
        gone = self.known.pop(own, None)
        self._built.pop(own, None)
        self._ending.pop(own, None)
        self.objects.registry.put(own, ())
        for other, found in list(self.known.items()):
            if gone and found["spec"].get("group") == gone["spec"].get("group"):
                self._serve(other)

    # ---- what follows

    def _later(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        """Do the work soon, one after another for each name; what comes while it runs is done again after it."""
        if what in self._tasks:
            work.close()
            self._again.add(what)
            return
        self._tasks[what] = asyncio.get_running_loop().create_task(self._run(what, work))

    async def _run(self, what: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except StatusError as err:  # another writer came between; its change comes here too
            if err.code not in (404, 409):
                log.warn("a custom resource's definition cannot be followed", name=what, error=err.message)
        except OSError as err:  # a full disk, for example
            log.warn("a custom resource's definition cannot be followed", name=what, error=str(err))
            await asyncio.sleep(_RETRY_SECONDS)
            self._again.add(what)
        finally:
            del self._tasks[what]
        if what in self._again:
            self._again.discard(what)
            kind, _, space = what.partition(" ")
            if space:
                self._later(what, self._purge(space))
            elif kind in self.known:
                self._serve(kind)

    async def _write_status(self, own: str) -> None:
        if (found := self.known.get(own)) is not None:
            await self.objects.update(Scope(_CRDS, "", own, "status"), found, WriteOptions())

    async def _end(self, own: str) -> None:
        """Delete the objects of a definition that is being deleted; then let it go."""
        found = self.known.get(own)
        if found is None or names.FINALIZER not in (found["metadata"].get("finalizers") or []):
            return
        await self._delete_all(_prefix_row(found))
        left = await self.objects.store.scan(self._ending[own])
        now, body = timestamp(self.objects.clock()), {"status": {**found["status"]}}
        names.terminating(body, "InProgress" if left else "Completed", now)
        await self.objects.patch(Scope(_CRDS, "", own, "status"), MERGE_PATCH, body, WriteOptions())
        if not left:
            rest = [one for one in found["metadata"]["finalizers"] if one != names.FINALIZER]
            await self.objects.patch(
                Scope(_CRDS, "", own), MERGE_PATCH, {"metadata": {"finalizers": rest}}, WriteOptions()
            )

    async def _purge(self, space: str) -> None:
        for row in self.objects.registry.stored:
            if row.custom is not None and row.namespaced:
                await self._delete_all(row, space)

    async def _delete_all(self, row: Resource | None, space: str = "") -> None:
        if row is None:
            return
        for item in await self.objects.store.scan(row.prefix(space)):
            obj = codec.decode(item.value)
            if deleting(obj):
                continue
            try:
                await self.objects.delete(Scope(row, namespace(obj), name(obj)), {})
            except StatusError as err:
                if err.code != 404:
                    raise


def _prefix_row(found: Object) -> Resource | None:
    """Return a row by which the objects of a definition are deleted, also if no version of it is served."""
    made = rows({**found, "spec": {**found["spec"], "versions": [
        {**version, "served": True} for version in found["spec"]["versions"]
    ]}}, found["spec"]["names"])  # fmt: skip
    return made[0] if made else None

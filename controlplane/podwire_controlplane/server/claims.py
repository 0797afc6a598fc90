"""Claims in the store: no two Services have one address or port, and no two Nodes one podCIDR, also where several API
servers share the store.

A claim is a key that is created by compare-and-swap before its object is written: an IPAddress object for each
ClusterIP (KEP-1880), a key for each node port, and one key for all podCIDRs, because ranges may overlap without being
equal. An update or deletion gives its claims back after the object is written. Between the two writes a server may
die. Then a claim stays that no object has; after GRACE seconds `repair`, or whoever wants the value, takes it. A write
that took longer than half of that gives up, so that it never uses a claim that another server may have taken.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from podwire_base.kube import codec, errors
from podwire_base.kube.errors import Cause, StatusError
from podwire_base.kube.meta import Object, key, name
from podwire_base.kube.registry import of
from podwire_base.kube.times import parse_time, timestamp
from podwire_base.role import logs

from ..allocators import Exhausted, ServiceAllocator, addresses_of, ports_of
from ..ipfamilies import family_of
from ..store.base import Conflict, Item, Store, StoredChange

log = logs.get("apiserver")
GRACE = 60.0
PORTS = "/podwire.io/nodeports/"  # of the store keys; a kind's keys begin with its group, and no kind has this group
_ADDRESSES, _SERVICES = of("IPAddress"), of("Service")
_SOMEBODY = "an IPAddress of another owner"
_TRIES = 3  # random values that are tried before the claims are read
_BATCH = 500  # writes of a repair that share a commit
MANAGER = "ipaddress.kubernetes.io/managed-by"


class Taken(Protocol):
    """What one write has claimed, and what it gives back."""

    async def undo(self) -> None:
        """The object was not written."""
        ...

    async def settle(self) -> None:
        """The object is written: give back what it does not have any more."""
        ...


class Claims(Protocol):
    """What gives out the values of one kind."""

    def prepare(self, obj: Object, before: Object | None) -> list[Cause]:
        """Set the fields that follow from others, and return the errors in those."""
        ...

    def asks(self, obj: Object) -> bool:
        """Whether a new object asks for values of its own choice. They are claimed before anybody looks whether there
        is an object of its name, so a second creation is refused for them, with 422, as upstream.
        """
        ...

    async def take(self, obj: Object, before: Object | None, *, dry_run: bool) -> Taken:
        """Claim the values that `obj` has and `before` had not, and fill in those that it lacks. A dry run claims
        nothing. Raises StatusError, after which nothing is claimed.
        """
        ...

    async def held(self, obj: Object) -> Taken:
        """Return the claims of a stored object that is about to be removed."""
        ...

    async def repair(self) -> list[str]:
        """Restore the claims of the stored objects, and remove those that no object has. Returns what it did."""
        ...


def taken_by(value: str | int, holder: str) -> str:
    """Return why a value cannot be had, in kube-apiserver's words, which clients look for, and with the holder."""
    by = f"taken by {'Service ' if '/' in holder else ''}{holder}; choose another or leave it empty"
    if isinstance(value, int):
        return f"Invalid value: {value}: provided port is already allocated: {by}"
    return f'Invalid value: ["{value}"]: failed to allocate IP {value}: provided IP is already allocated: {by}'


@asynccontextmanager
async def holding(claims: Claims, obj: Object, before: Object | None, *, dry_run: bool) -> AsyncIterator[Taken]:
    """Hold the claims of an object while it is written. After an error whose outcome is known they are given back.
    After another one the object may be stored, so they stay: `repair` takes those that no object has.
    """
    taken = await claims.take(obj, before, dry_run=dry_run)
    try:
        yield taken
    except (Conflict, StatusError):
        await taken.undo()
        raise
    await taken.settle()


@asynccontextmanager
async def leaving(claims: Claims, obj: Object) -> AsyncIterator[None]:
    """Give back the claims of an object after it is removed."""
    taken = await claims.held(obj)
    yield
    await taken.settle()


class Care:
    """Repairs the claims at the start, and later where claims changed. kinds: (group, kind) -> their claims."""

    def __init__(self, store: Store, kinds: Mapping[tuple[str, str], Claims], clock: Callable[[], float]) -> None:
        self._store, self._kinds, self._clock = store, kinds, clock
        self._changed = clock()
        self._prefixes = (_ADDRESSES.prefix(), PORTS)

    async def start(self) -> None:
        self._store.subscribe(self._heard)
        await self.repair()

    def _heard(self, change: StoredChange) -> None:
        if change.key.startswith(self._prefixes):
            self._changed = self._clock()

    async def repair(self) -> None:
        """Repair all claims, unless none was made or deleted since some repairs ago."""
        if self._clock() - self._changed <= 3 * GRACE:
            for claims in self._kinds.values():
                for line in await claims.repair():
                    log.warn("claims repaired", what=line)


class _Keys:
    """The claims of one write, as keys with their revisions. gone: what `settle` releases."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store, self._clock, self._began = store, clock, clock()
        self.new: list[Item] = []
        self.gone: list[Item] = []

    def in_time(self) -> bool:
        return self._clock() - self._began < GRACE / 2

    async def undo(self) -> None:
        await self._release(self.new)

    async def settle(self) -> None:
        await self._release(self.gone)

    async def _release(self, items: Iterable[Item]) -> None:
        found = list(items)
        if found:
            await asyncio.gather(*(release(self._store, item) for item in found))


async def release(store: Store, item: Item) -> None:
    """Delete a claim, unless it is another one by now."""
    with suppress(Conflict):
        await store.delete(item.key, item.revision)


class ServiceClaims:
    """ClusterIPs, node ports and health check ports."""

    def __init__(self, store: Store, allocator: ServiceAllocator, clock: Callable[[], float]) -> None:
        self.store, self.allocator, self.clock = store, allocator, clock

    def prepare(self, obj: Object, before: Object | None) -> list[Cause]:
        return self.allocator.prepare(obj, before)

    def asks(self, obj: Object) -> bool:
        return bool(self.keys(obj))

    # ---- keys and values

    @staticmethod
    def keys(service: Object) -> dict[str, str | int]:
        """Return the keys of a Service's claims, with the values that they stand for."""
        found: dict[str, str | int] = {_ADDRESSES.key("", own): own for own in addresses_of(service)}
        return found | {f"{PORTS}{port}": port for port in ports_of(service)}

    def _claim(self, own: str | int, owner: Object) -> tuple[str, bytes]:
        if isinstance(own, int):
            return f"{PORTS}{own}", codec.dumps({"service": key(owner), "since": self.clock()})
        return _ADDRESSES.key("", own), codec.encode(ip_address(own, owner, self.clock()))

    async def _try(self, own: str | int, owner: Object, taken: _Keys) -> str:
        """Claim one value. Returns "", or the key of the Service (or other object) that has it."""
        where, value = self._claim(own, owner)
        try:
            taken.new.append(await self.store.put(where, value, 0))
        except Conflict as err:
            if err.actual is None:
                return _SOMEBODY
            holder = claimant(err.actual)[0] or _SOMEBODY
            if not await self._stale(err.actual, own):
                return holder
            try:
                taken.new.append(await self.store.put(where, value, err.actual.revision))
            except Conflict:
                return holder
        return ""

    async def _stale(self, item: Item, own: str | int) -> bool:
        """Whether nobody has the value of a claim: its Service does not exist, or has other values."""
        holder, since = claimant(item)
        if not holder or self.clock() - since < GRACE:
            return False
        space, _, service = holder.partition("/")
        found = await self.store.get(_SERVICES.key(space, service))
        return found is None or own not in self.keys(codec.decode(found.value)).values()

    # ---- one write

    async def take(self, obj: Object, before: Object | None, *, dry_run: bool) -> _Keys:
        taken = _Keys(self.store, self.clock)
        old = self.keys(before) if before is not None else {}
        try:
            if not dry_run and (wrong := await self._asked(obj, set(old.values()), taken)):
                raise errors.invalid(_SERVICES, name(obj), wrong)
            await self._fill(obj, set(old.values()), taken, dry_run=dry_run)
            if not taken.in_time():
                raise errors.conflict(_SERVICES, name(obj), "the store was too slow; try again")
        except (StatusError, Exhausted) as err:
            await taken.undo()
            if isinstance(err, StatusError):
                raise
            causes = [Cause("", str(err), "")]
            raise StatusError(500, "InternalError", f"Internal error occurred: {err}", causes=causes) from err
        if not dry_run:
            kept = self.keys(obj)
            taken.gone = await self._items(where for where in old if where not in kept)
        return taken

    async def held(self, obj: Object) -> _Keys:
        taken = _Keys(self.store, self.clock)
        taken.gone = await self._items(self.keys(obj))
        return taken

    async def _items(self, keys: Iterable[str]) -> list[Item]:
        return [item for where in keys if (item := await self.store.get(where)) is not None]

    async def _asked(self, service: Object, old: set[str | int], taken: _Keys) -> list[Cause]:
        """Claim the values that the client asks for. Returns why some cannot be had."""
        rows: list[tuple[str, str | int]] = [("spec.clusterIPs", own) for own in addresses_of(service)]
        for n, port in enumerate(service["spec"].get("ports") or []):
            if port.get("nodePort"):
                rows.append((f"spec.ports[{n}].nodePort", port["nodePort"]))
        done, causes = set(old), list[Cause]()
        for where, own in rows:
            if own in done:
                continue
            done.add(own)
            why = self.allocator.outside(own)
            if not why and (holder := await self._try(own, service, taken)):
                why = taken_by(own, holder)
            if why:
                causes.append(Cause(where, why))
        return causes

    async def _fill(self, service: Object, old: set[str | int], taken: _Keys, *, dry_run: bool) -> None:
        """Write free values into the empty fields of `service`. Raises Exhausted."""
        spec, jobs = service["spec"], list[Callable[[], Awaitable[None]]]()

        def address(held: list[str], at: int, family: str) -> Callable[[], Awaitable[None]]:
            async def job() -> None:
                held[at] = str(await self._free(family, service, taken, dry_run=dry_run))

            return job

        def port(rows: list[Object], field: str) -> Callable[[], Awaitable[None]]:
            async def job() -> None:
                found = await self._free("", service, taken, dry_run=dry_run)
                for row in rows:
                    row[field] = found

            return job

        held = list[str]()
        if spec.get("type") != "ExternalName" and (spec.get("clusterIPs") or [""])[0] != "None":
            held = list(spec.get("clusterIPs") or [])
            missing = spec["ipFamilies"][len(held) :]
            held += [""] * len(missing)
            jobs += [address(held, len(held) - len(missing) + n, family) for n, family in enumerate(missing)]
        if spec.get("type") == "NodePort" or (
            spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False
        ):
            jobs += [port(rows, "nodePort") for rows in _without_port(spec.get("ports") or [])]
        if spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
            if not spec.get("healthCheckNodePort"):
                jobs.append(port([spec], "healthCheckNodePort"))
            elif not dry_run and spec["healthCheckNodePort"] not in old:
                await self._health_port(service, spec["healthCheckNodePort"], taken)
        if len(jobs) == 1:
            await jobs[0]()
        else:
            failed = [err for err in await asyncio.gather(*(job() for job in jobs), return_exceptions=True) if err]
            if failed:
                raise failed[0]
        if held:
            spec["clusterIP"], spec["clusterIPs"] = held[0], held

    async def _health_port(self, service: Object, wanted: int, taken: _Keys) -> None:
        here = any(item.key == f"{PORTS}{wanted}" for item in taken.new)
        if here or self.allocator.outside(wanted) or await self._try(wanted, service, taken):
            raise Exhausted(f"failed to allocate requested HealthCheck NodePort {wanted}: it is taken or out of range")

    async def _free(self, family: str, service: Object, taken: _Keys, *, dry_run: bool) -> str | int:
        """Claim a free address of `family`, or a free node port ("")."""
        for _ in range(_TRIES):
            own = next(self.allocator.candidates(family), None)
            if own is None:
                break
            if dry_run or not await self._try(own, service, taken):
                return own
        prefix = _ADDRESSES.prefix() if family else PORTS
        held = {item.key.removeprefix(prefix) for item in await self.store.scan(prefix)}
        for own in self.allocator.candidates(family):
            if str(own) not in held and not await self._try(own, service, taken):
                return own
        raise Exhausted(self.allocator.exhausted(family))

    # ---- all Services

    async def repair(self) -> list[str]:
        told, missing = list[str](), list[tuple[str, bytes]]()
        owners: dict[str, str] = {}
        for n, item in enumerate(await self.store.scan(_SERVICES.prefix())):
            if n % _BATCH == _BATCH - 1:
                await asyncio.sleep(0)  # the requests of this moment come between
            service = codec.decode(item.value)
            for where, own in self.keys(service).items():
                if (other := owners.setdefault(where, key(service))) != key(service):
                    told.append(f"{own} belongs to Services {other} and {key(service)}: delete one of them")
                elif await self.store.get(where) is None:
                    missing.append(self._claim(own, service))
        for start in range(0, len(missing), _BATCH):
            puts = [self.store.put(where, value, 0) for where, value in missing[start : start + _BATCH]]
            for done in await asyncio.gather(*puts, return_exceptions=True):
                if isinstance(done, Item):
                    told.append(f"{done.key.rpartition('/')[2]} is claimed again for Service {owners[done.key]}")
                elif not isinstance(done, Conflict):
                    raise done
        for prefix in (_ADDRESSES.prefix(), PORTS):
            for item in await self.store.scan(prefix):
                last = item.key.removeprefix(prefix)
                if item.key not in owners and await self._stale(item, int(last) if prefix == PORTS else last):
                    await release(self.store, item)
                    told.append(f"{last} is free again: no Service has it")
        return told


def _without_port(ports: list[Object]) -> Iterator[list[Object]]:
    """Yield the ports without nodePort that get one together: ports of one number and several protocols. Those that
    have a sibling with a nodePort get that one at once.
    """
    same = {port["port"]: port["nodePort"] for port in ports if port.get("nodePort")}
    groups: dict[int, list[Object]] = {}
    for port in ports:
        if not port.get("nodePort"):
            if port["port"] in same:
                port["nodePort"] = same[port["port"]]
            else:
                groups.setdefault(port["port"], []).append(port)
    yield from groups.values()


def ip_address(address: str, service: Object, now: float) -> Object:
    """Return the IPAddress object of a Service's address, as the allocator of kube-apiserver writes it."""
    return {
        "apiVersion": _ADDRESSES.api_version,
        "kind": _ADDRESSES.kind,
        "metadata": {
            "name": address,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": timestamp(now),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family_of(address),
                MANAGER: "ipallocator.k8s.io",
            },
        },
        "spec": {
            "parentRef": {
                "resource": _SERVICES.plural,
                "namespace": service["metadata"]["namespace"],
                "name": name(service),
            }
        },
    }


def claimant(item: Item) -> tuple[str, float]:
    """Return (key of the Service, time of the claim). An address that somebody else reserves by an IPAddress of their
    own has another holder and never becomes free by itself.
    """
    found = json.loads(item.value)
    if item.key.startswith(PORTS):
        return str(found["service"]), float(found["since"])
    parent: Any = (found.get("spec") or {}).get("parentRef") or {}
    if parent.get("resource") != _SERVICES.plural or MANAGER not in (found["metadata"].get("labels") or {}):
        return "", 0.0
    return f"{parent.get('namespace')}/{parent.get('name')}", parse_time(
        found["metadata"]["creationTimestamp"]
    ).timestamp()

"""The reservations of node names in the store, and the open connections of nodes. A revocation takes effect at once:
each request is compared with the records, and connections of a revoked certificate are closed.

Every API server over the same store follows the records, whichever server wrote them.
"""

from __future__ import annotations

from asyncio import Transport
from collections import defaultdict
from collections.abc import Callable, MutableSet
from weakref import WeakSet

from podwire_base.kube.errors import StatusError
from podwire_base.kube.registry import of
from podwire_base.role import logs

from ..store.base import Conflict, Store, StoredChange
from . import auth, identity

log = logs.get("apiserver")
_TRIES = 20  # how often a write is repeated that another write of the same record overtook


class Identities:
    """`await start()` reads the records and follows them. Raises ValueError (identity.NewerLayout) for records that
    this version cannot read, because without them a revoked certificate would be accepted.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._known: dict[str, identity.Record] = {}
        self._open: defaultdict[str, dict[str, MutableSet[Transport]]] = defaultdict(
            dict
        )  # node, serial -> connections

    async def start(self) -> None:
        self.store.subscribe(self._changed)
        for item in await self.store.scan(identity.PREFIX):
            record = identity.parse(item.value)
            self._known[record.node] = record

    def _changed(self, change: StoredChange) -> None:
        if not change.key.startswith(identity.PREFIX):
            return
        node = change.key.removeprefix(identity.PREFIX)
        if change.item is None:
            self._known.pop(node, None)
            return
        try:
            self._known[node] = identity.parse(change.item.value)
        except ValueError as err:
            log.error("a reservation cannot be read, its node is refused", node=node, error=str(err))
            self._known[node] = identity.revoked(None, node)
        self._close(node)

    def _close(self, node: str) -> None:
        """Close the node's connections whose certificate does not count any more."""
        for serial, links in list(self._open[node].items()):
            if not identity.accepts(self._known.get(node), serial):
                del self._open[node][serial]
                for link in list(links):
                    if not link.is_closing():  # before Python 3.11.4, a TLS transport that is closed cannot be aborted
                        link.abort()

    def admits(self, user: auth.User, now: float) -> bool:
        """Whether the user's credential counts now. The TLS handshake has checked the certificate's signature, but a
        connection can outlive the certificate.
        """
        return user.until > now and (not user.node or identity.accepts(self._known.get(user.node), user.serial))

    def opened(self, user: auth.User, link: object) -> None:
        """Note the connection of a node, so that a revocation can close it."""
        if user.node and isinstance(link, Transport):
            self._open[user.node].setdefault(user.serial, WeakSet()).add(link)

    async def claim(self, claim: identity.Claim, sign: Callable[[], tuple[str, identity.Issued]], now: float) -> str:
        """Return the certificate that `sign` makes, after its serial number is in the store. Raises a StatusError if
        `identity.decide` refuses the claim.
        """
        made: tuple[str, identity.Issued] | None = None
        key = identity.PREFIX + claim.node
        for _ in range(_TRIES):
            item = await self.store.get(key)
            record = identity.parse(item.value) if item else None
            exists = await self.store.get(of("Node").key("", claim.node)) is not None
            verdict = identity.decide(claim, record, exists=exists)
            if isinstance(verdict, identity.Refusal):
                raise StatusError(verdict.code, verdict.reason, verdict.message)
            made = made or sign()
            after = identity.encode(identity.granted(record, claim, verdict, made[1], now))
            try:
                await self.store.put(key, after, expect=item.revision if item else 0)
            except Conflict:
                continue  # another request changed the record; the decision may be another now
            return made[0]
        raise StatusError(409, "Conflict", f"the reservation of {claim.node!r} changes all the time; try again")

    async def revoke(self, node: str) -> identity.Record | None:
        """Refuse every certificate of the node from now on. Returns the record before."""
        key = identity.PREFIX + node
        for _ in range(_TRIES):
            item = await self.store.get(key)
            record = identity.parse(item.value) if item else None
            try:
                after = identity.encode(identity.revoked(record, node))
                await self.store.put(key, after, expect=item.revision if item else 0)
            except Conflict:
                continue
            log.warn(
                "the certificates of a node are revoked", node=node, serials=sorted(record.issued if record else ())
            )
            return record
        raise StatusError(409, "Conflict", f"the reservation of {node!r} changes all the time; try again")

"""Computes the transaction from the kernel's rules to the Dataplane. Pure; the cost is proportional to the change.

Slots of a frontend are dense, 0 to N-1. Growing writes the new slot and switches the chain in one commit. Shrinking
moves the last slot into the hole and switches the chain. A *later* commit (`sweep`) deletes the last slot, because a
packet in flight may have drawn this slot already: one failed lookup would pin an untranslated UDP flow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from podwire_base import progress
from podwire_base.kernel.ip import Family, packed
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.nft.expr import GOTO, JUMP
from podwire_base.kernel.reasons import Reason

from ..dataplane import Balance, Dataplane, Delta, Frontend, Treatment
from ..model import NodeInfo
from ..verdict import NO_LOCAL_ENDPOINTS, PASS
from .layout import (
    AFFINITY,
    LOCAL_SLOTS,
    MAX_BACKENDS,
    NO_LOCAL,
    OWN_CHAINS,
    REFUSAL,
    Layout,
    StaticRules,
    comes_with_services,
    static_rules,
)
from .servicechains import balancer, remember, sources, sticky

_ABSENT = object()
_VERDICTS = ("services", "outside", "guarded", "remember")
_FRONTEND_SETS = (*_VERDICTS, "masquerade-always", "masquerade-node", "resets")
Chains = dict[str, tuple[nft.Chain, tuple[nft.Rule, ...]]]


@cache
def _slot(number: int) -> bytes:
    """Returns the last field of an `endpoints` key. A frontend has at most 2 * LOCAL_SLOTS slots."""
    return nft.host32(number)


def assign(old: Sequence[bytes], wanted: Iterable[bytes]) -> list[bytes]:
    """Returns dense slots for `wanted`. As many entries as possible keep their slot from `old`."""
    if not old:
        return list(dict.fromkeys(wanted))
    left = dict.fromkeys(wanted)
    slots: list[bytes | None] = [None] * len(left)
    for index, value in enumerate(old[: len(slots)]):
        if value in left:
            slots[index] = value
            del left[value]
    rest = iter(left)
    return [value if value is not None else next(rest) for value in slots]


@dataclass(slots=True)
class ElementChanges:
    """Collects element writes, compares them with the current elements, and keeps only the differences."""

    held: dict[str, dict[bytes, nft.Value]]
    remove: dict[str, dict[bytes, nft.Value]] = field(default_factory=dict)
    write: dict[str, dict[bytes, nft.Value]] = field(default_factory=dict)

    def put(self, name: str, key: bytes, value: nft.Value) -> None:
        now = self.held[name].get(key, _ABSENT)
        if now == value and now is not _ABSENT:
            return
        if now is not _ABSENT:
            self.remove.setdefault(name, {})[key] = self.held[name][key]
        self.write.setdefault(name, {})[key] = value

    def drop(self, name: str, key: bytes) -> None:
        if key in self.held[name]:
            self.remove.setdefault(name, {})[key] = self.held[name][key]


class Planner:
    """Holds the mirror of one family's table; `full` and `change` return the transaction, `committed` updates the
    mirror.
    """

    def __init__(self, layout: Layout, node: NodeInfo) -> None:
        self.layout = layout
        self.node = node
        self.logs = True  # whether the kernel can log refused packets
        self.mirror = TableDump(layout.table)
        self.garbage: set[bytes] = set()  # slots that no chain draws any more
        self.idle: set[str] = set()  # chains without a jump to them
        # Session affinity: (Sticky.local, key of Sticky.port) -> the endpoints that rules may remember. `suspects` has
        # the keys with removed endpoints.
        self.allowed: dict[tuple[bool, bytes], frozenset[bytes]] = {}
        self.suspects: set[tuple[bool, bytes]] | None = None  # None: all keys
        self._uses: Counter[str] = Counter()  # elements that lead to a chain of OWN_CHAINS

    @property
    def family(self) -> Family:
        return self.layout.family

    def rule_counts(self) -> dict[str, int]:
        """Returns the number of rules by table."""
        return {self.layout.table.name: sum(map(len, self.mirror.rules.values()))}

    def committed(self, transaction: nft.Transaction) -> None:
        """Updates the mirror: the kernel accepted the plan."""
        from podwire_base.kernel.nft.fake import apply_to

        apply_to(self.mirror, transaction, check=False)

    def full(self, dataplane: Dataplane, found: TableDump | None) -> nft.Transaction:
        """Returns the transaction from the rules read back (None: no table) to the dataplane; empty if equal."""
        self.node = dataplane.node
        want = static_rules(self.layout, self.node, logs=self.logs)
        tx, held = self._base(found, want)
        self.mirror = found if found is not None and held else TableDump(self.layout.table)
        elements = {name: held.get(name, {}) for name in self.layout.sets()}
        for name in AFFINITY:
            if name in self.mirror.elements:
                self.mirror.elements[name] = {}  # rules write these elements, not the planner
        self.allowed, self.suspects, self._uses = (
            {},
            None,
            Counter(v.chain for name in _VERDICTS for v in elements[name].values() if isinstance(v, nft.Verdict)),
        )
        self.idle = {name for name in self.mirror.chains if name.startswith(OWN_CHAINS)}
        self.idle.update(chain.name for chain in _stale(self.mirror, want) if not chain.hook)
        keys = {key[:-4] for key in elements["endpoints"]}
        keys.update(*(elements[name] for name in _FRONTEND_SETS))
        wanted = {self.layout.key(k): f for k, f in dataplane.frontends.items() if self.layout.ours(k.ip)}
        change = ElementChanges(elements)
        self.garbage = set()
        chains: Chains = {}
        for key in progress.every(sorted(keys | wanted.keys())):
            self._frontend(change, key, wanted.get(key), chains)
        self._addresses(change, set(elements["cluster-ips"]), dataplane.cluster_ips, "cluster-ips", 1)
        self._addresses(change, set(elements["hairpin"]), dataplane.hairpin, "hairpin", 2)
        return self._transaction(tx, change, chains)

    def change(self, dataplane: Dataplane, delta: Delta) -> nft.Transaction:
        """Returns the transaction for `delta`. The mirror must be correct."""
        self.node = dataplane.node
        change = ElementChanges(self.mirror.elements)
        chains: Chains = {}
        for key in sorted(delta.frontends):
            if self.layout.ours(key.ip):
                self._frontend(change, self.layout.key(key), dataplane.frontends.get(key), chains)
        for name, ips, counts, repeat in (
            ("cluster-ips", delta.cluster_ips, dataplane.cluster_ips, 1),
            ("hairpin", delta.hairpin, dataplane.hairpin, 2),
        ):
            for ip in sorted(ips):
                if self.layout.ours(ip):
                    if ip in counts:
                        change.put(name, packed(ip) * repeat, None)
                    else:
                        change.drop(name, packed(ip) * repeat)
        return self._transaction(nft.Transaction(), change, chains)

    def sweep(self) -> nft.Transaction:
        """Returns the transaction that deletes the slots that an earlier commit made unreachable."""
        held = self.mirror.elements.get("endpoints", {})
        items = {key: held[key] for key in sorted(self.garbage) if key in held}
        chains = [
            self.mirror.chains[name]
            for name in sorted(self.idle)
            if name in self.mirror.chains and not self._uses[name]
        ]
        self.garbage, self.idle = set(), set()
        stale = [chain for chain in chains if not comes_with_services(chain.name)]  # these may jump to each other
        return (
            nft.Transaction().delete(nft.Elements(self.layout.sets()["endpoints"], items)).flush(*stale).delete(*chains)
        )

    @property
    def unswept(self) -> bool:
        return bool(self.garbage or self.idle or self.suspects or self.suspects is None)

    def outdated(self, local: bool, held: Mapping[bytes, nft.Value]) -> dict[bytes, nft.Value]:
        """Returns the elements of an affinity map that send a client to a removed endpoint."""
        size = -self.layout.width
        return {
            key: value
            for key, value in held.items()
            if (self.suspects is None or (local, key[:size]) in self.suspects)
            and value not in self.allowed.get((local, key[:size]), ())
        }

    def _base(
        self, found: TableDump | None, want: StaticRules
    ) -> tuple[nft.Transaction, dict[str, dict[bytes, nft.Value]]]:
        """Returns the static part of a full plan, and the initial elements (empty if the plan recreates the table)."""
        tx = nft.Transaction()
        if found is not None and not (_fits(found.sets, want.sets) and _fits(found.chains, want.chains)):
            tx.remove(self.layout.table)
            found = None
        if found is None:
            found = TableDump(self.layout.table)
            tx.add(self.layout.table)
        tx.add(*(s for name, s in want.sets.items() if name not in found.sets))
        tx.add(*(c for name, c in want.chains.items() if name not in found.chains))
        for name, rules in want.rules.items():
            _chain(tx, found, want.chains[name], rules)
        for chain in _stale(found, want):
            if chain.hook:  # no packet may meet its rules any more, and nothing can jump to it
                tx.flush(chain).delete(chain)
        for name, items in want.elements.items():
            if found.elements.get(name, {}) != items:
                tx.flush(want.sets[name]).add(nft.Elements(want.sets[name], items))
        return tx, found.elements

    def _frontend(self, change: ElementChanges, key: bytes, frontend: Frontend | None, chains: Chains) -> None:
        treatments: tuple[tuple[str, Treatment | None, bool], ...] = (
            ("services", frontend.internal if frontend else None, False),
            ("outside", frontend.external if frontend else None, True),
        )
        for name, treatment, local in treatments:
            self._slots(change, key, treatment, LOCAL_SLOTS if local else 0)
            if treatment is None or treatment == PASS:
                change.drop(name, key)
                continue
            change.put(name, key, self._verdict(frontend, treatment, local, chains))
        self._affinity(key, frontend)
        noted = remember(self.layout, frontend, self.node) if frontend is not None else None
        guard = sources(self.layout, frontend.sources) if frontend is not None and frontend.sources else None
        for name, made in (("remember", noted), ("guarded", guard)):
            if made is None:
                change.drop(name, key)
            else:
                chains[made[0].name] = made
                change.put(name, key, nft.Verdict(JUMP, made[0].name))
        masquerade, reset = (frontend.masquerade, frontend.alive is not None) if frontend is not None else ("", False)
        for name, wanted in (
            ("masquerade-always", masquerade == "always"),
            ("masquerade-node", masquerade == "node"),
            ("resets", reset),
        ):
            if wanted:
                change.put(name, key, None)
            else:
                change.drop(name, key)

    def _verdict(self, frontend: Frontend | None, treatment: Treatment, local: bool, chains: Chains) -> nft.Verdict:
        if not isinstance(treatment, Balance):
            return nft.Verdict(GOTO, NO_LOCAL if treatment == NO_LOCAL_ENDPOINTS else REFUSAL[Reason.NO_ENDPOINTS])
        made = balancer(self.layout, min(len(treatment.destinations), MAX_BACKENDS), local)
        chains[made[0].name] = made
        if treatment.sticky and frontend is not None:
            made = sticky(self.layout, frontend.service, treatment, local)
            chains[made[0].name] = made
        return nft.Verdict(GOTO, made[0].name)

    def _affinity(self, key: bytes, frontend: Frontend | None) -> None:
        """Records the endpoints that rules may remember for this frontend's Service port."""
        treatments = (frontend.internal, frontend.external) if frontend is not None else ()
        found = [(a.sticky, a.destinations) for a in treatments if isinstance(a, Balance) and a.sticky]
        if not found:
            for gone in ((False, key), (True, key)):
                if self.allowed.pop(gone, None) and self.suspects is not None:
                    self.suspects.add(gone)
        for who, destinations in found:
            where = (who.local, self.layout.key(who.port))
            now = frozenset(self.layout.destination(b) for b in destinations)
            if self.suspects is not None and not self.allowed.get(where, now) <= now:
                self.suspects.add(where)
            self.allowed[where] = now

    def _slots(self, change: ElementChanges, key: bytes, treatment: Treatment | None, first: int) -> None:
        held = change.held["endpoints"]
        if not isinstance(treatment, Balance) and key + _slot(first) not in held:
            return
        old: list[bytes] = []
        while isinstance(value := held.get(key + _slot(first + len(old))), bytes):
            old.append(value)
        destinations = treatment.destinations[:MAX_BACKENDS] if isinstance(treatment, Balance) else ()
        new = assign(old, (self.layout.destination(b) for b in destinations))
        slots = [key + _slot(first + index) for index in range(len(new))]
        if old:
            for slot, value in zip(slots, new, strict=True):
                change.put("endpoints", slot, value)
        elif new:
            change.write.setdefault("endpoints", {}).update(zip(slots, new, strict=True))
        if self.garbage:
            self.garbage.difference_update(slots)
        self.garbage.update(key + _slot(first + index) for index in range(len(new), len(old)))

    def _addresses(self, change: ElementChanges, have: set[bytes], want: Iterable[str], name: str, repeat: int) -> None:
        wanted = {packed(ip) * repeat for ip in want if self.layout.ours(ip)}
        for key in sorted(have - wanted):
            change.drop(name, key)
        for key in sorted(wanted - have):
            change.put(name, key, None)

    def _transaction(self, tx: nft.Transaction, change: ElementChanges, chains: Chains) -> nft.Transaction:
        for name, (chain, rules) in chains.items():
            if name not in self.mirror.chains:
                tx.add(chain)
            _chain(tx, self.mirror, chain, rules)
        sets = self.layout.sets()
        for name, items in change.remove.items():
            tx.delete(nft.Elements(sets[name], items))
            if name in _VERDICTS:
                self._uses.subtract(gone := [v.chain for v in items.values() if isinstance(v, nft.Verdict)])
                self.idle.update(chain for chain in gone if chain.startswith(OWN_CHAINS) and not self._uses[chain])
        for name, items in change.write.items():
            tx.add(nft.Elements(sets[name], items))
            if name in _VERDICTS:
                self._uses.update(v.chain for v in items.values() if isinstance(v, nft.Verdict))
        self.idle = {chain for chain in self.idle if not self._uses[chain]}
        return tx


def _stale(found: TableDump, want: StaticRules) -> Iterator[nft.Chain]:
    """Yields the chains that another version or another setting wrote."""
    for name, chain in found.chains.items():
        if name not in want.chains and not comes_with_services(name):
            yield chain


def _fits(found: Mapping[str, object], want: Mapping[str, object]) -> bool:
    """Whether the missing objects can be added; False if an object exists with another definition."""
    return all(found.get(name, thing) == thing for name, thing in want.items())


def _chain(tx: nft.Transaction, found: TableDump, chain: nft.Chain, rules: tuple[nft.Rule, ...]) -> None:
    """Replaces the rules of a chain in one commit, unless the rules are already correct."""
    have = [rule.comment for rule in found.rules.get(chain.name, [])]
    if have == [rule.comment for rule in rules]:
        return
    if have:
        tx.flush(chain)
    tx.add(*rules)

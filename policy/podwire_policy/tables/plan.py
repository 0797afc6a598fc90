"""Compiled -> a Transaction over the table `podwire-policy` of one family: whole, or what a change touched. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar

from podwire_base.kernel.ip import Family
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.nft.fake import apply_to

from ..cells import Cell, Group
from ..compiled import Compiled, Delta
from ..model import Block, Pods
from . import layout

T = TypeVar("T")


@dataclass(slots=True)
class Planner:
    """Makes the plans of one family. `full` compares with what the kernel has; `change` relies on the plans before.
    After a commit failed, only `full` helps.
    """

    family: Family
    fixed: layout.Fixed = field(default_factory=layout.Fixed)
    _groups: set[Group] = field(default_factory=set)
    _cells: Counter[Cell] = field(default_factory=Counter)
    _blocks: Counter[Block] = field(default_factory=Counter)
    _held: dict[str, dict[str, tuple[bytes, nft.Value]]] = field(default_factory=dict)  # address -> its elements

    def full(self, compiled: Compiled, live: TableDump | None) -> nft.Transaction:
        """Returns what makes a table that was read back (None: there is none) equal to `compiled`; empty if it is."""
        self._groups, self._cells, self._blocks, self._held = set(), Counter(), Counter(), {}
        wanted = TableDump(layout.table(self.family))
        apply_to(wanted, self._whole(compiled), check=False)
        if live is None:
            return nft.Transaction().add(wanted.table, *_things(wanted))
        return difference(wanted, live)

    def _whole(self, compiled: Compiled) -> nft.Transaction:
        family = self.family
        chain, rules = layout.base(family, self.fixed)
        tx = nft.Transaction().add(layout.table(family), layout.cut_set(family))
        tx.add(*(layout.fixed_set(family, name) for name in layout.FIXED_SETS), chain, *rules)
        tx.add(layout.mark(family, self.fixed))
        for more, those in layout.beside(family, self.fixed):
            tx.add(more, *those)
        every = Delta(set(compiled.addresses), {}, compiled.groups(), set(), set(compiled.selected), set())
        return self._change(compiled, every, tx)

    def change(self, compiled: Compiled, delta: Delta) -> nft.Transaction:
        """Returns what a change touched, as one transaction."""
        return self._change(compiled, delta, nft.Transaction())

    def _change(self, compiled: Compiled, delta: Delta, tx: nft.Transaction) -> nft.Transaction:
        family = self.family
        for selector in sorted(delta.selectors_came, key=repr):
            tx.add(layout.peer_set(family, selector))
            tx.add(layout.members(family, selector, compiled.selected[selector]))
        came, went = self._turn(delta)
        self._add(tx, delta, *came)
        for selector, change in delta.members.items():
            if selector in compiled.selected:
                tx.add(layout.members(family, selector, {ip for ip, come in change.items() if come}))
                tx.delete(layout.members(family, selector, {ip for ip, come in change.items() if not come}))
        self._dispatch(tx, compiled, delta)
        self._delete(tx, delta, *went)
        return tx

    def _turn(self, delta: Delta) -> tuple[tuple[list[Cell], list[Block]], tuple[list[Cell], list[Block]]]:
        """Counts who uses cells and blocks. Returns those that came and those that nobody uses any longer."""
        cells, blocks = Counter[Cell](), Counter[Block]()
        for group in delta.groups_came - self._groups:
            cells.update(group.cells())
        for group in delta.groups_went & self._groups:
            cells.subtract(group.cells())
        self._groups = (self._groups | delta.groups_came) - delta.groups_went
        came, went = _counted(self._cells, cells)
        for sign, some in ((1, came), (-1, went)):
            for cell in some:
                for step in cell.steps:
                    if isinstance(step.peer, Block) and layout.family_of(step.peer) == self.family:
                        blocks[step.peer] += sign
        blocks_came, blocks_went = _counted(self._blocks, blocks)
        return (came, blocks_came), (went, blocks_went)

    def _add(self, tx: nft.Transaction, delta: Delta, cells: list[Cell], blocks: list[Block]) -> None:
        for block in blocks:
            tx.add(layout.peer_set(self.family, block), layout.block_elements(self.family, block))
        made = [layout.cell_rules(self.family, cell, self.fixed.logs) for cell in cells]
        tx.add(*(chain for chain, _ in made), *(rule for _, rules in made for rule in rules))  # they lead to each other
        for group in sorted(delta.groups_came, key=layout.group_chain):
            chain, rules = layout.group_rules(self.family, group)
            tx.add(chain)
            if group.ports:
                tx.add(layout.port_map(self.family, group), layout.port_elements(self.family, group))
            tx.add(*rules)

    def _dispatch(self, tx: nft.Transaction, compiled: Compiled, delta: Delta) -> None:
        """Turns the elements of addresses that are judged otherwise than before."""
        gone: dict[str, dict[bytes, nft.Value]] = {name: {} for name in layout.FIXED_SETS}
        come: dict[str, dict[bytes, nft.Value]] = {name: {} for name in layout.FIXED_SETS}
        for ip in delta.addresses:
            if not layout.of(self.family, ip):
                continue
            before, after = self._held.pop(ip, {}), layout.dispatch(self.family, compiled, ip)
            if after:
                self._held[ip] = after
            for name in layout.FIXED_SETS:
                if before.get(name) == after.get(name):
                    continue
                for found, into in ((before, gone), (after, come)):
                    if name in found:
                        into[name].update([found[name]])
        for name in layout.FIXED_SETS:
            tx.delete(nft.Elements(layout.fixed_set(self.family, name), gone[name]))
            tx.add(nft.Elements(layout.fixed_set(self.family, name), come[name]))

    def _delete(self, tx: nft.Transaction, delta: Delta, cells: list[Cell], blocks: list[Block]) -> None:
        """Deletes rules first, then maps, then chains and sets: the kernel refuses what is still in use."""
        groups = sorted(delta.groups_went, key=layout.group_chain)
        chains = [layout.group_rules(self.family, g)[0] for g in groups]
        chains += [layout.cell_chain_of(self.family, c) for c in cells]
        tx.flush(*chains)
        tx.delete(*(layout.port_map(self.family, g) for g in groups if g.ports))
        tx.delete(*chains)
        unused: list[Pods | Block] = [*blocks, *sorted(delta.selectors_went, key=repr)]
        tx.delete(*(layout.peer_set(self.family, p) for p in unused))


def _counted(held: Counter[T], change: Counter[T]) -> tuple[list[T], list[T]]:
    """Applies a change of counts. Returns what is counted for the first time, and what no longer."""
    came = [one for one, n in change.items() if n > 0 and not held[one]]
    for one, n in change.items():
        held[one] += n
    went = [one for one in change if not held[one] and one not in came]
    for one in change:
        if not held[one]:
            del held[one]
    return came, went


def difference(wanted: TableDump, live: TableDump) -> nft.Transaction:
    """Returns the transaction that turns one table into another of the same name. A name of a chain or set says its
    content, so only rules that somebody deleted or added show in the comments.
    """
    tx = nft.Transaction()
    wrong = {n for n, s in live.sets.items() if wanted.sets.get(n) not in (None, s)}
    wrong |= {n for n, c in live.chains.items() if wanted.chains.get(n) not in (None, c)}
    if wrong:  # a set or chain of another kind under our name: another program's, or an older layout
        return nft.Transaction().remake(wanted.table).add(*_things(wanted))
    rewritten = [
        name
        for name, rules in wanted.rules.items()
        if [r.comment for r in rules] != [r.comment for r in live.rules.get(name, [])]
    ]
    tx.add(*(s for n, s in wanted.sets.items() if n not in live.sets))
    tx.add(*(c for n, c in wanted.chains.items() if n not in live.chains))
    tx.flush(*(wanted.chains[name] for name in rewritten if name in live.chains))
    tx.add(*(rule for name in rewritten for rule in wanted.rules[name]))
    for name, held in wanted.elements.items():
        there = live.elements.get(name, {})
        stale = {k: v for k, v in there.items() if k not in held or held[k] != v}
        if wanted.sets[name].timeout:  # they expire by themselves
            stale = {}
        tx.delete(nft.Elements(wanted.sets[name], stale))
        tx.add(nft.Elements(wanted.sets[name], {k: v for k, v in held.items() if k not in there or there[k] != v}))
    spare = [chain for name, chain in live.chains.items() if name not in wanted.chains]
    tx.flush(*spare)
    spare_sets = [s for name, s in live.sets.items() if name not in wanted.sets]
    tx.delete(*(s for s in spare_sets if s.data), *spare, *(s for s in spare_sets if not s.data))
    return tx


def _things(wanted: TableDump) -> list[nft.Set | nft.Chain | nft.Rule | nft.Elements]:
    return [
        *wanted.sets.values(),
        *wanted.chains.values(),
        *(rule for rules in wanted.rules.values() for rule in rules),
        *(nft.Elements(wanted.sets[name], held) for name, held in wanted.elements.items()),
    ]

"""Applies a Transaction in memory, as the kernel does. It is used in tests, for --dry-run, and as a copy of the
committed state.

It refuses an operation with the same errors as the kernel (ENOENT, EEXIST, EBUSY). So the kernel accepts a plan that
this module accepts.
"""

from __future__ import annotations

import errno
import os

from . import objects as o
from .codec import TableDump, table_of
from .expr import GOTO, JUMP, Immediate, Lookup, Update, Verdict


class Refused(OSError):
    """A refused operation, like NftError of a real socket. errno: the error. The text names `op`."""

    def __init__(self, code: int, op: o.Op) -> None:
        super().__init__(code, f"{op}: {os.strerror(code)}")
        self.op = op


def _need(condition: bool, code: int, op: o.Op) -> None:
    if not condition:
        raise Refused(code, op)


def apply_to(dump: TableDump, transaction: o.Transaction, *, check: bool = True) -> None:
    """Apply the transaction to `dump`. After an error, the changes are not undone. check False: skip the checks,
    because the kernel has already accepted the transaction.
    """
    for op in transaction:
        thing = op.thing
        if isinstance(thing, o.Table):
            if op.verb == "delete":
                dump.chains, dump.rules, dump.sets, dump.elements = {}, {}, {}, {}
        elif isinstance(thing, o.Elements):
            if check or op.verb == "delete":
                _elements(dump, op, thing)
            else:
                dump.elements[thing.set.name].update(thing.items)
        elif isinstance(thing, o.Rule):
            _rule(dump, op, thing)
        elif isinstance(thing, o.Chain):
            _chain(dump, op, thing)
        else:
            _set(dump, op, thing)


def _targets(dump: TableDump, value: object, op: o.Op) -> None:
    if isinstance(value, Verdict) and value.code in (JUMP, GOTO):
        _need(value.chain in dump.chains, errno.ENOENT, op)


def _elements(dump: TableDump, op: o.Op, things: o.Elements) -> None:
    held = dump.elements.get(things.set.name)
    _need(held is not None, errno.ENOENT, op)
    assert held is not None
    if op.verb == "delete":
        for key in things.items:
            _need(key in held, errno.ENOENT, op)
            del held[key]
        return
    for key, value in things.items.items():
        _need(len(key) == things.set.key_len, errno.EINVAL, op)
        _need(key not in held or held[key] == value, errno.EEXIST, op)
        _targets(dump, value, op)
        held[key] = value


def _rule(dump: TableDump, op: o.Op, rule: o.Rule) -> None:
    _need(op.verb == "add" and rule.chain.name in dump.chains, errno.ENOENT, op)
    for expr in rule.exprs:
        if isinstance(expr, Lookup | Update):
            _need(expr.set in dump.sets, errno.ENOENT, op)
        elif isinstance(expr, Immediate):
            _targets(dump, expr.value, op)
    dump.rules[rule.chain.name].append(rule)


def _chain(dump: TableDump, op: o.Op, chain: o.Chain) -> None:
    if op.verb == "add":
        _need(dump.chains.get(chain.name, chain) == chain, errno.EEXIST, op)
        dump.chains[chain.name] = chain
        dump.rules.setdefault(chain.name, [])
        return
    _need(chain.name in dump.chains, errno.ENOENT, op)
    if op.verb == "flush":
        dump.rules[chain.name] = []
        return
    used = {v.chain for held in dump.elements.values() for v in held.values() if isinstance(v, Verdict)}
    _need(chain.name not in used, errno.EBUSY, op)
    del dump.chains[chain.name], dump.rules[chain.name]


def _set(dump: TableDump, op: o.Op, set_: o.Set) -> None:
    if op.verb == "add":
        _need(dump.sets.get(set_.name, set_) == set_, errno.EEXIST, op)
        dump.sets[set_.name] = set_
        dump.elements.setdefault(set_.name, {})
        return
    _need(set_.name in dump.sets, errno.ENOENT, op)
    if op.verb == "flush":
        dump.elements[set_.name] = {}
    else:
        del dump.sets[set_.name], dump.elements[set_.name]


class FakeConnection:
    """The nf_tables of one namespace in memory, with the methods commit, dump and elements of Connection. `committed`
    has every committed transaction.
    """

    def __init__(self) -> None:
        self.state: dict[o.Table, TableDump] = {}
        self.committed: list[o.Transaction] = []

    def commit(self, transaction: o.Transaction) -> None:
        if not transaction:
            return
        state = {table: _copy(dump) for table, dump in self.state.items()}
        for op in transaction:
            table = table_of(op.thing)
            if isinstance(op.thing, o.Table) and op.verb == "delete":
                _need(state.pop(table, None) is not None, errno.ENOENT, op)
                continue
            if isinstance(op.thing, o.Table):
                state.setdefault(table, TableDump(table))
            _need(table in state, errno.ENOENT, op)
            apply_to(state[table], o.Transaction([op]))
        self.state = state
        self.committed.append(transaction)

    def elements(self, set_: o.Set) -> dict[bytes, o.Value]:
        return dict(self.state[set_.table].elements[set_.name])

    def dump(self, table: o.Table, *, elements: bool = True) -> TableDump | None:
        return _copy(self.state[table]) if table in self.state else None


def _copy(dump: TableDump) -> TableDump:
    return TableDump(
        dump.table,
        dict(dump.chains),
        {name: list(rules) for name, rules in dump.rules.items()},
        dict(dump.sets),
        {name: dict(held) for name, held in dump.elements.items()},
    )

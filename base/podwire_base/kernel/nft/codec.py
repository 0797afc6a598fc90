"""Encodes a Transaction as a batch of nf_tables messages, and decodes dumps to objects. Pure.

Sources: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h. A batch is NFNL_MSG_BATCH_BEGIN, one message per
operation, NFNL_MSG_BATCH_END; the kernel commits it as a whole or reports every message that fails, by sequence number.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from ..netlink.codec import (
    ACK,
    APPEND,
    CREATE,
    HEADER,
    NFPROTO,
    attr,
    message,
    nest,
    nfgenmsg,
    parse,
    text,
    to_int,
    to_signed,
    to_text,
    u32,
    u64,
    walk,
)
from . import objects as o
from .expr import Verdict, data_value

SUBSYS = 10 << 8  # NFNL_SUBSYS_NFTABLES
BATCH_BEGIN, BATCH_END = 16, 17
FAMILY_NAMES = {number: name for name, number in NFPROTO.items()}
HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
HOOK_NAMES = {number: name for name, number in HOOKS.items()}
NEW = {o.Table: 0, o.Chain: 3, o.Rule: 6, o.Set: 9, o.Elements: 12}
GETTABLE, GETCHAIN, GETRULE, GETSET, GETSETELEM, NEWGEN, GETGEN = 1, 4, 7, 10, 13, 15, 16
TABLE_USE, CHAIN_USE = 3, 6  # attributes: how many objects are in a table; how many rules a chain has, and uses of it
F_INTERVAL, F_MAP, F_TIMEOUT, F_EVAL = 4, 8, 0x10, 0x20
ELEM_INTERVAL_END = 1
TABLE_OWNER = 2  # NFT_TABLE_F_OWNER
_TYPE_NAMES = {number: name for name, (number, _) in o.TYPES.items()}
_CHUNK = 60000  # a nested attribute's length has 16 bits


def _type_code(types: tuple[str, ...]) -> int:
    if types == ("verdict",):
        return o.VERDICT_TYPE
    code = 0
    for name in types:
        code = code << 6 | o.TYPES[name][0]
    return code


def _type_names(code: int) -> tuple[str, ...]:
    if code == o.VERDICT_TYPE:
        return ("verdict",)
    names: list[str] = []
    while code:
        names.insert(0, _TYPE_NAMES.get(code & 63, "?"))
        code >>= 6
    return tuple(names)


def _comment(kind: int, comment: str) -> bytes:
    raw = comment.encode()[:126] + b"\0"
    return attr(kind, bytes((0, len(raw))) + raw)


def _chain(chain: o.Chain, verb: o.Verb) -> bytes:
    body = text(1, chain.table.name) + text(3, chain.name)
    if chain.hook and verb == "add":
        body += nest(4, u32(1, HOOKS[chain.hook]), u32(2, chain.priority))
        body += u32(5, 1 if chain.policy == "accept" else 0) + text(7, chain.type)
    return body


def _rule(rule: o.Rule, verb: o.Verb) -> bytes:
    body = text(1, rule.chain.table.name) + text(2, rule.chain.name)
    if verb == "delete":
        return body + attr(3, rule.handle.to_bytes(8, "big"))
    body += nest(4, *(expr.encode() for expr in rule.exprs))
    return body + (_comment(7, rule.comment) if rule.comment else b"")


def _set(set_: o.Set, verb: o.Verb, number: int) -> bytes:
    body = text(1, set_.table.name) + text(2, set_.name)
    if verb != "add":
        return body  # a flush deletes elements without a list of elements
    flags = (F_INTERVAL if set_.interval else 0) | (F_MAP if set_.data else 0)
    flags |= (F_TIMEOUT | F_EVAL if set_.dynamic else 0) | (F_TIMEOUT if set_.timeout else 0)
    body += u32(3, flags) + u32(4, _type_code(set_.key)) + u32(5, set_.key_len)
    if set_.data:
        body += u32(6, _type_code(set_.data))
        if set_.data_len:
            body += u32(7, set_.data_len)
    # User data tells nft(8) the byte order of single-field keys (2: big endian, 1: host).
    order = 1 if set_.key in (("mark",), ("ifname",)) else 2
    if set_.dynamic:
        body += nest(9, u32(1, set_.dynamic))
    body += u32(10, number)
    if set_.timeout:
        body += u64(11, set_.timeout * 1000)
    return body + attr(13, b"\0\4" + struct.pack("=I", order))


@lru_cache(maxsize=1 << 12)
def _data(value: bytes | Verdict) -> bytes:
    """Returns the attributes after the key. Most elements share few values, so the encoding of each value is cached."""
    return u32(3, ELEM_INTERVAL_END) if value == o.INTERVAL_END else data_value(2, value)


@lru_cache(maxsize=64)
def _value_head(size: int) -> bytes:
    """Returns the attribute headers before the data of a map element, which has `size` bytes."""
    return data_value(2, bytes(size))[:8]


@lru_cache(maxsize=64)
def _entry(key: int, rest: int) -> bytes:
    """Returns the headers of an element with a key of `key` bytes and `rest` bytes after the key. `key` is a multiple
    of four, because the kernel pads keys.
    """
    whole = nest(1, nest(1, attr(1, bytes(key))), bytes(rest))
    return whole[: len(whole) - key - rest]


def _elements(things: o.Elements, verb: o.Verb) -> Iterator[bytes]:
    """Yields the bodies of the messages for these elements."""
    head = text(1, things.set.table.name) + text(2, things.set.name)
    parts: list[bytes] = []
    size = 0
    for key, value in things.items.items():
        if value is None or (verb == "delete" and value != o.INTERVAL_END):
            rest = b""
        elif isinstance(value, Verdict) or value == o.INTERVAL_END:
            rest = _data(value)
        else:
            rest = _value_head(len(value)) + value + bytes(-len(value) % 4)
        entry = _entry(len(key), len(rest)) + key + rest
        size += len(entry)
        if size > _CHUNK:
            yield head + nest(3, *parts)
            parts, size = [], len(entry)
        parts.append(entry)
    if parts:
        yield head + nest(3, *parts)


def _bodies(op: o.Op, number: int) -> Iterable[bytes]:
    thing = op.thing
    if isinstance(thing, o.Elements):
        return _elements(thing, op.verb)
    if isinstance(thing, o.Table):
        return (text(1, thing.name) + (u32(2, TABLE_OWNER) if thing.owned and op.verb == "add" else b""),)
    if isinstance(thing, o.Rule):
        return (_rule(thing, op.verb),)
    if isinstance(thing, o.Chain):
        if op.verb == "flush":
            return (text(1, thing.table.name) + text(2, thing.name),)
        return (_chain(thing, op.verb),)
    return (_set(thing, op.verb, number),)


def _kind(op: o.Op) -> int:
    if op.verb == "flush":
        return NEW[o.Rule] + 2 if isinstance(op.thing, o.Chain) else NEW[o.Elements] + 2
    return NEW[type(op.thing)] + (2 if op.verb == "delete" else 0)


def table_of(thing: o.Thing) -> o.Table:
    if isinstance(thing, o.Table):
        return thing
    if isinstance(thing, o.Rule):
        return thing.chain.table
    return thing.set.table if isinstance(thing, o.Elements) else thing.table


def encode(transaction: o.Transaction) -> tuple[list[bytes], list[o.Op]]:
    """Returns the messages of the batch, including BEGIN and END, and the operation of each sequence number.

    Message i has the sequence number i. The last operation requests an acknowledgement.
    """
    nft = nfgenmsg(0, SUBSYS >> 8)
    messages = [message(BATCH_BEGIN, 0, nft)]
    owners: list[o.Op] = [o.Op("add", o.Table("ip", "batch"))]
    for op in transaction:
        flags = (CREATE if op.verb == "add" else 0) | (APPEND if isinstance(op.thing, o.Rule) else 0)
        head = nfgenmsg(NFPROTO[table_of(op.thing).family])
        for body in _bodies(op, len(messages)):
            messages.append(message(SUBSYS | _kind(op), flags, head + body, len(messages)))
            owners.append(op)
    length, kind, flags, seq, pid = HEADER.unpack_from(messages[-1])
    messages[-1] = HEADER.pack(length, kind, flags | ACK, seq, pid) + messages[-1][16:]
    messages.append(message(BATCH_END, 0, nft, len(messages)))
    owners.append(owners[0])
    return messages, owners


@dataclass(slots=True)
class TableDump:
    """The content of one table in the kernel. rules: chain name -> rules. elements: set name -> elements."""

    table: o.Table
    chains: dict[str, o.Chain] = field(default_factory=dict)
    rules: dict[str, list[o.Rule]] = field(default_factory=dict)
    sets: dict[str, o.Set] = field(default_factory=dict)
    elements: dict[str, dict[bytes, o.Value]] = field(default_factory=dict)


def decode_table(family: int, body: bytes) -> o.Table:
    name: o.TableFamily = FAMILY_NAMES.get(family, "inet")  # type: ignore[assignment]  # the dict's values are the literals
    return o.Table(name, to_text(parse(body).get(1)))


def decode_chain(table: o.Table, body: bytes) -> tuple[str, o.Chain]:
    """Returns (name of the table in the message, chain). `table` becomes the chain's table."""
    got = parse(body)
    name = to_text(got.get(3))
    if 4 not in got:
        return to_text(got.get(1)), o.Chain(table, name)
    hook = parse(got[4])
    return to_text(got.get(1)), o.Chain(
        table,
        name,
        HOOK_NAMES.get(to_int(hook.get(1)), "input"),  # type: ignore[arg-type]  # values are the literals
        to_text(got.get(7)),  # type: ignore[arg-type]  # the kernel knows no other types
        to_signed(hook[2]),
        "accept" if to_int(got.get(5), 1) else "drop",
    )


def decode_rule(body: bytes) -> tuple[str, str, str, int, bytes]:
    """Returns (table, chain, comment, handle, expressions). The comment identifies a rule; decode.py decodes the
    expressions.
    """
    got = parse(body)
    comment, data = "", got.get(7, b"")
    while len(data) >= 2:
        size = data[1]
        if data[0] == 0:
            comment = to_text(data[2 : 2 + size])
        data = data[2 + size :]
    return to_text(got.get(1)), to_text(got.get(2)), comment, to_int(got.get(3)), got.get(4, b"")


def decode_set(table: o.Table, body: bytes) -> tuple[str, o.Set]:
    got = parse(body)
    flags = to_int(got.get(3))
    return to_text(got.get(1)), o.Set(
        table,
        to_text(got.get(2)),
        _type_names(to_int(got.get(4))),
        _type_names(to_int(got[6])) if 6 in got else (),
        bool(flags & F_INTERVAL),
        to_int(parse(got.get(9, b"")).get(1)) if flags & F_EVAL else 0,
        to_int(got.get(11)) // 1000,
    )


def decode_elements(body: bytes) -> Iterator[tuple[bytes, o.Value]]:
    # the layout of the previous element: most elements are alike, and a dump has many
    like, size, middle, width = b"", 0, b"", 0
    for number, listed in walk(body):
        if number != 3:
            continue
        for _, raw in walk(listed):
            if len(raw) == size and raw[:8] == like and raw[width : width + 8] == middle:
                yield raw[8:width], raw[width + 8 :]
                continue
            got = parse(raw)
            if 1 not in got:
                continue
            key, value = parse(got[1])[1], _value(got)
            if type(value) is bytes and len(raw) == 16 + len(key) + len(value) and raw[8:].startswith(key):
                like, size, middle, width = raw[:8], len(raw), raw[8 + len(key) : 16 + len(key)], 8 + len(key)
            yield key, value


def _value(got: dict[int, bytes]) -> o.Value:
    if 3 in got and to_int(got[3]) & ELEM_INTERVAL_END:
        return o.INTERVAL_END
    if 2 not in got:
        return None
    data = parse(got[2])
    if 1 in data:
        return data[1]
    verdict = parse(data[2])
    return Verdict(to_signed(verdict[1]), to_text(verdict.get(2)))

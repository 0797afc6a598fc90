"""nf_tables over nfnetlink: rules, sets and elements are plain data and are committed as one transaction, without a
process.

A table with its rules, loaded whole (idempotent, atomic: the old content is replaced in the same commit):

    from podwire_base.kernel.nft import ruleset as nft, socket

    table = nft.Table("ip", "example")
    nets = nft.Set(table, "cluster", ("ipv4_addr",), interval=True)
    post = nft.Chain(table, "postrouting", hook="postrouting", type="nat", priority=100)
    tx = nft.Transaction().remake(table).add(
        nets, nft.Elements(nets, nft.intervals(["10.244.0.0/16"])), post,
        nft.Rule(post, (                                            # pod -> outside: masquerade
            nft.Payload("network", 12, 4), nft.Lookup("cluster"),              # ip saddr in the set
            nft.Payload("network", 16, 4), nft.Lookup("cluster", invert=True), # ip daddr not in it
            nft.Masquerade()), comment="pods to the world"))
    socket.apply(tx)                    # or socket.apply(tx, ns_fd=fd), or socket.Connection(ns_fd).commit(tx)

Elements: `nft.Elements(set, {key: value})`; key and value are bytes in wire form, value None in a set, a Verdict in a
verdict map. Keys of several fields: `nft.key(addr4, bytes((6,)), port.to_bytes(2, "big"))` pads each field to four
bytes. Adding an existing element is not an error; deleting a missing element is an error. To change a value, delete the
element and add it in one transaction.

Notrack for a local DNS address: a chain with hook="prerouting" (and "output"), type="filter", priority=-300, and rules
of `Payload("network", 16, 4), Cmp(addr), Meta("l4proto"), Cmp(b"\\x11"), Payload("transport", 2, 2), Cmp(port),
Notrack()`.

Header offsets: IPv4 saddr 12, daddr 16 (4 bytes); IPv6 saddr 8, daddr 24 (16 bytes); transport sport 0, dport 2 (2
bytes). Errors: `NftError` (an OSError with `errno` and `op`); nothing of a refused transaction is applied.
Read back: `Connection.dump(table)` -> TableDump or None; `Connection.tables()`.
Removal: `socket.apply(Transaction().remove(table))`.
"""

from .codec import TableDump, encode
from .errors import NftError
from .expr import (
    Bitwise,
    Cmp,
    Counter,
    Ct,
    Dnat,
    Expr,
    FibType,
    Immediate,
    Limit,
    Log,
    Lookup,
    Masquerade,
    Meta,
    Notrack,
    Numgen,
    Payload,
    Reject,
    Update,
    Verdict,
    accept,
    drop,
    goto,
    jump,
    ret,
)
from .objects import (
    INTERVAL_END,
    Chain,
    Elements,
    Op,
    Rule,
    Set,
    Table,
    Transaction,
    Value,
    describe,
    host32,
    intervals,
    key,
    show,
)

__all__ = [
    "INTERVAL_END",
    "Bitwise",
    "Chain",
    "Cmp",
    "Counter",
    "Ct",
    "Dnat",
    "Elements",
    "Expr",
    "FibType",
    "Immediate",
    "Limit",
    "Log",
    "Lookup",
    "Masquerade",
    "Meta",
    "NftError",
    "Notrack",
    "Numgen",
    "Op",
    "Payload",
    "Reject",
    "Rule",
    "Set",
    "Table",
    "TableDump",
    "Transaction",
    "Update",
    "Value",
    "Verdict",
    "accept",
    "describe",
    "drop",
    "encode",
    "goto",
    "host32",
    "intervals",
    "jump",
    "key",
    "ret",
    "show",
]

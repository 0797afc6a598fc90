"""Finds the chains of iptables that other programs made, in both variants. I/O; hostfacts.py names their owners.

The module reads the tables of legacy iptables with python-iptables (libiptc), without starting a program. Without
python-iptables, it starts iptables-legacy-save. The tables of the nft variant are ordinary netlink objects. The module
reads only existing tables, because a read would create a missing table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from podwire_base.kernel.ip import FAMILIES, Family
from podwire_base.kernel.nft import socket as nft_socket

from ..hostfacts import Foreign, ForeignChain, leftovers
from . import programs
from .layout import is_ours

_LEGACY, _NFT = "iptables-legacy", "iptables-nft"
_WORDS = {"ip": "IPv4", "ip6": "IPv6"}
_BUILT_IN = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


def foreign() -> Foreign:
    """Returns the foreign chains of the caller's namespace."""
    chains = foreign_chains()
    return Foreign(chains=tuple(chains), findings=tuple(both_variants(chains)))


def both_variants(chains: Sequence[ForeignChain]) -> Iterator[str]:
    """Yields a problem of the host if both variants have rules: every packet then passes both."""
    variants = {chain.place.partition(",")[0] for chain in chains}
    if variants >= {_LEGACY, _NFT}:
        legacy = {f"{o.table} of {o.owner or 'unknown owner'}" for o in leftovers(c for c in chains if _is_legacy(c))}
        yield (
            f"rules of legacy iptables ({', '.join(sorted(legacy))}) are here beside those of its nft variant: both "
            "see every packet; iptables-legacy-save shows them"
        )


def _is_legacy(chain: ForeignChain) -> bool:
    return chain.place.startswith(_LEGACY)


def foreign_chains() -> list[ForeignChain]:
    """Returns foreign chains, and the built-in chains that have foreign rules."""
    return [
        chain for family in FAMILIES for chain in (*_of_legacy(family), *_of_nft(family)) if not is_ours(chain.name)
    ]


def _of_legacy(family: Family) -> Iterator[ForeignChain]:
    tables = programs.legacy_tables(family, None)
    if not tables:
        return
    place = f"{_LEGACY}, {_WORDS[family]}"
    for table, chains in (_with_libiptc(family, tables) or _with_save(family)).items():
        for name, rules in chains.items():
            if name not in _BUILT_IN or rules:
                yield ForeignChain(place, table, name, rules)


def _with_libiptc(family: Family, tables: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Returns {table: {chain: number of foreign rules}}; {} if python-iptables is unusable."""
    try:
        import iptc
    except Exception:  # python-iptables raises various errors during its search for the xtables libraries
        return {}
    kind: Any = iptc.Table if family == "ip" else iptc.Table6
    found: dict[str, dict[str, int]] = {}
    for name in tables:
        table = kind(name)
        table.refresh()  # python-iptables caches one object per table, from the namespace of the first use
        found[name] = {
            chain.name: sum(not is_ours(rule.target.name) for rule in chain.rules)
            for chain in table.chains
            if not is_ours(chain.name)
        }
        table.close()
    return found


def _with_save(family: Family) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    table = ""
    try:
        lines = programs.save("legacy", family, None).splitlines()
    except programs.ProgramError:
        return {}
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            found.setdefault(table, {})[line[1:].split(" ", 1)[0]] = 0
        elif line.startswith("-A "):
            _, name, rule = line.split(" ", 2)
            found[table][name] += "-j PODWIRE-" not in rule
    return found


def _of_nft(family: Family) -> Iterator[ForeignChain]:
    if nft_socket.missing():
        return
    with nft_socket.Connection() as conn:
        for chain in conn.chains():
            if chain.table.family == family and chain.table.name in (*programs.BUILT_IN, "mangle") and not chain.hook:
                yield ForeignChain(f"{_NFT}, {_WORDS[family]}", chain.table.name, chain.name)

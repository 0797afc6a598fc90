"""The tables `podwire` in memory, which refuse the same transactions as a kernel. Implements backend.Fake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podwire_base.kernel.ip import Family
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.nft.fake import FakeConnection

from . import affinity
from .layout import OWN_CHAINS, Layout
from .plan import Planner


class FakeTables:
    def __init__(self) -> None:
        self.connection = FakeConnection()

    def table(self, family: Family) -> TableDump:
        return self.connection.state[Layout(family).table]

    def read(self, family: Family) -> TableDump | None:
        return self.connection.dump(Layout(family).table)

    def commit(self, planner: Planner, plan: nft.Transaction) -> None:
        self.connection.commit(plan)

    def settle(self, planner: Planner, *, swept: bool) -> None:
        if planner.suspects or planner.suspects is None:
            affinity.forget(planner, self.connection)
        if swept:
            planner.suspects = set()

    def content(self, family: Family) -> object:
        """Returns the meaning of the tables, without unused balancers and without the order of slots."""
        dump = self.table(family)
        elements: dict[str, object] = {name: dict(held) for name, held in dump.elements.items() if name != "endpoints"}
        slots: dict[bytes, list[tuple[bool, object]]] = {}
        for key, value in dump.elements["endpoints"].items():
            slots.setdefault(key[:-4], []).append((int.from_bytes(key[-4:], "little") >= 1 << 15, value))
        endpoints = {key: sorted(found, key=repr) for key, found in slots.items()}
        # Chains that are added and removed with Services, and their rules.
        own = {
            name: [rule.comment for rule in rules] for name, rules in dump.rules.items() if name.startswith(OWN_CHAINS)
        }
        return elements, endpoints, own

    def holds(self, planner: Planner) -> bool:
        return planner.mirror.elements == self.table(planner.family).elements

    def note(self, family: Family, noted: Any) -> None:
        name, key, data = noted
        self.table(family).elements[name][key] = data

    def forget(self, family: Family, noted: Any) -> None:
        name, key, _ = noted
        del self.table(family).elements[name][key]

    def stages(self, planner: Planner, plan: nft.Transaction) -> Sequence[nft.Transaction]:
        return [plan]  # all or nothing

    def damage(self, family: Family) -> None:
        broken = self.table(family)
        broken.rules["postrouting"].pop()
        broken.elements["cluster-ips"].popitem()
        broken.elements["endpoints"].popitem()

"""The maps in memory, and the table of nftables beneath them. Implements backend.Fake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podwire_base.kernel.ip import Family
from podwire_base.kernel.nft import ruleset as nft

from ..dataplane import Key
from ..model import is_v6
from ..nftables.fake import FakeTables
from .maps import ENDPOINTS, SERVICES, Row, key_of, place, row_of, service
from .plan import Plan, Planner, State


class FakeMaps:
    """Holds the very bytes that a kernel would hold, and refuses what it would refuse."""

    def __init__(self) -> None:
        self.tables = FakeTables()
        self.services: dict[bytes, bytes] = {}
        self.slots: dict[int, bytes] = {}

    def read(self, family: Family) -> State | None:
        table, rows = self.tables.read(family), self._rows(family)
        return State(table, rows, dict(self.slots)) if table is not None or rows else None

    def _rows(self, family: Family) -> dict[Key, Row]:
        rows = {key_of(key): row_of(value) for key, value in self.services.items()}
        return {key: row for key, row in rows.items() if is_v6(key.ip) == (family == "ip6")}

    def commit(self, planner: Planner, plan: Plan) -> None:
        self.tables.commit(planner.beneath, plan.beneath)
        assert all(0 <= slot < ENDPOINTS for slot in plan.slots)
        self.slots.update(plan.slots)
        self.services.update({place(key): service(key, row) for key, row in plan.write.items()})
        for key in plan.drop:
            self.services.pop(place(key), None)
        assert len(self.services) <= SERVICES

    def settle(self, planner: Planner, *, swept: bool) -> None:
        self.tables.settle(planner.beneath, swept=swept)

    def content(self, family: Family) -> object:
        """Returns the meaning of the maps: the place of a block does not count, nor the order in it."""
        state = State(None, self._rows(family), self.slots)
        held = {key: state.held(key) for key in state.services}
        meaning = {key: (one.row.flags, one.row.number, frozenset(one.destinations)) for key, one in held.items()}
        return self.tables.content(family), meaning

    def holds(self, planner: Planner) -> bool:
        state = State(None, self._rows(planner.family), self.slots)
        return self.tables.holds(planner.beneath) and planner.mirror == {key: state.held(key) for key in state.services}

    def note(self, family: Family, noted: Any) -> None:
        self.tables.note(family, noted)

    def forget(self, family: Family, noted: Any) -> None:
        self.tables.forget(family, noted)

    def stages(self, planner: Planner, plan: Plan) -> Sequence[Plan]:
        """nftables, all or nothing; then each slot and each element apart."""
        empty = nft.Transaction
        return [
            Plan(plan.beneath),
            *(Plan(empty(), slots={slot: data}) for slot, data in plan.slots.items()),
            *(Plan(empty(), write={key: row}, held={key: plan.held[key]}) for key, row in plan.write.items()),
            *(Plan(empty(), drop=[key]) for key in plan.drop),
        ]

    def damage(self, family: Family) -> None:
        self.tables.damage(family)
        self.services.popitem()
        value = next(iter(self.services.values()))
        self.slots[row_of(value).base] = bytes(24)

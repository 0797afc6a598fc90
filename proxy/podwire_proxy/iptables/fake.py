"""The kernel's iptables and sets in memory: accepts input of iptables-restore, and returns output of iptables-save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from podwire_base.kernel.ip import Family

from .layout import PREFIX, Chain, cluster_ips, is_ours
from .plan import KernelState, Plan, Planner, SetOp
from .text import parse, take_apart


@dataclass
class Kernel:
    """chains: rules by chain. sets: members by name. Raises AssertionError where a real kernel refuses."""

    chains: dict[Chain, list[str]] = field(default_factory=dict)
    sets: dict[str, set[str]] = field(default_factory=dict)

    def commit(self, plan: Plan) -> None:
        for op in plan.before:
            self._set(op)
        self.restore(plan.restore())
        for op in plan.after:
            self._set(op)

    def restore(self, text: str) -> None:
        """Applies the text like iptables-restore --noflush."""
        table = ""
        for line in text.splitlines():
            command, _, rest = line.partition(" ")
            if line.startswith("*"):
                table = line[1:]
            elif line.startswith(":"):
                self.chains[Chain(table, command[1:])] = []  # type: ignore[arg-type]  # tables by their names
            elif command == "COMMIT":
                self._check()
            else:
                name, _, rule = rest.partition(" ")
                self._rule(command, Chain(table, name), rule)  # type: ignore[arg-type]  # as above

    def read(self) -> KernelState:
        """Returns the rules, parsed from the text that iptables-save would print."""
        lines = []
        for table in sorted({chain.table for chain in self.chains}):
            mine = {chain.name: rules for chain, rules in self.chains.items() if chain.table == table}
            lines += [f"*{table}", *(f":{name} - [0:0]" for name in mine)]
            lines += [f"-A {name} {rule}" for name, rules in mine.items() for rule in rules]
            lines.append("COMMIT")
        return KernelState(parse("\n".join(lines)), {name: set(members) for name, members in self.sets.items()})

    def _rule(self, command: str, chain: Chain, rule: str) -> None:
        if command == "-X":
            assert not self.chains.pop(chain), f"{chain} is not empty"
            return
        rules = self.chains.setdefault(chain, []) if not is_ours(chain.name) else self.chains[chain]
        if command == "-A":
            rules.append(rule)
        elif command == "-I":
            place, _, rule = rule.partition(" ")
            rules.insert(int(place) - 1, rule)
        else:
            assert command == "-D"
            rules.remove(rule)

    def _check(self) -> None:
        for chain, rules in self.chains.items():
            for rule in map(take_apart, rules):
                assert not rule.target.startswith(PREFIX) or Chain(chain.table, rule.target) in self.chains, (
                    chain,
                    rule,
                )
                assert self._named(rule.options + rule.arguments) <= self.sets.keys(), (chain, rule)

    @staticmethod
    def _named(options: tuple[tuple[str, tuple[str, ...], bool], ...]) -> set[str]:
        return {arguments[0] for name, arguments, _ in options if name in ("--match-set", "--add-set")}

    def _set(self, op: SetOp) -> None:
        if op.kind == "create":
            self.sets.setdefault(op.name, set())
        elif op.kind == "add":
            self.sets[op.name].update(op.members)
        elif op.kind == "del":
            self.sets[op.name].difference_update(op.members)
        elif op.kind == "flush":
            self.sets[op.name].clear()
        else:
            used = {
                name
                for rules in self.chains.values()
                for rule in map(take_apart, rules)
                for name in self._named(rule.options + rule.arguments)
            }
            assert op.name not in used, f"{op.name} is still used"
            del self.sets[op.name]


class FakeChains:
    """The kernels of both families. Implements backend.Fake."""

    def __init__(self) -> None:
        self.kernels: dict[Family, Kernel] = {"ip": Kernel(), "ip6": Kernel()}

    def read(self, family: Family) -> KernelState:
        return self.kernels[family].read()

    def commit(self, planner: Planner, plan: Plan) -> None:
        self.kernels[planner.family].commit(plan)

    def settle(self, planner: Planner, *, swept: bool) -> None:
        """Does nothing: the plan flushes the sets of clients."""

    def content(self, family: Family) -> object:
        state = self.read(family)
        return state.chains, state.sets

    def holds(self, planner: Planner) -> bool:
        return planner.mirror.chains == self.read(planner.family).chains

    def note(self, family: Family, noted: Any) -> None:
        name, client = noted
        self.kernels[family].sets[name].add(client)

    def forget(self, family: Family, noted: Any) -> None:
        name, client = noted
        self.kernels[family].sets[name].discard(client)

    def stages(self, planner: Planner, plan: Plan) -> Sequence[Plan]:
        """Returns the steps of a plan: one per set operation, and one commit per table."""
        tables = [
            Plan(
                write={chain: rules for chain, rules in plan.write.items() if chain.table == table},
                have=plan.have,
                delete=tuple(chain for chain in plan.delete if chain.table == table),
            )
            for table in plan.tables
        ]
        return [*(Plan(before=(op,)) for op in plan.before), *tables, *(Plan(after=(op,)) for op in plan.after)]

    def damage(self, family: Family) -> None:
        kernel = self.kernels[family]
        kernel.chains[Chain("nat", "PODWIRE-POSTROUTING")].pop()
        del kernel.chains[Chain("nat", "PREROUTING")]
        kernel.sets[cluster_ips(family)].pop()

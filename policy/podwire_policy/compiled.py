"""What the policies of a cluster mean for the pods of one node, and what a change touched. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .cells import Group
from .model import Direction, Pods


class Judged(NamedTuple):
    """The programs of one address of this node. None: all traffic of this direction is allowed."""

    pod: str
    ingress: Group | None
    egress: Group | None

    def program(self, direction: Direction) -> Group | None:
        return self.ingress if direction == "ingress" else self.egress


@dataclass(slots=True)
class Compiled:
    """addresses: those of this node's pods, also of pods that no policy isolates. selected: the members of every
    selector that a step names.
    """

    addresses: dict[str, Judged] = field(default_factory=dict)
    selected: dict[Pods, set[str]] = field(default_factory=dict)

    def groups(self) -> set[Group]:
        return {g for one in self.addresses.values() for g in (one.ingress, one.egress) if g is not None}


@dataclass(slots=True)
class Delta:
    """What a change touched. addresses: those that are judged otherwise than before. members: of selectors, address ->
    it came or went. came, went: groups and selectors that are used for the first time, or no longer.
    """

    addresses: set[str] = field(default_factory=set)
    members: dict[Pods, dict[str, bool]] = field(default_factory=dict)
    groups_came: set[Group] = field(default_factory=set)
    groups_went: set[Group] = field(default_factory=set)
    selectors_came: set[Pods] = field(default_factory=set)
    selectors_went: set[Pods] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.addresses or self.members or self.groups_came or self.groups_went)

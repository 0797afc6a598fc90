"""Faults that are put into the compiler and the plan are found by comparing them with the oracle."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

from podwire_policy import cells, convert, members, model
from podwire_policy.tables import layout
from podwire_policy.testing import oracle
from podwire_policy.testing.judge import judges, packet, play
from podwire_policy.testing.rows_more import ROWS as MORE
from podwire_policy.testing.worlds import Chance, probes

FIRST, WORLDS, PROBES, TRACED = 20, 60, 120, 12  # FIRST of the worlds take half as long as the rows
ROWS = [
    row
    for row in MORE
    if row.name.startswith(("ingress: everybody,", "ingress: the addresses")) or ": " not in row.name
]

# fmt: off
FAULTS = [
    # the six that everybody makes
    ("egress forgotten where policyTypes is absent", convert, '*(["Egress"] if spec.get("egress") else [])', ""),
    ("except ignored", convert, 'for one in block.get("except") or ()', "for one in ()"),
    (
        "the two selectors or-ed",
        members,
        "matches(selector.namespaces, there) and",
        "matches(selector.namespaces, there) or",
    ),
    ("an empty from denies", convert, "if rule.get(field) else None", "if field in rule else None"),
    (
        "endPort exclusive",
        convert,
        "return Ports(protocol, first, last)",
        "return Ports(protocol, first, max(first, last - 1))",
    ),
    ("a member kept after its label went", members, "self._move(selector, pod, come=False)", "pass"),
    # and more
    ("NotIn wants the label", model, "have.get(term.key) not in", "term.key in have and have[term.key] not in"),
    ("a port without protocol is of any", cells, "e.ports is None or e.ports.protocol == protocol", "True"),
    ("the protocol of a named port ignored", convert, 'Named(protocol, port["name"])', 'Named(6, port["name"])'),
    (
        "a podSelector selects in all Namespaces",
        convert,
        "return Pods(namespace, (), chosen)",
        'return Pods("*", (), chosen)',
    ),
    ("pods that ended stay peers", convert, 'status.get("phase") in FINISHED', "False"),
    ("an address belongs to the older pod", members, "max(claims,", "min(claims,"),
    ("ranges split one port early", cells, "(e.ports.first, e.ports.last + 1)", "(e.ports.first, e.ports.last)"),
    (
        "an allowed egress skips ingress",
        layout,
        'nft.accept() if cell.direction == "ingress" else nft.ret()',
        "nft.accept()",
    ),
    ("only the first hole of a block", layout, "first = max(first, high + 1)", "first = last + 1"),
    (
        "labels of a Namespace are not followed",
        members,
        "for key in self._by_namespace.get(name, ()):",
        "for key in ():",
    ),
    ("the greatest priority first", cells, "p.tier), p.priority", "p.tier), -p.priority"),
    ("Pass accepts", layout, 'onward if step.action == "pass" else allow', "allow"),
    (
        "Baseline judges whom a NetworkPolicy allows",
        layout,
        "if cell.after is not None:",
        "if cell.after is not None and not cell.after.steps:",
    ),
]
# fmt: on


def functions(module: ModuleType | Any, own: str) -> Iterator[tuple[str, FunctionType]]:
    for name, wrapped in vars(module).items():
        thing = getattr(wrapped, "__wrapped__", wrapped)
        if isinstance(thing, FunctionType) and thing.__module__ == own:
            yield name, thing
        elif isinstance(thing, type) and thing.__module__ == own and thing is not module:
            yield from ((f"{name}.{inner}", f) for inner, f in functions(thing, own))


@contextmanager
def fault(module: ModuleType, right: str, wrong: str) -> Iterator[None]:
    """Puts a fault into a module: its functions get the code of the changed text."""
    text = inspect.getsource(module)
    assert text.count(right) == 1, f"{right!r} is there {text.count(right)} times"
    changed = _codes(compile(text.replace(right, wrong), str(module.__file__), "exec"))
    undo: list[Callable[[], None]] = []
    try:
        for name, function in functions(module, module.__name__):
            code = function.__code__
            if name in changed and code.co_freevars == changed[name].co_freevars:
                undo.append(lambda f=function, c=code: setattr(f, "__code__", c))  # type: ignore[misc]  # binds now
                function.__code__ = changed[name]
        yield
    finally:
        for one in undo:
            one()


def _codes(code: CodeType, prefix: str = "") -> dict[str, CodeType]:
    found = {}
    for const in code.co_consts:
        if isinstance(const, CodeType):
            name = f"{prefix}{const.co_name}"
            found[name] = const
            found |= _codes(const, f"{name}.")
    return found


def disagreement(seed: int) -> bool:
    chance = Chance(Random(seed))
    world = chance.world()
    nodes = judges(world)
    for _ in range(5):
        kind, key = chance.change(world)
        for node in nodes:
            node.take(world, kind, key)
            node.change()
    every = list(probes(world))
    for number, (src, dst, protocol, port) in enumerate(chance.rng.sample(every, min(PROBES, len(every)))):
        truth, asked = oracle.allowed(world, src, dst, protocol, port), packet(src, dst, protocol, port)
        if all(node.decides(asked) for node in nodes) != truth:
            return True
        if number < TRACED and all(node.traces(asked) for node in nodes) != truth:
            return True
    return False


def wrong_row() -> bool:
    return any(play(row, asked=90, traced=10) for row in ROWS)


def test_without_a_fault_nothing_is_found() -> None:
    assert not any(disagreement(seed) for seed in range(12))
    assert not wrong_row()


@pytest.mark.parametrize(("module", "right", "wrong"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_fault_is_found(module: ModuleType, right: str, wrong: str) -> None:
    layout.digest.cache_clear()
    layout.block_elements.cache_clear()
    try:
        with fault(module, right, wrong):
            assert (
                any(disagreement(seed) for seed in range(FIRST))
                or wrong_row()
                or any(disagreement(seed) for seed in range(FIRST, WORLDS))
            )
    finally:
        layout.block_elements.cache_clear()

"""No act costs more than its budget: syscalls, netlink messages, map elements, Python instructions
(bench/budgets.toml)."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab.patience import patient

pytestmark = pytest.mark.alone  # a process that waits for its CPU makes more system calls
BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))
counters = importlib.import_module("counters")  # bench/ is no package
PYTHON = sys.version_info[:2]
BUDGETS: dict[str, dict[str, int]] = counters.budgets(PYTHON)


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    done = subprocess.run(
        [sys.executable, str(BENCH / "counters.py")], capture_output=True, text=True, timeout=patient(300), check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("act", BUDGETS)
def test_an_act_stays_within_its_budget(counted: dict[str, dict[str, int]], act: str) -> None:
    used = {name: counted[act][name] for name in BUDGETS[act]}
    over = {name: (number, BUDGETS[act][name]) for name, number in used.items() if number > BUDGETS[act][name]}
    assert not over, f"{act}: more than budgeted (used, budget): {over}"
    idle = {name: (number, BUDGETS[act][name]) for name, number in used.items() if BUDGETS[act][name] > 2 * number + 2}
    assert not idle, f"{act}: budgets in bench/budgets.toml that guard nothing (used, budget): {idle}"
    if "bytecodes" not in used:
        pytest.skip(f"bench/budgets.toml has no bytecodes of Python {PYTHON[0]}.{PYTHON[1]}; the rest holds")


def test_every_act_has_a_budget(counted: dict[str, dict[str, int]]) -> None:
    assert set(counted) == set(BUDGETS)
    assert all(any(counted[act].values()) for act in counted), "nothing was counted"  # a list makes no system call


def test_bytecodes_are_budgeted_for_each_python_alone() -> None:
    """Each version compiles to a bytecode of its own: 3.13 needs a tenth less than 3.11."""
    known = {version: counters.budgets(version) for version in ((3, 11), (3, 13))}
    assert all("bytecodes" in budget for budgets in known.values() for budget in budgets.values())
    assert all(known[3, 13][act]["bytecodes"] < known[3, 11][act]["bytecodes"] for act in BUDGETS)
    unknown = counters.budgets((3, 99))
    assert all("bytecodes" not in budget and budget["syscalls"] for budget in unknown.values())

"""No act costs more than its budget: syscalls, netlink messages, map elements, Python instructions
(bench/budgets.toml)."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lab.patience import patient

pytestmark = pytest.mark.alone  # a process that waits for its CPU makes more system calls
BENCH = Path(__file__).resolve().parents[1] / "bench"
BUDGETS: dict[str, dict[str, int]] = tomllib.loads((BENCH / "budgets.toml").read_text())


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


def test_every_act_has_a_budget(counted: dict[str, dict[str, int]]) -> None:
    assert set(counted) == set(BUDGETS)
    assert all(counted[act]["syscalls"] for act in counted), "nothing was counted"

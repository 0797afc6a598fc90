"""PODWIRE_PATIENCE makes waits longer and changes nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from podwire.demo import lab
from podwire_base import patience


@pytest.mark.parametrize(("said", "seconds"), [("", 20.0), ("1", 20.0), ("10", 200.0), ("0.5", 10.0)])
def test_the_variable_is_a_factor(said: str, seconds: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from podwire_base.patience import patient; print(patient(20))"],
        env={**os.environ, "PODWIRE_PATIENCE": said},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) == seconds


def test_the_demo_waits_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a patience of 0 it checks once, whatever the time limit; the message gives the time limit."""
    monkeypatch.setattr(patience, "FACTOR", 0.0)
    looks: list[int] = []
    with pytest.raises(lab.NotYet, match="not within 0 s"):
        lab.wait_for(lambda: looks.append(1), 1e6, every=0.001)
    assert len(looks) <= 2

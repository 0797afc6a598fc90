"""The sysctls of conntrack: switched on, what was found is written down, and put back if it is still ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .. import sysctls


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "netfilter"
    base.mkdir()
    for name in sysctls.WANTED:
        (base / name).write_text("0\n")
    (base / "nf_conntrack_tcp_timeout_time_wait").write_text("120\n")
    monkeypatch.setattr(sysctls, "BASE", base)
    return base


def values(base: Path) -> list[str]:
    return [(base / name).read_text().strip() for name in sysctls.WANTED]


def test_switched_on_and_put_back(kernel: Path, tmp_path: Path) -> None:
    assert sysctls.ensure(tmp_path) == []
    assert values(kernel) == ["1", "1"]
    assert json.loads((tmp_path / sysctls.RECORD).read_text()) == dict.fromkeys(sysctls.WANTED, "0")
    assert sysctls.ensure(tmp_path) == [], "a restart keeps what was found first"
    assert len(list(sysctls.restore(tmp_path, dry_run=True))) == 2
    assert values(kernel) == ["1", "1"]
    assert len(list(sysctls.restore(tmp_path))) == 2
    assert values(kernel) == ["0", "0"]
    assert list(sysctls.restore(tmp_path)) == []


def test_what_was_on_stays_on(kernel: Path, tmp_path: Path) -> None:
    (kernel / sysctls.WANTED[0]).write_text("1\n")
    sysctls.ensure(tmp_path)
    assert len(list(sysctls.restore(tmp_path))) == 1
    assert values(kernel) == ["1", "0"]


def test_what_somebody_changed_since_is_left_alone(kernel: Path, tmp_path: Path) -> None:
    sysctls.ensure(tmp_path)
    (kernel / sysctls.WANTED[1]).write_text("0\n")
    assert [line.split()[1] for line in sysctls.restore(tmp_path)] == [f"net.netfilter.{sysctls.WANTED[0]}"]


def test_a_kernel_that_lacks_one(kernel: Path, tmp_path: Path) -> None:
    (kernel / sysctls.WANTED[1]).unlink()
    assert sysctls.ensure(tmp_path) == [sysctls.WANTED[1]]
    assert sysctls.timeouts() == {7: 120.0}

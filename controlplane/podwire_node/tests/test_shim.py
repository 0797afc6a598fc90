"""The shim's log of a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from podwire_node import shim


def copied(path: Path, data: bytes) -> None:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    shim.copy_log(reader, str(path))
    os.close(reader)


def test_the_log_of_a_container_that_restarts_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run counted from nothing: a container that restarts often filled the disk."""
    monkeypatch.setattr(shim, "LOG_LIMIT", 2000)
    path = tmp_path / "log"
    for run in range(50):
        copied(path, b"run %d\n" % run * 5)
    assert path.stat().st_size < 2300
    assert (tmp_path / "log.1").stat().st_size < 2300
    assert path.read_text().splitlines()[-1].endswith("run 49") or path.read_text() == ""

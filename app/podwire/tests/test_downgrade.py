"""`podwire cleanup --for-downgrade` where it must not do anything. netns-tests/test_upgrade.py goes the way back."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result

from podwire.main import cli
from podwire_base.role import layout
from podwire_cni.ipam.store import DirStore


def cleanup(run_dir: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["cleanup", "--for-downgrade", "--run-dir", str(run_dir), *words])


def test_the_agent_must_have_ended(tmp_path: Path) -> None:
    layout.claim(tmp_path)
    store = DirStore(tmp_path / "cni/leases")
    try:
        done = cleanup(tmp_path)
    finally:
        store.close()
    assert (
        done.exit_code == 1
        and "stop it first" in " ".join(done.output.split())
        and layout.read(tmp_path)[0] == layout.LAYOUT
    )


def test_a_newer_layout_is_not_for_this_version(tmp_path: Path) -> None:
    (tmp_path / "cni").mkdir()
    (tmp_path / layout.FILE).write_text(json.dumps({"layout": 2, "version": "9.1.0"}))
    done = cleanup(tmp_path)
    assert done.exit_code == 1 and "podwire 9.1.0" in done.output and layout.read(tmp_path)[0] == 2


def test_what_is_no_run_directory_is_named(tmp_path: Path) -> None:
    assert "--run-dir" in cleanup(tmp_path / "no").output
    assert "--dry-run" in cleanup(tmp_path, "--dry-run").output

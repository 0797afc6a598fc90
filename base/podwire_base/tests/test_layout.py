"""The layout of a node's state: an older one is taken over, and a newer one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from podwire_base.kube.errors import ConfigError
from podwire_base.role import layout


def test_taken_over_and_kept(tmp_path: Path) -> None:
    assert layout.read(tmp_path) == (0, "")
    layout.claim(tmp_path / "node")
    assert layout.read(tmp_path / "node")[0] == layout.LAYOUT
    stamp = (tmp_path / "node/layout.json").stat().st_mtime_ns
    layout.claim(tmp_path / "node")
    assert (tmp_path / "node/layout.json").stat().st_mtime_ns == stamp, "written once"
    (tmp_path / "node/layout.json").write_text('{"layout": 1, "version": "0.0.1"}')
    layout.claim(tmp_path / "node")
    assert layout.read(tmp_path / "node")[1] != "0.0.1"
    assert layout.forget(tmp_path / "node") and not layout.forget(tmp_path / "node")


def test_a_newer_one_is_refused_by_name(tmp_path: Path) -> None:
    newer = json.dumps({"layout": layout.LAYOUT + 1, "version": "7.5.0", "more": []})
    (tmp_path / "layout.json").write_text(newer)
    for act in (layout.check, layout.claim):
        with pytest.raises(layout.NewerLayout, match=r"layout.json: podwire 7\.5\.0 .* layout 2.*--for-downgrade"):
            act(tmp_path)
    assert (tmp_path / "layout.json").read_text() == newer


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"layout": "new"}', "\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "layout.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ConfigError, match=r"layout\.json"):
        layout.claim(tmp_path)

"""Whether a start can still succeed, and what a start keeps."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from podwire import compiled
from podwire.cluster import config, credentials, hopeless, lifecycle, teardown
from podwire.cluster.config import ClusterConfig
from podwire_controlplane.store.damage import damage, keep_aside


@pytest.mark.parametrize(
    ("row", "over"),
    [
        ({"pid": 7, "restarts": 0, "status": 0}, False),
        ({"pid": 7, "restarts": 1, "status": 1}, False),  # the first end may have a passing cause
        ({"pid": 0, "restarts": 2, "status": 1}, True),
        ({"pid": 0, "restarts": 9, "status": -9}, False),  # another process killed it
        ({"pid": 0, "restarts": 9}, False),  # the state file of an older version
    ],
)
def test_a_role_that_ends_by_itself_twice_does_not_start(row: dict[str, int], over: bool) -> None:
    assert hopeless.ended({"first": {"pid": 1, "restarts": 0, "status": 0}, "second": row}) == (
        "second" if over else ""
    )


@pytest.mark.parametrize(
    ("log", "text"),
    [
        ("", ""),
        ("2026-01-01T00:00:00.000Z info proxy synced error=no", ""),
        (
            'T error supervisor "role failed" child=x error="[Errno 98] Address \\"in\\" use" trace="..."\nT info x y',
            '[Errno 98] Address "in" use',
        ),
        ("T error supervisor failed child=x error=short", "short"),
        ("T error supervisor failed child=x", "failed child=x"),
    ],
)
def test_the_last_error_of_a_log(log: str, text: str) -> None:
    assert hopeless.reason(log) == text


def test_a_tree_that_was_never_built_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is said before anything is started."""
    monkeypatch.setattr(compiled, "files", lambda _: tmp_path)
    monkeypatch.setattr(config, "BASE", tmp_path / "run")
    with pytest.raises(lifecycle.UpFailed, match=r"lacks schema.json.gz and descriptions.json.gz: `make install`"):
        lifecycle.start(ClusterConfig(name="never"))
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert compiled.unbuilt() == ""


def _store(path: Path, value: bytes = b'{"metadata":{"name":"x"}}') -> Path:
    db = sqlite3.connect(path)
    db.executescript(
        "CREATE TABLE items (key TEXT PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE changes (revision INTEGER PRIMARY KEY, key TEXT NOT NULL, value BLOB);"
    )
    with db:
        db.executemany("INSERT INTO items VALUES (?, ?, ?)", [(f"/pods/{n}", n, value) for n in range(300)])
    db.close()
    return path


def test_a_whole_store_is_whole(tmp_path: Path) -> None:
    assert damage(_store(tmp_path / "store.db")) == ""


def test_damage_is_found(tmp_path: Path) -> None:
    path = _store(tmp_path / "store.db")
    whole = path.read_bytes()
    assert damage(tmp_path / "none.db") == "the file is gone"
    for bad in (b"", b"garbage" * 1000, whole[: len(whole) // 2], whole[:4096] + os.urandom(4096) + whole[8192:]):
        path.write_bytes(bad)
        assert damage(path)
    path.unlink()
    assert "/pods/0" in damage(_store(path, b'{"metadata":{"name'))


def test_damaged_stores_are_kept_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    for number in (1, 2):
        for end in ("", "-wal"):
            Path(f"{path}{end}").write_text(str(number))
        assert keep_aside(path) == tmp_path / f"store.db.damaged-{number}"
    assert not path.exists() and not Path(f"{path}-wal").exists()
    assert (tmp_path / "store.db.damaged-1-wal").read_text() == "1"
    assert keep_aside(path) is None


def test_credentials_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BASE", tmp_path)
    made = ClusterConfig(name="c", nodes=1)
    credentials.make(made)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) == 8
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    credentials.make(ClusterConfig(name="c", nodes=2))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path: after[path] for path in files} == files
    assert set(after) - set(files) == {made.node_dir("node2") / "kubeconfig"}
    (made.run_dir / "api" / "ca-key.pem").write_text("damaged")
    with pytest.raises(credentials.Damaged, match=r"ca-key\.pem"):
        credentials.make(made)


def test_logs_of_a_failed_start_take_the_place_of_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BASE", tmp_path)
    made = ClusterConfig(name="c", nodes=1)
    for text in ("first", "second"):
        for folder in (made.run_dir, made.node_dir("node1")):
            (folder / "log").mkdir(parents=True)
            (folder / "log" / "x.log").write_text(text)
        teardown.keep_logs(made)
        kept = {path.relative_to(tmp_path): path.read_text() for path in made.failed_dir.rglob("*.log")}
        assert kept == {Path("c.failed/cluster/x.log"): text, Path("c.failed/node1/x.log"): text}

"""Files that other processes replace are heard of at once."""

from __future__ import annotations

import select
from pathlib import Path

import pytest

from podwire_base.kernel.inotify import FileWatch
from podwire_base.role import files


def readable(watch: FileWatch) -> bool:
    return bool(select.select([watch.fileno()], [], [], 0)[0])


@pytest.fixture
def watch(tmp_path: Path, request: pytest.FixtureRequest) -> FileWatch:
    made = FileWatch(tmp_path, ("pods.json", "ports.json"))
    request.addfinalizer(made.close)
    return made


@pytest.mark.parametrize("name", ["pods.json", "ports.json"])
def test_a_file_that_is_replaced_is_heard_of_once(watch: FileWatch, tmp_path: Path, name: str) -> None:
    assert not watch.changed()
    for text in ("one", "two"):
        files.write(tmp_path / name, text)
    assert readable(watch)
    assert watch.changed()
    assert not readable(watch)
    assert not watch.changed()


def test_a_file_that_is_written_in_place_is_heard_of(watch: FileWatch, tmp_path: Path) -> None:
    (tmp_path / "pods.json").write_text("one")
    assert watch.changed()


def test_other_files_are_not(watch: FileWatch, tmp_path: Path) -> None:
    files.write(tmp_path / "status.json", "one")
    (tmp_path / "pods.json.old").write_text("two")
    assert not watch.changed()


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        FileWatch(tmp_path / "nowhere", ("pods.json",))

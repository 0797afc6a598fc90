"""Clusters of one machine share two folders, which the last one to go removes; a cluster that comes then makes them
anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podwire.cluster import lifecycle, network
from podwire.cluster.network import NameTaken


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that vanish, each once, right after they were made."""
    found: list[Path] = []
    mkdir = Path.mkdir

    def make(path: Path, *words: Any, **more: Any) -> None:
        mkdir(path, *words, **more)
        if path.name == "shared" and path not in found:
            found.append(path)
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", make)
    return found


def test_the_folder_of_run_directories(tmp_path: Path, removed: list[Path]) -> None:
    lifecycle._make(tmp_path / "shared" / "new")
    assert removed == [tmp_path / "shared"] and (tmp_path / "shared" / "new").is_dir()
    with pytest.raises(FileExistsError):
        lifecycle._make(tmp_path / "shared" / "new")


def test_the_folder_of_links(tmp_path: Path, removed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "NETNS", tmp_path / "shared")
    network.link(tmp_path / "new-node1")
    assert removed == [tmp_path / "shared"]
    assert (tmp_path / "shared" / "new-node1").readlink() == tmp_path / "new-node1"


def test_links_and_files_of_earlier_runs_give_way_and_other_links_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "NETNS", tmp_path)
    (tmp_path / "old-node1").symlink_to("/run/podwire/old/ns/old-node1")
    (tmp_path / "old-node2").touch()
    for name in ("old-node1", "old-node2"):
        network.link(Path("/run/podwire/new/ns") / name)
        assert (tmp_path / name).readlink() == Path("/run/podwire/new/ns") / name
    (tmp_path / "own").symlink_to("/somewhere/else")
    with pytest.raises(NameTaken, match="ip netns del own"):
        network.link(Path("/run/podwire/new/ns/own"))
    assert (tmp_path / "own").readlink() == Path("/somewhere/else")

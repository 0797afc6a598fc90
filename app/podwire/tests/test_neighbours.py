"""Clusters of one machine share two folders, which the last one to go removes; a cluster that comes then makes them
anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from podwire.cluster import lifecycle, network
from podwire.cluster.config import ClusterConfig


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


def test_the_folder_of_namespaces(tmp_path: Path, removed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClusterConfig, "run_dir", tmp_path)
    monkeypatch.setattr(network, "NETNS", tmp_path / "shared")
    monkeypatch.setattr(network, "in_thread", lambda _: None)  # unshare and mount need root
    monkeypatch.setattr(network, "netlink", lambda *_: None)
    network.create(ClusterConfig(), "new-node1")
    assert removed == [tmp_path / "shared"] and (tmp_path / "shared" / "new-node1").exists()
    assert (tmp_path / "netns").read_text() == "new-node1\n"

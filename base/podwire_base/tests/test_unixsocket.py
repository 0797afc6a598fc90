"""A unix socket of a role is its user's alone, from the first moment that its file is there."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

import pytest

from podwire_base.role import unixsocket

ROOT = Path(__file__).parents[3]


@pytest.fixture
def open_umask() -> object:
    """A umask that takes no bit, as some service managers set it."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_the_file_is_born_with_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Watched(socket.socket):
        def bind(self, address: str) -> None:  # type: ignore[override]
            super().bind(address)
            seen.append(stat.S_IMODE(os.stat(address).st_mode))

    monkeypatch.setattr(socket, "socket", Watched)
    with unixsocket.listen(tmp_path / "run" / "role.sock"):
        assert stat.S_IMODE((tmp_path / "run" / "role.sock").stat().st_mode) == 0o600
    assert seen == [0o600]


def test_it_takes_the_place_of_one_that_was_left(tmp_path: Path) -> None:
    path = tmp_path / "role.sock"
    unixsocket.listen(path).close()
    with unixsocket.listen(path) as sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        sock.accept()[0].close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["role.sock"]


def test_a_path_that_cannot_be_bound_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        unixsocket.listen(tmp_path / ("x" * 200))
    assert not list(tmp_path.iterdir())


def test_no_role_binds_a_unix_socket_by_itself() -> None:
    """One place sets the mode. A program that stands for another one's socket in tests is none of ours."""
    rooms = ("app", "base", "cni", "controlplane", "dns", "observe", "policy", "proxy")
    makes = re.compile(r"start_unix_server\(|create_unix_server\(|\.bind\(str\(")
    found = [
        str(file.relative_to(ROOT))
        for room in rooms
        for file in (ROOT / room).rglob("*.py")
        if not {"tests", "testing"} & set(file.parts) and makes.search(file.read_text())
    ]
    assert found == ["base/podwire_base/role/unixsocket.py"]

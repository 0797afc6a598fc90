"""`make runtimes` fetches the packages of apt's lists, and names those that a release does not have."""

from __future__ import annotations

import hashlib
import platform
import shutil
from pathlib import Path

import pytest

from lab import debian

NAME, GOOD = "tool_1%3a2.0-1_amd64.deb", b"as listed"
DIGEST = hashlib.sha256(GOOD).hexdigest()


class Archive:
    """In the place of apt: `sends` is what a download puts into the cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache: Path, sends: bytes = GOOD) -> None:
        self.cache, self.sends, self.versions, self.ran = cache, sends, {"tool": "1:2.0-1"}, list[str]()
        monkeypatch.setattr(debian, "CACHE", cache)
        monkeypatch.setattr(debian, "version", lambda package: self.versions.get(package, ""))
        monkeypatch.setattr(debian, "_run", self.run)
        monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/apt-get")

    def run(self, command: list[str]) -> str:
        if "--print-uris" in command:
            libc = f"'http://d.test/libc6.deb' libc6_2.41-1_amd64.deb 1 SHA256:{'0' * 64}\n"
            return f"'http://d.test/pool/{NAME}' {NAME} {len(GOOD)} SHA256:{DIGEST}\n{libc}"
        self.ran.append(next(verb for verb in ("update", "--download-only", "-x") if verb in command).strip("-"))
        if self.ran[-1] == "download-only":
            assert not (self.cache / NAME).exists(), "apt would take it for complete"
            (self.cache / NAME).write_bytes(self.sends)
        return ""


def test_a_download_is_kept_for_other_checkouts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = Archive(monkeypatch, tmp_path / "cache")
    assert debian._fetch(["tool"]) == [tmp_path / "cache" / NAME], "and no second C library"
    assert debian._fetch(["tool"]) == [tmp_path / "cache" / NAME]
    assert archive.ran == ["download-only"]


def test_a_file_of_the_cache_that_changed_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = Archive(monkeypatch, tmp_path)
    (tmp_path / NAME).write_bytes(b"as broken")
    assert debian._fetch(["tool"])[0].read_bytes() == GOOD
    assert archive.ran == ["download-only"]


def test_what_is_not_as_listed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = Archive(monkeypatch, tmp_path, sends=b"something")
    with pytest.raises(debian.Unreachable, match=r"tool_1%3a2\.0-1_amd64\.deb is not what the package lists say"):
        debian._fetch(["tool"])
    assert archive.ran == ["download-only", "update", "download-only"]


def test_what_the_release_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    archive = Archive(monkeypatch, tmp_path)
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"PRETTY_NAME": "Debian 99"})
    with pytest.raises(debian.Absent, match=r"^Debian 99 has no package gone$"):
        debian._fetch(["tool", "gone"])
    assert archive.ran == ["update"], "the lists were renewed before it is believed"


def test_a_second_run_fetches_nothing_and_asks_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(debian, "HOME", tmp_path)
    monkeypatch.setattr(debian, "TOOLS", {"here": ("tool",), "away": ("gone",)})
    archive = Archive(monkeypatch, tmp_path / "cache")
    debian.main()
    assert archive.ran == ["download-only", "x", "update"]
    assert "away: " in capsys.readouterr().out
    archive.ran.clear()
    monkeypatch.setattr(debian, "version", None)
    debian.main()
    assert archive.ran == [] and capsys.readouterr().out == ""

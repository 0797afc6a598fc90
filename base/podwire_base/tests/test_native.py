"""A compiled module is loaded if it matches the sources beside it, and otherwise refused with a clear text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from podwire_base import native

SOURCES = ("a.h", "a.c")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `compiled_for_test` with sources; `bin` holds a Python module instead of a compiled one."""
    folder = tmp_path / "compiled_for_test"
    (folder / "bin").mkdir(parents=True)
    (folder / "a.h").write_text("int a(void);\n")
    (folder / "a.c").write_text("int a(void) { return 1; }\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("compiled_for_test")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def build(folder: Path, text: str) -> None:
    (folder / "bin" / "_a.py").write_text(text)


def load(folder: Path) -> native.Library:
    return native.load("compiled_for_test", folder, "_a", SOURCES)


def of_these_sources(folder: Path) -> str:
    return f"class lib:\n    SOURCES_DIGEST = {native.digest(folder, SOURCES)}\n"


def test_a_module_of_these_sources_is_loaded(folder: Path) -> None:
    build(folder, of_these_sources(folder))
    library = load(folder)
    assert library.module is sys.modules["compiled_for_test.bin._a"]
    assert (library.problem, library.left_out) == ("", False)


@pytest.mark.parametrize("source", SOURCES)
def test_a_module_of_older_sources_is_refused(folder: Path, source: str) -> None:
    build(folder, of_these_sources(folder))
    (folder / source).write_text("int a(long);\n")
    library = load(folder)
    assert library.module is None and not library.left_out
    assert "_a is stale" in library.problem and "make install" in library.problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class lib: pass\n", "cannot be compared"),
        ("raise ImportError('another cffi')\n", "another cffi"),
        ("raise SystemError('of another architecture')\n", "of another architecture"),
    ],
)
def test_a_module_that_cannot_be_used_is_refused(folder: Path, text: str, words: str) -> None:
    build(folder, text)
    library = load(folder)
    assert library.module is None and not library.left_out and words in library.problem


def test_a_module_whose_sources_are_gone_is_refused(folder: Path) -> None:
    build(folder, of_these_sources(folder))
    (folder / "a.c").unlink()
    library = load(folder)
    assert library.module is None and "a.c" in library.problem


def test_a_module_that_the_build_left_out_has_its_reason(folder: Path) -> None:
    assert not load(folder).left_out and "make install" in load(folder).problem
    (folder / "bin" / "_a.missing").write_text("no Python.h (Debian: python3-dev)\n")
    assert load(folder) == native.Library(None, "no Python.h (Debian: python3-dev)", True)


def test_a_program_is_there_where_it_can_be_executed(folder: Path) -> None:
    assert native.program(folder, "p") is None
    (folder / "bin" / "p").write_text("#!/bin/sh\n")
    assert native.program(folder, "p") is None
    (folder / "bin" / "p").chmod(0o755)
    assert native.program(folder, "p") == folder / "bin" / "p"

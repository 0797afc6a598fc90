"""`make lint` checks every C file, and finds one that is not formatted or compiles with a warning."""

from __future__ import annotations

from pathlib import Path

import pytest

from nativebuild import lint, toolchain

CLEAN = "static int one(void)\n{\n\treturn 1;\n}\n\nint two(void)\n{\n\treturn 2 * one();\n}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".clang-format").write_text((lint.ROOT / ".clang-format").read_text())
    (tmp_path / "cni/podwire_cni/native").mkdir(parents=True)
    source(tmp_path).write_text(CLEAN)
    return tmp_path


def source(root: Path) -> Path:
    return root / "cni/podwire_cni/native/new.c"


def test_every_c_file_is_looked_at() -> None:
    skip = {".venv", ".git", ".vm", "dist"}
    found = [path for path in lint.ROOT.rglob("*.[ch]") if skip.isdisjoint(path.relative_to(lint.ROOT).parts)]
    assert lint.c_files(lint.ROOT) == sorted(found) and len(found) > 10


def test_an_unformatted_file_is_found(root: Path) -> None:
    assert lint.unformatted(root) == ""
    source(root).write_text(CLEAN.replace("\treturn 1", "    return 1"))
    assert "new.c:" in lint.unformatted(root) and "clang-format" in lint.unformatted(root)


def test_a_warning_is_found(root: Path) -> None:
    compiler, why = toolchain.find(musl=False, flags=())
    if compiler is None:
        pytest.skip(why)
    assert lint.warned(root, compiler) == ""
    source(root).write_text(CLEAN.replace("2 * one()", "2"))
    assert "one" in lint.warned(root, compiler) and "unused" in lint.warned(root, compiler)

"""The build leaves out a unit that it cannot compile, records the reason, and keeps nothing of older sources; the
wheel's tag fits.
"""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import hatch_build
import pytest

import kubeschema
from nativebuild import builder, toolchain, units
from podwire_base.native import digest
from podwire_cni.native import attach
from podwire_dns import native as packets

ROOT = Path(__file__).resolve().parents[3]
EVERYTHING = units.EVERYTHING


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources of all units, not built, in a folder of their own."""
    for unit in EVERYTHING:
        for source in (ROOT / unit.folder).glob("*.[ch]"):
            (tmp_path / unit.folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / unit.folder / source.name)
    return tmp_path


def tool(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_every_c_file_of_the_packages_is_built() -> None:
    found = {str(path.relative_to(ROOT)) for path in ROOT.glob("*/podwire_*/**/native/*.[ch]")}
    built = {f"{unit.folder}/{source}" for unit in EVERYTHING for source in unit.sources}
    assert found - built == {f"{units.CNI}/json.h"}, "client.c includes that one"
    assert built <= found


def test_a_module_and_its_loader_mean_the_same_sources() -> None:
    assert [unit.sources for unit in units.MODULES] == [attach.SOURCES, packets.SOURCES]


def test_without_a_compiler_all_is_left_out_and_says_so(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    stale = copy / units.PROGRAMS[0].output
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier build")
    built, warnings = builder.build(copy)
    assert built == [] and len(warnings) == len(EVERYTHING)
    assert not stale.exists()
    for unit in EVERYTHING:
        assert not (copy / unit.output).exists()
        assert (copy / unit.missing).read_text().strip()
    assert "no C compiler" in (copy / units.PROGRAMS[0].missing).read_text()
    assert any("podwire-echo is not built (no C compiler" in warning for warning in warnings)


def test_two_builds_are_the_same(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the temporary folder of the glue code nor that of the checkout is in the result."""
    plain, no_compiler = toolchain.find(musl=False, flags=())
    if no_compiler or toolchain.module_problem():
        pytest.skip("no C compiler, or no headers of Python")
    other = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(copy, other, dirs_exist_ok=True)
    (module, *_), program = units.MODULES, units.PROGRAMS[-1]
    made = []
    for n, root in enumerate((copy, other)):
        out = [tmp_path_factory.mktemp("out") / f"{unit.name}.{n}" for unit in (module, program)]
        assert builder.build_module(root, module, str(plain), out[0]) == ""
        assert builder.build_program(root, program, str(plain), out[1], ["-O2", "-s"]) == ""
        made.append([file.read_bytes() for file in out])
        assert not [text for text in made[-1] if b"podwire-module-" in text or bytes(root) in text]
    assert made[0] == made[1]


def test_two_builds_of_an_object_are_the_same_and_name_no_folder(
    copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if toolchain.object_problem():
        pytest.skip(toolchain.object_problem())
    other = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(copy, other, dirs_exist_ok=True)
    for unit in units.OBJECTS:
        made = []
        for root in (copy, other):
            out = tmp_path_factory.mktemp("out") / unit.name
            assert builder.build_object(root, unit, toolchain.CLANG, out) == ""
            made.append(out.read_bytes())
            assert not [folder for folder in (copy, other, out.parent) if bytes(folder) in made[-1]]
        assert made[0] == made[1]


def test_without_clang_there_are_no_objects_and_that_is_said_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == toolchain.CLANG else f"/usr/bin/{name}")
    monkeypatch.setattr(toolchain, "find", lambda *, musl, flags: (None, "no C compiler"))
    built, warnings = builder.build(copy)
    assert built == [] and [warning for warning in warnings if "no clang (Debian: clang)" in warning] == [
        f"{unit.name} is not built (no clang (Debian: clang)); in its place: {unit.stands_in}" for unit in units.OBJECTS
    ]


def test_programs_for_the_kernel_name_their_licence() -> None:
    """The kernel gives some helpers to GPL-compatible programs only; LICENSES/ has both texts."""
    for unit in units.OBJECTS:
        for source in unit.sources:
            assert "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause" in (ROOT / unit.folder / source).read_text()
    assert {path.name for path in (ROOT / "LICENSES").iterdir()} == {"BSD-2-Clause.txt", "GPL-2.0-only.txt"}


def test_a_compiler_that_cannot_link_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As musl-gcc of Debian 13 without binutils."""
    good = shutil.which("cc") or shutil.which("gcc")
    if good is None:
        pytest.skip("no C compiler")
    tool(tmp_path / "bin", "musl-gcc", "echo \"musl-gcc: fatal error: cannot execute 'as'\" >&2; exit 1")
    tool(tmp_path / "bin", "gcc", f'exec {good} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    assert toolchain.candidates(musl=True) == ["musl-gcc", "gcc"]
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")  # the working one needs its linker
    monkeypatch.setattr(toolchain, "candidates", lambda *, musl: ["musl-gcc", "gcc"])
    assert toolchain.find(musl=True, flags=()) == ("gcc", "")


def test_a_compiler_whose_programs_do_not_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = 'while [ "$1" != -o ]; do shift; done; printf "#!/bin/sh\\nexit 3\\n" > "$2"; chmod +x "$2"'
    tool(tmp_path / "bin", "cc", broken)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "candidates", lambda *, musl: ["cc"])
    compiler, why = toolchain.find(musl=False, flags=())
    assert compiler is None and "cc" in why


def test_each_compiler_that_fails_is_named_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", "musl-gcc", "echo \"musl-gcc: fatal error: cannot execute 'as'\" >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    compiler, why = toolchain.find(musl=True, flags=("-static",))
    assert compiler is None and "musl-gcc" in why and "cannot execute 'as'" in why


@pytest.mark.parametrize(
    ("plain", "static", "headers", "prefix", "wanted"),
    [
        ("cc", "musl-gcc", True, "/usr", []),
        (
            None,
            None,
            False,
            "/usr",
            ["gcc", "libc6-dev", "musl-tools", f"python3.{sys.version_info.minor}-dev", "clang"],
        ),
        ("cc", "cc", False, "/usr", ["musl-tools", f"python3.{sys.version_info.minor}-dev"]),
        ("cc", "x86_64-linux-musl-gcc", False, "/opt/python", []),
    ],
    ids=["all is there", "a fresh machine", "gcc alone", "a Python of its own"],
)
def test_the_packages_that_a_machine_lacks(
    monkeypatch: pytest.MonkeyPatch,
    plain: str | None,
    static: str | None,
    headers: bool,
    prefix: str,
    wanted: list[str],
) -> None:
    monkeypatch.setattr(toolchain, "find", lambda *, musl, flags: (static if musl else plain, ""))
    monkeypatch.setattr(toolchain, "has_headers", lambda: headers)
    monkeypatch.setattr(toolchain, "object_problem", lambda: "" if plain else "no clang (Debian: clang)")
    monkeypatch.setattr(sys, "base_prefix", prefix)
    assert toolchain.packages() == wanted


def test_without_headers_the_programs_are_built_and_the_modules_not(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if toolchain.find(musl=True, flags=("-static",))[0] is None:
        pytest.skip("no C compiler that makes static programs")
    monkeypatch.setattr(toolchain, "module_problem", lambda: "no Python.h (Debian: python3-dev)")
    built, warnings = builder.build(copy)
    assert [unit for unit in built if not isinstance(unit, units.Object)] == list(units.PROGRAMS)
    warnings = [warning for warning in warnings if "clang" not in warning]
    assert len(warnings) == len(units.MODULES) and all("python3-dev" in warning for warning in warnings)
    assert "python3-dev" in (copy / units.MODULES[0].missing).read_text()


def test_what_is_built_again_is_not_missing_any_more(copy: Path) -> None:
    if toolchain.find(musl=True, flags=("-static",))[0] is None or toolchain.module_problem():
        pytest.skip("no C compiler, or no Python.h")
    if toolchain.object_problem():
        pytest.skip(toolchain.object_problem())
    for unit in EVERYTHING:
        (copy / unit.missing).parent.mkdir(parents=True, exist_ok=True)
        (copy / unit.missing).write_text("no C compiler\n")
    built, warnings = builder.build(copy)
    assert built == list(EVERYTHING) and warnings == []
    assert sorted(path.name for path in copy.glob("*/*/**/native/bin/*")) == sorted(unit.name for unit in EVERYTHING)
    module = (copy / units.MODULES[0].output).read_bytes()
    assert digest(copy / units.CNI, attach.SOURCES) == digest(ROOT / units.CNI, attach.SOURCES)
    assert b"PyInit__attach" in module


@pytest.mark.parametrize(
    ("built", "tag"),
    [
        ((), None),
        (units.OBJECTS, None),
        (units.PROGRAMS, "py3-none-linux_x86_64"),
        (units.MODULES[:1], "cp311-abi3-linux_x86_64"),
        (EVERYTHING, "cp311-abi3-linux_x86_64"),
    ],
)
def test_the_wheels_tag(built: tuple[units.Unit, ...], tag: str | None) -> None:
    assert units.wheel_tag(built, "linux-x86_64") == tag


@pytest.mark.parametrize(("version", "tag"), [("standard", "py3-none-linux_x86_64"), ("editable", None)])
def test_the_hook_hands_on_what_was_built(
    copy: Path, monkeypatch: pytest.MonkeyPatch, version: str, tag: str | None
) -> None:
    said = list[str]()
    monkeypatch.setattr(builder, "build", lambda root: ([units.PROGRAMS[0]], ["podwire-pause is not built"]))
    monkeypatch.setattr("sysconfig.get_platform", lambda: "linux-x86_64")
    hook = object.__new__(hatch_build.NativeBuild)
    monkeypatch.setattr(hatch_build.NativeBuild, "root", str(copy))
    monkeypatch.setattr(hatch_build.NativeBuild, "app", types.SimpleNamespace(display_warning=said.append))
    data: dict[str, object] = {"artifacts": []}
    path = list(sys.path)
    hook.initialize(version, data)
    assert sys.path == path and said == ["podwire-pause is not built"]
    assert data.get("tag") == tag and data.get("pure_python", True) == (tag is None)
    assert data["artifacts"] == [
        *kubeschema.OUTPUTS,
        units.PROGRAMS[0].output,
        *(unit.missing for unit in EVERYTHING[1:]),
    ]

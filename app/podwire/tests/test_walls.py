"""The contracts of pyproject.toml hold, a violation of each is found, and the tests here cover what import-linter does
not check.
"""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grimp
import pytest

from podwire_base.testing import purity

ROOT = Path(__file__).parents[3]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETTINGS: dict[str, Any] = PYPROJECT["tool"]["importlinter"]
ROOTS: list[str] = SETTINGS["root_packages"]
FLOORS = ("app", "base", "cni", "controlplane", "dns", "observe", "policy", "proxy")
PURE: dict[str, Any] = next(c for c in SETTINGS["contracts"] if c["type"] == "pure")
TOOLS = Path(sys.executable).parent


@functools.cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*ROOTS, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None)


@functools.cache
def listed() -> frozenset[str]:
    return frozenset(module for one in PURE["io_modules"] for module in graph().find_matching_modules(one))


def pure() -> list[str]:
    return sorted(purity.pure(graph(), ROOTS, set(listed())))


# ---- each violation, against the one tool that finds it


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, without build products."""
    made = tmp_path_factory.mktemp("walls") / "tree"
    made.mkdir()
    shutil.copy(ROOT / "pyproject.toml", made)
    ignored = shutil.ignore_patterns("__pycache__", "bin", "*.so", "*.c", "*.h", "*.md")
    for floor in FLOORS:
        shutil.copytree(ROOT / floor, made / floor, ignore=ignored)
    return made


@pytest.fixture
def tree(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "tree")


def lint_imports(tree: Path) -> tuple[int, str]:
    path = os.pathsep.join(str(tree / floor) for floor in FLOORS)
    done = subprocess.run(
        [TOOLS / "lint-imports", "--no-cache", "--no-logo"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def broken(text: str) -> list[str]:
    return [line.removesuffix(" BROKEN") for line in text.splitlines() if line.endswith(" BROKEN")]


LAYERS, TENANTS, PURITY = (contract["name"] for contract in SETTINGS["contracts"])
# (text added to which files, the contracts that break, the message)
VIOLATIONS = {
    "a tenant imports another": (
        {
            "proxy/podwire_proxy/topology.py": "import podwire_dns.names",
            "dns/podwire_dns/tests/test_names.py": "import podwire_cni.types",
            "controlplane/podwire_node/podspec.py": "import podwire_controlplane.ipfamilies",
        },
        [TENANTS],
        [
            "podwire_proxy.topology -> podwire_dns.names",
            "podwire_dns.tests.test_names -> podwire_cni.types",
            "podwire_node.podspec -> podwire_controlplane.ipfamilies",
        ],
    ),
    "the ground imports a tenant": (
        {"base/podwire_base/kube/meta.py": "import podwire_cni.types"},
        [LAYERS, TENANTS],  # all tenants import meta, and with it that module
        ["podwire_base.kube.meta -> podwire_cni.types"],
    ),
    "a tenant imports the roof": (
        {"cni/podwire_cni/plan.py": "import podwire.settings"},
        [LAYERS],
        ["podwire_cni.plan -> podwire.settings"],
    ),
    "a pure module reaches outside": (
        {
            # sockets, through two imports
            "dns/podwire_dns/names.py": "from . import first",
            "dns/podwire_dns/first.py": "from . import second",
            "dns/podwire_dns/second.py": "def dial():\n    import socket",
            # a module of ours that does I/O
            "cni/podwire_cni/ops.py": "from . import third",
            "cni/podwire_cni/third.py": "from . import wiring",
            # a file, and the time
            "proxy/podwire_proxy/fourth.py": "from pathlib import Path\nPath('x').read_text()",
            "proxy/podwire_proxy/fifth.py": "from datetime import datetime\ndatetime.now()",
            "pyproject.toml": "",
        },
        [PURITY],
        [
            "podwire_dns.second:2 imports socket, which reaches outside",
            "podwire_cni.third:1 imports podwire_cni.wiring, which is listed as I/O",
            "podwire_proxy.fourth:2 uses .read_text()",
            "podwire_proxy.fifth:2 uses datetime.now",
            "io_modules has podwire_dns.gone: there is no such module",
        ],
    ),
}


def test_the_copy_as_it_is_breaks_no_contract(tree: Path) -> None:
    code, said = lint_imports(tree)
    assert (code, broken(said)) == (0, []), said
    assert said.count(" KEPT") == len(SETTINGS["contracts"]) == 3


def violate(tree: Path, names: Iterable[str]) -> tuple[int, str]:
    for name in names:
        for file, lines in VIOLATIONS[name][0].items():
            with (tree / file).open("a") as out:
                out.write(f"{lines}\n")
        project = tree / "pyproject.toml"
        if "pyproject.toml" in VIOLATIONS[name][0]:
            project.write_text(
                project.read_text().replace('"podwire_dns.udp"', '"podwire_dns.udp", "podwire_dns.gone"')
            )
    return lint_imports(tree)


def section(text: str, contract: str) -> str:
    """What the tool says about one broken contract, in one line."""
    _, found, rest = text.partition(f"\n{contract}\n---")
    assert found, text
    for other in (LAYERS, TENANTS, PURITY):
        rest = rest.partition(f"\n{other}\n---")[0]
    return " ".join(rest.split())


def test_each_contract_is_broken_by_what_it_forbids(tree: Path) -> None:
    """All violations in one copy: each is told under the first contract that it breaks."""
    code, text = violate(tree, VIOLATIONS)
    assert (code, broken(text)) == (1, [LAYERS, TENANTS, PURITY]), text
    for _, contracts, words in VIOLATIONS.values():
        said = section(text, contracts[0])
        assert [one for one in words if one not in said] == [], text


@pytest.mark.long
@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_breaks_no_other_contract(name: str, tree: Path) -> None:
    code, text = violate(tree, [name])
    assert (code, broken(text)) == (1, VIOLATIONS[name][1]), text


def test_an_unformatted_file_is_found(tree: Path) -> None:
    command = [str(TOOLS / "ruff"), "format", "--check", "--no-cache", "--output-format=concise", "."]
    assert subprocess.run(command, cwd=tree, capture_output=True, check=False).returncode == 0
    (tree / "base" / "podwire_base" / "kube" / "meta.py").open("a").write("x = [ 1,2 ]\n")
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0].startswith("base/podwire_base/kube/meta.py:"), done.stdout


def test_make_lint_runs_both() -> None:
    (recipe,) = [part for part in (ROOT / "Makefile").read_text().split("\n\n") if part.startswith("lint:")]
    assert "$(BIN)/lint-imports" in recipe
    assert "$(BIN)/ruff format --check" in recipe


# ---- what import-linter cannot see


def test_what_runs_on_the_way_to_a_pure_module_imports_nothing() -> None:
    """`from a.b.c import X` runs a/__init__ and a/b/__init__, for which import-linter draws no edge. An import inside
    one of their functions does not matter: these packages are pure themselves.
    """
    packages = {".".join(module.split(".")[:n]) for module in pure() for n in range(1, module.count(".") + 1)}
    assert {"podwire_base.kernel.nft", "podwire_dns", "podwire_proxy"} <= packages
    for package in sorted(packages):
        for node in ast.parse(purity.source(package)).body:
            harmless = isinstance(node, ast.ImportFrom) and node.module in ("__future__", "typing")
            assert harmless or not isinstance(node, ast.Import | ast.ImportFrom), f"{package}/__init__.py:{node.lineno}"


PROBE = """
import importlib, sys
outside, pure = (names.split() for names in sys.argv[1:3])
for name in outside:
    importlib.import_module(name)
before = set(sys.modules)
for name in pure:
    importlib.import_module(name)
print(*sorted(set(sys.modules) - before))
"""


def test_pure_modules_load_no_other_file_of_ours_and_nothing_that_reaches_outside() -> None:
    """Each runs in a fresh interpreter. Modules that third-party packages load for themselves (dnslib: socket) are
    loaded before.
    """
    modules = pure()
    assert len(modules) > 140
    used = {name for module in modules for name in graph().find_modules_directly_imported_by(module)}
    outside = sorted(name for name in used if name.partition(".")[0] not in ROOTS)
    outside.append("dns.message")  # of dnspython, which loads its parts one by one
    done = subprocess.run(
        [sys.executable, "-c", PROBE, " ".join(outside), " ".join(modules)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert set(modules) <= set(loaded)
    assert {name for name in loaded if name.partition(".")[0] in ROOTS} == set(modules)
    assert not {name.partition(".")[0] for name in loaded} & set(PURE["forbidden"])


def test_the_list_names_only_what_does_io() -> None:
    """A module that became pure is taken off the list, so that it stays pure."""
    forbidden, tests = set(PURE["forbidden"]), {m for m in listed() if "tests" in m.split(".")}
    idle = [
        module
        for module in sorted(listed() - tests)
        if not graph().find_modules_directly_imported_by(module) & (forbidden | listed())
        and not list(purity.uses(purity.source(module)))
    ]
    assert idle == [], "pure: take them off io_modules in pyproject.toml"

"""A contract of import-linter: every module that is not listed as I/O is pure.

A pure module imports none of the packages that reach outside (`forbidden`: sockets, processes, threads, clocks) and no
module that is listed as I/O. It also opens no file (which needs no import). Each of our modules is either pure or
listed, so checking direct imports is enough: in a chain from a pure module to a socket, one pure module imports the
socket or a listed module.

Tests cover two things that import-linter does not see (app/podwire/tests/test_walls.py): importing a.b.c runs
a/b/__init__, and the list may name modules that no longer do I/O.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

# Methods of Path that access the file system; not `replace`, which str and dataclasses have too.
_PATH_METHODS = re.compile(
    "chmod|exists|expanduser|glob|hardlink_to|is_dir|is_file|is_mount|is_socket|is_symlink|iterdir|lstat|mkdir|open|"
    "read_bytes|read_text|readlink|rglob|rmdir|samefile|symlink_to|touch|unlink|write_bytes|write_text"
)
_OS = frozenset(("fspath", "strerror", "path", "PathLike"))  # functions of os that access nothing
_BUILTINS = frozenset(("open", "print", "input"))
_CLOCKS = {"datetime": {"now", "utcnow"}, "date": {"today"}}
_WORTH_A_LOOK = re.compile(r"\bpathlib\b|\bos\b|\bsys\b|\bdatetime\b|\b(open|print|input)\(")  # parsing takes a while
_STREAMS = frozenset(("stdin", "stdout", "stderr", "argv"))


class PureContract(Contract):
    """io_modules: patterns of modules (`*` is one name). forbidden: external packages, including those of the standard
    library.
    """

    io_modules = fields.SetField(subfield=fields.ModuleExpressionField())
    forbidden = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        roots = set(cast("list[str]", self.session_options["root_packages"]))
        listed, broken = set[str](), list[str]()
        for pattern in sorted(str(one) for one in cast("set[object]", self.io_modules)):
            found = graph.find_matching_modules(pattern)
            listed |= found
            if not found:
                broken.append(f"io_modules has {pattern}: there is no such module")
        outside = cast("set[str]", self.forbidden) | listed
        for module in sorted(pure(graph, roots, listed)):
            for name in sorted(graph.find_modules_directly_imported_by(module) & outside):
                lines = [detail["line_number"] for detail in graph.get_import_details(importer=module, imported=name)]
                what = "which is listed as I/O" if name in listed else "which reaches outside"
                broken += [f"{module}:{line} imports {name}, {what}" for line in lines]
            broken += [f"{module}:{line} uses {what}" for line, what in uses(source(module))]
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(line, bold=False)
        output.new_line()
        output.print("A pure module takes what it needs as an argument: `now`, the text of a file, a callable.")
        output.print("A new module that has to do I/O is added to io_modules in pyproject.toml.")
        output.new_line()


def pure(graph: ImportGraph, roots: Iterable[str], listed: set[str]) -> set[str]:
    """Returns podwire's modules that are not listed as I/O."""
    roots = set(roots)
    return {module for module in graph.modules if module.partition(".")[0] in roots} - listed


def source(module: str) -> str:
    """Returns the module's source; "" for a compiled module or a folder without __init__.py."""
    spec = importlib.util.find_spec(module)
    path = Path(spec.origin) if spec is not None and spec.origin else None
    return path.read_text() if path is not None and path.suffix == ".py" else ""


def uses(text: str) -> Iterator[tuple[int, str]]:
    """Yields (line, name) of each use of files, streams, the environment or clocks that no import shows."""
    if not _WORTH_A_LOOK.search(text):
        return
    paths = "pathlib" in text  # without it, `exists` is a method of another class
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in _BUILTINS:
                yield node.lineno, f"{called.id}()"
            if isinstance(called, ast.Attribute) and paths and _PATH_METHODS.fullmatch(called.attr):
                yield node.lineno, f".{called.attr}()"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of, name = node.value.id, node.attr
            if (of == "os" and name not in _OS) or (of == "sys" and name in _STREAMS) or name in _CLOCKS.get(of, ()):
                yield node.lineno, f"{of}.{name}"
        if isinstance(node, ast.ImportFrom) and node.module == "os" and not {a.name for a in node.names} <= _OS:
            yield node.lineno, "names of os"

"""The requirements files say the version and the SHA-256 of everything that pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import lock

PROJECT = tomllib.loads((lock.ROOT / "pyproject.toml").read_text())
ROWS = {
    "requirements/dev.txt": [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
        *PROJECT["build-system"]["requires"],
    ],
    "app/podwire/deploy/requirements.txt": PROJECT["project"]["dependencies"],
    "requirements/build.txt": PROJECT["build-system"]["requires"],
    "requirements/clients.txt": PROJECT["project"]["optional-dependencies"]["clients"],
    "requirements/iptables.txt": ["python-iptables>=1.0.1,<2"],
}


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def locked(file: str) -> dict[str, tuple[str, list[str]]]:
    """Return name -> (version, SHA-256s). Asserts the form of every line."""
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for line in (lock.ROOT / file).read_text().splitlines():
        if line.startswith("#"):
            continue
        if match := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})( \\)?", line):
            found[name][1].append(match[1])
        else:
            match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)( ; .*)? \\", line)
            assert match, f"{file}: {line!r} is neither NAME==VERSION nor a hash"
            name = match[1]
            found[name] = (match[2], [])
    assert all(hashes for _, hashes in found.values())
    return found


@pytest.mark.parametrize("file", lock.LOCKS)
def test_it_fits_pyproject(file: str) -> None:
    found = locked(file)
    for row in ROWS[file]:
        match = re.match(r"[A-Za-z0-9_.-]+", row)
        assert match
        name = re.sub(r"[-_.]+", "-", match[0]).lower()
        assert name in found, f"{name} is missing in {file}: run `make lock`"
        version = _number(found[name][0])
        for sign, bound in re.findall(r"(>=|<)([0-9.]+)", row):
            assert (version >= _number(bound)) == (sign == ">="), f"{file}: {name} {version} against {row}"


def test_all_files_have_the_same_versions() -> None:
    whole = locked("requirements/dev.txt")
    for file in ("app/podwire/deploy/requirements.txt", "requirements/build.txt"):
        assert {name: whole[name] for name in locked(file)} == locked(file)


def test_every_requirement_has_an_upper_bound_but_cryptography() -> None:
    """The next major version may break podwire; cryptography's must come in at once, for its security fixes."""
    extras = PROJECT["project"]["optional-dependencies"].values()
    rows = [*PROJECT["project"]["dependencies"], *(row for rows in extras for row in rows)]
    for row in [*rows, *PROJECT["build-system"]["requires"]]:
        assert ("<" in row) == (not row.startswith("cryptography")) and ">=" in row, row


def test_no_install_goes_past_the_lock() -> None:
    makefile = (lock.ROOT / "Makefile").read_text()
    for line in makefile.splitlines():
        if "$$install " in line:
            assert line.count("$$install") == line.count("--no-deps"), line
    assert "-e '" not in makefile
    assert "index" not in "".join((lock.ROOT / file).read_text() for file in lock.LOCKS if Path(file))

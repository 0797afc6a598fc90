"""`make lock`: writes the requirements files with the version and the SHA-256 of everything that podwire installs, for
x86-64 and arm64 and for every Python that podwire supports.

The files name no package index. uv resolves all environments at once; it is taken from PATH, or installed beside the
virtual environment. `--check` writes nothing, and fails where a file is not what pyproject.toml asks for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# file -> what it is for. The first has every package that needs no compiler; the others get the same versions.
LOCKS = {
    "requirements/dev.txt": "what developing and testing needs, and what building needs",
    "app/podwire/deploy/requirements.txt": "what podwire needs to run",
    "requirements/build.txt": "what building podwire needs",
    "requirements/clients.txt": "other people's clients of the API, which tests run, and what they need",
    "requirements/iptables.txt": "what finding leftovers in legacy iptables tables needs beside requirements/dev.txt",
}
COMPILED = "python-iptables"  # has no wheels, so it is apart: a machine may have no compiler
# file -> which of the extra's rows. These files hold nothing else of podwire's.
ALONE = {"requirements/iptables.txt": COMPILED, "requirements/clients.txt": ""}
_UV = "uv>=0.9,<1"
_HEAD = """\
# Written by `make lock`: {what}.
# Versions and SHA-256 for x86-64, arm64 and every Python that podwire supports: `pip install --require-hashes -r`.
"""
# [tool.uv] of pyproject.toml has these, and uv repeats them in each line
_ALWAYS = "implementation_name == 'cpython' and sys_platform == 'linux'"


def uv() -> str:
    """Return the uv program."""
    if found := shutil.which("uv"):
        return found
    place = Path(sys.prefix) / "lock"
    program = place / "bin/uv"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(place / "bin/python"), "-m", "pip", "install", "-q", _UV], check=True)
    return str(program)


def wanted(file: str, folder: Path) -> list[str]:
    """Return uv's words for the requirements of one file. folder: for a copy of pyproject.toml with the build's
    requirements as a group, as uv reads them.
    """
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)
    if file in ALONE:
        rows = project["project"]["optional-dependencies"][Path(file).stem]
        (folder / "wanted.in").write_text("\n".join(row for row in rows if row.startswith(ALONE[file])))
        return [str(folder / "wanted.in"), *(["--no-deps"] if ALONE[file] else [])]
    copy = folder / "pyproject.toml"
    copy.write_text(f"{text}\n[dependency-groups]\nbuild = {json.dumps(project['build-system']['requires'])}\n")
    build = ["--group", f"{copy}:build"]
    if file == "requirements/build.txt":
        return build
    if file == "requirements/dev.txt":
        return [str(copy), "--extra", "dev", "--extra", "iptables", "--no-emit-package", COMPILED, *build]
    return [str(copy)]


def compiled(file: str, constraint: Path | None) -> str:
    """Return the text of one file. constraint: the file whose versions count."""
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    with tempfile.TemporaryDirectory() as folder:
        words = [uv(), "pip", "compile", "--quiet", "--universal", "--python-version", python, "--generate-hashes"]
        words += ["--no-header", "--no-annotate", *(["-c", str(constraint)] if constraint else [])]
        words += wanted(file, Path(folder))
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{file}: {done.stderr}")
    rows = done.stdout.replace(f" ; {_ALWAYS}", "").replace(f" and {_ALWAYS}", "").splitlines()
    kept = [row for row in rows if not row.startswith("#")]  # uv names what it left out
    return _HEAD.format(what=LOCKS[file]) + "\n".join(kept) + "\n"


def main() -> None:
    check, first = "--check" in sys.argv, None
    for file in LOCKS:
        path = ROOT / file
        text = compiled(file, first if first is not None else path if check and path.exists() else None)
        if check and (not path.exists() or path.read_text() != text):
            raise SystemExit(f"{file} is not what pyproject.toml asks for: run `make lock`")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        first = first or path


if __name__ == "__main__":
    main()

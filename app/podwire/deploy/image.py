"""Builds podwire's OCI image without a container engine. mmdebstrap unpacks Debian's Python without running maintainer
scripts. pip adds the wheel, and its dependencies in the versions and with the SHA-256 of requirements.txt. layers.py
assigns each file to a layer, and sbom.py lists the packages.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from podwire_base.role import files
from podwire_cni import native, oci

from . import layers, sbom

Say = Callable[[str], None]
RETRIES = ['--aptopt=Acquire::Retries "3"']
LOCK = Path(__file__).with_name("requirements.txt")  # `make lock` writes it
DEBS = "debs.txt"  # beside the root: the names of the packages that were unpacked into it
PACKAGES = (
    "python3",
    "libstdc++6",  # google-re2 needs it
    "iptables",  # the programs of both variants, for mode: iptables
)
_NO_DOCS = [f"--dpkgopt=path-exclude=/usr/share/{what}/*" for what in ("doc", "man", "locale", "lintian")]


class BuildFailed(Exception):
    """A build step failed. The message has the output of the step."""


def _run(argv: list[str], what: str, **env: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, **env})
    except FileNotFoundError as err:
        raise BuildFailed(f"{what}: {argv[0]} is not installed: apt-get install {argv[0]}") from err
    if done.returncode:
        raise BuildFailed(f"{what}: {' '.join(argv[:3])} ...: {(done.stderr or done.stdout).strip()[-1500:]}")


def codename(os_release: str) -> str:
    """Return the VERSION_CODENAME of an os-release file: the default Debian suite of the image. Raises BuildFailed."""
    found = re.search(r"^VERSION_CODENAME=\"?([a-z]+)\"?$", os_release, re.MULTILINE)
    if not found:
        raise BuildFailed(
            "this machine's /etc/os-release has no VERSION_CODENAME; pass --suite, for example --suite bookworm"
        )
    return found[1]


def sources(folder: Path, suite: str) -> list[str]:
    """Return the machine's package source files that name this suite, so that the image uses the machine's mirror."""
    found = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    word = re.compile(rf"(?:^|\s){suite}(?:\s|$)", re.MULTILINE)
    return [
        str(path)
        for path in found
        if path.suffix in (".list", ".sources") and path.is_file() and word.search(path.read_text(errors="replace"))
    ]


def build_wheel(checkout: Path, folder: Path) -> Path:
    """Build the wheel of a source tree and return its path."""
    _run(_pip(folder, "wheel", "--no-deps", "--wheel-dir", str(folder), str(checkout)), "wheel")
    return next(folder.glob("podwire-*.whl"))


def _pip(folder: Path, verb: str, *words: str) -> list[str]:
    """Return the argv of a pip command. If this environment has no pip (as with uv), the command uses a temporary
    environment.
    """
    python = sys.executable
    if importlib.util.find_spec("pip") is None:
        python = str(folder / "venv/bin/python")
        if not Path(python).exists():
            _run(["python3", "-m", "venv", str(folder / "venv")], "a place for pip")
    return [python, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", *words]


def _python_of(root: Path) -> str:
    """Return the Python version of the unpacked system, such as "3.11"."""
    return str((root / "usr/bin/python3").readlink()).removeprefix("python")


def assemble(wheel: Path, folder: Path, suite: str, mirrors: list[str], say: Say) -> Path:
    """Assemble the image's root file system under `folder` and return its path."""
    root = folder / "root"
    say(f"unpacking Python of {suite}")
    _run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=extract",
            "--mode=root",
            f"--include={','.join(PACKAGES)}",
            f'--extract-hook=ls "$1/var/cache/apt/archives" >{shlex.quote(str(folder / DEBS))}',
            *RETRIES,
            *_NO_DOCS,
            suite,
            str(root),
            *mirrors,
        ],
        "root file system",
    )
    version = _python_of(root)
    say(f"installing {wheel.name} and its dependencies for Python {version}")
    machine = os.uname().machine
    platforms = [f"--platform={p}_{machine}" for p in ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "linux")]
    # --no-compile: pip's bytecode files would contain the name of this folder, and file times that the image changes
    place = ["--no-compile", "--no-deps", "--target", str(root / layers.SITE)]
    place += [f"--python-version={version}", "--implementation=cp", "--only-binary=:all:", *platforms]
    _run(_pip(folder, "install", *place, "--require-hashes", "-r", str(LOCK)), "dependencies")
    shutil.rmtree(root / layers.SITE / "bin", ignore_errors=True)  # pip does not add to a folder that exists
    _run(_pip(folder, "install", *place, str(wheel)), "wheel")
    say("compiling")
    # unchecked-hash: the bytecode files then contain no file times and do not depend on the build order. Python does
    # not compare them with the sources at start.
    _run(
        [
            "chroot",
            str(root),
            "/usr/bin/python3",
            "-m",
            "compileall",
            "-q",
            "-j",
            "0",
            "--invalidation-mode",
            "unchecked-hash",
            f"/usr/lib/python{version}",
            f"/{layers.SITE}",
        ],
        "compiling",
    )
    return root


def listing(root: Path, folder: Path, name: str, suite: str) -> bytes:
    """Return the list of the packages under `root` (sbom.py). name: REPOSITORY:TAG of the image."""
    found = re.search(r"^ID=\"?([a-z]+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    repository, _, tag = name.rpartition(":")
    system = sbom.debian((folder / DEBS).read_text().split(), suite, found[1] if found else "debian")
    own = sbom.python(path.name for path in (root / layers.SITE).glob("*.dist-info"))
    if not system or not own:
        raise BuildFailed("the list of packages is empty: mmdebstrap or pip works in another way than is known here")
    return sbom.document(repository, tag, [*system, *own])


def entries(root: Path) -> Iterator[oci.Entry]:
    """Yield every file, directory and link under `root`, without devices."""
    for folder, names, plain in os.walk(root):
        for name in sorted([*names, *plain]):
            path = Path(folder) / name
            mode, own = path.lstat().st_mode, str(path.relative_to(root))
            if stat.S_ISLNK(mode):
                yield oci.Entry(own, link=str(path.readlink()), mode=0o777)
            elif stat.S_ISDIR(mode):
                yield oci.Entry(own, mode=mode & 0o7777)
            elif stat.S_ISREG(mode):
                yield oci.Entry(own, path.read_bytes(), mode & 0o7777)


def build(output: Path, name: str, *, wheel: Path | None, checkout: Path, suite: str | None, say: Say) -> None:
    """Build the image and write it as an archive to `output`. Raises BuildFailed and OSError."""
    if os.geteuid():
        raise BuildFailed("building an image needs root, for mmdebstrap and chroot")
    pause = Path(native.pause_command()[0]).read_bytes()
    if pause[:4] != b"\x7fELF":
        raise BuildFailed("the pause program is not a compiled one: install a C compiler and podwire again")
    suite = suite or codename(Path("/etc/os-release").read_text())
    work = Path(tempfile.mkdtemp(prefix="podwire-image-"))
    try:
        if wheel is None:
            say(f"building the wheel of {checkout}")
            wheel = build_wheel(checkout, work)
        root = assemble(wheel, work, suite, sources(Path("/etc/apt"), suite), say)
        made = layers.split(entries(root), pause, listing(root, work, name, suite))
        say("packing layers of " + ", ".join(f"{len(layer) / 1e6:.1f}" for layer in made) + " MB")
        archive = oci.archive(made, layers.CONFIG, os.uname().machine, name, compress=True)
        files.write(output, archive)
        say(f"{output}: {len(archive) / 1e6:.1f} MB, {name}")
    finally:
        shutil.rmtree(work, ignore_errors=True)

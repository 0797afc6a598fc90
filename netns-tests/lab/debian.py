"""Programs of Debian packages without installing them: they are unpacked beside the virtual environment.

No daemon starts, no file of the machine changes, and no root is needed where apt's lists are there. apt resolves the
dependencies against what the machine has. Downloads stay in a cache outside of the checkout, named by version; each use
of a download checks its SHA-256 against apt's signed lists.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

HOME = Path(sys.prefix) / "debian"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "podwire" / "debian"

# What calls the CNI plugin for real, and what stands behind it in chains: tool -> the packages that a test names.
TOOLS = {
    "containerd": ("containerd", "runc"),
    "cri cluster": ("containerd", "runc", "busybox-static"),
    "podman": ("podman", "conmon", "runc", "busybox-static"),
    "reference plugins": ("containernetworking-plugins", "iptables"),
}

_APT = ["apt-get", "-qq", "-o", "Acquire::Retries=3"]
# The named packages are fetched even where they are installed: tests run the files of the tree.
_INSTALL = [*_APT, "install", "-y", "--no-install-recommends", "--reinstall"]
_UNLOCKED = ["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=", "-o", "Acquire::ForceHash=SHA256"]
# A line of --print-uris: 'URI' FILE SIZE SHA256:DIGEST
_LISTED = re.compile(r"^'[^']*' (\S+\.deb) \d+ SHA256:([0-9a-f]{64})$", re.MULTILINE)
# The loader of the machine takes the machine's C library and no other.
_NEVER = ("libc6_",)


class Absent(Exception):
    """This release has no such package, or is no Debian; the text names both. Its tests are skipped with it."""


class Unreachable(Exception):
    """The package archives do not answer, or what they sent is not what their lists say."""


def unpack(*packages: str) -> Path:
    """The root of a tree with these packages and what they need beyond this machine. Raises Absent, Unreachable."""
    done = HOME / ".unpacked"
    have = set(done.read_text().split()) if done.exists() else set()
    missing = [package for package in packages if package not in have]
    if missing:
        HOME.mkdir(parents=True, exist_ok=True)
        for file in _fetch(missing):
            _run(["dpkg", "-x", str(file), str(HOME / "root")])
        done.write_text("\n".join(sorted(have | set(missing))))
    return HOME / "root"


def program(root: Path, name: str) -> Path:
    """Where the tree has this program: releases differ in /bin and /usr/bin. FileNotFoundError where nowhere."""
    places = [root / folder / name for folder in ("usr/bin", "usr/sbin", "bin", "sbin")]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise FileNotFoundError(f"no program {name} in {root}")
    return found


def version(package: str) -> str:
    """The version that `unpack` gets; "" where this release has no such package."""
    shown = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=False).stdout
    found = re.search(r"^  Candidate: (\S+)$", shown, re.MULTILINE)
    return found[1] if found and found[1] != "(none)" else ""


def environment(root: Path) -> dict[str, str]:
    """Environment variables by which programs of the tree find each other. iptables is the nftables variant."""
    tools = root / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"):
        if not (tools / name).is_symlink():
            (tools / name).symlink_to(root / "usr/sbin/xtables-nft-multi")
    libraries = [str(folder) for place in ("usr/lib", "lib") for folder in (root / place).glob("*-linux-gnu*")]
    return {
        "PATH": f"{tools}:{root}/usr/sbin:{root}/usr/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(libraries),
        "XTABLES_LIBDIR": ":".join(f"{folder}/xtables" for folder in libraries),
    }


# ---- fetching


def _fetch(packages: list[str]) -> list[Path]:
    """Files of the packages and of what they need, checked. An outdated list of packages is renewed once."""
    if shutil.which("apt-get") is None:
        raise Absent(f"no apt-get here to fetch Debian's {', '.join(packages)}")
    try:
        return _download(packages)
    except (Absent, Unreachable):
        # A fresh machine has no lists; one that was not used for long has lists of files that the archive dropped.
        _run([*_APT, "-o", "APT::Update::Error-Mode=any", "update"])
        return _download(packages)


def _download(packages: list[str]) -> list[Path]:
    lacking = [package for package in packages if not version(package)]
    if lacking:
        raise Absent(f"{_release()} has no package {', '.join(lacking)}")
    wanted = _resolve(packages)
    sound = {name for name, digest in wanted.items() if _digest(CACHE / name) == digest}
    if sound != set(wanted):
        for name in set(wanted) - sound:  # apt takes a file of the right length for the right one
            (CACHE / name).unlink(missing_ok=True)
        (CACHE / "partial").mkdir(parents=True, exist_ok=True)
        _run([*_INSTALL, *_UNLOCKED, "--download-only", "-o", f"Dir::Cache::archives={CACHE}", *packages])
    for name, digest in wanted.items():
        if _digest(CACHE / name) != digest:
            raise Unreachable(f"{CACHE / name} is not what the package lists say")
    return [CACHE / name for name in wanted]


def _resolve(packages: Iterable[str]) -> dict[str, str]:
    """File name -> SHA-256 of each package to fetch."""
    with tempfile.TemporaryDirectory() as nothing_fetched_yet:
        asked = ["--print-uris", "-o", f"Dir::Cache::archives={nothing_fetched_yet}/", *packages]
        listed = dict(_LISTED.findall(_run([*_INSTALL, *_UNLOCKED, *asked])))
    return {name: digest for name, digest in listed.items() if not name.startswith(_NEVER)}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except subprocess.CalledProcessError as err:
        raise Unreachable(f"{' '.join(command[:4])} ...: {err.stderr.strip()[-300:]}") from err


def _release() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "this system"


def main() -> None:
    """`python -m lab.debian`: fetch everything ahead of the tests, and say what this release does not have."""
    known = HOME / ".absent"
    absent = set(known.read_text().splitlines()) if known.exists() else set()
    for tool, packages in TOOLS.items():
        if tool in absent:
            continue
        try:
            unpack(*packages)
        except Absent as err:
            print(f"{tool}: {err}; its tests are skipped")
            HOME.mkdir(parents=True, exist_ok=True)
            known.write_text("\n".join(sorted(absent := absent | {tool})))
        except Unreachable as err:
            raise SystemExit(f"{tool}: {err}\n(the tests marked `runtimes` need it)") from None


if __name__ == "__main__":
    main()

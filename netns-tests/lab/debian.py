"""Programs of Debian packages without installing them: they are unpacked beside the virtual environment.

No daemon starts, no file of the machine changes, and no root is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HOME = Path(sys.prefix) / "debian"
_APT = ["apt-get", "-qq", "-o", "Acquire::Retries=3"]


class Absent(Exception):
    """A package is not available here; the text says which and why."""


def unpack(*packages: str) -> Path:
    """The root of a tree with these packages and nothing else. Raises Absent."""
    HOME.mkdir(parents=True, exist_ok=True)
    done = HOME / ".unpacked"
    have = set(done.read_text().split()) if done.exists() else set()
    for package in packages:
        if package in have:
            continue
        _unpack(package)
        have.add(package)
        done.write_text("\n".join(sorted(have)))
    return HOME / "root"


def _unpack(package: str) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=HOME) as folder:
            download = [*_APT, "download", package]
            if subprocess.run(download, cwd=folder, check=False, capture_output=True).returncode:
                # A fresh machine has no lists, one that was not used for long has old ones.
                subprocess.run([*_APT, "update"], check=True, capture_output=True, text=True)
                subprocess.run(download, cwd=folder, check=True, capture_output=True, text=True)
            file = next(Path(folder).glob("*.deb"))
            subprocess.run(["dpkg", "-x", str(file), str(HOME / "root")], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as err:
        why = getattr(err, "stderr", "") or str(err)
        raise Absent(f"Debian's package {package} cannot be had: {str(why).strip()[-300:]}") from err


def version(package: str) -> str:
    """The version that `unpack` gets."""
    shown = subprocess.run(["apt-cache", "policy", package], capture_output=True, text=True, check=False).stdout
    return next((line.split(":", 1)[1].strip() for line in shown.splitlines() if "Candidate" in line), "")


def environment(root: Path) -> dict[str, str]:
    """Environment variables by which programs of the tree find each other. iptables means the nftables variant."""
    tools = root / "tools"
    tools.mkdir(exist_ok=True)
    for name in ("iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"):
        if not (tools / name).is_symlink():
            (tools / name).symlink_to(root / "usr/sbin/xtables-nft-multi")
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return {
        "PATH": f"{tools}:{root}/usr/sbin:{root}/usr/bin:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(libraries),
        "XTABLES_LIBDIR": str(libraries / "xtables"),
    }


def main() -> None:
    """`python -m lab.debian PACKAGE...`: fetch them ahead of the tests."""
    try:
        unpack(*sys.argv[1:])
    except Absent as err:
        raise SystemExit(f"{err}\n(the tests with container runtimes need it; they are marked `runtimes`)") from None


if __name__ == "__main__":
    main()

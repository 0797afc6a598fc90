"""Machines made of a Debian root file system and namespaces.

Each machine is a fresh install with its own files, processes, host name and network. A provisioning script runs on it
as on a VM, but all machines share the kernel.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from podwire.deploy import image

from .netns import NetNS
from .patience import patient

# The files that a root needs to reach this machine's package registries. Some machines lack some of these files.
_REGISTRY_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/root/.config/pip/pip.conf")
_BUNDLE, _BUNDLE_THERE = "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/of-the-host.crt"
_START = """set -e
mount --make-rprivate /
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" none "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 none sys/fs/cgroup 2>/dev/null || true
mount --rbind /dev dev
mount -t tmpfs none run
mount -t tmpfs none tmp
hostname "$3"
echo "$3" > etc/hostname
mkdir -p old
pivot_root . old
umount -l /old
trap 'exit 0' TERM
echo up
while :; do sleep 3600 & wait $!; done
"""


class NotMade(Exception):
    """The fresh system could not be made. The message is the output of the programs."""


def archives_answer() -> bool:
    """Whether this machine's package archives answer."""
    with tempfile.TemporaryDirectory() as lists:
        (Path(lists) / "partial").mkdir()
        asked = ["apt-get", "-qq", "-o", f"Dir::State::lists={lists}", "-o", "APT::Update::Error-Mode=any", "update"]
        return subprocess.run(asked, check=False, capture_output=True).returncode == 0


def debian_root(folder: Path, source: Path, release: str = "") -> Path:
    """Make a minimal Debian root file system with the checkout `source` in /podwire, and return its path. release: the
    code name, "" for this machine's release. Raises NotMade.
    """
    root = folder / "base"
    suite = release or image.codename(Path("/etc/os-release").read_text())
    # unsafe I/O: dpkg is faster without waiting for the disk, and a root that a crash damages is made again
    made = subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            "--dpkgopt=force-unsafe-io",
            *image.RETRIES,
            suite,
            str(root),
            *image.sources(Path("/etc/apt"), suite),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise NotMade(made.stderr[-4000:])
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=source,
        check=True,
        capture_output=True,
    ).stdout
    for name in (os.fsdecode(n) for n in listed.split(b"\0") if n):
        place = root / "podwire" / name
        if (source / name).is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, place)
    for file in (*_REGISTRY_FILES, _BUNDLE):
        if Path(file).exists():
            place = root / (_BUNDLE_THERE if file == _BUNDLE else file).lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    return root


def environment(**more: str) -> dict[str, str]:
    """Return the environment for a command in a root: this process's variables for package registries, with the paths
    of certificates inside the root.
    """
    kept = {
        name: _BUNDLE_THERE if value == _BUNDLE else value
        for name, value in os.environ.items()
        if name.startswith(("PIP_", "SSL_", "REQUESTS_", "CURL_", "http", "HTTP", "no_proxy", "NO_PROXY"))
    }
    kept.pop("SSL_CERT_DIR", None)
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        **kept,
        **more,
    }


def package_folders() -> list[str]:
    """Return the local directories in which this machine's pip looks for packages."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    indexes = [str(Path(path).parent) for path in re.findall(r"file://(/[^\s']+)", said)]  # with the packages
    return sorted(
        {path for path in (*indexes, *re.findall(r"='(/[^\s']+)", said)) if Path(path).is_dir() and path != "/"}
    )


def in_root(
    root: Path, command: list[str], env: dict[str, str], binds: Iterable[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command with `root` as its root file system. It uses this machine's network to fetch packages."""
    mounts = "".join(f'mkdir -p "$1{bind}"; mount --rbind {bind} "$1{bind}"; ' for bind in ("/dev", "/sys", *binds))
    script = f'mount --make-rprivate /; {mounts} mount -t proc proc "$1/proc"; root=$1; shift; exec chroot "$root" "$@"'
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-c", script, "sh", str(root), *command],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )


class Machine:
    """A machine with the network of `ns` and the files of `base`. Its writes go to `folder`; `base` stays unchanged."""

    def __init__(self, name: str, ns: NetNS, base: Path, folder: Path) -> None:
        self.name, self.ns, self.folder = name, ns, folder
        for own in ("upper", "work", "root"):
            (folder / own).mkdir(parents=True)
        self.holder = ns.popen(
            [
                "unshare",
                "--mount",
                "--pid",
                "--uts",
                "--ipc",
                "--fork",
                "--kill-child",
                "--",
                "bash",
                "-c",
                _START,
                "bash",
                str(base),
                str(folder),
                name,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.holder.stdout is not None
        said = self.holder.stdout.readline()
        assert said == "up\n", said + self.holder.stdout.read()
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        self.init = int(children[0])

    def popen(self, command: list[str], **env: str) -> subprocess.Popen[str]:
        inside = [
            "nsenter",
            f"--target={self.init}",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--net",
            "--root",
            "--wd",
            "--",
        ]
        return subprocess.Popen(
            [*inside, *command], env=environment(**env), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, command: list[str], *, check: bool = True, timeout: float = 120, **env: str) -> str:
        """Run a command and return its output. Raises AssertionError if the command fails."""
        process = self.popen(command, **env)
        try:
            out, _ = process.communicate(timeout=patient(timeout))
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            raise AssertionError(f"{self.name}: {command}: not within {timeout} s\n{out[-3000:]}") from None
        assert not check or process.returncode == 0, f"{self.name}: {command}: {out[-3000:]}"
        return out

    def power_off(self) -> None:
        """Kill every process at once, as in a power failure."""
        try:
            os.kill(self.init, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.holder.wait(timeout=20)

"""containerd of Debian's packages in a node of the lab. It has its own mounts, sockets and state and does not use the
machine's.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from podwire_cni import native, pauseimage

from . import cri, debian
from .cninode import CniNode, wait_until
from .netns import NetNS
from .patience import patient


class Containerd:
    """socket: the path of the CRI socket. bin_dir, conf_dir: the directories of CNI plugins and configurations."""

    def __init__(self, ns: NetNS, folder: Path, bin_dir: Path, conf_dir: Path) -> None:
        self.ns, self.folder = ns, folder
        self.root = debian.unpack(*debian.TOOLS["containerd"])
        self.env = {**os.environ, **debian.environment(self.root)}
        self.socket = folder / "containerd.sock"
        config = folder / "config.toml"
        config.write_text(f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pauseimage.NAME}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin_dir}"
    conf_dir = "{conf_dir}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
""")
        self.log = open(folder / "containerd.log", "w")  # noqa: SIM115 - the daemon keeps writing to it
        # The daemon gets a separate mount namespace. With it, the kernel removes the network namespaces in /run/netns
        # and the root file systems of sandboxes. `ctr run --cni` uses only /etc/cni/net.d and /opt/cni/bin.
        mounts = f"""set -e
mount -t tmpfs none /run
mkdir -p /run/netns /run/upper /run/work
mount -t tmpfs none /opt
mkdir -p /opt/cni
ln -s {bin_dir} /opt/cni/bin
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work none /etc
mkdir -p /etc/cni
rm -rf /etc/cni/net.d
ln -s {conf_dir} /etc/cni/net.d
exec "$@"
"""
        self.daemon = ns.popen(
            [
                "unshare",
                "-m",
                "--",
                "sh",
                "-c",
                mounts,
                "sh",
                str(debian.program(self.root, "containerd")),
                "--config",
                str(config),
            ],
            env=self.env,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        wait_until(self._listens, "containerd listens", 30)

    def _listens(self) -> bool:
        return self.socket.exists() and self.ctr("version", check=False).returncode == 0

    def serves_kubelets(self) -> bool:
        try:
            return bool(cri.call(self.socket, "Status", []))
        except cri.CallFailed:
            return False

    def ctr(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `ctr` in the namespaces of the daemon."""
        inside = ["nsenter", f"--target={self.daemon.pid}", "--mount", "--net", "--root", "--"]
        ctr = [str(debian.program(self.root, "ctr")), "--address", str(self.socket), "--namespace", "k8s.io"]
        done = subprocess.run(
            [*inside, *ctr, *words], capture_output=True, text=True, env=self.env, timeout=patient(60), check=False
        )
        assert not check or done.returncode == 0, f"ctr {words}: {done.stderr}{self.words()}"
        return done

    def import_pause(self) -> None:
        archive = self.folder / "pause.tar"
        archive.write_bytes(pauseimage.build(Path(native.pause_command()[0]).read_bytes(), os.uname().machine))
        self.ctr("images", "import", "--snapshotter", "native", str(archive))

    def pid(self, container: str) -> int:
        """Return the pid of a container's first process."""
        listed = self.ctr("tasks", "ls").stdout.splitlines()
        return next(int(line.split()[1]) for line in listed if line.startswith(container))

    def words(self) -> str:
        """Return the last 3000 characters of the log."""
        return (self.folder / "containerd.log").read_text()[-3000:]

    def close(self) -> None:
        """End the daemon and the shims and containers that it started: the processes of its session and of its mount
        namespace.
        """
        ours = os.stat(f"/proc/{self.daemon.pid}/ns/mnt").st_ino if self.daemon.poll() is None else 0
        marker = str(self.folder).encode()
        self.daemon.terminate()
        try:
            self.daemon.wait(timeout=patient(10))
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                shim = (
                    marker in (process / "cmdline").read_bytes()
                    and b"containerd-shim" in (process / "cmdline").read_bytes()
                )
                if shim or (ours and (process / "ns/mnt").stat().st_ino == ours):
                    os.kill(int(process.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue
        self.log.close()


def start(node: CniNode, folder: Path) -> Containerd:
    """Start containerd for podwire's node, with the pause image."""
    return started(node.ns, folder, node.client, node.run_dir / "cni" / "net.d")


def started(ns: NetNS, folder: Path, client: Path, conf_dir: Path) -> Containerd:
    plugins = folder / "bin"
    plugins.mkdir(parents=True, exist_ok=True)
    (plugins / "podwire-cni").symlink_to(client)
    (plugins / "loopback").symlink_to(client)
    made = Containerd(ns, folder, plugins, conf_dir)
    made.import_pause()
    wait_until(made.serves_kubelets, "the CRI service, which comes later, is there")
    return made

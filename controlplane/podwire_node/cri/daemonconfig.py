"""The configuration of a node's containerd, and the mounts in which it runs. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAUSE = "podwire.io/pause:latest"
# What podwire does not use: each would make directories on the machine or load code that nobody asked for.
_OFF = (
    "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.nri.v1.nri",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CriConfig:
    """data: the node's directory on disk. cgroup: of its pods. pause: the archive of the pause image."""

    data: Path
    cgroup: str
    pause: bytes


@dataclass(frozen=True, slots=True)
class Daemon:
    """data: the node's directory on disk: images, snapshots. run_dir: of the node; keep: the directory below /run that
    the daemon must see. snapshotter: overlayfs or native. restrict_oom: this process may not lower OOM scores.
    """

    data: Path
    run_dir: Path
    keep: Path
    cni_bin: Path
    snapshotter: str
    restrict_oom: bool

    @property
    def socket(self) -> Path:
        return self.run_dir / "containerd.sock"

    @property
    def config(self) -> Path:
        return self.data / "config.toml"

    @property
    def state(self) -> Path:
        return self.data / "state"

    @property
    def plugins(self) -> Path:
        return self.data / "cni-bin"

    @property
    def hosts(self) -> Path:
        """The directory of registries: mirrors and their certificates (containerd's config_path)."""
        return self.data / "certs.d"


def text(daemon: Daemon) -> str:
    """Return config.toml. Its version 2 is read by containerd 1.4 and later, 2.x too."""
    quoted = json.dumps
    return f"""version = 2
root = {quoted(str(daemon.data / "root"))}
state = {quoted(str(daemon.state))}
disabled_plugins = {json.dumps(list(_OFF))}
[grpc]
  address = {quoted(str(daemon.socket))}
[ttrpc]
  address = {quoted(f"{daemon.socket}.ttrpc")}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {quoted(PAUSE)}
  restrict_oom_score_adj = {str(daemon.restrict_oom).lower()}
  disable_apparmor = true
  tolerate_missing_hugetlb_controller = true
  disable_hugetlb_controller = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {quoted(str(daemon.plugins))}
    conf_dir = {quoted(str(daemon.run_dir / "cni" / "net.d"))}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = {quoted(daemon.snapshotter)}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {quoted(str(daemon.hosts))}
"""


# The daemon has its own /run: shims put their sockets there and CRI its network namespaces. The machine sees neither.
_MOUNTS = """set -e
keep=$1 hold=$2
shift 2
mount --make-rprivate /
mkdir -p "$hold"
mount --bind "$keep" "$hold"
mount -t tmpfs -o mode=755 podwire /run
mkdir -p "$keep" /run/netns /run/containerd
mount --bind "$hold" "$keep"
umount "$hold"
exec "$@"
"""


def command(daemon: Daemon, program: str, joined: int = 0) -> list[str]:
    """Return the argv that runs containerd. joined: a process of a former daemon, whose mounts the pods still use."""
    run = [program, "--config", str(daemon.config)]
    if joined:
        return ["nsenter", f"--mount=/proc/{joined}/ns/mnt", "--", *run]
    inside = ["sh", "-c", _MOUNTS, "sh", str(daemon.keep), str(daemon.data / "hold")]
    return ["unshare", "--mount", "--", *inside, *run]


def importing(daemon: Daemon, program: str, file: str) -> Sequence[str]:
    """Return the argv that loads an archive (of docker or OCI) into the daemon. program: ctr."""
    ctr = [program, "--address", str(daemon.socket), "--namespace", "k8s.io"]
    return [*ctr, "images", "import", "--snapshotter", daemon.snapshotter, file]

"""podman of Debian's packages in a node of the lab, with `network_backend = "cni"`. It has its own mounts, storage and
configuration and does not use the machine's.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from . import debian
from .cninode import wait_until
from .netns import NetNS
from .patience import patient

APPLETS = ("sh", "sleep", "nc", "httpd", "wget", "ip", "cat")


class Podman:
    """`run` takes the arguments of the command line. bin_dir, conf_dir: the directories of CNI plugins and
    configurations. network: the name of the default network.
    """

    def __init__(self, ns: NetNS, folder: Path, bin_dir: Path, conf_dir: Path, network: str) -> None:
        self.ns, self.folder = ns, folder
        self.root = debian.unpack(*debian.TOOLS["podman"])
        (folder / "containers.conf").write_text(f"""[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
log_driver = "k8s-file"
apparmor_profile = ""
[network]
network_backend = "cni"
cni_plugin_dirs = ["{bin_dir}"]
network_config_dir = "{conf_dir}"
default_network = "{network}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
conmon_path = ["{debian.program(self.root, "conmon")}"]
[engine.runtimes]
runc = ["{debian.program(self.root, "runc")}"]
""")
        (folder / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.env = {
            **os.environ,
            **debian.environment(self.root),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "TMPDIR": str(folder),
        }
        self.rootfs = folder / "rootfs"
        (self.rootfs / "bin").mkdir(parents=True)
        for name in ("etc", "proc", "sys", "dev", "run", "tmp", "www"):
            (self.rootfs / name).mkdir()
        (self.rootfs / "bin/busybox").write_bytes(debian.program(self.root, "busybox").read_bytes())
        (self.rootfs / "bin/busybox").chmod(0o755)
        for name in APPLETS:
            (self.rootfs / "bin" / name).symlink_to("busybox")
        # This process has a separate mount namespace. With it, the kernel removes podman's namespaces and state.
        mounts = f"""set -e
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mkdir -p /run/upper /run/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work none /etc
mkdir -p /etc/containers
cp {folder}/policy.json /etc/containers/policy.json
touch {folder}/ready
exec sleep 3600
"""
        self.holder = ns.popen(["unshare", "-m", "--", "sh", "-c", mounts], stderr=subprocess.PIPE)
        wait_until(lambda: (folder / "ready").exists() or self.holder.poll() is not None, "podman's mounts", 10)
        assert self.holder.poll() is None, f"no mounts of podman's own: {self.holder.communicate()[1]}"
        self._has_cni()

    def _has_cni(self) -> None:
        """Raise Absent if this podman has no CNI. podman 5 is built without CNI unless its packager enables it."""
        version = self.run("--version").split()[-1]
        try:
            self.run("info")
        except AssertionError as err:
            self.close()
            if int(version.split(".")[0]) < 5:
                raise
            raise debian.Absent(f"podman {version} of this release is built without CNI") from err

    def run(self, *words: str, check: bool = True, timeout: float = 60) -> str:
        """Run `podman ...` as root in the node and return its output."""
        inside = ["nsenter", f"--target={self.holder.pid}", "--mount", "--net", "--root", "--"]
        podman = [
            str(debian.program(self.root, "podman")),
            "--storage-driver",
            "vfs",
            "--root",
            str(self.folder / "storage"),
            "--runroot",
            "/run/podman-storage",
        ]
        done = subprocess.run(
            [*inside, *podman, *words],
            capture_output=True,
            text=True,
            env=self.env,
            check=False,
            timeout=patient(timeout),
        )
        assert not check or done.returncode == 0, f"podman {' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def start(self, name: str, *command: str, options: tuple[str, ...] = ()) -> None:
        """Start a container in the background."""
        self.run("run", "--detach", "--name", name, *options, "--rootfs", str(self.rootfs), *command)

    def close(self) -> None:
        """End all containers, then the process that holds the mounts."""
        if self.holder.poll() is None:
            self.run("rm", "--all", "--force", "--time", "0", check=False)
            self.holder.kill()
        self.holder.wait()

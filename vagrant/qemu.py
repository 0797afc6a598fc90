"""A Debian VM with its own kernel, made with mmdebstrap and QEMU. vagrant/provision.sh and the tests run in the VM.

    make test-vm                                      all of netns-tests and the tests of the packages, file by file
    make test-vm VM="--demo netns-tests/test_lab.py"  the demo and the named files

QEMU uses KVM if this machine has it. Without KVM, QEMU emulates the CPU, and the VM's clock counts instructions: a
thousand million are one second. So the VM does a third or a quarter of the usual work in one of its seconds, however
slow and busy the machine is, and the whole run takes hours. The output of each file is in --folder, as a log and as
JUnit XML. A second run continues where the first run stopped. Several VMs share the files. Each VM has its own disk,
which starts as a copy of the base disk. The run needs root, and Debian on x86-64.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lab.machine import debian_root, environment, in_root, package_folders

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "systemd-sysv udev kmod dbus procps gcc python3-dev libc6-dev ipset tcpdump openssh-server"
MANAGERS = "network-manager firewalld docker.io"  # for test_managers.py, which starts and stops them
ADDRESS = "10.0.2.15"  # the address at which QEMU's user network expects its guest
SLOW = (
    "no_timer_check nowatchdog tsc=reliable edd=off "  # under emulation, watchdogs report false faults
    "systemd.service_watchdogs=0 systemd.default_timeout_start_sec=900"
)
SUITES = ("base", "cni", "controlplane", "dns", "policy", "proxy", "app")
LOST = 255  # ssh exits with this code after an error of its own
STEPS = ("provision", "demo")
RUNTIMES = tuple(f"netns-tests/test_{name}.py" for name in ("chains", "podman", "runtimes"))
PROVISION = f"""systemctl is-system-running --wait
export PODWIRE_ADDRESS={ADDRESS} PODWIRE_CONTROL={ADDRESS} PODWIRE_JOIN_TOKEN=made-for-one-run-on-one-machine-only
PODWIRE_STEPS=cluster bash /podwire/vagrant/provision.sh &&
podwire get nodes --kubeconfig /var/lib/podwire/admin.kubeconfig
code=$?; podwire uninstall; exit $code"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the tests in one file. problems: the names of the failed tests."""

    what: str
    passed: int = 0
    skipped: int = 0
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed{skipped}" + "".join(f", {name} FAILED" for name in self.problems)


def outcome(what: str, junit: str) -> Outcome:
    """Return the outcome in pytest's JUnit XML. Any other text counts as a run that did not end."""
    try:
        cases = [
            c for c in ET.fromstring(junit).iter("testcase") if len(c) or c.get("name")
        ]  # without it, the run was interrupted
    except ET.ParseError:
        return Outcome(what, problems=("the run",))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None and c not in bad]
    names = dict.fromkeys(c.get("name") or c.get("classname") or what for c in bad)
    return Outcome(what, len(cases) - len(bad) - len(skipped), len(skipped), tuple(names))


def ended(junit: str, code: int) -> str:
    """Return the JUnit XML. If pytest was stopped before the last test, add a failed case. Then pytest's exit code is
    not 0, 1 (failed tests) or 5 (no tests).
    """
    rest = '<testcase name="the run was stopped"><error/></testcase></testsuite>'
    return junit if code in (0, 1, 5) else junit.replace("</testsuite>", rest, 1)


def table(kernel: str, outcomes: Iterable[Outcome]) -> str:
    """Return a Markdown table in the form of vagrant/README.md, with one row for each file."""
    return "\n".join([f"| {kernel} | |", "|---|---|", *(f"| `{o.what}` | {o} |" for o in outcomes)])


def qemu_command(folder: Path, accel: str, port: int) -> list[str]:
    """Return the argv of the VM, with ssh at 127.0.0.1:port. The disk is not needed after the run, so QEMU does not
    wait for writes. Under emulation the VM has one CPU that executes one instruction per nanosecond (icount). Two CPUs
    would use the host's clock, on which each second is too short for the emulated work.
    """
    tcg = ["-accel", "tcg,thread=single,tb-size=1024", "-icount", "shift=0", "-cpu", "max,la57=off", "-smp", "1"]
    cpu = ["-accel", "kvm", "-cpu", "host", "-smp", "2"] if accel == "kvm" else tcg
    return [
        "qemu-system-x86_64",
        *cpu,
        "-m",
        "5G",
        "-display",
        "none",
        "-no-reboot",
        "-monitor",
        "none",
        "-kernel",
        str(folder / "vmlinuz"),
        "-initrd",
        str(folder / "initrd"),
        "-append",
        f"root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off quiet {SLOW}",
        "-drive",
        f"file={folder / 'disk.img'},format=raw,if=virtio,cache=unsafe,snapshot=on",
        "-netdev",
        f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device",
        "virtio-net-pci,netdev=n0",
        "-serial",
        f"file:{folder / f'console.{port}'}",
    ]


def accelerator(cpuinfo: str) -> str:
    """Return "kvm" if the CPU has virtualization flags and /dev/kvm is usable, else "tcg". A VM without nested
    virtualization can have /dev/kvm without these flags.
    """
    flags = {flag for line in cpuinfo.splitlines() if line.startswith("flags") for flag in line.split()}
    return "kvm" if flags & {"vmx", "svm"} and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def wanted(names: list[str], demo: bool, root: Path = ROOT) -> list[str]:
    """Return the steps to run, in order: the provisioning, the demo, and each test file."""
    files = names or [*sorted(f"netns-tests/{p.name}" for p in (root / "netns-tests").glob("test_*.py")), *SUITES]
    files += [] if names else ["vagrant/test_managers.py"]
    return ["provision", *(["demo"] if demo or not names else []), *files]


def command(what: str, patience: int, seconds: int) -> str:
    """Return the shell command that runs a step in the VM. Tests write /tmp/junit.xml, also if the time limit stops
    them.
    """
    if what == "provision":
        return f"export PODWIRE_PATIENCE={patience}\n{PROVISION}"
    marks = "not long" if what in RUNTIMES else "not long and not runtimes"
    run = (
        "make demo"
        if what == "demo"
        else (f'.venv/bin/python -m pytest -v --tb=short --durations=5 --junitxml=/tmp/junit.xml -m "{marks}" {what}')
    )
    return (
        f"cd /podwire && rm -f /tmp/junit.xml && PODWIRE_PATIENCE={patience} "
        f"timeout --signal=INT --kill-after=60 {seconds} {run}"
    )


class Machine:
    """One VM. Its files are in `folder`."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.kernel = folder, port, ""
        self.qemu: subprocess.Popen[bytes] | None = None

    def build(self, kernel: str) -> None:
        """Make the VM's disk: install packages, podwire and its test dependencies. This runs outside the VM, because
        an emulated VM is slow.
        """
        shutil.rmtree(self.folder / "base", ignore_errors=True)  # files of an interrupted build
        (self.folder / "key").unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "key")], check=True)
        root = debian_root(self.folder, ROOT)
        apt = "apt-get -qq -o Acquire::Retries=3"
        install = (
            f"set -e; {apt} update; {apt} install -y --no-install-recommends {PACKAGES} {MANAGERS} {kernel} make; "
            "bash /podwire/vagrant/provision.sh; cd /podwire; make -s .venv/.installed-dev; make -s runtimes || :; "
            ".venv/bin/python -m compileall -q cni controlplane dns proxy netns-tests bench vagrant; "
            # pytest compiles test files separately
            ".venv/bin/python -m pytest -q --collect-only >/dev/null || :; "
            "systemctl disable NetworkManager firewalld docker docker.socket containerd; "
            "systemctl enable ssh systemd-networkd; systemctl mask systemd-networkd-wait-online apt-daily.timer "
            "apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer man-db.timer"
        )
        env = environment(PODWIRE_STEPS="packages install", DEBIAN_FRONTEND="noninteractive")
        done = in_root(root, ["bash", "-c", install], env, package_folders())
        if done.returncode:
            raise SystemExit(f"{(done.stdout + done.stderr)[-3000:]}\nthe VM's packages could not be installed")
        for name, text in {
            "etc/fstab": "/dev/vda / ext4 noatime 0 1\ntmpfs /tmp tmpfs size=2G 0 0\n",
            "etc/hostname": "node1\n",
            "etc/hosts": f"127.0.0.1 localhost\n{ADDRESS} node1\n",
            "etc/systemd/network/eth0.network": f"[Match]\nName=eth0\n[Network]\nAddress={ADDRESS}/24\n"
            "Gateway=10.0.2.2\n",
            "root/.ssh/authorized_keys": (self.folder / "key.pub").read_text(),
        }.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
            shutil.copyfile(next((root / "boot").glob(pattern)), self.folder / name)
        made = self.folder / "disk.new"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(root), str(made), "8G"], check=True)
        made.rename(self.folder / "disk.img")
        shutil.rmtree(root)

    def start(self, accel: str) -> None:
        self.qemu = subprocess.Popen(qemu_command(self.folder, accel, self.port), stdin=subprocess.DEVNULL)
        end = time.monotonic() + (900 if accel == "kvm" else 3600)  # emulated beside other work, a boot takes long
        while self.ssh("true").returncode:
            if self.qemu.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the VM does not answer; what it said: {self.folder / f'console.{self.port}'}")
            time.sleep(2)
        self.kernel = self.ssh("uname -r").stdout.strip()

    def ssh(self, script: str, out: IO[str] | int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        options = (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "ConnectTimeout=60",
            "ServerAliveInterval=60",
            "ServerAliveCountMax=30",
            f"IdentityFile={self.folder / 'key'}",
            f"Port={self.port}",
        )
        return subprocess.run(
            ["ssh", "-q", *(word for o in options for word in ("-o", o)), "root@127.0.0.1", script],
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )

    def run(self, what: str, patience: int, seconds: int) -> Outcome:
        """Run one step and return its outcome. If an earlier run completed this step, return that outcome. Raises
        RuntimeError if the VM ends early.
        """
        name = what.replace("/", ".")
        log, xml, part = (self.folder / f"{name}.{kind}" for kind in ("log", "xml", "part"))
        if not log.exists():
            with part.open("w") as out:
                code = self.ssh(command(what, patience, seconds), out).returncode
            if code == LOST:
                raise RuntimeError(f"{what}: the VM ended early; a second run repeats this step")
            if what in STEPS:
                junit = f'<s><testcase name="{what}">{"<failure/>" if code else ""}</testcase></s>'
            else:
                junit = ended(self.ssh("cat /tmp/junit.xml 2>/dev/null").stdout, code)
            xml.write_text(junit)
            part.rename(log)  # the last write: a step with a log is complete
        return outcome(what, xml.read_text())

    def stop(self) -> None:
        if self.qemu is not None:
            self.qemu.terminate()
            self.qemu.wait()


def share(
    names: list[str], machines: list[Machine], accel: str, run: Callable[[Machine, str], Outcome]
) -> list[Outcome]:
    """Run all files and return their outcomes. Each machine takes the next remaining file. The result lacks a file that
    no machine could run.
    """
    left: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        left.put(name)
    found: dict[str, Outcome] = {}

    def work(machine: Machine) -> None:
        try:
            machine.start(accel)
            while not left.empty():
                with contextlib.suppress(queue.Empty):
                    what = left.get_nowait()
                    begun = time.monotonic()
                    found[what] = run(machine, what)
                    print(f"{what}: {found[what]} ({(time.monotonic() - begun) / 60:.0f} min)", flush=True)
        except RuntimeError as err:
            print(err, file=sys.stderr, flush=True)
        finally:
            machine.stop()

    threads = [threading.Thread(target=work, args=(machine,)) for machine in machines]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for machine in machines:
            machine.stop()
    return [found[name] for name in names if name in found]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of tests; none: all, and the demo")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--folder", type=Path, default=ROOT / ".vm", help="the VM and the logs; removed by hand")
    parser.add_argument("--accel", choices=["kvm", "tcg"], default=accelerator(Path("/proc/cpuinfo").read_text()))
    parser.add_argument("--vms", type=int, help="that share the files; default: 1, and one a CPU without KVM")
    parser.add_argument("--patience", type=int, help="default: 1, and 3 without KVM")
    parser.add_argument(
        "--seconds", type=int, default=7200, help="of the VM's clock, after which a file of tests is stopped"
    )
    parser.add_argument("--kernel", default="linux-image-cloud-amd64", help="Debian package of the kernel")
    parser.add_argument(
        "--port", type=int, default=2222, help="of 127.0.0.1, where the VM's ssh is; more VMs: the next ones"
    )
    given = parser.parse_args()
    kvm = given.accel == "kvm"
    given.vms = given.vms or (1 if kvm else os.cpu_count() or 1)
    given.patience = given.patience or (1 if kvm else 3)
    return given


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM also stops the VMs
    given.folder.mkdir(parents=True, exist_ok=True)
    machines = [Machine(given.folder, given.port + n) for n in range(given.vms)]
    if not (given.folder / "disk.img").exists():
        machines[0].build(given.kernel)
    names = wanted(given.files, given.demo)
    found = share(names, machines, given.accel, lambda vm, what: vm.run(what, given.patience, given.seconds))
    print(table(machines[0].kernel, found))
    return int(len(found) < len(names) or any(o.problems for o in found))


if __name__ == "__main__":
    sys.exit(main())

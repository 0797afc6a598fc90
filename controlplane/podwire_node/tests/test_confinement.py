"""What a container of the netns runtime cannot reach of the machine, and what runs in it by exec."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from podwire_base.patience import patient
from podwire_node import shim
from podwire_node.runtime import enter_command

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for the namespaces of a container")
ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OWN": "x"}


def _shim(folder: Path, spec: dict[str, object]) -> subprocess.Popen[bytes]:
    path = folder / f"{spec['kind']}.spec"
    path.write_text(json.dumps(spec))
    return subprocess.Popen([sys.executable, "-ISE", shim.__file__, str(path)])


def _wait(path: Path, process: subprocess.Popen[bytes]) -> dict[str, int]:
    end = time.monotonic() + patient(20)
    while time.monotonic() < end:
        if path.exists():
            found: dict[str, int] = json.loads(path.read_text())
            return found
        assert process.poll() is None, "the shim ended early"
        time.sleep(0.01)
    raise AssertionError(f"no {path}")


@contextmanager
def container(folder: Path, command: list[str], tmpfs: tuple[str, ...] = ()) -> Iterator[int]:
    """Yield the pid of a container's first process, which a sandbox of its own holds."""
    (folder / "root").mkdir()
    sandbox = {
        "kind": "sandbox",
        "hostname": "h",
        "share_net": True,
        "command": ["/bin/sleep", "600"],
        "state": str(folder / "sandbox.json"),
    }
    started = [_shim(folder, sandbox)]
    try:
        pause = _wait(folder / "sandbox.json", started[0])["pid"]
        spec: dict[str, object] = {
            "kind": "container",
            "pause": pause,
            "root": str(folder / "root"),
            "lower": "/",
            "command": command,
            "env": ENV,
            "cwd": "/",
            "binds": [],
            "tmpfs": list(tmpfs),
            "log": str(folder / "log"),
            "state": str(folder / "state.json"),
            "exit": str(folder / "exit.json"),
        }
        started.append(_shim(folder, spec))
        yield _wait(folder / "state.json", started[1])["pid"]
    finally:
        ended = [json.loads(path.read_text())["pid"] for path in (folder / "state.json",) if path.exists()]
        for pid in ended:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the first process of a pid namespace ignores SIGTERM
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(patient(5))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ran(folder: Path, script: str, tmpfs: tuple[str, ...] = ()) -> list[str]:
    """Run a shell script as a container, and return the lines that it wrote."""
    with container(folder, ["/bin/sh", "-c", script], tmpfs):
        end = time.monotonic() + patient(20)
        while not (folder / "exit.json").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return [line.split(" ", 3)[-1] for line in (folder / "log").read_text().splitlines()]


def test_the_machines_settings_are_read_only_and_what_tells_of_it_is_hidden(tmp_path: Path) -> None:
    """A pod wrote the machine's core_pattern, whose program the kernel runs as root outside of every container."""
    paths = [
        "/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger", "/proc/irq",
        "/proc/fs", "/proc/bus", "/sys", "/sys/kernel/uevent_helper",
    ]  # fmt: skip
    script = f"""
for path in {" ".join(paths)}; do if [ -w $path ]; then echo writable $path; fi; done
(cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern) 2>/dev/null && echo wrote core_pattern
for path in {" ".join(shim.MASKED)}; do
  if [ -d $path ]; then ls -A $path; elif [ -e $path ]; then head -c 100 $path; fi
done
mount -o remount,rw,bind /proc/sys 2>/dev/null && echo remounted
umount /proc/sys 2>/dev/null && echo uncovered
mount -t proc none /mnt 2>/dev/null && echo mounted
echo end"""
    assert ran(tmp_path, script) == ["end"]


def test_no_device_of_the_machine_can_be_made(tmp_path: Path) -> None:
    """A device cgroup, which would confine them, is missing here: mknod opened the machine's disks."""
    script = """
for folder in / /dev /tmp; do
  mknod $folder/made c 1 5 2>/dev/null && head -c 1 $folder/made >/dev/null 2>&1 && echo opened $folder/made
done
head -c 1 /dev/zero >/dev/null && echo zero"""
    assert ran(tmp_path, script) == ["zero"]


def _credentials(text: str) -> dict[str, str]:
    return {row.split(":")[0]: row.split()[1] for row in text.splitlines() if row.startswith(("Cap", "NoNew", "Uid"))}


def test_a_command_has_the_containers_credentials_root_and_processes(tmp_path: Path) -> None:
    """Exec probes and `podwire exec` ran with every capability."""
    with container(tmp_path, ["/bin/sleep", "600"]) as pid:
        end = time.monotonic() + patient(30)
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":  # until then it is still being confined
            assert time.monotonic() < end
            time.sleep(0.01)
        own = _credentials(Path(f"/proc/{pid}/status").read_text())
        done = subprocess.run(
            [
                *enter_command(pid),
                "/bin/sh",
                "-c",
                "cat /proc/self/status; echo $OWN; until grep sleep /proc/1/comm; do :; done",
            ],
            capture_output=True,
            text=True,
            check=True,
            env=ENV,
            timeout=patient(30),
        )
        assert _credentials(done.stdout) == own
        assert own["CapBnd"] == own["CapEff"] == f"{sum(1 << c for c in shim.KEEP_CAPABILITIES):016x}"
        assert int(own["CapInh"], 16) == int(own["CapAmb"], 16) == 0
        assert done.stdout.splitlines()[-2:] == ["x", "sleep"]


def test_nobody_can_enter_before_the_container_is_confined(tmp_path: Path) -> None:
    """A probe that began with its container ran in the machine's root: the pid was told before the set-up was done."""
    many = tuple(f"/made/{n}" for n in range(300))  # so that the set-up takes its time
    with container(tmp_path, ["/bin/sleep", "600"], many) as pid:
        root, machine = os.stat(f"/proc/{pid}/root"), os.stat("/")
        own = _credentials(Path(f"/proc/{pid}/status").read_text())
        assert (root.st_dev, root.st_ino) != (machine.st_dev, machine.st_ino)
        assert own["CapBnd"] == f"{sum(1 << c for c in shim.KEEP_CAPABILITIES):016x}"


@pytest.mark.parametrize(
    ("words", "status"),
    [(["sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -9 $$"], 137), (["no-such-program"], 127), (["/proc"], 126)],
    ids=["exit", "signal", "missing", "not a program"],
)
def test_a_command_tells_its_exit_status(tmp_path: Path, words: list[str], status: int) -> None:
    with container(tmp_path, ["/bin/sleep", "600"]) as pid:
        done = subprocess.run([*enter_command(pid), *words], env=ENV, capture_output=True, timeout=patient(30))  # noqa: PLW1510 - the status is what is asked
        assert done.returncode == status


def test_a_command_ends_with_the_one_who_asked(tmp_path: Path) -> None:
    """A probe that timed out left its command running in the container."""
    with container(tmp_path, ["/bin/sleep", "600"]) as pid:
        asked = subprocess.Popen(
            [*enter_command(pid), "sh", "-c", "echo $$; exec sleep 599"], env=ENV, stdout=subprocess.PIPE
        )
        assert asked.stdout is not None
        inside = asked.stdout.readline().strip().decode()
        asked.kill()
        asked.wait()
        end = time.monotonic() + patient(10)
        look = [*enter_command(pid), "test", "-e", f"/proc/{inside}/exe"]
        while subprocess.run(look, env=ENV, check=False, timeout=patient(30)).returncode == 0:
            assert time.monotonic() < end, "the command outlived the one who asked for it"


def test_a_mount_path_stays_in_the_containers_root(tmp_path: Path) -> None:
    """`/../..` made directories on the machine's disk."""
    wanted = ("/../../podwire-made", "relative/path")
    script = "grep -c ' /podwire-made tmpfs' /proc/mounts; grep -c ' /relative/path tmpfs' /proc/mounts"
    assert ran(tmp_path, script, wanted) == ["1", "1"]
    assert not Path("/podwire-made").exists()
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == []


def test_a_volume_over_the_containers_root_is_refused(tmp_path: Path) -> None:
    (said,) = ran(tmp_path, "echo ran", ("/tmp/..",))
    assert "mountPath '/tmp/..' is the container's root" in said


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/a/b", "/a/b"),
        ("a//./b/", "/a/b"),
        ("/../../x", "/x"),
        ("/a/../../../x", "/x"),
        ("/absolute/x", "/etc/x"),
        ("/up/x", "/x"),
        ("/chain", "/etc"),
        ("/a/absolute", "/a/absolute"),
    ],
)
def test_links_and_dots_count_from_the_root(tmp_path: Path, path: str, found: str) -> None:
    (tmp_path / "absolute").symlink_to("/etc")
    (tmp_path / "up").symlink_to("../../../..")
    (tmp_path / "chain").symlink_to("absolute")
    assert shim.inside(str(tmp_path), path) == str(tmp_path) + found


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        shim.inside(str(tmp_path), "/a/x")

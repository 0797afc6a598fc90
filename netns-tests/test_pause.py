"""The pause process, compiled and in Python: it waits, reaps children, and ends on a signal."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.cninode import wait_until
from lab.netns import die_with_parent
from lab.patience import patient
from podwire_cni import native

PR_SET_CHILD_SUBREAPER = 36
RT_SIGTIMEDWAIT = {"x86_64": 128, "aarch64": 137}[os.uname().machine]
STANDIN = [sys.executable, "-IS", str(Path(native.__file__).parent / "pause.py")]
COMMANDS = [pytest.param(native.pause_command(), id="pause_command"), pytest.param(STANDIN, id="python")]


def status(pid: int, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(field + ":"))


def sleeps(pid: int) -> bool:
    """The process waits for signals."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == str(RT_SIGTIMEDWAIT)


def start(command: list[str], prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*prefix, *command], preexec_fn=die_with_parent)  # noqa: PLW1509 - one prctl, no lock, no allocation


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_at_signal_with_success(command: list[str], number: signal.Signals) -> None:
    pause = start(command)
    wait_until(lambda: sleeps(pause.pid), "pause sleeps")
    assert pause.poll() is None
    pause.send_signal(number)
    assert pause.wait(timeout=patient(10)) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_reaps_orphans(command: list[str]) -> None:
    """As a child subreaper it inherits a grandchild; a zombie would keep its /proc entry forever."""

    def subreaper() -> None:
        die_with_parent()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)

    # The shell starts a background process, prints its pid and becomes pause: the process is then pause's child.
    pause = subprocess.Popen(
        ["sh", "-c", 'sleep 600 & echo $!; exec "$@"', "sh", *command],
        stdout=subprocess.PIPE,
        preexec_fn=subreaper,  # noqa: PLW1509 - two prctl, no lock
    )
    assert pause.stdout is not None
    with pause.stdout as told:
        child = int(told.readline())
    wait_until(lambda: sleeps(pause.pid), "pause sleeps")
    assert int(status(child, "PPid")) == pause.pid
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{child}").exists(), "the orphan is reaped")
    assert pause.poll() is None
    pause.terminate()
    assert pause.wait(timeout=patient(10)) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_ends_as_pid_1_too(command: list[str]) -> None:
    """The kernel gives pid 1 of a namespace no default action for SIGTERM."""
    unshare = start(command, ("unshare", "--pid", "--fork", "--kill-child"))
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    pid = wait_until(lambda: [int(p) for p in children.read_text().split()], "the namespace has its first process")[0]
    wait_until(lambda: sleeps(pid), "pause sleeps")
    assert status(pid, "NSpid").split()[-1] == "1"
    os.kill(pid, signal.SIGTERM)
    assert unshare.wait(timeout=patient(10)) == 0


def test_native_pause_is_small() -> None:
    """There is one for each pod, so it must cost next to nothing."""
    assert native.is_compiled(), "install a C compiler and run `pip install -e .` again"
    pause = start(native.pause_command())
    wait_until(lambda: sleeps(pause.pid), "pause sleeps")
    rss_kb = int(status(pause.pid, "VmRSS").split()[0])
    pause.kill()
    pause.wait()
    assert rss_kb < 1000  # 0.1 MB with musl, 0.7 with a static glibc; the Python replacement has 10

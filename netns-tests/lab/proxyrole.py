"""`podwire proxy` as a process inside a namespace."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from podwire_proxy.testing import scenarios as s

from . import evidence
from .netns import NetNS
from .patience import patient, wait_until


def until(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    wait_until(condition, what, seconds, pause=0.01)


def argv(kubeconfig: Path, run_dir: Path, *flags: str, first: str = "") -> list[str]:
    """Return the command of `podwire proxy` on the scenarios' node. first: Python code that runs before the proxy."""
    code = f"{first}\nfrom podwire_proxy.main import command; command()"
    words = ["--node-name", s.NODE, "--kubeconfig", str(kubeconfig), "--run-dir", str(run_dir)]
    return [sys.executable, "-c", code, *words, *flags]


class Running:
    """`podwire proxy` as a process on the node. flags: for example `--backend iptables` or `--iptables-variant legacy`.
    first: Python code that the process runs before the proxy.
    """

    def __init__(self, ns: NetNS, kubeconfig: Path, run_dir: Path, *flags: str, first: str = "") -> None:
        self.ns, self.name, self.said = ns, s.NODE, ""
        self.status_file = run_dir / "status" / "proxy.json"
        self.status_file.unlink(missing_ok=True)
        self.process = ns.popen(argv(kubeconfig, run_dir, *flags, first=first), stderr=subprocess.PIPE)
        evidence.tells(self)

    def describe(self) -> str:
        """Return the evidence of a failed test: the status and the log."""
        if self.process.stderr and not self.process.stderr.closed:
            os.set_blocking(fd := self.process.stderr.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(fd, 1 << 16):
                    self.said += data.decode()
        status = self.status_file.read_text() if self.status_file.exists() else "none"
        return f"--- status\n{status}\n--- log\n{self.said}"

    def ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the proxy ended: {self.process.communicate()[1]}")
        return self.status_file.exists() and bool(json.loads(self.status_file.read_text())["ready"])

    def repairs(self) -> int:
        """Return the number of repaired changes by other programs, according to the proxy's status."""
        return int(json.loads(self.status_file.read_text())["figures"]["repairs"])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send signal `number` to the proxy, wait for its end, and return the log."""
        self.process.send_signal(number)
        _, log = self.process.communicate(timeout=patient(30))
        self.said += log or ""
        return self.said

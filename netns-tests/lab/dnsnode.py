"""The DNS of a node as processes: feeder and server run in one namespace, with a fake API server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from . import evidence
from .dnsupstream import Upstream
from .fakeapi import FakeApi
from .netns import NetNS
from .patience import patient, wait_until

SERVICES, SLICES, NAMESPACES = "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/namespaces"
DNS_ADDRESS = "10.96.0.10"


def eventually(check: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait until `check` is true. A test does not assert how long this takes."""
    wait_until(check, what, seconds)


class DnsNode:
    """`start` and `kill` take a role ("feeder", "server"). The remaining processes are killed at the end. A failed test
    shows their logs.
    """

    def __init__(
        self, node: NetNS, api: FakeApi, run_dir: Path, upstreams: Sequence[Upstream], flags: Sequence[str]
    ) -> None:
        self.ns, self.node, self.api, self.run_dir, self.upstreams = node, node, api, run_dir, upstreams
        self.name = "n1"
        self.first = ""  # Python that each role runs before anything else
        self.kubeconfig = api.kubeconfig(run_dir / "kubeconfig")
        self.flags = [
            "--node-name",
            "n1",
            "--kubeconfig",
            str(self.kubeconfig),
            "--run-dir",
            str(run_dir),
            *flags,
            *(word for upstream in upstreams for word in ("--upstream", upstream.address)),
        ]
        if "--upstream" not in self.flags and "--corefile" not in self.flags:
            self.flags += ["--upstream", "none"]
        self.processes: dict[str, subprocess.Popen[str]] = {}
        evidence.tells(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for role in list(self.processes):
            self.kill(role)
        self.kill_spare()
        if kind is not None:
            print(self.logs())

    def _command(self, role: str) -> list[str]:
        return [
            sys.executable,
            "-c",
            f"{self.first}\nfrom podwire_dns.main import command; command()",
            role,
            *self.flags,
        ]

    def run(self, role: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self.node.run([*self._command(role), *words])

    def start(self, role: str) -> None:
        with (self.run_dir / f"{role}.log").open("a") as log:
            self.processes[role] = self.node.popen(self._command(role), stderr=log, stdout=log)

    def kill(self, role: str, number: int = signal.SIGKILL) -> int:
        process = self.processes.pop(role)
        process.send_signal(number)
        return process.wait(patient(30))

    def spare(self) -> int:
        """Return the process id of the spare server that the status names; 0 if there is none."""
        pid = int(self.status("dns").get("figures", {}).get("spare", 0))
        with contextlib.suppress(OSError):
            if pid and b"dns-spare" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return 0

    def kill_spare(self) -> None:
        """Kill the spare servers of this node: they outlive killed servers."""
        here = self.node.call(lambda: Path("/proc/thread-self/ns/net").readlink())
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                spare = (entry / "cmdline").read_bytes().startswith(b"podwire\0dns-spare")
                if spare and (entry / "ns" / "net").readlink() == here:
                    os.kill(int(entry.name), signal.SIGKILL)

    def status(self, role: str) -> dict[str, Any]:
        """Return the role's last status, {} if the role has not written a status."""
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            found = json.loads((self.run_dir / "status" / f"{role}.json").read_text())
        return found

    def is_ready(self) -> bool:
        """Whether the running server reports ready. The status of a killed server does not count."""
        told = self.status("dns")
        return told.get("reason") == "Ready" and told["pid"] == self.processes["server"].pid

    def describe(self) -> str:
        """Return the evidence of a failed test: status and logs."""
        return (
            "".join(
                f"--- status of {role}\n{json.dumps(self.status(role), indent=1)}\n" for role in ("dns-feeder", "dns")
            )
            + self.logs()
        )

    def logs(self) -> str:
        return "".join(f"--- {path.name}\n{path.read_text()}" for path in self.run_dir.glob("*.log"))

"""kill -9 of agent and plugin at every single step of ADD and DEL, disk errors, and many calls at once.

Nothing leaks, and no address is given twice.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lab.cninode import Answer, CniNode, put_node, wait_until
from lab.counts import STRIDE, some
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from podwire_cni import readiness
from podwire_cni.native import is_compiled

ENTRY = {"hostPort": 5300, "containerPort": 53, "protocol": "udp"}


class CrashNode(CniNode):
    """Its agent is lab.crashagent."""

    def start(self, *, wait: bool = True) -> None:
        with open(self.run_dir / "agent.log", "a") as log:
            folder = str(Path(__file__).parent)
            self.agent = self.ns.popen(
                [sys.executable, "-m", "lab.crashagent", str(self.run_dir), self.name, str(self.kubeconfig)],
                stderr=log,
                stdout=log,
                env={**os.environ, "PYTHONPATH": folder},
            )
        wait_until(lambda: "conflist written" in self.log(), "the agent is ready")

    def back(self) -> None:
        readiness.path(self.run_dir).unlink(missing_ok=True)  # else the plugin itself answers
        wait_until(lambda: self.cni("STATUS", "", None, self.conf("1.1.0")).status == 0, "the agent is back")

    def full_conf(self, version: str = "1.1.0", **more: Any) -> dict[str, Any]:
        """A configuration with everything that an ADD can request."""
        return self.conf(
            version,
            runtimeConfig={"portMappings": [ENTRY], "bandwidth": {"ingressRate": 10**9, "egressRate": 10**9}},
            **more,
        )

    def steps(self) -> list[str]:
        return (self.run_dir / "steps").read_text().split()

    def crash_at(self, step: int, command: str, name: str, pod: NetNS, conf: dict[str, Any] | None = None) -> Answer:
        (self.run_dir / "crash").write_text(str(step))
        answer = self.cni(command, name, pod, conf or self.full_conf(), PODWIRE_CNI_WAIT="0")
        assert answer.status == 1 and answer.body["code"] == 11, f"step {step}: {answer.out}"
        self.back()
        return answer

    def remains(self, pod: NetNS, healthy: set[str]) -> dict[str, object]:
        """Everything left besides the healthy pods; it should be empty."""
        neighbours = self.ns.netlink(
            lambda ipr: [str(n.get("NDA_DST")) for n in ipr.get_neighbours(family=socket.AF_INET)]
        )
        found = {
            "leases": set(self.leases()) - healthy,
            "neighbours": {n for n in neighbours if n.startswith("10.244.1.")} - healthy,
            "links": len([n for n in self.links() if n.startswith(("veth", "ifb"))]) - len(healthy),
            "elements": self.table_elements() - 3 * len(healthy),
            "flows": self.ns.run(["conntrack", "-L", "-p", "udp", "--dport", "5300"]).stdout,
            "eth0": len(pod.netlink(lambda ipr: ipr.link_lookup(ifname="eth0"))),
        }
        return {what: left for what, left in found.items() if left}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashNode]:
    with Lab() as lab:
        ns, outside = lab.netns("node"), lab.netns("outside")
        lab.wire(ns, "eth0", outside, "eth0", "192.0.2.1/24", "192.0.2.42/24")
        with FakeApi(ns) as api:
            put_node(api, "n1", "10.244.1.0/24", "192.0.2.1")
            made = CrashNode(ns, tmp_path_factory.mktemp("run"), "n1", api)
            made.start()
            yield made
            made.close()


def flow(node: CrashNode) -> None:
    """A UDP flow to the hostPort, for conntrack to keep."""
    with node.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.sendto(b"?", ("192.0.2.1", ENTRY["hostPort"]))


def test_killed_at_every_step(node: CrashNode, lab: Lab) -> None:
    """After each kill the agent starts, the runtime calls DEL (or, every other time, GC), and everything of the pod is
    gone.
    """
    alive, pod = lab.netns("alive"), lab.netns("pod")
    healthy = {node.cni("ADD", "alive", alive).address}
    keep = {"cni.dev/valid-attachments": [{"containerID": "alive", "ifname": "eth0"}]}

    def clean(how: int) -> None:
        done = node.cni("GC", "", None, node.conf("1.1.0", **keep)) if how % 2 else node.cni("DEL", "pod", pod)
        assert done.status == 0, done.out

    assert node.cni("ADD", "pod", pod, node.full_conf()).status == 0
    adding = node.steps()
    flow(node)
    assert node.cni("DEL", "pod", pod, node.full_conf()).status == 0
    deleting = node.steps()
    assert {"reserve", "attach", "CreateVeth", "JoinBridge", "Redirect", "wired", "answer"} <= set(adding)
    assert {"detach", "_start", "remove", "release", "_forget", "answer"} <= set(deleting)
    for at in some(len(adding)):
        node.crash_at(at, "ADD", "pod", pod)
        clean(at)
        assert node.remains(pod, healthy) == {}, f"ADD killed after step {at}, {adding[at - 1]}"
    for at in some(len(deleting)):
        added = node.cni("ADD", "pod", pod, node.full_conf())
        assert added.status == 0 and added.address not in healthy, added.out
        flow(node)
        node.crash_at(at, "DEL", "pod", pod)
        clean(at)
        assert node.remains(pod, healthy) == {}, f"DEL killed after step {at}, {deleting[at - 1]}"
    assert node.cni("DEL", "alive", alive).status == 0


def test_a_plain_pod_killed_at_every_step(node: CrashNode, lab: Lab) -> None:
    """With a compiler, its steps are the batches of one prepared program."""
    pod = lab.netns("pod")
    assert node.cni("ADD", "pod", pod).status == 0
    steps = node.steps()
    assert steps.count("batch") == 4 if is_compiled() else "CreateVeth" in steps, steps
    assert node.cni("DEL", "pod", pod).status == 0
    for at in some(len(steps)):
        node.crash_at(at, "ADD", "pod", pod, node.conf())
        assert node.cni("DEL", "pod", pod).status == 0
        assert node.remains(pod, set()) == {}, f"killed after step {at}, {steps[at - 1]}"


PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24


def run_to(node: CrashNode, command: str, name: str, pod: NetNS, stop: int) -> bool:
    """Run the plugin binary until it enters or leaves a system call for the `stop`th time, and kill it there; returns
    False if it ended before.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def work() -> bool:
        stdin = os.memfd_create("conf")
        os.pwrite(stdin, json.dumps(node.full_conf()).encode(), 0)
        process = subprocess.Popen(
            [str(node.client)],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            env=node.environment(command, name, pod),
            preexec_fn=lambda: libc.ptrace(PTRACE_TRACEME, 0, None, None),  # noqa: PLW1509 - one call
        )
        os.close(stdin)
        process.returncode = -1  # it is waited for here
        os.waitpid(process.pid, 0)  # it stops when it is executed
        for _ in range(stop):
            assert libc.ptrace(PTRACE_SYSCALL, process.pid, None, None) == 0, os.strerror(ctypes.get_errno())
            if os.WIFEXITED(os.waitpid(process.pid, 0)[1]):
                return False
        os.kill(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        return True

    return node.ns.call(work)


def test_the_client_killed_at_every_system_call(node: CrashNode, lab: Lab) -> None:
    """The agent completes or undoes the request; a DEL, or every other time a GC, that follows at once frees the
    rest.
    """
    if not is_compiled():
        pytest.skip("the plugin is a Python program here: without a C compiler there is no other")
    alive, pod = lab.netns("alive"), lab.netns("pod")
    healthy = {node.cni("ADD", "alive", alive).address}
    keep = {"cni.dev/valid-attachments": [{"containerID": "alive", "ifname": "eth0"}]}
    for command in ("ADD", "DEL"):
        killed, stop = True, 0
        while killed:
            if command == "DEL":
                assert node.cni("ADD", "pod", pod, node.full_conf()).status == 0
            stop += STRIDE
            killed = run_to(node, command, "pod", pod, stop)
            if stop % 2:
                done = node.cni("GC", "", None, node.conf("1.1.0", **keep))
            else:
                done = node.cni("DEL", "pod", pod, node.full_conf())
            assert done.status == 0, done.out
            wait_until(lambda: node.remains(pod, healthy) == {}, f"nothing is left of {command} killed at stop {stop}")
        assert stop > 20  # system calls, each counted as it begins and as it ends
    assert "went away" in node.log()
    assert node.cni("DEL", "alive", alive).status == 0


def test_corrupted_lease_of_a_pod_that_lives(node: CrashNode, lab: Lab) -> None:
    pods = {name: lab.netns(name) for name in ("a", "b")}
    a, b = (node.cni("ADD", name, pod).address for name, pod in pods.items())
    (node.run_dir / "cni" / "leases" / a).write_text("\0\0\0")
    (node.run_dir / "crash").write_text("1")
    node.cni("STATUS", "", None, node.conf("1.1.0"))
    node.back()
    assert "unreadable lease" in node.log() and "its pod is gone" in node.log()
    third = lab.netns("c")
    asked = node.cni("ADD", "c", third, node.conf(runtimeConfig={"ips": [a]}))
    assert asked.status == 1 and asked.body["code"] == 11, "the address is in use"
    assert (
        node.cni(
            "CHECK",
            "b",
            pods["b"],
            node.conf(prevResult={"interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": f"{b}/32"}]}),
        ).status
        == 0
    )
    assert node.cni("DEL", "a", pods["a"]).status == 0
    (node.run_dir / "crash").write_text("1")
    node.cni("STATUS", "", None, node.conf("1.1.0"))
    node.back()
    assert node.cni("ADD", "c", third, node.conf(runtimeConfig={"ips": [a]})).address == a
    assert {node.cni("DEL", name).status for name in "bc"} == {0}


def test_full_disk(node: CrashNode, lab: Lab) -> None:
    pod, leases = lab.netns("a"), node.run_dir / "cni" / "leases"
    for last in range(2, 255):
        (leases / f".new-10.244.1.{last}").symlink_to("/dev/full")
    answer = node.cni("ADD", "a", pod)
    assert (answer.status, answer.body["code"]) == (1, 5) and "No space left" in answer.body["msg"]
    assert str(leases) in answer.body["msg"] and answer.body["details"]
    for file in leases.glob(".new-*"):
        file.unlink()
    assert node.leases() == {} and node.cni("ADD", "a", pod).status == 0
    assert node.cni("DEL", "a", pod).status == 0


def test_sixty_four_at_once_and_adds_racing_dels(node: CrashNode, lab: Lab) -> None:
    pods = [lab.netns(f"p{i}") for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        added = list(pool.map(lambda i: node.cni("ADD", f"p{i}", pods[i]), range(64)))
        assert {a.status for a in added} == {0}
        assert len({a.address for a in added}) == 64
        verbs = [(i, verb) for i in range(64) for verb in ("DEL", "ADD")]
        again = list(pool.map(lambda job: node.cni(job[1], f"p{job[0]}", pods[job[0]]), verbs))
        won = {node.cni("DEL", f"p{i}", pods[i]).status for i in range(64)}
    assert won == {0} and {a.status for a in again} <= {0, 1}
    assert node.leases() == {} and node.table_elements() == 0
    assert not [name for name in node.links() if name.startswith("veth")]

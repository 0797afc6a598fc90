"""Pods reach the world outside through slirp4netns (Debian's). A namespace plays the machine and another one the world,
so no packet leaves the real machine: what slirp4netns connects to are servers of the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from dnslib import RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSServer

from lab import debian
from lab.netns import Lab, NetNS
from lab.patience import patient, wait_until
from podwire.cluster import outward
from podwire.cluster.config import BASE, ClusterConfig
from podwire.cluster.teardown import teardown
from podwire_node.runtime import echo_command

WORLD, ROUTER, MACHINE, METADATA = "203.0.113.10", "192.168.77.1", "192.168.77.2", "169.254.169.254"
NAME = "www.example.test"


class Names(BaseResolver):  # type: ignore[misc]  # dnslib ships no types
    def resolve(self, request: DNSRecord, _handler: object) -> DNSRecord:
        reply = request.reply()
        if str(request.q.qname).lower() == f"{NAME}.":
            reply.add_answer(RR(request.q.qname, 1, rdata=A(WORLD), ttl=5))
        return reply


@dataclass
class Machine:
    """ns: the network of the machine. holder: a process in its network and mount namespace."""

    ns: NetNS
    world: NetNS
    holder: subprocess.Popen[str]
    path: str

    def start(self, *words: str) -> subprocess.Popen[str]:
        enter = ["nsenter", f"--target={self.holder.pid}", "--net", "--mount", "--"]
        return subprocess.Popen(
            [*enter, *words], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment()
        )

    def environment(self) -> dict[str, str]:
        libraries = ":".join(str(d) for d in (debian.HOME / "root/usr/lib").glob("*-linux-gnu*"))
        keep = {k: v for k, v in os.environ.items() if k not in ("KUBECONFIG", "COLUMNS")}
        return {**keep, "PATH": f"{self.path}:{os.environ['PATH']}", "SLIRP_LIBRARIES": libraries}

    def run(self, *words: str, seconds: float = 60) -> str:
        child = self.start(*words)
        try:
            said, errors = child.communicate(timeout=patient(seconds))
        finally:
            child.kill()
        assert child.returncode == 0, said + errors
        return said


def serve(ns: NetNS, *words: str) -> None:
    child = ns.popen([*echo_command(), *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def end() -> None:
        child.kill()
        child.wait()

    ns.on_close(end)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    root = debian.unpack("slirp4netns")
    # The loader finds the libraries of the tree only for this program: other programs keep the machine's own.
    wrapper = folder / "bin" / "slirp4netns"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\nLD_LIBRARY_PATH="$SLIRP_LIBRARIES" exec {debian.program(root, "slirp4netns")} "$@"\n'
    )
    wrapper.chmod(0o755)
    (folder / "resolv.conf").write_text(f"nameserver {WORLD}\n")
    with Lab() as lab, contextlib.ExitStack() as stack:
        ns, world = lab.netns("machine"), lab.netns("world")
        lab.wire(ns, "eth0", world, "eth0", f"{MACHINE}/24", "192.168.77.1/24")
        for address in (f"{WORLD}/24", f"{METADATA}/32"):
            world.run(["ip", "addr", "add", address, "dev", "lo"])
        ns.run(["ip", "route", "add", "default", "via", "192.168.77.1"])
        for place in (ns, world):
            serve(place, "--http", "80", "--udp", "81")
        dns = world.call(lambda: DNSServer(Names(), address=WORLD, port=53))
        dns.start_thread()
        stack.callback(dns.stop)
        holder = ns.popen(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                f"mount --bind {folder}/resolv.conf /etc/resolv.conf; echo up; exec sleep 600",
            ],
            stdout=subprocess.PIPE,
        )
        stack.callback(holder.kill)
        assert holder.stdout and holder.stdout.readline() == "up\n"
        yield Machine(ns, world, holder, str(wrapper.parent))


ASK = """
import json, socket, sys
def ask(kind, host, port):
    try:
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.settimeout(float(sys.argv[1]))
            sock.connect((host, port))
            sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            data = sock.recv(4096)
            while kind == socket.SOCK_STREAM and (more := sock.recv(4096)):
                data += more
        body = data.split(b"\\r\\n\\r\\n")[1] if kind == socket.SOCK_STREAM and data else data
        return json.loads(body.split(b"\\n")[0])["peer"] if body else "closed"
    except OSError as err:
        return type(err).__name__
print(json.dumps([ask({"t": socket.SOCK_STREAM, "u": socket.SOCK_DGRAM}[kind], host, int(port))
    for kind, host, port in (word.split(",") for word in sys.argv[2:])]))
"""
"""What a host asks: each word is t or u, an address and a port; the answers are the client that the server saw."""


@dataclass
class Switched:
    config: ClusterConfig
    machine: Machine
    role: subprocess.Popen[str]

    def ask(self, *words: str, seconds: float = 1.5) -> list[str]:
        """Send from node1."""
        where = f"--net={self.config.netns('node1')}"
        said = self.machine.run("nsenter", where, sys.executable, "-c", ASK, str(patient(seconds)), *words)
        found: list[str] = json.loads(said)
        return found


ROLE = "import sys; from podwire.cluster import config, internet; internet.run(config.parse(sys.argv[1]))"
SET_UP = """
import sys
from podwire.cluster import config, network
found = config.parse(sys.argv[1])
network.make_switch(found)
network.make_node(found, "node1")
"""


CLOSED = pytest.mark.parametrize("switched", [False], ids=["closed"], indirect=True)
EITHER = pytest.mark.parametrize("switched", [False, True], ids=["closed", "host-access"], indirect=True)


@pytest.fixture
def switched(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Switched]:
    """A switch and a node of a cluster without roles, and the role that makes the way out."""
    config = ClusterConfig(name=f"net{os.getpid()}", nodes=1, internet="198.19.252.0/24", host_access=request.param)
    config.run_dir.mkdir(parents=True)
    role: subprocess.Popen[str] | None = None
    try:
        machine.run(sys.executable, "-c", SET_UP, config.to_json())
        role = machine.start(sys.executable, "-c", ROLE, config.to_json())
        made = Switched(config, machine, role)
        wait_until(lambda: made.ask(f"t,{WORLD},80") == [MACHINE], "the world answers")
        yield made
    finally:
        if role is not None:
            role.kill()
            role.communicate()
        teardown(config)


@EITHER
def test_what_a_node_reaches(switched: Switched) -> None:
    """The world sees the machine's address. The machine itself and cloud metadata are closed unless --host-access."""
    asked = [f"t,{WORLD},80", f"u,{ROUTER},81", f"t,{MACHINE},80", f"t,{METADATA},80", "t,198.19.252.2,80"]
    world, datagram, own, metadata, loopback = switched.ask(*asked)
    assert (world, datagram) == (MACHINE, MACHINE)
    expected = (MACHINE, MACHINE) if switched.config.host_access else ("TimeoutError", "TimeoutError")
    assert (own, metadata) == expected
    assert loopback != MACHINE and "127" not in loopback  # the gateway of slirp4netns is not the machine's loopback


@CLOSED
def test_names_come_from_the_machines_resolver(switched: Switched) -> None:
    ask = (
        "import sys; from dnslib import DNSRecord; "
        "print(DNSRecord.parse(DNSRecord.question(sys.argv[1]).send(sys.argv[2], timeout=5)).rr[0].rdata)"
    )
    where = f"--net={switched.config.netns('node1')}"
    resolver = outward.resolver(switched.config.internet)
    assert switched.machine.run("nsenter", where, sys.executable, "-c", ask, NAME, resolver).strip() == WORLD


@CLOSED
def test_a_new_address_of_the_machine_is_closed_too(switched: Switched) -> None:
    switched.machine.ns.run(["ip", "addr", "add", "192.168.78.9/24", "dev", "eth0"])
    wait_until(lambda: switched.ask("t,192.168.78.9,80", seconds=0.5) == ["TimeoutError"], "closed")
    switched.machine.ns.run(["ip", "addr", "del", "192.168.78.9/24", "dev", "eth0"])


@CLOSED
def test_when_slirp4netns_dies_the_role_ends_and_with_the_role_slirp4netns(switched: Switched) -> None:
    """The supervisor starts the role again; a second slirp4netns beside the first cannot be."""

    def children() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                stat = (entry / "stat").read_text()
                if "(slirp4netns)" in stat and int(stat.rsplit(")", 1)[1].split()[1]) == switched.role.pid:
                    found.append(int(entry.name))
        return found

    (child,) = children()
    os.kill(child, signal.SIGKILL)
    assert switched.role.wait(patient(10)) == 1
    role = switched.machine.start(sys.executable, "-c", ROLE, switched.config.to_json())
    switched.role = role
    try:
        wait_until(lambda: switched.ask(f"t,{WORLD},80") == [MACHINE], "the world answers again")
        (child,) = children()
        role.kill()
        role.wait()
        wait_until(lambda: not Path(f"/proc/{child}").exists(), "slirp4netns ends with its role")
    finally:
        role.kill()
        role.communicate()


def test_up_says_it_and_a_pod_reaches_the_world_by_name(machine: Machine) -> None:
    name = f"out{os.getpid()}"
    podwire = (sys.executable, "-m", "podwire.main")
    try:
        said = machine.run(*podwire, "up", "--name", name, "--nodes", "1")
        assert "pods reach the internet by slirp4netns" in " ".join(said.split())
        manifest = (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: client}\nspec: {containers: [{name: c, image: "
            "podwire.io/host, command: [sleep, infinity]}], terminationGracePeriodSeconds: 0}\n"
        )
        kubeconfig = str(BASE / name / "kubeconfig")
        machine.run("sh", "-c", f"printf '%s' '{manifest}' | {' '.join(podwire)} apply -f - --kubeconfig {kubeconfig}")
        look = (*podwire, "exec", "--name", name, "client", "--", "curl", "-sS", "--max-time", "5", f"http://{NAME}/")

        def asked() -> str:
            child = machine.start(*look)
            return child.communicate(timeout=patient(30))[0]

        assert json.loads(wait_until(asked, "the pod has the page", 30, 0.2))["peer"] == MACHINE
    finally:
        machine.run(*podwire, "down", "--name", name)
    assert not (BASE / name).exists()

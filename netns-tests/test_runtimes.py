"""containerd with runc calls the plugin, by its CRI and by `ctr run --cni`, with podwire's pause image.

Debian's packages are unpacked, not installed, and the daemon runs in a node of the lab.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from lab import containerd, cri
from lab.cninode import CniNode, ask, peer_server, put_node, received, wait_until
from lab.containerd import Containerd
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient
from podwire_cni import native, runtimes

pytestmark = [pytest.mark.runtimes, pytest.mark.alone]  # cgroups have names that the machine shares
NODE, OUTSIDE = "192.0.2.1", "192.0.2.42"
T = TypeVar("T")


class World:
    def __init__(self, node: CniNode, outside: NetNS, runtime: Containerd) -> None:
        self.node, self.outside, self.runtime = node, outside, runtime

    def run(self, name: str, *ports: tuple[int, int, int]) -> str:
        return cri.run_sandbox(self.runtime.socket, cri.sandbox_config(name, ports))


class Sandbox(NetNS):
    """The network namespace of a container, by its first process."""

    def __init__(self, runtime: Containerd, ident: str) -> None:
        self.tap, self._undo = None, contextlib.ExitStack()
        self.name, self.fd = ident, os.open(f"/proc/{runtime.pid(ident)}/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Lab() as lab:
        ns, outside = lab.netns("node"), lab.netns("outside")
        lab.wire(ns, "eth0", outside, "eth0", f"{NODE}/24", f"{OUTSIDE}/24")
        with FakeApi(ns) as api:
            put_node(api, "n1", "10.244.1.0/24", NODE)
            node = CniNode(ns, tmp_path_factory.mktemp("run"), "n1", api)
            node.start()
            runtime = containerd.start(node, tmp_path_factory.mktemp("containerd"))
            try:
                yield World(node, outside, runtime)
            finally:
                runtime.close()
                node.close()


def assert_nothing_left(node: CniNode) -> None:
    assert node.leases() == {} and node.table_elements() == 0
    wait_until(lambda: not [name for name in node.links() if name.startswith(("veth", "ifb"))], "no link is left")


def test_a_sandbox_answers_at_its_address_and_its_host_port(world: World) -> None:
    ident = world.run("web", (cri.TCP, 80, 8080), (cri.UDP, 53, 0))
    address = cri.sandbox_ip(world.runtime.socket, ident)
    assert world.node.leases() == {address: ident}
    sandbox = Sandbox(world.runtime, ident)
    server = sandbox.call(lambda: socket.create_server(("0.0.0.0", 80)))
    with server:
        for target, port in ((address, 80), (NODE, 8080)):
            client = world.node.ns if port == 80 else world.outside
            with client.call(lambda target=target, port=port: socket.create_connection((target, port), patient(5))):  # type: ignore[misc]
                peer = server.accept()[1][0]
            assert peer == ("10.244.1.1" if port == 80 else OUTSIDE)
    cri.stop_sandbox(world.runtime.socket, ident)
    sandbox.close()
    assert_nothing_left(world.node)


def test_two_sandboxes_talk(world: World) -> None:
    idents = [world.run(name) for name in ("a", "b")]
    addresses = [cri.sandbox_ip(world.runtime.socket, ident) for ident in idents]
    a, b = (Sandbox(world.runtime, ident) for ident in idents)
    with peer_server(b, addresses[1]) as port:
        assert ask(a, addresses[1], port) == addresses[0]
    for ident, sandbox in zip(idents, (a, b), strict=True):
        cri.stop_sandbox(world.runtime.socket, ident)
        sandbox.close()
    assert_nothing_left(world.node)


def test_twenty_at_once(world: World) -> None:
    with ThreadPoolExecutor(20) as pool:
        idents = list(pool.map(lambda n: world.run(f"p{n}", (cri.TCP, 80, 9000 + n)), range(20)))
        addresses = {cri.sandbox_ip(world.runtime.socket, ident) for ident in idents}
        assert len(addresses) == 20 and set(world.node.leases()) == addresses
        list(pool.map(lambda ident: cri.stop_sandbox(world.runtime.socket, ident), idents))
    assert_nothing_left(world.node)


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_a_bandwidth_annotation_limits_from_the_first_second_on(world: World, way: str) -> None:
    """containerd sends a burst of 2^32-1 bits, because nobody chose one."""
    asked = {f"kubernetes.io/{way}-bandwidth": "10M"}
    ident = cri.run_sandbox(world.runtime.socket, cri.sandbox_config(f"slow-{way}", annotations=asked))
    address, sandbox = cri.sandbox_ip(world.runtime.socket, ident), Sandbox(world.runtime, ident)
    assert ident in runtimes.sandboxes(world.runtime.socket)
    sender, receiver, to = (world.node.ns, sandbox, address) if way == "ingress" else (sandbox, world.outside, OUTSIDE)
    count, took = received(sender, receiver, to, 2.0)
    assert 0.4 * took * 10**7 / 8 < count < 1.2 * (took + 0.1) * 10**7 / 8
    assert f"{way}Burst 4294967295 is cut to 1000000 bits" in world.node.log()
    sandbox.close()
    cri.stop_sandbox(world.runtime.socket, ident)
    assert ident not in runtimes.sandboxes(world.runtime.socket)
    assert_nothing_left(world.node)


def test_a_port_that_is_taken_is_refused_with_its_holder(world: World) -> None:
    ident = world.run("first", (cri.TCP, 80, 8080))
    with pytest.raises(cri.CallFailed):
        world.run("second", (cri.TCP, 80, 8080))
    assert "hostPort 8080/tcp of this node is held by default/first" in world.runtime.words()
    assert list(world.node.leases().values()) == [ident]
    cri.stop_sandbox(world.runtime.socket, ident)
    assert_nothing_left(world.node)


def test_ctr_run(world: World) -> None:
    world.runtime.ctr("run", "--cni", "--detach", "--snapshotter", "native", "podwire.io/pause:latest", "bare")
    (address,) = world.node.leases()
    sandbox = Sandbox(world.runtime, "bare")
    with peer_server(sandbox, address) as port:
        assert ask(world.node.ns, address, port) == "10.244.1.1"
    sandbox.close()
    world.runtime.ctr("tasks", "kill", "--signal", "SIGTERM", "bare")
    wait_until(lambda: "STOPPED" in world.runtime.ctr("tasks", "ls").stdout, "pause ends at SIGTERM")
    world.runtime.ctr("tasks", "rm", "bare")
    world.runtime.ctr("containers", "rm", "bare")
    # `ctr run --detach` never calls DEL; a runtime's GC frees the lease
    gone = world.node.cni("GC", "", None, {**world.node.conf("1.1.0"), "cni.dev/valid-attachments": []})
    assert gone.status == 0
    assert_nothing_left(world.node)


def test_installed_by_hand_without_an_agent(world: World, lab: Lab, tmp_path: Path) -> None:
    """The installation of cni/README.md: --install with a subnet, and containerd; the plugin works without an agent,
    including hostPorts.
    """
    ns = lab.netns("plain")
    lab.wire(ns, "eth0", world.outside, "eth1", "198.51.100.1/24", "198.51.100.42/24")
    scripts = Path(sys.prefix) / "bin"
    ns.run(
        [
            str(native.client_path()),
            "--install",
            "--bin-dir",
            str(tmp_path / "bin"),
            "--conf-dir",
            str(tmp_path / "net.d"),
            "--run-dir",
            str(tmp_path / "run"),
            "--subnet",
            "10.99.0.0/24",
        ],
        env={**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"},
    )
    runtime = containerd.started(ns, tmp_path / "containerd", tmp_path / "bin" / "podwire-cni", tmp_path / "net.d")
    try:
        ident = cri.run_sandbox(runtime.socket, cri.sandbox_config("web", [(cri.TCP, 80, 8080)]))
        sandbox = Sandbox(runtime, ident)
        assert cri.sandbox_ip(runtime.socket, ident) == "10.99.0.2"
        server = sandbox.call(lambda: socket.create_server(("0.0.0.0", 80)))
        with server, world.outside.call(lambda: socket.create_connection(("198.51.100.1", 8080), patient(5))):
            assert server.accept()[1][0] == "198.51.100.42"
        with peer_server(world.outside, "198.51.100.42") as port:
            assert ask(sandbox, "198.51.100.42", port) == "198.51.100.1", "masqueraded"
        sandbox.close()
        cri.stop_sandbox(runtime.socket, ident)
        assert {f.name for f in (tmp_path / "run/cni/leases").iterdir()} == {".lock", ".layout", ".rest-10.99.0.2"}
    finally:
        runtime.close()

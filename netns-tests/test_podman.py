"""podman calls the plugin (`network_backend = "cni"`). Debian's packages are unpacked, not installed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from lab.cninode import CniNode, peer_server, put_node, wait_until
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient
from lab.podman import Podman
from podwire_base.kernel.netns import within

pytestmark = [pytest.mark.runtimes, pytest.mark.alone]  # cgroups have names that the machine shares
NODE, OUTSIDE = "192.0.2.1", "192.0.2.42"


class World:
    def __init__(self, node: CniNode, outside: NetNS, podman: Podman) -> None:
        self.node, self.outside, self.podman = node, outside, podman


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Lab() as lab:
        ns, outside = lab.netns("node"), lab.netns("outside")
        lab.wire(ns, "eth0", outside, "eth0", f"{NODE}/24", f"{OUTSIDE}/24")
        with FakeApi(ns) as api:
            put_node(api, "n1", "10.244.1.0/24", NODE)
            node = CniNode(ns, tmp_path_factory.mktemp("run"), "n1", api)
            node.start()
            plugins = tmp_path_factory.mktemp("bin")
            (plugins / "podwire-cni").symlink_to(node.client)
            podman = Podman(ns, tmp_path_factory.mktemp("podman"), plugins, node.run_dir / "cni/net.d", "podwire")
            try:
                yield World(node, outside, podman)
            finally:
                podman.close()
                node.close()


@pytest.fixture(autouse=True)
def nothing_stays(world: World) -> Iterator[None]:
    yield
    world.podman.run("rm", "--all", "--force", "--time", "0")
    assert world.node.leases() == {} and world.node.table_elements() == 0
    wait_until(lambda: not [name for name in world.node.links() if name.startswith("veth")], "no link is left")


def address_of(world: World, name: str) -> str:
    return world.podman.run("inspect", "--format", "{{.NetworkSettings.Networks.podwire.IPAddress}}", name)


def test_two_containers_talk(world: World) -> None:
    (world.podman.rootfs / "www/index.html").write_text("hello")
    world.podman.start("web", "httpd", "-f", "-p", "80", "-h", "/www")
    address = address_of(world, "web")
    assert list(world.node.leases()) == [address] == ["10.244.1.2"]
    world.podman.start("client", "sleep", "600")
    assert (
        wait_until(
            lambda: world.podman.run("exec", "client", "wget", "-q", "-O", "-", f"http://{address}/", check=False),
            "httpd answers",
        )
        == "hello"
    )
    with peer_server(world.outside, OUTSIDE) as port:
        said = world.podman.run("exec", "client", "nc", OUTSIDE, str(port))
    assert said == NODE, "masqueraded"


def test_published_ports(world: World) -> None:
    world.podman.start("web", "sleep", "600", options=("-p", "8080:80", "-p", "5300:53/udp"))
    inside = os.open(f"/proc/{world.podman.run('inspect', '--format', '{{.State.Pid}}', 'web')}/ns/net", os.O_RDONLY)

    def bound(kind: socket.SocketKind, port: int) -> socket.socket:
        def work() -> socket.socket:
            sock = socket.socket(socket.AF_INET, kind)
            sock.settimeout(patient(5))
            sock.bind(("0.0.0.0", port))
            return sock

        return within(inside, work)

    with bound(socket.SOCK_STREAM, 80) as server, bound(socket.SOCK_DGRAM, 53) as datagrams:
        server.listen()
        for client, target, seen in ((world.outside, NODE, OUTSIDE), (world.node.ns, "127.0.0.1", "10.244.1.1")):
            # a default
            with client.call(lambda target=target: socket.create_connection((target, 8080), 5)):  # type: ignore[misc]
                assert server.accept()[1][0] == seen
        with world.outside.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.settimeout(patient(5))
            sock.sendto(b"?", (NODE, 5300))
            question, peer = datagrams.recvfrom(10)
            datagrams.sendto(b"!", peer)
            assert (question, peer[0], sock.recv(10)) == (b"?", OUTSIDE, b"!")
    os.close(inside)


def test_a_port_that_is_taken(world: World) -> None:
    world.podman.start("first", "sleep", "600", options=("-p", "8080:80"))
    with pytest.raises(AssertionError, match="hostPort 8080/tcp of this node is held by"):
        world.podman.start("second", "sleep", "600", options=("-p", "8080:80"))


def test_a_fixed_address_and_mac(world: World) -> None:
    world.podman.start("fixed", "sleep", "600", options=("--ip", "10.244.1.77", "--mac-address", "02:00:00:00:00:77"))
    assert address_of(world, "fixed") == "10.244.1.77"
    assert "02:00:00:00:00:77" in world.podman.run("exec", "fixed", "ip", "link", "show", "eth0")

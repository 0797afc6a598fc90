"""The hostPorts that pod wiring publishes for the Service proxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from podwire_base.role import hostports
from podwire_base.role.hostports import HostPort
from podwire_cni.publishing import Publisher

from .test_verbs import Host

ARGS = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME={};K8S_POD_UID=uid-{}"


def add(host: Host, container: str, *ports: dict[str, Any]) -> None:
    env = {"CNI_ARGS": ARGS.format(container, container)}
    reply = host.call("ADD", container, env=env, runtimeConfig={"portMappings": list(ports)})
    assert reply.status == 0, reply.text


def test_the_hostports_of_all_pods_with_the_pods_names() -> None:
    host = Host()
    add(host, "c1", {"hostPort": 30080, "containerPort": 80, "protocol": "tcp"})
    add(
        host,
        "c2",
        {"hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "172.30.0.11"},
        {"hostPort": 0, "containerPort": 80, "protocol": "tcp"},
    )
    add(host, "c3")
    one, two = HostPort(30080, "TCP", "", "shop/c1", "uid-c1"), HostPort(53, "UDP", "172.30.0.11", "shop/c2", "uid-c2")
    assert host.plugin.host_ports() == {one, two}
    host.restart()
    assert host.plugin.host_ports() == {one, two}, "the leases know them"
    assert host.call("DEL", "c1").status == 0
    assert host.plugin.host_ports() == {two}


def test_the_file_is_written_when_it_would_differ(tmp_path: Path) -> None:
    host = Host()
    publisher = Publisher(tmp_path, host.plugin)
    file = hostports.path(tmp_path)

    def publish() -> tuple[HostPort, ...]:
        publisher.write()
        return hostports.decode(file.read_text()) if file.exists() else ()

    assert (publish(), file.exists()) == ((), True), "what an agent before this one wrote does not count"
    add(host, "c1", {"hostPort": 30080, "containerPort": 80, "protocol": "tcp"})
    assert publish() == (HostPort(30080, "TCP", "", "shop/c1", "uid-c1"),)
    file.unlink()
    assert publish() == (), "nothing changed: not written again"
    host.call("DEL", "c1")
    assert (publish(), file.exists()) == ((), True)


def test_a_full_disk_does_not_stop_the_agent(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("not a directory")
    host = Host()
    publisher = Publisher(tmp_path / "run", host.plugin)
    publisher.write()
    (tmp_path / "run").unlink()
    publisher.write()
    assert hostports.path(tmp_path / "run").exists(), "tried again"

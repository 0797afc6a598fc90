"""The real network managers of Debian beside podwire, in the VM's own root namespace (`make test-vm`).

systemd-networkd manages the VM's uplink. Each test keeps a TCP connection of the host with a pod busy while a manager
starts anew or reloads. It must go on, the bridge must keep its MAC and its ports, and the routes must be there again.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ADDRESS, PODCIDR, PEER = "10.0.2.15", "10.244.9.0/24", "10.0.2.99"
KUBECONFIG, RUN = "/var/lib/podwire/admin.kubeconfig", Path("/run/podwire/node")
POD = Path("/run/netns/managed")
PATIENCE = float(os.environ.get("PODWIRE_PATIENCE", "1"))
pytestmark = pytest.mark.skipif(
    not Path("/run/systemd/system").is_dir() or socket.gethostname() != "node1", reason="runs in the VM of make test-vm"
)


def sh(command: str, *, check: bool = True, **more: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        ["bash", "-c", command], check=check, text=True, stdout=subprocess.PIPE, timeout=300 * PATIENCE, **more
    )
    return done.stdout


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def cni(verb: str) -> dict[str, Any]:
    conf = json.loads(next((RUN / "cni/net.d").glob("*.conflist")).read_text())
    plugin = {"cniVersion": "1.0.0", "name": conf["name"], **conf["plugins"][0]}
    env = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "managed", "CNI_NETNS": str(POD), "CNI_IFNAME": "eth0"}
    client = sh("python3 -c 'from podwire_cni.native import client_path; print(client_path())'", env=VENV).strip()
    end = time.monotonic() + 120 * PATIENCE
    while True:  # a conflist of an earlier agent may be there before the agent listens: code 11, as for a runtime
        said = sh(client, check=False, input=json.dumps(plugin), env={**VENV, **env})
        found: dict[str, Any] = json.loads(said or "{}")
        if found.get("code") != 11 or time.monotonic() > end:
            assert "code" not in found, said
            return found
        time.sleep(1)


VENV = {**os.environ, "PATH": f"/podwire/.venv/bin:{os.environ['PATH']}", "KUBECONFIG": KUBECONFIG}


@pytest.fixture(scope="module")
def pod() -> Iterator[str]:
    """A node of its own cluster with one pod, and a second Node on the link whose pods are reached by a route."""
    sh("bash /podwire/vagrant/provision.sh", env={
        **VENV,
        "PODWIRE_STEPS": "cluster",
        "PODWIRE_ADDRESS": ADDRESS,
        "PODWIRE_CONTROL": ADDRESS,
        "PODWIRE_JOIN_TOKEN": "made-for-one-run-on-one-machine-only",
    })  # fmt: skip
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "peer"},
        "spec": {"podCIDR": PODCIDR, "podCIDRs": [PODCIDR]},
        "status": {"addresses": [{"type": "InternalIP", "address": PEER}]},
    }
    sh("podwire apply -f -", env=VENV, input=json.dumps(node))
    sh(f"ip netns add {POD.name}")
    try:
        wait_until(lambda: any((RUN / "cni/net.d").glob("*.conflist")), "the node has a podCIDR", 60)
        address = str(cni("ADD")["ips"][0]["address"]).split("/")[0]
        wait_until(routed, "the route to the other node", 60)
        yield address
        cni("DEL")
    finally:
        sh(f"ip netns del {POD.name}; podwire uninstall --purge", check=False, env=VENV)


def routed() -> bool:
    return PODCIDR in sh("ip route show proto 143 dev eth0")


def port_of_bridge() -> str:
    return sh("bridge link show master podwire0")


def bridge() -> tuple[str, str]:
    link = json.loads(sh("ip -j -d link show podwire0"))[0]
    return link["address"], sh("ip -br addr show podwire0 | tr -s ' ' | cut -d' ' -f3-").strip()


ECHO = """import socket
server = socket.create_server(("0.0.0.0", 7))
while True:
    peer = server.accept()[0]
    while data := peer.recv(100):
        peer.sendall(data)
"""


@pytest.fixture
def talking(pod: str) -> Iterator[None]:
    """A connection that sends a byte each 50 ms and gets it back, over the whole test."""
    server = subprocess.Popen(["ip", "netns", "exec", POD.name, "python3", "-c", ECHO])
    before, ended, failed = bridge(), threading.Event(), list[BaseException]()
    link: socket.socket | None = None
    for _ in range(100):
        try:
            link = socket.create_connection((pod, 7), 30 * PATIENCE)
            break
        except OSError:
            time.sleep(0.1)
    assert link is not None

    def talk() -> None:
        try:
            while not ended.is_set():
                link.sendall(b"x")
                assert link.recv(1) == b"x"
                time.sleep(0.05)
        except BaseException as err:
            failed.append(err)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield
        time.sleep(5)
        wait_until(routed, "the route to the other node is back")
        assert bridge() == before and "veth" in port_of_bridge()
        assert thread.is_alive() and not failed
    finally:
        ended.set()
        thread.join()
        link.close()
        server.kill()
        server.wait()


def status() -> str:
    return str(json.loads((RUN / "status/wiring.json").read_text())["message"])


@pytest.mark.usefixtures("talking")
def test_systemd_networkd_starts_anew() -> None:
    """A host that gives every interface to DHCP: the drop-in of podwire comes first."""
    Path("/etc/systemd/network/20-all.network").write_text("[Match]\nName=*\n[Network]\nDHCP=yes\n")
    for action in ("reload", "restart"):
        sh("networkctl reload" if action == "reload" else "systemctl restart systemd-networkd")
        time.sleep(5)
        for name in ("podwire0", *(p.name for p in Path("/sys/class/net").glob("veth*"))):
            assert "unmanaged" in sh(f"networkctl list --no-legend {name}"), name
    assert "ManageForeignRoutes=no" in status()


def test_udev_leaves_macs_alone(pod: str) -> None:
    for link in ("podwire0", *(p.name for p in Path("/sys/class/net").glob("veth*"))):
        said = sh(f"udevadm test-builtin net_setup_link /sys/class/net/{link} 2>&1", check=False)
        assert "00-podwire.link" in said, said
    assert pod


@pytest.mark.usefixtures("talking")
def test_network_manager_starts() -> None:
    """After podwire, and anew: it takes none of podwire's interfaces."""
    sh("systemctl start NetworkManager")
    try:
        wait_until(lambda: Path("/run/NetworkManager/conf.d/99-podwire.conf").exists(), "the drop-in", 30)
        for _ in range(2):
            sh("systemctl restart NetworkManager && nm-online -s -t 60", check=False)
            devices = dict(line.split(":")[:2] for line in sh("nmcli -t -f DEVICE,STATE device").splitlines())
            ours = {name: state for name, state in devices.items() if name.startswith(("podwire", "veth"))}
            assert set(ours.values()) == {"unmanaged"} and "podwire0" in ours
    finally:
        sh("systemctl stop NetworkManager")


@pytest.mark.usefixtures("talking")
def test_firewalld_reloads() -> None:
    sh("systemctl start firewalld && firewall-cmd --reload && firewall-cmd --complete-reload")
    time.sleep(5)
    sh("systemctl stop firewalld")


@pytest.mark.usefixtures("talking")
def test_docker_starts_anew() -> None:
    for _ in range(2):
        sh("systemctl restart docker")
        time.sleep(5)
    sh("systemctl stop docker docker.socket containerd", check=False)

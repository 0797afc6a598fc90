"""The namespaces for tests of load balancer addresses: a switch, three nodes with one pod each, a client, and the API.

One more server runs outside the nodes, so that it survives the end of any node. Each node runs the role `lb` as a
process. The test's process programs the nodes' Services with the proxy's engine.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from pyroute2 import IPRoute

from podwire_base.kube.meta import Object, key
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.l2.election import rank
from podwire_proxy.model import NodeInfo

from . import evidence
from .fakeapi import FakeApi
from .netns import Lab, NetNS, usable
from .patience import patient
from .proxyrole import until
from .serviceworld import Servers

SWITCH, CLIENT, SERVER, TARGET = "172.30.0.1", "172.30.0.2", "172.30.0.3", 9376
V6 = {"172.30.0.": "fd00:30::", "10.244.": "fd00:244:"}


def v6(ip: str) -> str:
    for old, new in V6.items():
        if ip.startswith(old):
            return new + ip.removeprefix(old).replace(".", "::")
    raise ValueError(ip)


class Node:
    """Node number N with address 172.30.0.1N. Its pod has address 10.244.N.2 and a server on port TARGET."""

    def __init__(self, world: L2World, number: int) -> None:
        self.name, self.address, self.pod = f"n{number}", f"172.30.0.1{number}", f"10.244.{number}.2"
        self.world = world
        self.ns = world.port(self.name, self.address)
        for setting in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.ns.sysctl(setting, "1")
        self._make_pod()
        info = NodeInfo(
            self.name,
            (self.address, v6(self.address)),
            "",
            ("10.244.0.0/16", "fd00:244::/32"),
            ("10.96.0.0/16", "fd00:96::/112"),
        )
        self.tracker, self.proxier = Tracker(info), backends.proxier(info, self.ns.fd)
        self.run_dir = world.directory / self.name
        self.process: subprocess.Popen[str] | None = None
        evidence.tells(self)

    def describe(self) -> str:
        """Return the evidence of a failed test: the addresses that the node answers for, and the log."""
        return f"--- answers for {sorted(self.mine())}\n--- log\n{self.log()}"

    def _make_pod(self) -> None:
        pod = self.world.lab.netns(f"pod-{self.name}")
        pod.sysctl("net/ipv6/conf/all/accept_dad", "0")
        pod.sysctl("net/ipv6/conf/default/accept_dad", "0")
        self.world.lab.wire(self.ns, "pod0", pod, "eth0", f"{self.pod[:-1]}1/24", f"{self.pod}/24")
        gateway = f"{self.pod[:-1]}1"

        def inside(ipr: IPRoute) -> None:
            index = ipr.link_lookup(ifname="eth0")[0]
            ipr.addr("add", index=index, address=v6(self.pod), prefixlen=64)
            ipr.route("add", dst="default", gateway=gateway)
            ipr.route("add", dst="default", gateway=v6(gateway), family=socket.AF_INET6)

        self.ns.netlink(
            lambda ipr: ipr.addr("add", index=ipr.link_lookup(ifname="pod0")[0], address=v6(gateway), prefixlen=64)
        )
        pod.netlink(inside)
        for ip in (self.pod, v6(self.pod)):
            self.world.servers.listen(pod, ip, TARGET)

    def program(self, objects: list[Object]) -> None:
        for obj in objects:
            (self.tracker.service if obj["kind"] == "Service" else self.tracker.slice)(key(obj), obj)
        self.tracker.flush()
        self.proxier.sync(self.tracker.dataplane, None)

    def start(self) -> None:
        self.process = self.ns.popen(
            [
                sys.executable,
                "-c",
                "from podwire_proxy.l2.announcer import command; command()",
                "--node-name",
                self.name,
                "--kubeconfig",
                str(self.world.kubeconfig),
                "--run-dir",
                str(self.run_dir),
                "--uplink",
                "eth0",
            ],
            stderr=(self.world.directory / f"{self.name}.log").open("a"),
        )

    def plug(self) -> None:
        """Bring the link up and add its routes again, which the kernel deleted when the link went down."""
        self.ns.run(["ip", "link", "set", "eth0", "up"])
        self.ns.run(["ip", "-6", "addr", "replace", f"{v6(self.address)}/64", "dev", "eth0"])
        for peer in self.world.nodes:
            if peer is not self:
                self.ns.run(["ip", "route", "replace", f"{peer.pod[:-1]}0/24", "via", peer.address])
                self.ns.run(["ip", "-6", "route", "replace", f"{v6(peer.pod[:-1] + '0')}/64", "via", v6(peer.address)])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(patient(10))
        self.process = None

    def log(self) -> str:
        return (self.world.directory / f"{self.name}.log").read_text()

    def ready(self) -> bool:
        return bool(json.loads((self.run_dir / "status" / "lb.json").read_text())["ready"])

    def mine(self) -> set[str]:
        """Return the load balancer addresses that the node answers for, according to its status."""
        try:
            status = json.loads((self.run_dir / "status" / "lb.json").read_text())
        except (OSError, ValueError):
            return set()
        return set(status["figures"].get("mine", ())) if self.process is not None else set()


class L2World:
    """The switch, the nodes, the client and the API. Close it after use."""

    def __init__(self, lab: Lab, directory: Path, nodes: int = 3) -> None:
        self.lab, self.directory = lab, directory
        self.switch = lab.netns("switch")
        self.ports = 0
        self.servers = Servers()

        def bridge(ipr: IPRoute) -> None:
            ipr.link("add", ifname="sw0", kind="bridge")
            index = ipr.link_lookup(ifname="sw0")[0]
            ipr.addr("add", index=index, address=SWITCH, prefixlen=24)
            ipr.link("set", index=index, state="up")

        self.switch.netlink(bridge)
        self.api = FakeApi(self.switch, SWITCH)
        self.kubeconfig = self.api.kubeconfig(directory / "kubeconfig")
        self.client = self.port("client", CLIENT)
        server = self.port("server", SERVER)
        for ip in (SERVER, v6(SERVER)):
            self.servers.listen(server, ip, TARGET)
        self.nodes = [Node(self, number) for number in range(1, nodes + 1)]
        usable(self.client, server, *(node.ns for node in self.nodes))
        self.servers.start()
        self.api.thread.start()

    def port(self, name: str, address: str) -> NetNS:
        """Make a namespace with eth0 on the switch."""
        ns = self.lab.netns(name)
        ns.sysctl("net/ipv6/conf/all/accept_dad", "0")
        ns.sysctl("net/ipv6/conf/default/accept_dad", "0")
        self.ports += 1
        port = f"p{self.ports}"
        self.lab.wire(self.switch, port, ns, "eth0", "", f"{address}/24")
        self.switch.netlink(
            lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname=port)[0], master=ipr.link_lookup(ifname="sw0")[0])
        )
        ns.netlink(
            lambda ipr: ipr.addr("add", index=ipr.link_lookup(ifname="eth0")[0], address=v6(address), prefixlen=64)
        )
        return ns

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def settle(self, *ips: str) -> None:
        """Wait until only the node with the highest rank answers for each address."""
        for ip in ips:
            best = max(self.nodes, key=lambda node: rank(ip, node.name))
            until(
                lambda: [n for n in self.nodes if ip in n.mine()] == [best],  # noqa: B023 - runs at once
                f"{best.name} alone answers for {ip}",
                20,
            )

    def owner(self, ip: str) -> Node:
        """Wait until exactly one node answers for `ip`, and return this node."""
        found: list[Node] = []

        def one() -> bool:
            found[:] = [node for node in self.nodes if ip in node.mine()]
            return len(found) == 1

        until(one, f"one node answers for {ip}: {[node.name for node in found]}", 10)
        return found[0]

    def close(self) -> None:
        for node in self.nodes:
            if node.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.stop()
            node.proxier.close()
        self.api.close()
        self.servers.close()

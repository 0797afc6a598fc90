"""Two nodes behind VXLAN whose agents are of this version or of the version before, and traffic that counts what it
loses.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from podwire_base.kube.meta import Object
from podwire_base.testing import recorded
from podwire_controlplane.server import auth, pki

from .cnicluster import plug
from .cninode import CniNode, wait_until
from .incluster import GuardedApi
from .netns import Lab, NetNS
from .oldversion import OldVersion
from .patience import patient

CONTROL, NODES = "172.30.9.1", {"n1": "172.30.9.11", "n2": "172.30.9.12"}
DNS = "10.96.0.10"
SERVFAIL = 2
ROLES = ("wiring", "proxy", "dns-feeder", "dns")
STAMP = 812_345_678_901  # of the objects, in the form that a real API server gives


class Api(GuardedApi):
    """Grants everything: rights are not what these tests look at."""

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        answer: web.StreamResponse = await handler(request)
        return answer

    def kubeconfig(self, path: Path) -> Path:
        pair = self.authority.client("admin", [auth.ADMINS])
        text = pki.kubeconfig("c", f"https://{CONTROL}:6443", self.authority.certificate, "admin", pair)
        pki.write_private(path, text)
        return path


class Node(CniNode):
    """A node whose agent runs all roles. old: the version before; None: this version."""

    def __init__(self, ns: NetNS, run_dir: Path, name: str, api: Api, flags: tuple[str, ...]) -> None:
        super().__init__(ns, run_dir, name, api, flags=flags)  # type: ignore[arg-type]  # only kubeconfig() is used
        self.new_client = self.client

    def run(self, old: OldVersion | None) -> None:
        words = [
            *("agent", "--node-name", self.name, "--kubeconfig", str(self.kubeconfig), "--run-dir", str(self.run_dir)),
            *("--address", NODES[self.name], "--upstream-dns", CONTROL, "--dns-address", DNS),
            *(word for role in ("wiring", "proxy", "dns") for word in ("--role", role)),
            *("--set", "wiring.encapsulation=always", "--set", "wiring.quarantine=0", *self.flags),
        ]
        program = old.podwire if old else [f"{sys.prefix}/bin/podwire"]
        self.client = old.client if old else self.new_client
        with open(self.run_dir / "agent.log", "a") as log:
            more: dict[str, Any] = {"env": old.environment} if old else {}
            self.agent = self.ns.popen([*program, *words], stdout=log, stderr=log, **more)

    def start(self, *, wait: bool = True) -> None:
        self.run(None)
        if wait:
            wait_until(self.ready, f"the agent of {self.name} is ready", 30)

    def ready(self) -> bool:
        """Whether every role of this agent says that it is ready."""
        assert self.agent is not None
        assert self.agent.poll() is None, self.log()[-3000:]
        try:
            roles = json.loads((self.run_dir / "agent.json").read_text())
            told = [json.loads((self.run_dir / "status" / f"{role}.json").read_text()) for role in ROLES]
        except (OSError, ValueError):
            return False
        return roles["pid"] == self.agent.pid and all(
            status["ready"] and status["pid"] == roles["roles"][role]["pid"]
            for role, status in zip(ROLES, told, strict=True)
        )

    def lease_texts(self) -> dict[str, str]:
        return {f.name: f.read_text() for f in (self.run_dir / "cni/leases").iterdir() if not f.name.startswith(".")}

    def rules(self) -> set[str]:
        """Return the fixed parts of the rules in this namespace: chains, and the comment of each rule."""
        found = set[str]()
        dump = json.loads(self.ns.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
        for row in dump:
            for kind in ("chain", "set", "map"):
                if kind in row and row[kind]["table"].startswith("podwire"):
                    found.add(f"{kind} {row[kind]['family']} {row[kind]['table']} {row[kind]['name']}")
            if "rule" in row and row["rule"]["table"].startswith("podwire"):
                rule = row["rule"]
                found.add(f"rule {rule['family']} {rule['table']} {rule['chain']} {rule.get('comment', '')}")
        for program in ("iptables-save", "ip6tables-save"):
            for line in self.ns.run([program], check=False).stdout.splitlines():
                if line.startswith((":PODWIRE", "-A")):
                    found.add(f"{program} {line.split('[')[0] if line.startswith(':') else line}")
        return found


@dataclass
class World:
    lab: Lab
    api: Api
    nodes: dict[str, Node]
    outside: NetNS
    pods: dict[str, tuple[NetNS, str]] = field(default_factory=dict)
    results: dict[str, Object] = field(default_factory=dict)  # of ADD

    def pod(self, node: str, name: str, **more: Any) -> tuple[NetNS, str]:
        where = self.nodes[node]
        pod = self.lab.netns(name)
        answer = where.cni("ADD", name, pod, where.conf(**more))
        assert answer.status == 0, answer.out + where.log()[-3000:]
        self.pods[name], self.results[name] = (pod, answer.address), answer.body
        return self.pods[name]

    def service(self, name: str, node_of: dict[str, str], ports: list[Object], **spec: Any) -> str:
        """Make a Service with these pods (name -> node) as its endpoints. Returns its ClusterIP."""
        made = self.api.create(
            "Service",
            {"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": ports, **spec}},
            "default",
        )
        self.api.create(
            "EndpointSlice",
            {
                "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "endpoints": [
                    {"addresses": [self.pods[pod][1]], "nodeName": node, "conditions": {"ready": True}}
                    for pod, node in node_of.items()
                ],
                "ports": [{"name": p["name"], "port": p["targetPort"], "protocol": p["protocol"]} for p in ports],
            },
            "default",
        )
        return str(made["spec"]["clusterIP"])


@contextlib.contextmanager
def world(folder: Path, flags: Mapping[str, tuple[str, ...]]) -> Iterator[World]:
    """Yield two nodes without agents, a host outside, and the API server, on one link. flags: node -> of its agent."""
    with Lab() as lab, contextlib.ExitStack() as stack:
        switch, control = lab.netns("switch"), lab.netns("control")
        switch.netlink(lambda ipr: ipr.link("add", ifname="sw0", kind="bridge"))
        machines = {"control": control, **{name: lab.netns(name) for name in NODES}}
        for name, ns in machines.items():
            lab.wire(switch, name, ns, "eth0", "", f"{({'control': CONTROL} | NODES)[name]}/24")
            plug(switch, name)
        switch.netlink(lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname="sw0")[0], state="up"))
        api = stack.enter_context(Api(control, [CONTROL], {}))
        for space in ("default", "kube-system"):
            api.create("Namespace", {"metadata": {"name": space}})
        nodes = {}
        for n, (name, address) in enumerate(NODES.items()):
            api.create("Node", recorded.node(name, address, f"10.244.{n}.0/24", STAMP + n))
            nodes[name] = Node(machines[name], folder / name, name, api, flags[name])
            stack.callback(nodes[name].close)
        yield World(lab, api, nodes, control)


# ---- traffic


@contextlib.contextmanager
def echo(ns: NetNS, address: str, port: int) -> Iterator[None]:
    """Answer with what was sent, on TCP connections of any length and on UDP."""
    tcp = ns.call(lambda: socket.create_server((address, port)))
    udp = ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    udp.bind((address, port))

    def conversation(link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            while data := link.recv(100):
                link.sendall(data)

    def accepting() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = tcp.accept()
                threading.Thread(target=conversation, args=(link,), daemon=True).start()

    def answering() -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = udp.recvfrom(100)
                udp.sendto(data, peer)

    for work in (accepting, answering):
        threading.Thread(target=work, daemon=True).start()
    try:
        yield
    finally:
        tcp.shutdown(socket.SHUT_RDWR)
        tcp.close()
        udp.close()


@dataclass
class Stream:
    """One client. lost: what failed. longest: the longest wait for an answer in seconds. servfail: answers of a DNS
    server that does not know the zone yet.
    """

    name: str
    sent: int = 0
    servfail: int = 0
    lost: list[str] = field(default_factory=list)
    longest: float = 0.0


class Traffic:
    """Clients that send all the time, each in a thread of its namespace."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def describe(self) -> str:
        return "\n".join(f"{s.name}: {s.sent} sent, longest {s.longest:.3f} s, lost {s.lost[:5]}" for s in self.streams)

    def _run(self, stream: Stream, turn: Callable[[], None], pause: float) -> None:
        while not self._stop.is_set():
            before = time.monotonic()
            try:
                turn()
            except OSError as err:
                stream.lost.append(f"{time.monotonic():.3f} {err!r}")
            stream.sent += 1
            stream.longest = max(stream.longest, time.monotonic() - before)
            self._stop.wait(pause)

    def _begin(self, stream: Stream, turn: Callable[[], None], pause: float = 0.03) -> Stream:
        thread = threading.Thread(target=self._run, args=(stream, turn, pause), daemon=True)
        thread.start()
        self.streams.append(stream)
        self._threads.append(thread)
        return stream

    def lasting(self, name: str, ns: NetNS, address: str, port: int) -> Stream:
        """One TCP connection for the whole time."""
        link = ns.call(lambda: socket.create_connection((address, port), timeout=patient(5)))

        def turn() -> None:
            link.sendall(b"x")
            if link.recv(1) != b"x":
                raise ConnectionResetError("closed")

        return self._begin(Stream(name), turn)

    def datagrams(self, name: str, ns: NetNS, address: str, port: int) -> Stream:
        """One UDP flow; each datagram must be answered."""
        sock = ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect((address, port))
        sock.settimeout(patient(1))
        numbers = iter(range(10**9))

        def turn() -> None:
            number = next(numbers).to_bytes(4)
            sock.send(number)
            while sock.recv(100) != number:
                pass

        return self._begin(Stream(name), turn)

    def connections(self, name: str, ns: NetNS, address: str, port: int) -> Stream:
        """A new TCP connection for each question."""

        def turn() -> None:
            link = ns.call(lambda: socket.create_connection((address, port), timeout=patient(0.9)))
            with link:
                link.sendall(b"y")
                if link.recv(1) != b"y":
                    raise ConnectionResetError("closed")

        return self._begin(Stream(name), turn, 0.06)

    def queries(self, name: str, ns: NetNS, host: str, wanted: str, seconds: float) -> Stream:
        """DNS queries of a patient resolver, which asks again each second for up to `seconds`."""
        stream = Stream(name)
        sock = ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.settimeout(1)
        labels = b"".join(bytes([len(label)]) + label.encode() for label in host.split(".")) + b"\0"
        numbers = iter(range(1, 65536))

        def turn() -> None:
            head = struct.pack("!HHHHHH", number := next(numbers), 0x0100, 1, 0, 0, 0)
            end = time.monotonic() + patient(seconds)
            while True:
                sock.sendto(head + labels + b"\0\1\0\1", (DNS, 53))
                try:
                    while (answer := sock.recv(512))[:2] != number.to_bytes(2):
                        pass
                except TimeoutError:
                    if time.monotonic() > end:
                        raise
                    continue
                if (rcode := answer[3] & 15) == SERVFAIL and time.monotonic() < end:
                    stream.servfail += 1
                    time.sleep(0.1)
                    continue
                if socket.inet_aton(wanted) not in answer:
                    raise OSError(f"rcode {rcode}")
                return

        return self._begin(stream, turn)

    def end(self) -> list[str]:
        """Stop, and return a line for each client that lost something."""
        self._stop.set()
        for thread in self._threads:
            thread.join(patient(20))
        return [f"{s.name}: {s.lost[:5]} of {s.sent}" for s in self.streams if s.lost]

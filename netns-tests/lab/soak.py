"""A cluster under churn, and clients that count requests and failures. `Soak(lab, seconds).run()` returns the clients
with their counts.

There are four clients: a pod on each of the first two nodes, a host outside the cluster, and a pod that a NetworkPolicy
denies (soakpolicies.py). The clients send without a pause and record the time of each failure. A TCP connection and a
datagram have one try. A DNS query has one try per second for as long as a resolver waits (ATTEMPTS). A seed determines
the order of the disturbances: kill a role or the API server, scale the Deployment, create and delete a Service, delete
a pod, change policies, cut off the last node.

The soak accepts a failure in two cases only. First case: the last node is cut off, the cluster has not removed its pods
yet, and a packet that may have gone to this node timed out. A refusal or a failed name is never accepted. Second case:
the proxy's log shows that it deleted the flow of the datagram during the wait for the answer. The proxy deletes a flow
SWEEP_AFTER (0.05 s) after the rules lose the endpoint, and no node can know that the endpoint's answer comes later.

A deleted pod continues to serve for some seconds (preStop), as in a replacement without loss. In the soak, the
controllers may be dead at this time. Then no node learns about the removed endpoint before the controllers run again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml
from dnslib import DNSRecord
from pyroute2.netlink.exceptions import NetlinkError

from podwire.cluster import network
from podwire.demo.lab import DemoLab, NotYet, wait_for
from podwire_base.kernel.netns import call_in
from podwire_controlplane.controllers.nodes import GRACE

from . import soakpolicies
from .cluster import EXAMPLES

T = TypeVar("T")
DNS_ADDRESS = "10.96.0.10"
ROLES = ("policy", "wiring", "proxy", "lb", "dns-feeder", "dns", "observe", "node")
CONTROL = ("apiserver", "controllers")
# A killed DNS server is back after 0.2 s on an idle machine, and its spare answers meanwhile; after up to 2.5 s if ten
# programs share two CPUs. A resolver waits five seconds for an answer before it repeats the query (resolv.conf(5),
# `timeout`).
ATTEMPTS = 6
# seconds for an answer over TCP or UDP: a server may stop for two seconds, and the client does not repeat a request
WAIT = 5.0
SETTLE = 5.0  # seconds that a cluster may take to notice that its node is back
Probe = Callable[[], str]  # the error; "" for success


@dataclass(frozen=True)
class Failure:
    """One failed request. port: the client's port (TCP, UDP). flow: for TCP, the endpoint to which conntrack sent the
    packets, and the state of this endpoint on the node and in the cluster.
    """

    at: float
    client: str
    kind: str
    error: str
    port: str = ""
    flow: str = ""


@dataclass
class Client:
    """A client that sends its probes in turn, in one thread inside a namespace, until `stop` is set."""

    name: str
    netns: str
    node: str  # namespace of the node that translates its packets
    probes: dict[str, Probe]
    about: Callable[[str], str]  # the cluster's knowledge of an address
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def works(self) -> bool:
        """every probe is answered"""
        return call_in(self.netns, lambda: not any(probe() for probe in self.probes.values()))

    def run(self, stop: threading.Event) -> threading.Thread:
        thread = threading.Thread(target=lambda: call_in(self.netns, lambda: self._work(stop)), name=self.name)
        thread.start()
        return thread

    def _flow(self, number: str) -> str:
        def look(*words: str) -> str:
            return call_in(self.node, lambda: subprocess.run(words, capture_output=True, text=True, check=False).stdout)

        flow = " ".join(look("conntrack", "-L", "-p", "tcp", "--sport", number).split())
        ends = re.findall(r"src=(\S+)", flow)
        if len(ends) < 2:
            return flow
        used = sum(ends[1] in line for line in look("nft", "list", "table", "ip", "podwire").splitlines())
        return f"{flow}; {ends[1]}: in {used} lines of the rules, {self.about(ends[1])}"

    def _work(self, stop: threading.Event) -> None:
        while not stop.is_set():
            for kind, probe in self.probes.items():
                began = time.monotonic()
                error = probe()
                self.counts[kind] += 1
                if error:
                    number, _, words = error.rpartition("|")
                    flow = self._flow(number) if kind.endswith("tcp") else ""
                    self.failures.append(Failure(began, self.name, kind, words, number, flow))
                time.sleep(0.01)


def connects(address: str, port: int) -> str:
    """Open a TCP connection, send a request and read the whole answer. The error begins with the client's port and
    "|".
    """
    with socket.socket() as sock:
        sock.settimeout(WAIT)
        error = _converse(sock, address, port)
        return f"{sock.getsockname()[1]}|{error}" if error else ""


def _converse(sock: socket.socket, address: str, port: int) -> str:
    try:
        sock.connect((address, port))
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        data = b""
        while chunk := sock.recv(4096):
            data += chunk
        return "" if b'"host"' in data else f"answered {data[:60]!r}"
    except TimeoutError:
        return "timed out"
    except OSError as err:
        return err.strerror or str(err)


def echoes(address: str, port: int, source: int) -> str:
    """Send a datagram and wait for the answer. Return the error, "" for success. source: a port that was not used for
    minutes. The flow of a recently used port may lead to a removed endpoint, and the proxy deletes such a flow even if
    an answer is on its way.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(WAIT)
        try:
            sock.bind(("", source))
            sock.connect((address, port))
            sock.send(b"soak")
            return "" if sock.recv(2048) else f"{source}|empty"
        except TimeoutError:
            return f"{source}|timed out"
        except OSError as err:
            return f"{source}|{err.strerror or err}"


def resolves(name: str, wanted: str) -> str:
    """Send an A query with up to ATTEMPTS tries, one per second. Return the error, "" for success. wanted: the expected
    address, "" for NXDOMAIN.
    """
    query = bytes(DNSRecord.question(name).pack())
    error = ""
    for turn in range(ATTEMPTS):
        time.sleep(min(turn, 1))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1)
            try:
                sock.connect((DNS_ADDRESS, 53))
                sock.send(query)
                answer = DNSRecord.parse(sock.recv(4096))
            except OSError as err:
                error = err.strerror or "timed out"
                continue
        if answer.header.rcode == 2:  # SERVFAIL: the answer of a server without a zone; a resolver retries
            error = "SERVFAIL"
            continue
        found = [str(rr.rdata) for rr in answer.rr]
        return "" if found == ([wanted] if wanted else []) else f"{name}: {found or answer.header.rcode}"
    return error


@dataclass
class Soak:
    lab: DemoLab
    seconds: float
    seed: int = 0
    restarted: set[tuple[str, str]] = field(default_factory=set)
    cut_off: list[tuple[float, float]] = field(default_factory=list)  # when packets for the last node may be lost
    log: list[tuple[float, str]] = field(default_factory=list)
    policies: int = 0  # changes of policies
    gone: list[str] = field(default_factory=list)  # ClusterIPs of Services that were deleted

    def clients(self) -> list[Client]:
        address, space = self.lab.cluster_ip("my-service"), "default.svc.cluster.local"
        pods = {p.node: p for p in self.lab.pods("client")}
        ports = itertools.cycle(range(10000, 30000))
        made = [
            Client(
                f"pod on {node}",
                pods[node].netns,
                self.lab.node_netns(node),
                {
                    "tcp": lambda: connects(address, 80),
                    "udp": lambda: echoes(address, 80, next(ports)),
                    "name": lambda: resolves(f"my-service.{space}", address),
                    "no name": lambda: resolves(f"nobody.{space}", ""),
                },
                self._about,
            )
            for node in self.lab.config.node_names()[:2]
        ]
        first = self.lab.config.node_names()[0]
        entry = self.lab.config.node_address(first)
        stranger = self.lab.pods(soakpolicies.STRANGER)[0]
        return [
            *made,
            Client(
                "stranger",
                stranger.netns,
                self.lab.node_netns(stranger.node),
                {"denied": lambda: soakpolicies.leaks(address, 80)},
                self._about,
            ),
            Client(
                "outside",
                self.lab.outside("client"),
                self.lab.node_netns(first),
                {
                    "NodePort tcp": lambda: connects(entry, 30080),
                    "NodePort udp": lambda: echoes(entry, 30080, next(ports)),
                },
                self._about,
            ),
        ]

    def _about(self, address: str) -> str:
        try:
            rows = [
                f"pod {p['metadata']['name']} {p['status']['phase']}, to go by {p['metadata'].get('deletionTimestamp')}"
                for p in self.lab.items("Pod", "")
                if p.get("status", {}).get("podIP") == address
            ]
            rows += [
                f"endpoint {e['conditions']}"
                for s in self.lab.items("EndpointSlice")
                for e in s.get("endpoints") or []
                if address in e["addresses"] and s["metadata"]["name"].startswith("my-service-")
            ]
        except NotYet as err:
            return f"nobody to ask: {err}"
        return "; ".join(rows) or "no pod has it"

    def _guard(self) -> None:
        text = soakpolicies.guard("10.244.0.0/16", self.lab.config.node_names()[0])
        self.lab.run_tool("apply", "-f", "-", stdin=text)
        self.lab.wait_pods(soakpolicies.STRANGER, 1)

    def run(self) -> list[Client]:
        """Disturb the cluster until the time is over and every role was restarted. Return the clients."""
        self._guard()
        clients, stop = self.clients(), threading.Event()
        for client in clients:  # every node knows a ready pod a moment later
            wait_for(client.works, 30)
        threads = [client.run(stop) for client in clients]
        try:
            self._churn()
            self._settle()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        return clients

    def unexplained(self, clients: list[Client]) -> list[Failure]:
        return [f for c in clients for f in c.failures if not self._explained(f)]

    def story(self, failures: list[Failure]) -> str:
        """Return the log of the disturbances around each failure, as text."""
        near = [(at, words) for at, words in self.log if any(f.at - 35 < at < f.at + 5 for f in failures)]
        return "\n".join(
            f"{at:.1f} {words}" for at, words in sorted([*near, *((f.at, f"FAILED {f}") for f in failures)])
        )

    def _explained(self, failure: Failure) -> bool:
        lost = any(start - WAIT <= failure.at <= end for start, end in self.cut_off) or self._ended(failure)
        return lost and failure.error in ("timed out", "No route to host") and "name" not in failure.kind

    def _ended(self, failure: Failure) -> bool:
        """Whether a proxy logged, during the wait for the answer, that it deleted this datagram's flow."""
        if not failure.kind.endswith("udp"):
            return False
        words = re.compile(rf"^(\S+)Z info proxy \"stale UDP flow deleted\" .*client=\S+:{failure.port} ", re.M)
        said = [
            at for log in self.lab.config.run_dir.glob("nodes/*/log/proxy.log") for at in words.findall(log.read_text())
        ]
        sent = time.time() - time.monotonic() + failure.at
        return any(sent <= datetime.fromisoformat(f"{at}+00:00").timestamp() <= sent + WAIT for at in said)

    # ---- acts

    def _churn(self) -> None:
        rand, end = random.Random(self.seed), time.monotonic() + self.seconds
        nodes = self.lab.config.node_names()
        victims = [(node, role) for node in nodes for role in ROLES] + [("", role) for role in CONTROL]
        rand.shuffle(victims)
        acts: list[Callable[[], None]] = [
            lambda: self._scale(rand.choice((3, 5, 6))),
            self._service,
            lambda: self._kill_pod(rand),
            lambda: self._scale(4),
            lambda: self._policies(rand),
        ]
        turn, cut = 0, False
        while time.monotonic() < end or self.restarted < set(victims):
            if time.monotonic() > end + 120:
                raise AssertionError(f"never restarted: {set(victims) - self.restarted}")
            self._kill(*victims[turn % len(victims)], rand.choice((signal.SIGTERM, signal.SIGKILL)))
            if turn % 2:
                acts[turn // 2 % len(acts)]()
            if not cut and turn >= 8:
                self._cut_off(nodes[-1])
                cut = True
            turn += 1

    def _say(self, words: str) -> None:
        self.log.append((time.monotonic(), words))

    def _kill(self, node: str, role: str, number: int) -> None:
        if role.startswith("dns"):
            wait_for(lambda: self._names_ready(node), 30)
        self._say(f"{signal.Signals(number).name} {role} {node}")
        self.lab.restart(node or None, role, number)
        self.restarted.add((node, role))

    def _names_ready(self, node: str) -> bool:
        """server and feeder are ready (one fault at a time: a server without zone and feeder can only answer
        SERVFAIL)
        """
        for role in ("dns", "dns-feeder"):
            told = json.loads((self.lab.config.node_dir(node) / "status" / f"{role}.json").read_text())
            if not told["ready"] or told["pid"] != self.lab.supervised(node, role):
                return False
        return True

    def _scale(self, count: int) -> None:
        self._say(f"scale to {count}")
        self._tool("apply", "-f", "-", stdin=yaml.safe_dump(scaled(EXAMPLES, count)))

    def _kill_pod(self, rand: random.Random) -> None:
        """Delete a pod with a grace period. The Deployment creates a new pod."""
        self._say("delete a pod")
        pods = self._ask(lambda: self.lab.pods("MyApp"))
        if pods:
            unawaited = "--wait=false" if "kubectl" in self.lab.tool_name else "--no-wait"
            self._tool("delete", "pod", rand.choice(pods).name, unawaited)

    def _policies(self, rand: random.Random) -> None:
        """Change policies without a change of what the clients may do."""
        for _ in range(4):
            name, text = soakpolicies.changing(self.policies, rand)
            self.policies += 1
            self._say(f"NetworkPolicy {name}")
            self._tool("apply", "-f", "-", stdin=text)
        self._tool("delete", "networkpolicy", f"more-{rand.randrange(3)}")

    def _service(self) -> None:
        """Create a Service, check its name and address, and delete it."""
        name = f"churn-{len(self.gone)}"
        self._say(f"Service {name}")
        self._tool(
            "apply",
            "-f",
            "-",
            stdin=f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
            "spec: {selector: {app: MyApp}, ports: [{port: 80, targetPort: 9376}]}\n",
        )
        address = self._ask(lambda: self.lab.cluster_ip(name))
        pods = self._ask(lambda: self.lab.pods("client"))
        where = next(p for p in pods if p.node == self.lab.config.node_names()[0]).netns
        full = f"{name}.default.svc.cluster.local"
        wait_for(lambda: call_in(where, lambda: not connects(address, 80) and not resolves(full, address)), 60)
        self._tool("delete", "service", name)
        wait_for(lambda: call_in(where, lambda: bool(connects(address, 80)) and not resolves(full, "")), 60)
        self.gone.append(address)

    def _ask(self, look: Callable[[], T]) -> T:
        """Call `look` and return its result. Retry for 30 s, because the API server may be down."""
        end = time.monotonic() + 30
        while True:
            try:
                return look()
            except NotYet as err:
                if time.monotonic() > end:
                    raise
                self._say(f"again: {err}")
                time.sleep(0.5)

    def _tool(self, *words: str, stdin: str | None = None) -> None:
        def attempt() -> None:
            try:
                self.lab.run_tool(*words, stdin=stdin)
            except NotYet as err:
                if "not found" not in str(err).lower():
                    raise

        self._ask(attempt)

    def _cut_off(self, node: str) -> None:
        """Cut the node's link for six seconds, or in a long soak until the cluster has removed the node's pods."""
        away = GRACE + 20 if self.seconds >= 300 else 6.0
        self._say(f"{node} is cut off for {away:.0f} s")
        where = self.lab.config.netns(node)
        began = time.monotonic()

        def wire(state: str) -> None:
            network.netlink(where, lambda ipr: ipr.link("set", index=ipr.link_lookup(ifname="eth0")[0], state=state))

        routes = network.netlink(
            where,
            lambda ipr: [
                r
                for r in ipr.get_routes(family=socket.AF_INET)
                if r["type"] == 1 and r["table"] == 254 and r["proto"] != 2
            ],
        )
        wire("down")
        try:
            time.sleep(away)
        finally:
            wire("up")
            network.netlink(where, lambda ipr: restore(ipr, routes))
        self.cut_off.append((began, min(time.monotonic(), began + GRACE + 10) + SETTLE))
        self._say(f"{node} is back")

    def _settle(self) -> None:
        """Wait until the cluster has the wanted pods and ready nodes. The clients still send."""
        self._scale(4)
        self.lab.wait_pods("MyApp", 4)

        def unready() -> list[str]:
            return [
                f"{n['metadata']['name']}: {c['type']} {c['status']}: {c.get('message')}"
                for n in self._ask(lambda: self.lab.items("Node"))
                for c in n["status"]["conditions"]
                if "Pressure" not in c["type"] and c["status"] != str(c["type"] != "NetworkUnavailable")
            ]

        end = time.monotonic() + 60
        while wrong := unready():
            if time.monotonic() > end:
                raise AssertionError(f"not ready a minute after the last act: {wrong}")
            time.sleep(0.3)
        time.sleep(2)


def restore(ipr: Any, routes: list[Any]) -> None:
    """Restore the default route when the link is back, as a machine's network manager would."""
    for route in routes:
        attrs = dict(route["attrs"])
        with contextlib.suppress(NetlinkError):  # the route exists if the wiring role was faster
            ipr.route(
                "add",
                dst=f"{attrs['RTA_DST']}/{route['dst_len']}" if "RTA_DST" in attrs else "default",
                gateway=attrs.get("RTA_GATEWAY"),
                oif=attrs["RTA_OIF"],
                proto=route["proto"],
            )


def manifests(folder: Path) -> str:
    """Return the manifests of examples/ with a longer preStop. It lasts longer than a restart of the API server
    followed by a restart of the controllers, which takes 18 s if ten programs share two CPUs.
    """
    text = "\n---\n".join(path.read_text() for path in sorted(folder.glob("*.yaml")))
    for old, new in (
        ("sleep: {seconds: 5}", "sleep: {seconds: 30}"),
        ("GracePeriodSeconds: 10", "GracePeriodSeconds: 45"),
    ):
        assert text.count(old) == 1, f"examples/ changed, the soak looks for {old!r}"
        text = text.replace(old, new)
    return text


def scaled(folder: Path, count: int) -> dict[str, Any]:
    """Return the Deployment `web` of the manifests with `count` pods. podwire's commands have no `scale`."""
    objects = yaml.safe_load_all(manifests(folder))
    web = next(o for o in objects if (o["kind"], o["metadata"]["name"]) == ("Deployment", "web"))
    return {**web, "spec": {**web["spec"], "replicas": count}}


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def resident(pid: int) -> int:
    """Return the resident memory of a process in MiB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

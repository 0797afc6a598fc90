"""A node with a live wiring agent, for the CNI tests. It runs the agent's process and calls the plugin binary as a
container runtime does.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from podwire_base.kernel.nft import socket as nft_socket
from podwire_cni import nodetable
from podwire_cni.native import client_path

from . import evidence, patience
from .fakeapi import FakeApi
from .netns import NetNS
from .patience import patient

wait_until = patience.wait_until


def put_node(api: FakeApi, name: str, cidr: str | None, *ips: str | None, cidr6: str = "") -> None:
    """Create or replace a Node object."""
    cidrs = [c for c in (cidr, cidr6) if c]
    api.put(
        "/api/v1/nodes",
        {
            "metadata": {"name": name},
            "spec": {"podCIDR": cidr, "podCIDRs": cidrs} if cidr else {},
            "status": {"addresses": [{"type": "InternalIP", "address": ip} for ip in ips if ip]},
        },
    )


class Answer:
    """The plugin's output and exit status."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.body: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}

    @property
    def address(self) -> str:
        return str(self.body["ips"][0]["address"]).split("/")[0]


class CniNode:
    """A namespace that acts as a node, its run directory, and the agent process in it."""

    def __init__(self, ns: NetNS, run_dir: Path, name: str, api: FakeApi, *, flags: tuple[str, ...] = ()) -> None:
        self.ns, self.run_dir, self.name, self.api, self.flags = ns, run_dir, name, api, flags
        run_dir.mkdir(parents=True, exist_ok=True)
        self.kubeconfig = api.kubeconfig(run_dir / "kubeconfig")
        self.agent: subprocess.Popen[str] | None = None
        self.client = client_path()
        self.code = "from podwire_cni.main import command; command()"
        self.first = ""  # Python that the agent runs before anything else
        evidence.tells(self)

    def describe(self) -> str:
        """Return the evidence of a failed test: leases on disk, the status, the log."""
        leases = sorted(file for file in (self.run_dir / "cni" / "leases").glob("*") if file.is_file())
        return "".join(f"--- {file}\n{file.read_text()}\n" for file in leases) + (
            f"--- status\n{json.dumps(self.status(), indent=1)}\n--- log\n"
            f"{self.log() if (self.run_dir / 'agent.log').exists() else ''}"
        )

    def start(self, *, wait: bool = True) -> None:
        log = open(self.run_dir / "agent.log", "a")  # noqa: SIM115 - the agent keeps writing to it
        self.agent = self.ns.popen(
            [
                sys.executable,
                "-c",
                f"{self.first}\n{self.code}",
                "--node-name",
                self.name,
                "--kubeconfig",
                str(self.kubeconfig),
                "--run-dir",
                str(self.run_dir),
                *self.flags,
            ],
            stderr=log,
            stdout=log,
        )
        log.close()
        if wait:
            wait_until(self.ready, f"agent of {self.name} ready: {self.log()}")

    def ready(self) -> bool:
        status = self.status()
        return (
            self.agent is not None
            and status.get("pid") == self.agent.pid
            and bool(status.get("ready"))
            and status.get("reason") == "Ready"
        )

    def look(self) -> None:
        """Make the agent compare its whole state with the kernel now, and not only after following.RESYNC_SECONDS.
        Without this, it mends at once only what a notification of the kernel tells.
        """
        known = self.routes()
        put_node(self.api, "passing", "10.244.250.0/24", "192.0.2.250")
        wait_until(lambda: self.routes() == known + 1, "the agent knows one more node")
        self.api.delete("/api/v1/nodes", "passing")
        wait_until(lambda: self.routes() == known, "and forgets it")

    @staticmethod
    def complaint(change: Callable[[], object], call: Callable[[], Answer], words: str) -> Answer:
        """Make a change in the kernel and call the plugin, until the plugin says `words`. The agent hears of the change
        and may mend it before the call looks, so `change` is made again and must bear that nothing is left to change.
        """

        def said() -> Answer | None:
            change()
            answer = call()
            return answer if answer.status and words in answer.out else None

        answer = wait_until(said, f"the plugin says: {words}")
        assert answer is not None
        return answer

    def routes(self) -> int:
        """Return the number of routes to other nodes, according to the status. The agent writes the status last."""
        return int(self.status().get("figures", {}).get("routes", -1))

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.run_dir / "status" / "wiring.json").read_text())
        except (OSError, ValueError):
            return {}
        return found

    def log(self) -> str:
        return (self.run_dir / "agent.log").read_text()

    def stop(self, *, kill: bool = False) -> int:
        """End the agent and return its exit status."""
        assert self.agent is not None
        (self.agent.kill if kill else self.agent.terminate)()
        return self.agent.wait(timeout=patient(20))

    def close(self) -> None:
        if self.agent is not None and self.agent.poll() is None:
            self.stop(kill=True)

    def conf(self, version: str = "1.0.0", **more: Any) -> dict[str, Any]:
        """Return the plugin's configuration as a runtime derives it from the conflist."""
        conflist = json.loads((self.run_dir / "cni" / "net.d" / "10-podwire.conflist").read_text())
        plugin = dict(conflist["plugins"][0])
        return {"cniVersion": version, "name": conflist["name"], **plugin, **more}

    def environment(self, command: str, container: str, pod: NetNS | str | None) -> dict[str, str]:
        netns = pod.path if isinstance(pod, NetNS) else pod or ""
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.client.parent),
            "PATH": os.environ["PATH"],
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={container};K8S_POD_UID=u-{container}",
        }

    def cni(
        self,
        command: str,
        container: str,
        pod: NetNS | str | None = None,
        conf: Mapping[str, Any] | str | None = None,
        **env: str,
    ) -> Answer:
        """Run the plugin binary in the node's namespace."""
        text = conf if isinstance(conf, str) else json.dumps(self.conf() if conf is None else conf)
        return Answer(
            self.ns.run(
                [str(self.client)], check=False, input=text, env={**self.environment(command, container, pod), **env}
            )
        )

    def leases(self) -> dict[str, str]:
        """Return address -> container for every lease on disk."""
        return {
            file.name: json.loads(file.read_text().splitlines()[0])["containerID"]
            for file in (self.run_dir / "cni" / "leases").iterdir()
            if not file.name.startswith(".")
        }

    def table_elements(self) -> int:
        """Return the number of elements for pods in the node's nft tables."""
        found = 0
        for table in nodetable.tables():
            # a default binds it
            dump = self.ns.call(lambda table=table: nft_socket.Connection().dump(table))  # type: ignore[misc]
            assert dump is not None, f"{table} is gone"
            found += sum(len(held) for name, held in dump.elements.items() if name not in ("pods", "native"))
        return found

    def links(self) -> set[str]:
        return {str(link.get("IFLA_IFNAME")) for link in self.ns.netlink(lambda ipr: ipr.get_links())}


@contextlib.contextmanager
def peer_server(ns: NetNS, address: str) -> Iterator[int]:
    """Run a TCP server in `ns` that answers with the client's address, and yield its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = ns.call(lambda: socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::"))

    def loop() -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(peer[0].encode())

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def ask(ns: NetNS, address: str, port: int, timeout: float = 5) -> str:
    """Connect from `ns` to a server of `peer_server` and return its answer."""

    def work() -> str:
        with socket.create_connection((address, port), timeout=patient(timeout)) as sock:
            return sock.recv(200).decode()

    return ns.call(work)


def received(sender: NetNS, receiver: NetNS, address: str, seconds: float) -> tuple[int, float]:
    """The bytes that one TCP connection brings in about `seconds`, and the seconds that it took."""
    server = receiver.call(lambda: socket.create_server((address, 0)))
    with server:
        client = sender.call(lambda: socket.create_connection(server.getsockname(), patient(5)))
        peer, stop = server.accept()[0], threading.Event()

        def send() -> None:
            with client:
                client.settimeout(0.2)
                while not stop.is_set():
                    try:
                        client.send(bytes(65536))
                    except OSError:  # the queue is full for a while, or the test is over
                        continue

        sending = threading.Thread(target=send)
        sending.start()
        with peer:
            peer.settimeout(patient(5))
            began, count = time.monotonic(), 0
            while (took := time.monotonic() - began) < seconds:
                count += len(peer.recv(1 << 16))
            stop.set()
        sending.join()
        return count, took

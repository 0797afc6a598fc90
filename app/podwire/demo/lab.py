"""The demo's tools: a cluster, hosts outside the cluster, and functions that send real traffic from pods, nodes and
hosts.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from podwire_base.kernel.netns import call_in
from podwire_base.kube.client import config as client_config
from podwire_base.kube.meta import Object, labels
from podwire_base.kube.registry import of
from podwire_base.patience import patient
from podwire_node.podspec import PATH
from podwire_node.runtime import Container, Process, Sandbox, echo_command, enter_command, read

from ..cluster import network
from ..cluster.config import ClusterConfig
from ..commands.pods import find_pod

T = TypeVar("T")
OUTSIDE_HOST, OUTSIDE_CLIENT, UPSTREAM_DNS = "192.0.2.42", "198.51.100.7", "203.0.113.53"
UPSTREAM_NAME = "www.example.test"
ENOUGH = 50  # connections


class NotYet(Exception):
    """The expected state did not occur in time. The message has the last observed state."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request. host, peer: from podwire-echo. error: "" for a success. seconds: the duration."""

    host: str = ""
    peer: str = ""
    error: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.error

    def __str__(self) -> str:
        return self.error or f"{self.host} (saw {self.peer})"


def wait_for(look: Callable[[], T], seconds: float = 15.0, every: float = 0.05) -> T:
    """Call `look` until its result is truthy and return this result. Raises NotYet after `seconds`."""
    seconds = patient(seconds)
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise NotYet(f"not within {seconds:.0f} s: {getattr(look, '__doc__', '') or 'condition'}")
        time.sleep(every)


def _ask(kind: int, address: str, port: int, timeout: float) -> Answer:
    begin = time.monotonic()
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
            sock.settimeout(patient(timeout))
            sock.connect((address, port))
            if kind == socket.SOCK_DGRAM:
                sock.send(b"hello")
                data = sock.recv(2048).split(b"\n")[0]
            else:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")
                data = b""
                while chunk := sock.recv(4096):
                    data += chunk
                data = data.split(b"\r\n\r\n", 1)[-1]
        found = json.loads(data)
        return Answer(found["host"], found["peer"], seconds=time.monotonic() - begin)
    except TimeoutError:
        return Answer(error="timed out", seconds=time.monotonic() - begin)
    except (OSError, ValueError, KeyError) as err:
        return Answer(error=getattr(err, "strerror", None) or repr(err), seconds=time.monotonic() - begin)


@dataclass
class Pod:
    name: str
    address: str
    node: str
    sandbox: Sandbox

    @property
    def netns(self) -> str:
        pause = self.sandbox.process()
        return f"/proc/{pause.pid}/ns/net" if pause else ""

    def main_process(self, container: str) -> Process | None:
        return Container(self.sandbox, container).main_process()


@dataclass
class DemoLab:
    """tool: the argv prefix of the object commands: kubectl if a supported version is on PATH, else podwire."""

    config: ClusterConfig
    tool: list[str]
    tool_name: str
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.config.kubeconfig)}

    # ---- objects

    def run_tool(self, *words: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            [*self.tool, *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=patient(60),
            check=False,
            env=self.environment,
        )
        if done.returncode:
            raise NotYet(f"{self.tool_name} {' '.join(words)}: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def try_tool(self, *words: str, stdin: str | None = None) -> tuple[int, str]:
        """Run an object command and return (exit status, stdout and stderr)."""
        done = subprocess.run(
            [*self.tool, *words],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patient(60),
            check=False,
            env=self.environment,
        )
        return done.returncode, done.stdout

    def _read(self, path: str) -> Object:
        """Return the answer to one GET. The demo polls often, so this needs no new process. The demo uses the ordinary
        client only where it demonstrates this client.
        """
        config = client_config.load(self.config.kubeconfig)
        server = urlsplit(config.server)
        connection = http.client.HTTPSConnection(
            server.hostname or "", server.port, context=config.ssl, timeout=patient(10)
        )
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body: Object = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as err:
            raise NotYet(f"GET {path}: {err}") from err
        finally:
            connection.close()
        if answer.status >= 400:
            raise NotYet(f"GET {path}: {body.get('message')}")
        return body

    def get(self, kind: str, name: str, space: str = "default") -> Object:
        """Return one object. kind: as in the API, for example "Pod"."""
        resource = of(kind)
        return self._read(resource.path(space if resource.namespaced else "", name))

    def items(self, kind: str, space: str = "default") -> list[Object]:
        """Return the objects of a namespace, or of all namespaces if `space` is ""."""
        resource = of(kind)
        found: list[Object] = self._read(resource.path(space if resource.namespaced else ""))["items"]
        return found

    def pods(self, app: str) -> list[Pod]:
        """Return the running and ready pods with the label app=APP, sorted by name."""
        rows = []
        for obj in self.items("Pod"):
            status = obj.get("status", {})
            ready = all(c.get("ready") for c in status.get("containerStatuses") or [{}])
            if labels(obj).get("app") == app and ready and not obj["metadata"].get("deletionTimestamp"):
                sandbox = find_pod(self.config.name, "default", obj["metadata"]["name"])
                rows.append(Pod(obj["metadata"]["name"], status["podIP"], obj["spec"]["nodeName"], sandbox))
        return sorted(rows, key=lambda p: p.name)

    def wait_pods(self, app: str, count: int) -> list[Pod]:
        def look() -> list[Pod]:
            found = self.pods(app)
            return found if len(found) == count else []

        look.__doc__ = f"{count} ready pods with app={app}"
        return wait_for(look, 30)

    def cluster_ip(self, service: str, space: str = "default") -> str:
        return str(self.get("Service", service, space)["spec"]["clusterIP"])

    # ---- places

    def node_netns(self, node: str) -> str:
        return str(self.config.netns(node))

    def outside(self, host: str) -> str:
        return str(self.config.netns(host))

    # ---- traffic

    def tcp(self, netns: str, address: str, port: int, timeout: float = 3.0) -> Answer:
        return call_in(netns, lambda: _ask(socket.SOCK_STREAM, address, port, timeout))

    def udp(self, netns: str, address: str, port: int, timeout: float = 3.0) -> Answer:
        return call_in(netns, lambda: _ask(socket.SOCK_DGRAM, address, port, timeout))

    def many(self, netns: str, address: str, port: int, count: int, kind: int = socket.SOCK_STREAM) -> list[Answer]:
        """Make `count` connections in sequence, from one thread in the namespace, and return the answers."""
        return call_in(netns, lambda: [_ask(kind, address, port, 3.0) for _ in range(count)])

    def in_pod(self, pod: Pod, container: str, *command: str, timeout: float = 20) -> str:
        """Run a command inside a container, as `kubectl exec` does, and return its output."""
        process = pod.main_process(container)
        if process is None:
            raise NotYet(f"container {container} of {pod.name} does not run")
        done = subprocess.run(
            [*enter_command(process.pid), *command],
            capture_output=True,
            text=True,
            timeout=patient(timeout),
            env={"PATH": PATH},
            check=False,
        )
        return (done.stdout + done.stderr).strip()

    def in_netns(self, netns: str, *command: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--net={netns}", "--", *command],
            capture_output=True,
            text=True,
            timeout=patient(20),
            check=False,
        )
        return done.stdout + done.stderr

    def spawn(self, netns: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process of the demo in a namespace. Its environment has the cluster's marker, so that `down` ends the
        process.
        """
        child = subprocess.Popen(
            ["nsenter", f"--net={netns}", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PODWIRE_CLUSTER": str(self.config.run_dir)},
        )
        self.children.append(child)
        return child

    def make_outside(self) -> None:
        """Make a host and a client outside the cluster, and an upstream DNS server for the cluster."""
        for host, address in (("outside", OUTSIDE_HOST), ("client", OUTSIDE_CLIENT), ("dns", UPSTREAM_DNS)):
            network.make_outside(self.config, host, address, address.rsplit(".", 1)[0] + ".1")
        self.spawn(self.outside("outside"), *echo_command(), "--http", "9376")
        self.spawn(self.outside("dns"), sys.executable, "-m", "podwire.demo.upstream", UPSTREAM_DNS)

    def supervised(self, node: str | None, role: str) -> int:
        """Return the pid of a supervised process, 0 if the process does not run."""
        path = self.config.node_dir(node) / "agent.json" if node else self.config.run_dir / "supervisor.json"
        return int(((read(path) or {}).get("roles") or {}).get(role, {}).get("pid", 0))

    def restart(self, node: str | None, role: str, number: int) -> int:
        """Send signal `number` to a supervised process, wait for the restarted process, and return the new pid."""
        old = wait_for(lambda: self.supervised(node, role), 20)
        os.kill(old, number)

        def look() -> int:
            new = self.supervised(node, role)
            return new if new not in (0, old) else 0

        look.__doc__ = f"{role} is started again"
        return wait_for(look, 20)

    @contextlib.contextmanager
    def hammer(self, netns: str, address: str, port: int) -> Iterator[dict[str, Any]]:
        """Run a client that connects again and again from `netns` during the block. Yield {"sent", "failed": [error,
        ...]}.
        On a busy machine the client continues after the block until it has made at least ENOUGH connections.
        """
        import threading

        seen: dict[str, Any] = {"sent": 0, "failed": []}
        stop = threading.Event()

        def work() -> None:
            while not stop.is_set():
                answer = _ask(socket.SOCK_STREAM, address, port, 3.0)
                seen["sent"] += 1
                if not answer.ok:
                    seen["failed"].append(answer.error)
                time.sleep(0.002)

        thread = threading.Thread(target=lambda: call_in(netns, work))
        thread.start()
        try:
            yield seen
            end = time.monotonic() + patient(30)
            while seen["sent"] <= ENOUGH and not seen["failed"] and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


def examples_dir() -> Path:
    """Return the directory examples/ of podwire's checkout, or else of the current directory. Raises NotYet."""
    for base in (Path(__file__).resolve().parents[3], Path.cwd()):
        if (base / "examples" / "01-pods.yaml").exists():
            return base / "examples"
    raise NotYet("examples/ not found: run the demo from a checkout of podwire")

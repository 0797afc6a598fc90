"""Services at ports of the machine: `podwire up --publish`, `publish`, `tunnel` and `open`, with real connections from
the machine's loopback into pods. On the same cluster: `exec` on a terminal, and commands where no program is found.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from dnslib import DNSRecord

from lab.cluster import cluster, machine
from lab.patience import patient
from podwire.demo.lab import DemoLab, wait_for
from podwire_base.testing.ports import free_port

WEB = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: echo
          image: podwire.io/echo
          args: ["--http", "9376", "--udp", "9377"]
          readinessProbe: {tcpSocket: {port: 9376}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 9376}, {name: udp, port: 81, protocol: UDP, targetPort: 9377}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 9376}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {internalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 9376}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"""
EARLY = free_port()


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    with cluster(2, name="pub", publish=(f"{EARLY}:web:http",)) as made:
        made.run_tool("apply", "-f", "-", stdin=WEB)
        made.wait_pods("web", 2)
        yield made


def podwire(lab: DemoLab, *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "podwire.main", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**lab.environment, "COLUMNS": "80"},
        timeout=patient(30),
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if not status else done.stderr


def rows(lab: DemoLab, *words: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(podwire(lab, *words, "-o", "json"))
    return found


def page(port: int, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/", timeout=patient(5)) as answer:
        return str(json.loads(answer.read())["host"])


def answers(port: int, host: str = "127.0.0.1") -> str:
    """the published port answers"""
    try:
        return page(port, host)
    except OSError:
        return ""


def test_what_up_published_answers_once_its_service_is_there(lab: DemoLab) -> None:
    names = {pod.name for pod in lab.pods("web")}
    wait_for(lambda: answers(EARLY) and answers(EARLY, "[::1]"), 15)
    assert {page(EARLY) for _ in range(30)} == names  # each connection has its own endpoint
    (row,) = [r for r in rows(lab, "publish", "--list") if r["port"] == EARLY]
    assert (row["service"], row["servicePort"], row["state"]) == ("default/web", "http", "ready")


def test_publish_in_every_form(lab: DemoLab) -> None:
    before = machine(lab.config.name)
    tcp, udp = free_port(), free_port()
    told = podwire(lab, "publish", f"{tcp}:web:80", f"127.0.0.1:{udp}:default/web:udp/udp")
    assert f":{tcp}/tcp" in told and f":{udp}/udp" in told
    assert wait_for(lambda: answers(tcp), 10)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(patient(5))
        sock.sendto(b"hello", ("127.0.0.1", udp))
        assert json.loads(sock.recv(2048).split(b"\n")[0])["host"] in {p.name for p in lab.pods("web")}
    (row,) = rows(lab, "publish", "0:kube-system/kube-dns:53/udp")
    question = DNSRecord.question("web.default.svc.cluster.local").pack()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(patient(5))
        sock.sendto(question, ("127.0.0.1", int(str(row["port"]))))
        assert str(DNSRecord.parse(sock.recv(2048)).rr[0].rdata) == lab.cluster_ip("web")
    for name, port in (("headless", 9376), ("near", 80)):
        (row,) = rows(lab, "publish", f"0:{name}:{port}")
        assert wait_for(lambda at=int(str(row["port"])): answers(at), 10)  # type: ignore[misc]  # a lambda's default
    assert machine(lab.config.name) == before


def test_refusals_are_clear(lab: DemoLab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert f"port {number} is taken by another program" in podwire(lab, "publish", f"{number}:web:80", status=1)
    assert "leads to default/web:http already" in podwire(lab, "publish", f"{EARLY}:nobody:80", status=1)
    assert "is not published" in podwire(lab, "publish", "--rm", "1", status=1)
    assert "there is no Service default/wbe" in podwire(lab, "open", "wbe", status=1)
    assert "no ready endpoint" in podwire(lab, "open", "nobody", status=1)
    (row,) = [r for r in rows(lab, "publish", "--list") if r["service"] == "default/nobody"]
    with pytest.raises(ConnectionResetError), socket.create_connection(("127.0.0.1", int(str(row["port"]))), 5) as sock:
        sock.recv(1)


def test_tunnel_and_open_and_rm(lab: DemoLab) -> None:
    made = rows(lab, "tunnel")
    assert {(r["service"], r["servicePort"], r["protocol"]) for r in made} == {
        ("default/web", "80", "TCP"),
        ("default/web", "81", "UDP"),
    }
    assert rows(lab, "tunnel") == made  # again: the same ports
    found = podwire(lab, "open", "web").strip()
    with urllib.request.urlopen(found, timeout=patient(5)) as answer:
        assert json.loads(answer.read())["host"] in {p.name for p in lab.pods("web")}
    for row in made:
        podwire(lab, "publish", "--rm", str(row["place"]))
    port = next(int(str(r["port"])) for r in made if r["protocol"] == "TCP")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_publications_outlive_the_publisher(lab: DemoLab) -> None:
    before = rows(lab, "publish", "--list")
    lab.restart(None, "publisher", signal.SIGKILL)
    assert wait_for(lambda: answers(EARLY), 15)
    keys = ("place", "service", "servicePort", "state")
    assert [[r[k] for k in keys] for r in rows(lab, "publish", "--list")] == [[r[k] for k in keys] for r in before]
    assert os.stat(lab.config.run_dir / "publish.sock").st_mode & 0o777 == 0o600


# ---- a terminal


def on_a_terminal(lab: DemoLab, *words: str, typed: tuple[tuple[str, str], ...] = ()) -> tuple[int, str]:
    """Run a command on a terminal of 80 columns. typed: (what is waited for, what is typed then)."""
    pid, fd = pty.fork()
    if not pid:
        os.execve(sys.executable, [sys.executable, "-m", "podwire.main", *words], {**lab.environment, "TERM": "xterm"})
    termios.tcsetwinsize(fd, (24, 80))
    said, waits = "", list(typed)
    try:
        while select.select([fd], [], [], patient(60))[0]:
            try:
                said += os.read(fd, 4096).decode()
            except OSError:  # EIO: the other end is closed
                break
            if waits and waits[0][0] in said:
                os.write(fd, waits.pop(0)[1].encode())
    finally:
        os.close(fd)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGHUP)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, said.replace("\r\n", "\n")


def test_a_shell_in_a_pod_has_the_terminal(lab: DemoLab) -> None:
    """It is a terminal there, of this one's size; what is typed arrives, and the exit status is passed on."""
    typed = (("SIZE", "echo heard-$((40+2)); exit 7\n"),)
    script = "test -t 0 && test -t 1 && stty size && printf SIZE; exec sh"
    status, said = on_a_terminal(lab, "exec", "-it", "deploy/web", "--", "sh", "-c", script, typed=typed)
    assert status == 7 and "24 80" in said and "heard-42" in said, said


@pytest.mark.parametrize(
    "words", [("status",), ("publish", "--list"), ("get", "pods", "-A"), ("list",), ("nodes", "list")]
)
def test_pages_on_a_terminal_of_80_columns(lab: DemoLab, words: tuple[str, ...]) -> None:
    """Colours or not: nothing is wider than the terminal, but a word that is."""
    _, said = on_a_terminal(lab, *words)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    assert "NAME" in plain or "LISTENS" in plain or "ROLE" in plain, plain
    assert [line for line in plain.splitlines() if len(line) > 80] == []


# ---- no programs


WITHOUT = (
    (("status",), 0, "ROLES READY"),
    (("get", "pods"), 0, "web-"),
    (("exec", "deploy/web", "--", "true"), 0, ""),  # it has the pod's PATH
    (("logs", "deploy/web"), 0, ""),
    (("node", "node1", "--", "true"), 1, "nsenter is missing: install util-linux"),
    (("nft", "list", "--node", "node1"), 0, "table ip podwire"),
    (("explain", "deploy/web", "web:80"), 0, "endpoint"),
    (("open", "web"), 0, "http://127.0.0.1:"),
    (("tunnel",), 0, "default/web"),
    (("publish", "--list"), 0, "default/web"),
    (("nodes", "list"), 0, "node2"),
    (("nodes", "cordon", "node2"), 0, "node2"),
    (("nodes", "uncordon", "node2"), 0, "node2"),
    (("list",), 0, "/kubeconfig"),
    (("report", "--file", "{0}/r.tar.gz"), 0, "files; look at it"),
    (("check", "--test", "same-node"), 0, "same-node"),
)


@pytest.mark.parametrize(("words", "status", "text"), WITHOUT, ids=[" ".join(words[:2]) for words, _, _ in WITHOUT])
def test_without_any_program(lab: DemoLab, tmp_path: Path, words: tuple[str, ...], status: int, text: str) -> None:
    """As in a slim image: what needs no program works, what needs one says which."""
    done = subprocess.run(
        [sys.executable, "-m", "podwire.main", *(word.format(tmp_path) for word in words)],
        capture_output=True,
        text=True,
        check=False,
        env={**lab.environment, "COLUMNS": "80", "PATH": str(tmp_path)},
        timeout=patient(60),
    )
    said = done.stdout + done.stderr
    assert done.returncode == status and "Traceback" not in said, said
    assert text in " ".join(said.split())

"""Connections that a test makes in a cluster, and what `podwire flows` tells of them."""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple

from click.testing import CliRunner

from podwire.demo.lab import DemoLab, Pod, wait_for
from podwire.main import cli
from podwire_base.kernel.netns import call_in

from .patience import patient

PORT = 9376


def told(lab: DemoLab, *words: str) -> list[dict[str, Any]]:
    call = ["flows", "-o", "json", "--since", "10m", "--kubeconfig", str(lab.config.kubeconfig), *words]
    done = CliRunner().invoke(cli, call)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def of_port(lab: DemoLab, port: int, *words: str) -> list[dict[str, Any]]:
    return told(lab, "--from-port", str(port), *words)


def free_port(src: Pod) -> int:
    def bind() -> int:
        with socket.socket() as sock:
            sock.bind(("", 0))
            return int(sock.getsockname()[1])

    return call_in(src.netns, bind)


def send(src: Pod, port: int, address: str, to: int, data: bytes, *, udp: bool = False) -> None:
    """Sends from a port that is known, so that exactly this connection can be looked for."""

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", port))
            sock.settimeout(patient(2))
            try:
                sock.connect((address, to))
                sock.sendall(data)
                while not udp and sock.recv(4096):
                    pass
            except OSError:
                return  # what the client saw is looked for in the answer

    call_in(src.netns, work)


def pods(lab: DemoLab) -> tuple[Pod, Pod, Pod]:
    """Returns a pod, another one of its node, and one of the other node."""
    every = sorted(lab.pods("MyApp"), key=lambda pod: pod.name)
    first = every[0]
    return (
        first,
        next(pod for pod in every if pod != first and pod.node == first.node),
        next(pod for pod in every if pod.node != first.node),
    )


class Refusal(NamedTuple):
    """A packet that a rule refuses or drops. service: "" for an address that no Service has."""

    service: str
    port: int
    udp: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.reason}, {'UDP' if self.udp else 'TCP'} {self.port}"


NOBODY = "10.96.255.250"  # in the Service range
REFUSALS = (
    Refusal("lonely", 80, False, "no-endpoints"),
    Refusal("lonely", 80, True, "wrong-port"),  # the Service has TCP alone
    Refusal("my-loadbalancer", 81, False, "wrong-port"),
    Refusal("my-loadbalancer", 81, True, "wrong-port"),
    Refusal("", 80, False, "unallocated-address"),
    Refusal("", 80, True, "unallocated-address"),
)


def refused(lab: DemoLab, case: Refusal) -> None:
    """Sends such a packet from a pod, and checks that the flow log tells of it once, with its reason."""
    first, *_ = pods(lab)
    port, address = free_port(first), lab.cluster_ip(case.service) if case.service else NOBODY
    send(first, port, address, case.port, b"x", udp=case.udp)
    (one,) = wait_for(lambda: of_port(lab, port), 5)
    verdict = "refused" if case.service else "dropped"
    assert (one["verdict"], one["reason"], one["source"]["name"]) == (verdict, case.reason, first.name)
    assert (one["ip"], one["port"], one["protocol"]) == (address, case.port, "udp" if case.udp else "tcp")
    assert (one["service"] or {"name": ""})["name"] == case.service

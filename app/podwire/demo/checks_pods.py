"""Demo, parts 1 and 2: pods reach each other without NAT, a runtime can call the CNI plugin binary, and the pause
process keeps a pod's network."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from podwire_base.kernel.netns import CLONE_NEWNET, call_in, in_thread, unshare
from podwire_base.patience import patient
from podwire_node.runtime import echo_command

from .lab import DemoLab, NotYet, Pod, wait_for
from .rows import Row


def addresses(lab: DemoLab) -> Iterator[Row]:
    """Every pod's address is from its own node's podCIDR."""
    cidrs = {n["metadata"]["name"]: ipaddress.ip_network(n["spec"]["podCIDR"]) for n in lab.items("Node")}
    pods = lab.wait_pods("MyApp", 4) + lab.wait_pods("client", 3)
    wrong = [f"{p.name} {p.address}" for p in pods if ipaddress.ip_address(p.address) not in cidrs[p.node]]
    spread = sorted({p.node for p in pods})
    yield Row(
        "1",
        "addresses of 7 pods",
        f"{len(spread)} nodes",
        ", ".join(map(str, cidrs.values())),
        not wrong and len(spread) == len(cidrs) and len({p.address for p in pods}) == len(pods),
        "; ".join(wrong),
    )


def reach(lab: DemoLab) -> Iterator[Row]:
    """HTTP from every client pod to every web pod: the server sees the client's own address."""
    clients, servers = lab.pods("client"), lab.pods("MyApp")
    for near in (True, False):
        bad, sent = [], 0
        for client in clients:
            for server in servers:
                if (client.node == server.node) is near:
                    answer = lab.tcp(client.netns, server.address, 9376)
                    sent += 1
                    if answer.peer != client.address or answer.host != server.name:
                        bad.append(f"{client.name} -> {server.name}: {answer}")
        where = "same node" if near else "other nodes"
        yield Row(
            "1",
            f"{sent} HTTP requests pod -> pod, {where}",
            "client pods",
            f"{sent - len(bad)} with the pod's own address as source",
            bool(sent) and not bad,
            "; ".join(bad[:2]),
        )


def _ports(lab: DemoLab, node: str) -> set[str]:
    """Return the names of the ports of the node's bridge, according to iproute2."""
    found = json.loads(lab.in_netns(lab.node_netns(node), "ip", "-j", "link", "show", "master", "podwire0") or "[]")
    return {row["ifname"] for row in found if "ifname" in row}


def plugin(lab: DemoLab) -> Iterator[Row]:
    """ADD and DEL by calling the plugin binary as a runtime does: CNI_* variables, configuration on stdin."""
    from podwire_cni.native import cni_bin_dir

    node = lab.config.node_names()[0]
    conflist = json.loads(next((lab.config.node_dir(node) / "cni" / "net.d").glob("*.conflist")).read_text())
    conf = {**conflist["plugins"][0], "name": conflist["name"], "cniVersion": conflist["cniVersion"]}

    def make() -> int:
        unshare(CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    descriptor = in_thread(make)
    netns = f"/proc/{os.getpid()}/fd/{descriptor}"
    environment = {
        "CNI_CONTAINERID": uuid.uuid4().hex,
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(cni_bin_dir()),
        "PATH": os.environ["PATH"],
    }

    def call(verb: str) -> tuple[int, dict[str, Any]]:
        command = ["nsenter", f"--net={lab.node_netns(node)}", str(cni_bin_dir() / "podwire-cni")]
        done = subprocess.run(
            command,
            input=json.dumps(conf),
            text=True,
            capture_output=True,
            timeout=patient(20),
            check=False,
            env={**environment, "CNI_COMMAND": verb},
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}

    before = _ports(lab, node)
    try:
        code, result = call("ADD")
        ports = _ports(lab, node) - before
        inside = json.loads(lab.in_netns(netns, "ip", "-j", "addr", "show", "eth0") or "[]") if code == 0 else []
        routes = json.loads(lab.in_netns(netns, "ip", "-j", "route") or "[]")
        address = (result.get("ips") or [{}])[0].get("address", "")
        own = {a["local"] for link in inside for a in link.get("addr_info", []) if a["family"] == "inet"}
        default = next((r.get("gateway", "") for r in routes if r["dst"] == "default"), "")
        reached = (
            lab.in_netns(lab.node_netns(node), "ip", "-j", "route", "get", address.split("/")[0]) if address else "[]"
        )
        good = (
            code == 0 and len(ports) == 1 and own == {address.split("/")[0]} and bool(default) and "podwire0" in reached
        )
        yield Row(
            "1",
            "podwire-cni ADD (binary, CNI_* and stdin)",
            node,
            f"veth as port of podwire0, {address}, default via {default}",
            good,
            f"exit {code}, {result}, ports {ports}",
        )
        code, result = call("DEL")
        left = _ports(lab, node) - before
        links = call_in(netns, lambda: {name for _, name in socket.if_nameindex()}) - {"lo"}
        again, _ = call("DEL")
        yield Row(
            "1",
            "podwire-cni DEL, twice",
            node,
            "veth, port and address gone",
            code == 0 and again == 0 and not left and not links,
            f"exit {code}/{again}, {result}, left {left | links}",
        )
    finally:
        call("DEL")
        os.close(descriptor)


def _routes(lab: DemoLab, pod: Pod) -> str:
    return lab.in_netns(pod.netns, "ip", "route")


def pause(lab: DemoLab) -> Iterator[Row]:
    """Kill a pod's container: it restarts in the same sandbox, and a listener in the pod's namespace keeps its
    connection.
    """
    pod, other = lab.pods("MyApp")[0], lab.pods("client")[0]
    lab.spawn(pod.netns, *echo_command(), "--tcp", "9999")

    def connect() -> socket.socket:
        sock = socket.create_connection((pod.address, 9999), patient(3))
        sock.recv(512)
        return sock

    def try_connect() -> socket.socket | None:
        try:
            return call_in(other.netns, connect)
        except OSError:
            return None

    connection = wait_for(try_connect, 5)
    assert connection is not None  # wait_for returns only a truthy value
    try:
        routes, netns = _routes(lab, pod), str(Path(pod.netns).readlink())
        process = pod.main_process("echo")
        restarts = _restarts(lab, pod)
        if process is None:
            raise NotYet(f"{pod.name} has no process")
        os.kill(process.pid, signal.SIGKILL)

        def back() -> bool:
            fresh = pod.main_process("echo")
            return bool(fresh and fresh != process and fresh.alive and lab.tcp(other.netns, pod.address, 9376, 0.5).ok)

        wait_for(back, 20)
        connection.settimeout(patient(3))
        connection.sendall(b"still there?")
        echoed = connection.recv(64)
    finally:
        connection.close()
    same = routes == _routes(lab, pod) and netns == str(Path(pod.netns).readlink())

    def counted() -> bool:
        return _restarts(lab, pod) == restarts + 1

    wait_for(counted, 10)
    now = lab.get("Pod", pod.name)["status"]["podIP"]
    yield Row(
        "2",
        f"kill -9 the container of {pod.name}",
        "its node",
        f"back, same address {now}, same routes, namespace kept",
        same and now == pod.address,
        f"routes and namespace kept: {same}, address {now}",
    )
    yield Row(
        "2",
        "bytes on a connection opened before the kill",
        other.name,
        "echoed by the listener in the pod's namespace",
        echoed == b"still there?",
        repr(echoed),
    )
    # the pod must be ready again before the next part counts endpoints
    wait_for(lambda: len(lab.pods("MyApp")) == 4, 10)


def _restarts(lab: DemoLab, pod: Pod) -> int:
    statuses = lab.get("Pod", pod.name)["status"].get("containerStatuses") or [{}]
    return int(statuses[0].get("restartCount", 0))


CHECKS = (addresses, reach, plugin, pause)

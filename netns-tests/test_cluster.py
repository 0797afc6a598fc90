"""The embedded cluster as a user sees it: everything that the demo shows, and also interruptions, restarts, bad input,
and an API server that is away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dnslib import DNSRecord
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Packet
from scapy.utils import PcapNgReader

from lab import evidence
from lab.capture import Capture
from lab.cluster import EXAMPLES, Place, cluster
from lab.patience import patient
from podwire.check.table import IN_THE_DEMO, Check
from podwire.demo.lab import OUTSIDE_CLIENT, DemoLab, wait_for
from podwire_base.kernel.netns import call_in
from podwire_base.kube.conditions import condition
from podwire_base.kube.meta import Object

PACKET_CHECKS = tuple(check for check in IN_THE_DEMO if check.part in ("1", "3", "6"))


@pytest.fixture(scope="module")
def lab() -> Iterator[DemoLab]:
    """One cluster with the examples, for the tests that leave it as they found it."""
    with cluster(3, outside=True, watched=True) as made:
        made.run_tool("apply", "-f", str(EXAMPLES))
        made.wait_pods("MyApp", 4)
        made.wait_pods("client", 3)
        yield made


@pytest.mark.parametrize("check", PACKET_CHECKS, ids=lambda c: c.name)
def test_what_the_demo_proves(lab: DemoLab, check: Check) -> None:
    assert check.lab is not None
    rows = list(check.lab(lab))
    assert rows
    assert not [f"{r.sent} from {r.source}: {r.back} {r.detail}" for r in rows if not r.ok]


# ---- the API from inside a pod

ASK = """
import json, os, ssl, urllib.error, urllib.request
base = "/var/run/secrets/kubernetes.io/serviceaccount/"
token, space = (open(base + name).read() for name in ("token", "namespace"))
url = "https://%(KUBERNETES_SERVICE_HOST)s:%(KUBERNETES_SERVICE_PORT)s" % os.environ
body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
asked = urllib.request.Request(
    url + "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    json.dumps(body).encode(),
    {"Authorization": "Bearer " + token, "Content-Type": "application/json"},
)
trust = ssl.create_default_context(cafile=base + "ca.crt")
with urllib.request.urlopen(asked, context=trust) as answer:
    found = json.load(answer)["status"]["userInfo"]
told = []
paths = ["/api/v1/namespaces/%s/%s" % place for place in ((space, "pods"), (space, "secrets"), ("kube-system", "pods"))]
for path in paths + ["/api/v1/nodes"]:
    asked = urllib.request.Request(url + path, headers={"Authorization": "Bearer " + token})
    try:
        with urllib.request.urlopen(asked, context=trust) as answer:
            told.append(sorted(one["metadata"]["name"] for one in json.load(answer)["items"]))
    except urllib.error.HTTPError as err:
        told.append(err.code)
print(json.dumps([space, found["username"], found["extra"]["authentication.kubernetes.io/pod-name"], told]))
"""
VIEWER = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "RoleBinding",
    "metadata": {"name": "viewer", "namespace": "default"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
    "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
}


def test_a_pod_is_known_to_the_api_by_its_service_account(lab: DemoLab) -> None:
    """As every in-cluster client does: the token, ca.crt and namespace of the mounted volume, and two variables. The
    name of the Service has an answer too. No right comes with the token alone, and a RoleBinding gives rights in its
    own namespace only, and not on Secrets, as the ClusterRole `view` says.
    """
    pod = lab.pods("client")[0]
    container = lab.get("Pod", pod.name)["spec"]["containers"][0]["name"]
    python = os.path.realpath(sys.executable)
    process = pod.main_process(container)
    assert process is not None
    own = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
    where = [one for one in own if one.startswith("KUBERNETES_SERVICE_")]

    def told() -> list[Any]:
        raw = lab.in_pod(pod, container, "env", *where, python, "-IS", "-c", ASK)
        assert raw.startswith("["), raw
        space, user, pods, answers = json.loads(raw)
        assert (space, user, pods) == ("default", "system:serviceaccount:default:default", [pod.name])
        return list(answers)

    assert told() == [403, 403, 403, 403]
    with contextlib.ExitStack() as stack:
        stack.callback(lab.try_tool, "delete", "rolebinding", "viewer", "-n", "default")
        lab.run_tool("apply", "-f", "-", stdin=json.dumps(VIEWER))
        pods, *others = told()
        assert pod.name in pods and others == [403, 403, 403]
    assert told() == [403, 403, 403, 403], "a right ends with its binding"
    mounted = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert "Read-only file system" in lab.in_pod(pod, container, "sh", "-c", f"echo x > {mounted}")


# ---- packets, examined with scapy


def _ends(packets: list[Packet], layer: type[Packet], port: int = 0) -> set[tuple[str, str]]:
    """(source, destination) of the packets with `layer`, and with `port` at either end where one is given."""
    return {
        (p[IP].src, p[IP].dst)
        for p in packets
        if IP in p and layer in p and (not port or port in (p[layer].sport, p[layer].dport))
    }


def test_pod_to_pod_packets_keep_both_addresses_on_every_hop(lab: DemoLab) -> None:
    client = lab.pods("client")[0]
    server = next(p for p in lab.pods("MyApp") if p.node != client.node)
    places = [(lab.node_netns(client.node), "eth0"), (lab.node_netns(server.node), "eth0"), (server.netns, "eth0")]
    with contextlib.ExitStack() as stack:
        captures = [stack.enter_context(Capture(Place(path), device)) for path, device in places]
        assert lab.tcp(client.netns, server.address, 9376).ok
        for capture in captures:
            seen = _ends(capture.packets(), TCP, 9376)
            probe = {pair for pair in seen if client.address not in pair}  # the node asks whether the server is ready
            assert seen - probe == {(client.address, server.address), (server.address, client.address)}
            assert all(
                server.address in pair and ip.rpartition(".")[2] == "1"
                for pair in probe
                for ip in set(pair) - {server.address}
            )


def test_service_packets_leave_the_node_with_the_endpoints_address(lab: DemoLab) -> None:
    """The VIP never appears on the wire, and the client never sees the endpoint's address."""
    client, address = lab.pods("client")[0], lab.cluster_ip("my-service")
    endpoints = {p.address for p in lab.pods("MyApp")}
    with Capture(Place(lab.node_netns(client.node)), "eth0") as wire, Capture(Place(client.netns), "eth0") as inside:
        assert all(a.ok for a in lab.many(client.netns, address, 80, 30))
        on_wire = {ip for pair in _ends(wire.packets(), TCP) for ip in pair}
        in_pod = {ip for pair in _ends(inside.packets(), TCP) for ip in pair}
    assert address not in on_wire
    assert on_wire & endpoints
    assert in_pod == {client.address, address}


def test_a_service_without_endpoints_refuses_with_a_packet(lab: DemoLab) -> None:
    client, address = lab.pods("client")[0], lab.cluster_ip("lonely")
    with Capture(Place(client.netns), "eth0") as inside:
        assert "refused" in lab.tcp(client.netns, address, 80).error.lower()
        answers = [p for p in inside.packets() if IP in p and p[IP].src == address]
        assert answers
        assert all(p[TCP].flags.R for p in answers)  # a reset: the kernel limits the rate of ICMP errors
    with Capture(Place(client.netns), "eth0") as inside:
        assert "refused" in lab.udp(client.netns, address, 80).error.lower()
        assert {(p[ICMP].type, p[ICMP].code) for p in inside.packets() if ICMP in p} == {(3, 3)}


def test_node_port_client_is_masqueraded_and_never_sees_a_pod(lab: DemoLab) -> None:
    node = lab.config.node_address("node1")
    outside = lab.outside("client")
    with Capture(Place(outside), "eth0") as seen:
        answers = lab.many(outside, node, 30080, 20)
        assert _ends(seen.packets(), TCP) == {(OUTSIDE_CLIENT, node), (node, OUTSIDE_CLIENT)}
    assert all(a.ok for a in answers)
    assert OUTSIDE_CLIENT not in {a.peer for a in answers}


def test_a_failure_on_a_cluster_leaves_packets_rules_and_logs(lab: DemoLab, tmp_path: Path) -> None:
    client, address = lab.pods("client")[0], lab.cluster_ip("my-service")
    assert lab.tcp(client.netns, address, 80).ok
    kept = {path.name: path for path in evidence.keep(tmp_path, "test")}
    assert {f"{node}{end}" for node in lab.config.node_names() for end in (".txt", ".pcapng")} <= set(kept)
    assert "table ip podwire" in kept[f"{client.node}.txt"].read_text()
    with PcapNgReader(str(kept[f"{client.node}.pcapng"])) as reader:
        assert (client.address, address) in _ends(list(reader), TCP, 80)
    told = kept[f"Logs-{lab.config.name}.txt"].read_text()
    assert all(f"nodes/{client.node}/log/{role}.log" in told for role in ("wiring", "proxy", "dns"))
    assert "info proxy synced" in told


def test_large_transfer_through_a_service(lab: DemoLab) -> None:
    """A megabyte there and back through the VIP, with the checksum offloads that veth has."""
    lab.run_tool(
        "apply",
        "-f",
        "-",
        stdin="apiVersion: v1\nkind: Service\nmetadata: {name: bulk}\n"
        "spec: {selector: {app: MyApp}, ports: [{port: 7, targetPort: tcp}]}\n",
    )
    address, client = lab.cluster_ip("bulk"), lab.pods("client")[0]
    data = os.urandom(1 << 20)

    def connect() -> socket.socket | None:
        try:
            return socket.create_connection((address, 7), patient(2))
        except OSError:
            return None

    def transfer() -> bytes:
        with wait_for(connect, 10) as sock:  # type: ignore[union-attr]  # wait_for returns the truthy value
            sock.settimeout(patient(10))
            while not sock.recv(1).endswith(b"\n"):
                pass  # the server's first line
            back = bytearray()
            for start in range(0, len(data), 2048):
                sock.sendall(data[start : start + 2048])
                while len(back) < start + 2048:
                    back += sock.recv(65536)
            return bytes(back)

    assert call_in(client.netns, transfer) == data
    lab.run_tool("delete", "service", "bulk")


# ---- life and death


def test_killed_pause_process_brings_the_pod_back(lab: DemoLab) -> None:
    """Without its pause process a pod has no network: the node agent makes a new sandbox, and the Service follows."""
    pod = lab.pods("MyApp")[1]
    pause = pod.sandbox.process()
    assert pause is not None

    def container() -> Object:
        (found,) = lab.get("Pod", pod.name)["status"]["containerStatuses"]
        return dict(found)

    killed = container()["containerID"]
    os.kill(pause.pid, signal.SIGKILL)

    def replaced() -> bool:
        fresh = pod.sandbox.process()
        return fresh is not None and fresh != pause and len(lab.pods("MyApp")) == 4

    wait_for(replaced, 20)

    def answers() -> bool:
        """the pod answers at its address in the API"""
        return any(
            lab.tcp(lab.pods("client")[0].netns, p.address, 9376, 0.5).host == pod.name for p in lab.pods("MyApp")
        )

    wait_for(answers, 10)
    address = lab.cluster_ip("my-service")

    def spread() -> bool:
        answers = lab.many(lab.pods("client")[0].netns, address, 80, 40)
        return all(a.ok for a in answers) and pod.name in {a.host for a in answers}

    wait_for(spread, 10)

    def told() -> bool:
        """the API has the status of the new container, and it is ready"""
        now = container()
        return bool(now["ready"]) and now["containerID"] != killed

    wait_for(told, 20)


def _pods_as_seen(lab: DemoLab) -> set[tuple[str, str, str]]:
    """(name, address, the time of the last change of Ready) of each ready pod. A pod that was unready once differs."""
    return {
        (p.name, p.address, condition(lab.get("Pod", p.name), "Ready")["lastTransitionTime"])
        for p in lab.pods("MyApp") + lab.pods("client")
    }


@pytest.mark.parametrize("role", ["wiring", "node", "dns-feeder", "dns", "proxy"])
def test_a_killed_role_comes_back_and_traffic_does_not_notice(lab: DemoLab, role: str) -> None:
    client, address = lab.pods("client")[0], lab.cluster_ip("my-service")
    lab.wait_pods("MyApp", 4)
    lab.wait_pods("client", 3)
    before = _pods_as_seen(lab)
    with lab.hammer(client.netns, address, 80) as seen:
        lab.restart(client.node, role, signal.SIGKILL)
        until = seen["sent"] + 100  # while the new one takes over
        wait_for(lambda: seen["sent"] > until or seen["failed"], 60)
    assert not seen["failed"]
    assert _pods_as_seen(lab) == before

    def resolves() -> bool:
        """dig prints the address; without an answer it prints an error"""
        return (
            lab.in_pod(client, "shell", "dig", "+short", "+tries=1", "+time=1", "my-service.default.svc.cluster.local")
            == address
        )

    wait_for(resolves, 20)


@pytest.mark.parametrize("who", ["dns", "dns-spare", "agent"])
def test_names_do_not_notice_a_killed_process(lab: DemoLab, who: str) -> None:
    """A node has two DNS servers on the same sockets. Lost is at most what the killed one had read: a query of each
    client. "agent": the parent of all roles of the node.
    """
    client, address = lab.pods("client")[0], lab.cluster_ip("my-service")
    node = client.node

    def status() -> dict[str, Any]:
        return dict(json.loads((lab.config.node_dir(node) / "status" / "dns.json").read_text()))

    def spare() -> int:
        """the spare server of the running server"""
        told = status()
        return int(told["figures"].get("spare", 0)) if told["pid"] == lab.supervised(node, "dns") else 0

    before = wait_for(spare, 20)
    agent = lab.supervised(None, node)
    server = lab.supervised(node, "dns")
    stop, found = threading.Event(), dict[str, list[float]](answered=[], lost=[])

    def ask() -> None:
        query = bytes(DNSRecord.question("my-service.default.svc.cluster.local").pack())
        while not stop.is_set():
            began = time.monotonic()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(patient(2))
                sock.connect(("10.96.0.10", 53))
                try:
                    sock.send(query)
                    good = [str(rr.rdata) for rr in DNSRecord.parse(sock.recv(4096)).rr] == [address]
                except OSError:
                    good = False
            found["answered" if good else "lost"].append(time.monotonic() - began)
            time.sleep(0.005)

    threads = [threading.Thread(target=call_in, args=(client.netns, ask)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        os.kill({"dns": server, "dns-spare": before, "agent": agent}[who], signal.SIGKILL)
        wait_for(lambda: spare() not in (0, before), 30)
        time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(found["answered"]) > 50
    assert len(found["lost"]) <= (0 if who == "agent" else len(threads)), found["lost"]
    if who == "agent":
        wait_for(lambda: not Path(f"/proc/{server}").exists() or "dns" not in title(server), 20)


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_pods_deleted_while_the_node_agent_is_away_are_removed_when_it_is_back(lab: DemoLab) -> None:
    lab.run_tool(
        "apply",
        "-f",
        "-",
        stdin="apiVersion: v1\nkind: Pod\nmetadata: {name: stray}\n"
        "spec: {nodeName: node1, terminationGracePeriodSeconds: 1, containers: [{name: c, image: podwire.io/echo}]}\n",
    )
    sandboxes = lab.config.node_dir("node1") / "pods"

    def uid() -> str:
        found = [
            d.name
            for d in sandboxes.iterdir()
            if (d / "pod.json").exists()
            and json.loads((d / "pod.json").read_text()).get("name") == "stray"
            and (d / "containers").exists()
        ]
        return found[0] if found else ""

    own = wait_for(uid, 15)
    old = lab.supervised("node1", "node")
    os.kill(old, signal.SIGSTOP)
    try:
        lab.run_tool("delete", "pod", "stray", "--grace-period=0", *(["--force"] if "kubectl" in lab.tool_name else []))
    finally:
        os.kill(old, signal.SIGKILL)
    wait_for(lambda: not (sandboxes / own).exists(), 20)


def test_deleting_the_namespace_empties_it(lab: DemoLab) -> None:
    lab.run_tool(
        "apply",
        "-f",
        "-",
        stdin="apiVersion: v1\nkind: Namespace\nmetadata: {name: brief}\n---\napiVersion: v1\n"
        "kind: Pod\nmetadata: {name: p, namespace: brief}\nspec: {terminationGracePeriodSeconds: 1, "
        "containers: [{name: c, image: podwire.io/echo}]}\n---\n"
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: brief}\nspec: {ports: [{port: 80}]}\n",
    )
    lab.run_tool("delete", "namespace", "brief")
    wait_for(lambda: "brief" not in lab.run_tool("get", "namespaces"), 15)
    assert not lab.items("Pod", "brief") + lab.items("Service", "brief")


def test_what_the_runtime_cannot_run_is_said_in_the_status(lab: DemoLab) -> None:
    lab.run_tool(
        "apply",
        "-f",
        "-",
        stdin="apiVersion: v1\nkind: Pod\nmetadata: {name: strange}\nspec: {containers: [{name: c, image: nginx}]}\n",
    )

    def reason() -> str:
        statuses = lab.get("Pod", "strange").get("status", {}).get("containerStatuses") or [{}]
        return str(((statuses[0].get("state") or {}).get("waiting") or {}).get("message", ""))

    assert "podwire.io/echo" in wait_for(reason, 10)
    lab.run_tool("delete", "pod", "strange", "--grace-period=0", *(["--force"] if "kubectl" in lab.tool_name else []))


def test_a_command_that_does_not_exist_is_named_everywhere(lab: DemoLab) -> None:
    """In the pod's log without a traceback, in its exit status, and as an event."""
    lab.run_tool(
        "apply",
        "-f",
        "-",
        stdin="apiVersion: v1\nkind: Pod\nmetadata: {name: typo}\n"
        "spec: {restartPolicy: Never, containers: [{name: c, image: podwire.io/host, command: [/no/such/program]}]}\n",
    )

    def ended() -> int:
        statuses = lab.get("Pod", "typo").get("status", {}).get("containerStatuses") or [{}]
        return int(((statuses[0].get("state") or {}).get("terminated") or {}).get("exitCode", 0))

    assert wait_for(ended, 15) == 127
    done = subprocess.run(
        [sys.executable, "-m", "podwire.main", "logs", "typo"],
        capture_output=True,
        text=True,
        check=True,
        env=lab.environment,
    )
    assert done.stdout.splitlines() == ["podwire: exec: '/no/such/program': no such file"]
    wait_for(
        lambda: [
            e
            for e in lab.items("Event")
            if e["involvedObject"]["name"] == "typo" and "/no/such/program" in e["message"]
        ],
        5,
    )
    lab.run_tool("delete", "pod", "typo")


def test_a_working_directory_that_does_not_exist_is_named(lab: DemoLab) -> None:
    lab.run_tool(
        "apply",
        "-f",
        "-",
        stdin="apiVersion: v1\nkind: Pod\nmetadata: {name: lost}\nspec: {restartPolicy: Never, "
        "containers: [{name: c, image: podwire.io/host, command: [sleep, '1'], workingDir: /no/such/place}]}\n",
    )
    done = wait_for(
        lambda: (
            subprocess.run(
                [sys.executable, "-m", "podwire.main", "logs", "lost"],
                text=True,
                capture_output=True,
                check=False,
                env=lab.environment,
            ).stdout
        ),
        15,
    )
    assert "workingDir '/no/such/place'" in done
    assert "sleep" not in done
    lab.run_tool("delete", "pod", "lost")


def test_a_command_in_a_node_has_its_network_name_and_credentials(lab: DemoLab) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "podwire.main", "node", *words],
            capture_output=True,
            text=True,
            check=False,
            env=lab.environment,
        )

    shown = run("node2", "--", "sh", "-c", "ip -br addr show eth0; echo $NODE_NAME $KUBECONFIG").stdout
    assert lab.config.node_address("node2") in shown
    assert shown.split()[-2:] == ["node2", str(lab.config.node_dir("node2") / "kubeconfig")]
    wrong = run("node9", "--", "true")
    assert wrong.returncode == 1
    assert "node1, node2, node3" in wrong.stderr


def test_the_first_container_is_meant_where_none_is_named(lab: DemoLab) -> None:
    lab.run_tool(
        "apply",
        "-f",
        "-",
        stdin="apiVersion: v1\nkind: Pod\nmetadata: {name: two}\n"
        "spec:\n  terminationGracePeriodSeconds: 1\n"
        "  initContainers: [{name: before, image: podwire.io/host, command: [echo, prepared]}]\n"
        "  containers:\n  - {name: main, image: podwire.io/host, command: [sh, -c, echo main; exec sleep 100]}\n"
        "  - {name: aside, image: podwire.io/echo}\n",
    )
    wait_for(lambda: lab.get("Pod", "two")["status"].get("phase") == "Running", 15)

    def podwire(*words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "podwire.main", *words],
            capture_output=True,
            text=True,
            check=True,
            env=lab.environment,
        ).stdout.strip()

    assert wait_for(lambda: podwire("logs", "two"), 5) == "main"
    assert podwire("logs", "two", "-c", "before") == "prepared"
    wait_for(lambda: podwire("exec", "two", "--", "cat", "/proc/1/comm") == "sleep", 10)  # the shell has yet to exec it
    lab.run_tool("delete", "pod", "two")


def _status(lab: DemoLab, *words: str) -> tuple[int, Object]:
    done = subprocess.run(
        [sys.executable, "-m", "podwire.main", "status", "-o", "json", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
        env=lab.environment,
    )
    found: Object = json.loads(done.stdout)
    return done.returncode, found


def _reported(lab: DemoLab, node: str) -> Object:
    """The conditions that the node agent publishes, for those who do not sit at this machine."""
    return {c["type"]: c for c in lab.get("Node", node)["status"]["conditions"]}


def test_status_says_which_role_is_not_running(lab: DemoLab) -> None:
    node = lab.config.node_names()[-1]
    supervisor = lab.supervised(None, node)
    role = lab.supervised(node, "dns")
    os.kill(supervisor, signal.SIGSTOP)  # so that nothing starts it again
    try:
        os.kill(role, signal.SIGKILL)

        def said() -> bool:
            code, found = _status(lab)
            row = next(n for n in found["nodes"] if n["name"] == node)
            reason = any(p.startswith(f"dns on {node}: NotRunning") for p in found["problems"])
            return code == 1 and reason and all(row["roles"][r]["ready"] for r in ("proxy", "wiring"))

        wait_for(said, 15)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    wait_for(lambda: lab.supervised(node, "dns") not in (0, role), 15)
    assert _status(lab, "--wait=30")[0] == 0


@pytest.mark.parametrize("role", ["proxy", "node"])
def test_a_role_that_hangs_shows_within_five_seconds(lab: DemoLab, role: str) -> None:
    node = lab.config.node_names()[0]
    assert _status(lab, "--wait=30")[0] == 0
    stopped = lab.supervised(node, role)
    os.kill(stopped, signal.SIGSTOP)
    try:
        time.sleep(4)  # a command that begins now ends within five seconds, on a machine that has the time
        found = _status(lab)[1]["problems"]
        assert any(p.startswith(f"{role} on {node}: NoProgress: no progress for ") for p in found), found
        if role == "proxy":
            assert _reported(lab, node)["PodwireProxy"]["reason"] == "NoProgress", "and to those elsewhere"
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert _status(lab, "--wait=30")[0] == 0, "the watchdog had no time to end it"


def test_a_role_that_does_not_hear_the_api_is_behind(lab: DemoLab) -> None:
    """Its event loop runs and its beat is fresh, but its watches are cut: only a comparison with the API tells."""
    node = lab.config.node_names()[0]
    cut = "add table ip t_cut; add chain ip t_cut i { type filter hook input priority 0; }; "
    cut += "add rule ip t_cut i tcp sport 6443 drop"  # a response would still bring the event if only requests were cut
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "t-behind"},
        "spec": {"ports": [{"port": 80}]},
    }
    lab.in_netns(lab.node_netns(node), "nft", cut)
    try:
        lab.run_tool("apply", "-f", "-", stdin=json.dumps(service))

        def told() -> bool:
            code, found = _status(lab)
            line = next((p for p in found["problems"] if p.startswith(f"proxy on {node}: Behind: ")), "")
            return code == 1 and "has seen revision" in line

        wait_for(told, 20)
    finally:
        lab.in_netns(lab.node_netns(node), "nft", "delete table ip t_cut")
        lab.run_tool("delete", "service", "t-behind")
    assert _status(lab, "--wait=60")[0] == 0

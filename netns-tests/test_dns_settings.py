"""No query is lost while settings change, while a server leaves, and with the DNS as pods behind a Service."""

from __future__ import annotations

import contextlib
import hashlib
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

import dns.exception
import dns.message
import dns.query
import dns.rcode
import pytest

from lab.dnsnode import DNS_ADDRESS, NAMESPACES, SERVICES, DnsNode, eventually
from lab.dnsupstream import Upstream
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient

NAME = "web.default.svc.cluster.local."
WEB = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"clusterIP": "10.96.3.7", "clusterIPs": ["10.96.3.7"], "ports": [{"name": "http", "port": 80}]},
}
GATEWAY, UPSTREAM = "192.0.2.1", "192.0.2.53"
LATE = 0.25  # seconds; a server that leaves waits twice as long for queries on its connections


def ask(where: NetNS, name: str, address: str = DNS_ADDRESS, seconds: float = 10) -> dns.message.Message:
    query = dns.message.make_query(name, "A")
    return where.call(lambda: dns.query.udp(query, address, timeout=seconds))


def data(where: NetNS, name: str, address: str = DNS_ADDRESS, seconds: float = 10) -> set[str]:
    """Addresses; empty also if there is no answer."""
    try:
        return {r.to_text() for rrset in ask(where, name, address, seconds).answer for r in rrset}
    except (OSError, dns.exception.Timeout):
        return set()


class Load:
    """`with Load(ns) as load`: one query after the other, of cluster names, names of others, and over TCP; each is sent
    once, and counts as lost without an answer.
    """

    def __init__(self, where: NetNS, address: str = DNS_ADDRESS, upstream: bool = True) -> None:
        self.where, self.address = where, address
        self.sent, self.lost, self.wrong = 0, list[str](), set[str]()
        self.stop = threading.Event()
        self.names = [NAME, "missing.default.svc.cluster.local.", *(["n1.example.com."] if upstream else [])]
        self.threads = [threading.Thread(target=where.call, args=(work,)) for work in (self._udp, self._udp, self._tcp)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _count(self, query: dns.message.Message, answer: bytes) -> None:
        rcode = dns.message.from_wire(answer).rcode()
        wanted = dns.rcode.NXDOMAIN if "missing" in query.question[0].name.to_text() else dns.rcode.NOERROR
        if rcode != wanted:
            self.wrong.add(f"{query.question[0].name}: {dns.rcode.to_text(rcode)}")

    def _udp(self) -> None:
        while not self.stop.is_set():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(patient(10))
                sock.connect((self.address, 53))
                for name in self.names:
                    query = dns.message.make_query(name, "A")
                    sock.send(query.to_wire())
                    self.sent += 1
                    try:
                        self._count(query, sock.recv(4096))
                    except OSError as err:
                        self.lost.append(f"{name} over UDP: {err}")

    def _tcp(self) -> None:
        """A connection that ends before a query was sent on it is no loss. If it had taken a query, the query is lost,
        unless this thread got no time to send it: a server that leaves does not wait for long.
        """
        while not self.stop.is_set():
            query = dns.message.make_query(NAME, "A")
            data, began = query.to_wire(prepend_length=True), time.monotonic()
            try:
                sock = socket.create_connection((self.address, 53), patient(10))
            except OSError:
                continue
            with sock, sock.makefile("rb") as stream:
                self.sent += 1
                answer, why = b"", "the connection was closed"
                with contextlib.suppress(OSError):  # the read reports it
                    sock.sendall(data)
                late = time.monotonic() - began > LATE
                try:
                    answer = stream.read(int.from_bytes(stream.read(2)))
                except OSError as err:
                    why = str(err)
                if answer:
                    self._count(query, answer)
                elif not late:
                    self.lost.append(f"over TCP: {why}")
            time.sleep(0.002)


class World(DnsNode):
    def say(self, inside: str, name: str = "Corefile") -> Path:
        """Write the Corefile, as a mounted ConfigMap is written: the whole file at once."""
        path = self.run_dir / name
        fresh = path.with_suffix(".new")
        fresh.write_text(f".:53 {{\n kubernetes cluster.local\n loadbalance\n cache 30\n{inside}\n}}\n")
        fresh.replace(path)
        return path


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> Iterator[World]:
    """With a Corefile that is looked at every two seconds, and an upstream."""
    node, outside = lab.netns("node"), lab.netns("upstream")
    lab.wire(node, "eth0", outside, "eth0", f"{GATEWAY}/24", f"{UPSTREAM}/24")
    with FakeApi(node) as api, Upstream(outside, UPSTREAM) as upstream:
        api.put(NAMESPACES, {"metadata": {"name": "default"}})
        api.put(SERVICES, WEB)
        with World(node, api, tmp_path, [], ["--corefile", str(tmp_path / "Corefile"), "--lame-duck", "0.5"]) as made:
            made.upstreams = [upstream]
            made.first = (
                "from podwire_dns import server; server.OLD_SOCKET_SECONDS = 1.5"  # the upstream answers at once
            )
            made.say(f" forward . {UPSTREAM}\n reload 2s\n ready 127.0.0.1:8181\n prometheus 127.0.0.1:9153")
            made.start("server")
            made.start("feeder")
            eventually(made.is_ready, "the server has the zone")
            yield made


def test_a_changed_corefile_takes_effect_and_no_query_is_lost(world: World) -> None:
    with Load(world.node) as load:
        for turn in range(4):
            world.say(
                f" forward . {UPSTREAM} {{\n  policy {('random', 'round_robin')[turn % 2]}\n }}\n reload 2s\n"
                f" hosts {world.run_dir}/none {{\n  192.0.2.{turn} turn.example\n  fallthrough\n }}\n"
            )
            if turn % 2:  # another text with the same meaning
                world.processes["server"].send_signal(signal.SIGHUP)
            eventually(
                # mypy takes a default for an argument
                lambda turn=turn: data(world.node, "turn.example.") == {f"192.0.2.{turn}"},  # type: ignore[misc]
                "the new settings are in force",
            )
        eventually(lambda: load.sent > 200, "many were sent")
    assert (load.lost, load.wrong) == ([], set())


def test_a_bad_corefile_is_named_and_the_old_settings_stay(world: World) -> None:
    digest = hashlib.sha512((world.run_dir / "Corefile").read_bytes()).hexdigest()
    world.say(" forward .\n reload 2s")
    eventually(
        lambda: "Corefile line 5: forward needs a domain and at least one upstream" in world.logs(), "the log says why"
    )
    assert data(world.node, "n1.example.com.") == {"198.51.100.1"}
    assert data(world.node, NAME) == {"10.96.3.7"}

    def page() -> str:
        return world.node.run(["curl", "-s", "127.0.0.1:9153/metrics"]).stdout

    eventually(
        lambda: "\ncoredns_reload_failed_total 1" in page(), "the server counts it (the feeder may have logged first)"
    )
    assert f'\ncoredns_reload_version_info{{hash="sha512",value="{digest}"}} 1' in page(), "of the one that is in force"
    (world.run_dir / "Corefile").unlink()
    world.processes["server"].send_signal(signal.SIGHUP)
    eventually(lambda: "Corefile: No such file" in world.logs(), "a file that is gone is an error too")
    world.say(
        f' forward . {UPSTREAM}\n template IN A ok.example {{\n  answer "{{{{ .Name }}}} 60 IN A 192.0.2.9"\n }}\n'
    )
    eventually(lambda: data(world.node, "now.ok.example.") == {"192.0.2.9"}, "and what is good again is taken")


def test_a_hosts_file_is_followed(world: World) -> None:
    hosts = world.run_dir / "hosts"
    hosts.write_text("192.0.2.1 a.example\n")
    world.say(f" forward . {UPSTREAM}\n reload 2s\n hosts {hosts} {{\n  reload 1s\n  fallthrough\n }}\n")
    eventually(lambda: data(world.node, "a.example.") == {"192.0.2.1"}, "the file's name")
    hosts.write_text("192.0.2.22 a.example b.example\n")
    # each of the two processes reads the file by itself, within its reload time
    eventually(
        lambda: all(data(world.node, name) == {"192.0.2.22"} for name in ("a.example.", "b.example.") * 4),
        "the changed file",
    )


def test_the_zones_frame_changes_with_the_corefile(world: World) -> None:
    """The feeder makes a new zone; until it is whole, the old one is used."""
    path = world.run_dir / "Corefile"
    with Load(world.node) as load:
        for ttl in (30, 60):
            path.write_text(
                f".:53 {{\n kubernetes cluster.local {{\n  ttl {ttl}\n }}\n cache 60\n forward . {UPSTREAM}\n}}\n"
            )
            for role in ("feeder", "server"):
                world.processes[role].send_signal(signal.SIGHUP)
            # as above
            eventually(lambda ttl=ttl: ask(world.node, NAME).answer[0].ttl == ttl, "the new TTL")  # type: ignore[misc]
    assert (load.lost, load.wrong) == ([], set())


def test_listening_elsewhere_without_a_restart(world: World) -> None:
    pid = world.processes["server"].pid
    world.say(f" bind 10.96.0.77 {DNS_ADDRESS}\n forward . {UPSTREAM}\n health 127.0.0.1:8099\n reload 2s")
    with Load(world.node) as load:
        world.processes["server"].send_signal(signal.SIGHUP)
        eventually(lambda: data(world.node, NAME, address="10.96.0.77") == {"10.96.3.7"}, "the new address answers")
        assert world.node.run(["curl", "-s", "127.0.0.1:8099/health"]).stdout == "OK"
        eventually(
            lambda: Path(f"/proc/{pid}/net/udp").read_text().count(": 0A00600A:0035 ") == 1, "the old socket is closed"
        )
    assert (load.lost, load.wrong) == ([], set())
    world.say(f" bind {DNS_ADDRESS}\n forward . {UPSTREAM}\n health 127.0.0.1:8099\n reload 2s")
    with Load(world.node) as load:
        world.processes["server"].send_signal(signal.SIGHUP)
        eventually(
            lambda: "10.96.0.77" not in world.node.run(["ip", "addr", "show", "lo"]).stdout, "the address is gone"
        )
        assert DNS_ADDRESS in world.node.run(["ip", "addr", "show", "lo"]).stdout
    assert (load.lost, load.wrong) == ([], set())
    assert world.processes["server"].pid == pid
    assert world.processes["server"].poll() is None


def test_a_rolling_restart_under_load_loses_no_query(world: World) -> None:
    """A sibling is started and becomes ready before the old server gets SIGTERM: that reports not ready, continues to
    answer, and leaves.
    """
    with Load(world.node) as load:
        for _ in range(3):
            old = world.processes.pop("server")
            world.start("server")
            eventually(world.is_ready, "the new one is ready")
            old.send_signal(signal.SIGTERM)
            assert old.wait(patient(30)) == 0
        eventually(lambda: load.sent > 200, "many were sent")
    assert load.wrong == set()
    assert load.lost == []


@pytest.mark.parametrize("who", ["server", "spare"])
def test_a_killed_process_is_not_missed(world: World, who: str) -> None:
    """Two processes read the same sockets. Lost is what the killed one had read; a client has one query at a time."""
    eventually(lambda: world.spare() != 0, "there are two")
    before, node = world.spare(), world.node
    with Load(node) as load:
        eventually(lambda: load.sent > 50, "some were sent")
        if who == "server":
            world.kill("server")
            world.start("server")
        else:
            os.kill(before, signal.SIGKILL)
        eventually(lambda: world.is_ready() and world.spare() not in (0, before), "there are two again")
        sent = load.sent
        eventually(lambda: load.sent > sent + 50, "it goes on")
    assert load.wrong == set()
    assert len(load.lost) <= len(load.threads), load.lost
    assert len([line for line in host_addresses(node) if DNS_ADDRESS in line]) == 1


def host_addresses(node: NetNS) -> list[str]:
    return node.run(["ip", "-o", "address", "show", "dev", "lo"]).stdout.splitlines()


def test_sighup_while_a_server_waits_for_its_sibling(world: World) -> None:
    """The new server has no zone yet; it must survive, read its settings again, and answer once it has a zone."""
    world.kill("feeder")
    old = world.processes.pop("server")
    try:
        (world.run_dir / "server.log").unlink()
        world.start("server")
        eventually(lambda: "waits for the feeder" in world.logs(), "it waits")
        world.processes["server"].send_signal(signal.SIGHUP)
        world.start("feeder")
        eventually(world.is_ready, "it has the zone")
        eventually(lambda: "settings taken over" in world.logs(), "and received the signal")
    finally:
        old.kill()
        old.wait()


def test_sigterm_while_a_server_waits_for_its_sibling(world: World) -> None:
    """It has nothing to finish: it ends at once, even with a lame-duck time, and the sibling continues."""
    world.kill("feeder")
    old = world.processes.pop("server")
    world.flags += ["--lame-duck", "300"]
    try:
        (world.run_dir / "server.log").unlink()
        world.start("server")
        eventually(lambda: "waits for the feeder" in world.logs(), "it waits")
        assert world.kill("server", signal.SIGTERM) == 0
        assert "serving" not in world.logs()
        assert data(world.node, NAME) == {"10.96.3.7"}
    finally:
        old.kill()
        old.wait()


# As pods behind a Service


def test_served_by_a_pod_on_its_own_address(lab: Lab, tmp_path: Path) -> None:
    """`serve`: feeder and server in one command, no address on lo, no rules; queries go to the pod's address."""
    node, pod, client = lab.netns("node"), lab.netns("dns pod"), lab.netns("client pod")
    lab.wire(node, "pod0", pod, "eth0", "10.244.0.1/24", "10.244.0.2/24")
    lab.wire(node, "pod1", client, "eth0", "10.244.1.1/24", "10.244.1.2/24")
    for each, gateway in ((pod, "10.244.0.1"), (client, "10.244.1.1")):
        each.run(["ip", "route", "add", "default", "via", gateway])
    pod.run(["ip", "addr", "add", "10.244.0.3/24", "dev", "eth0"])
    node.sysctl("net/ipv4/ip_forward", "1")
    with FakeApi(node, address="10.244.0.1") as api:
        api.put(NAMESPACES, {"metadata": {"name": "default"}})
        api.put(SERVICES, WEB)
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        with (tmp_path / "log").open("w") as log:
            process = pod.popen(
                [
                    sys.executable,
                    "-m",
                    "podwire_dns.main",
                    "serve",
                    "--kubeconfig",
                    str(kubeconfig),
                    "--run-dir",
                    str(tmp_path),
                    "--dns-address",
                    DNS_ADDRESS,
                    "--upstream",
                    "none",
                    "--lame-duck",
                    "0.5",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            eventually(lambda: data(client, NAME, "10.244.0.2", 0.5) == {"10.96.3.7"}, "the pod answers")
            assert data(client, "ns.dns.cluster.local.", address="10.244.0.2") == {DNS_ADDRESS}, (
                "where clients reach it"
            )
            assert ask(client, NAME, "10.244.0.3").answer, "the answer comes from the address that was asked"
            query = dns.message.make_query(NAME, "A")
            assert client.call(lambda: dns.query.tcp(query, "10.244.0.2", timeout=10)).answer
            assert "10.96.0.10" not in pod.run(["ip", "addr"]).stdout
            assert pod.run(["nft", "list", "tables"]).stdout == ""
            for port, path in ((8080, "health"), (8181, "ready"), (9153, "metrics")):
                assert client.run(["curl", "-sf", f"http://10.244.0.2:{port}/{path}"]).returncode == 0
            _a_killed_half_comes_back(client, process)
            with Load(client, "10.244.0.2", upstream=False) as load:
                process.send_signal(signal.SIGHUP)
                time.sleep(0.5)
            assert (load.lost, load.wrong) == ([], set())
            process.send_signal(signal.SIGTERM)
            assert process.wait(patient(30)) == 0
        except BaseException:
            print((tmp_path / "log").read_text())
            raise
        finally:
            if process.poll() is None:
                process.kill()


def _a_killed_half_comes_back(client: NetNS, process: subprocess.Popen[str]) -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for pid in map(int, children.read_text().split()):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd(pid), signal.SIGKILL)
        eventually(
            lambda pid=pid: (
                str(pid) not in children.read_text().split()  # type: ignore[misc]  # as above
                and len(children.read_text().split()) == 2
            ),
            "it is started again",
        )
        eventually(lambda: data(client, NAME, "10.244.0.2", 0.5) == {"10.96.3.7"}, "and the names are answered")


def pidfd(pid: int) -> int:
    import os

    return os.pidfd_open(pid)


def test_serve_killed_takes_no_names_along(lab: Lab, tmp_path: Path) -> None:
    """The servers go on until those of the next supervisor take over; then all of the first one are gone."""
    pod = lab.netns("pod")
    with FakeApi(pod) as api, contextlib.ExitStack() as stack:
        api.put(SERVICES, WEB)
        words = ["--kubeconfig", str(api.kubeconfig(tmp_path / "kubeconfig")), "--run-dir", str(tmp_path)]
        words += ["--upstream", "none", "--lame-duck", "0.2"]

        def serve() -> subprocess.Popen[str]:
            made = pod.popen([sys.executable, "-m", "podwire_dns.main", "serve", *words], stderr=subprocess.DEVNULL)
            stack.callback(made.wait)
            stack.callback(made.kill)
            return made

        def descendants(pid: int) -> list[int]:
            found = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
            return found + [each for child in found for each in descendants(child)]

        def spare_of(pid: int) -> bool:
            told = json.loads((tmp_path / "status" / "dns.json").read_text())
            return told["pid"] in descendants(pid) and told["figures"].get("spare") in descendants(pid)

        def gone(pids: list[int]) -> bool:
            return not any(Path(f"/proc/{pid}").exists() for pid in pids)

        process = serve()
        eventually(lambda: data(pod, NAME, "127.0.0.1", 0.5) == {"10.96.3.7"}, "it answers")
        eventually(lambda: spare_of(process.pid), "there are two servers")
        first = descendants(process.pid)
        process.kill()
        process.wait()
        for _ in range(20):
            assert data(pod, NAME, "127.0.0.1") == {"10.96.3.7"}
            time.sleep(0.05)
        process = serve()
        eventually(lambda: spare_of(process.pid), "there are two servers again")
        eventually(lambda: gone(first), "the first ones are gone")
        assert data(pod, NAME, "127.0.0.1") == {"10.96.3.7"}
        second = descendants(process.pid)
        process.terminate()
        assert process.wait(patient(30)) == 0
        eventually(lambda: gone(second), "nothing stays")


def test_serve_refuses_bad_settings_before_it_starts_anything(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "Corefile").write_text(". {\n forward . nowhere\n}\n")
    done = lab.netns("pod").run(
        [
            sys.executable,
            "-m",
            "podwire_dns.main",
            "serve",
            "--corefile",
            str(tmp_path / "Corefile"),
            "--run-dir",
            str(tmp_path),
        ],
        check=False,
    )
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1] == "podwire dns serve: Corefile line 2: upstream: 'nowhere' is not an IP address"
    )

"""The lab keeps its promises: the README's example runs, probes distinguish refusal from silence, and a killed run
leaves nothing.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, UDP
from scapy.utils import PcapNgReader

from lab import evidence
from lab.capture import Capture
from lab.cninode import CniNode, put_node
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import wait_until
from lab.probe import ping, sctp, serve, tcp, udp
from podwire_base.role.features import SCTP_SOCKETS, judge
from podwire_base.role.kernelconfig import running

HERE = Path(__file__).parent


def test_the_readmes_example() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (HERE / "README.md").read_text(), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})


@pytest.fixture
def two(lab: Lab) -> tuple[NetNS, NetNS]:
    a, b = lab.netns("a"), lab.netns("b")
    for ns in (a, b):
        ns.sysctl("net/ipv6/conf/all/accept_dad", "0")
        ns.sysctl("net/ipv6/conf/default/accept_dad", "0")
    lab.wire(a, "eth0", b, "eth0", "192.0.2.1/24", "192.0.2.2/24")
    for ns, address in ((a, "fd00::1"), (b, "fd00::2")):
        ns.run(["ip", "address", "add", f"{address}/64", "dev", "eth0", "nodad"])
    return a, b


@pytest.mark.parametrize("dst", ["192.0.2.2", "fd00::2"])
def test_probes_tell_what_happened(two: tuple[NetNS, NetNS], dst: str) -> None:
    a, b = two
    src = "fd00::1" if ":" in dst else "192.0.2.1"
    with serve(b, dst, 80):
        for probe in (tcp, udp):
            answer = probe(a, dst, 80, src=src, sport=45000)
            assert (answer.result, answer.server, answer.peer) == ("ok", (dst, 80), (src, 45000))
            assert probe(a, dst, 81).result == "refused"
        # a kernel without SCTP gives that error, and must be excused from it; with SCTP the packets must arrive
        excuse = judge(SCTP_SOCKETS, running())
        assert sctp(a, dst, 80).result in (("ok", "EPROTONOSUPPORT") if excuse else ("ok",)), excuse
        assert ping(a, dst).result == ping(a, dst, size=4000).result == "ok"
        told = ping(a, dst, size=4000, df=True)
        assert (told.result, told.mtu) == ("too big", 1500)
        b.run(["nft", "add table inet t; add chain inet t i { type filter hook input priority 0; policy drop; }"])
        assert {probe(a, dst, 80, timeout=0.2).result for probe in (tcp, udp)} == {"timeout"}
        assert ping(a, dst, timeout=0.2).result == "timeout"


def test_wires_of_both_families_carry_packets_at_once(lab: Lab) -> None:
    """IPv6 addresses are tentative for two seconds unless duplicate address detection is off."""
    a, router, b = lab.netns("a"), lab.router("router"), lab.netns("b")
    lab.wire(a, "eth0", router, "left", "192.0.2.2/24 2001:db8:1::2/64", "192.0.2.1/24 2001:db8:1::1/64")
    lab.wire(b, "eth0", router, "right", "198.51.100.2/24 2001:db8:2::2/64", "198.51.100.1/24 2001:db8:2::1/64")
    for ns, four, six in ((a, "192.0.2.1", "2001:db8:1::1"), (b, "198.51.100.1", "2001:db8:2::1")):
        lab.route(ns, "default", four)
        lab.route(ns, "default", six)
    for client, server in (("192.0.2.2", "198.51.100.2"), ("2001:db8:1::2", "2001:db8:2::2")):
        with serve(b, server, 80):
            answer = tcp(a, server, 80, sport=40000)
            assert (answer.result, answer.peer) == ("ok", (client, 40000))
        assert ping(a, server, size=3000).result == "ok"


def test_a_capture_has_room_for_a_burst(two: tuple[NetNS, NetNS]) -> None:
    """Whatever net.core.rmem_max is: a stock kernel's limit would be 200 frames."""
    a, _ = two
    assert ping(a, "192.0.2.2").result == "ok", "so that no frame waits for ARP"
    with Capture(a, "eth0") as seen, a.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        for _ in range(2000):
            sock.sendto(bytes(1000), ("192.0.2.2", 9))
        assert seen.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 8 << 20
        assert len([p for p in seen.packets() if UDP in p and p[UDP].dport == 9]) == 2000


def test_a_lab_that_a_failure_closes_leaves_its_evidence(tmp_path: Path) -> None:
    """As in the README: the namespaces are gone before pytest makes its report."""
    with pytest.raises(ZeroDivisionError), Lab() as lab:
        a, b = lab.netns("pod"), lab.netns("pod")
        lab.wire(a, "eth0", b, "eth0", "192.0.2.1/24", "192.0.2.2/24")
        b.run(["nft", "add table inet of-b"])
        b.run(["nft", "add map inet of-b m { type ipv4_addr : verdict; elements = { 192.0.2.7 : drop }; }"])
        assert ping(a, "192.0.2.2").result == "ok"
        _ = 1 / 0
    kept = evidence.keep(tmp_path, "file.py::test[a/b]")
    assert {path.name for path in kept} >= {"pod.txt", "pod.pcapng", "pod.2.txt", "pod.2.pcapng"}
    assert {path.parent.name for path in kept} == {"file.py-test-a-b"}
    first, second = ((tmp_path / "file.py-test-a-b" / name).read_text() for name in ("pod.txt", "pod.2.txt"))
    assert "192.0.2.7 : drop" in second and "of-b" not in first and "inet 192.0.2.1/24" in first
    with PcapNgReader(str(tmp_path / "file.py-test-a-b" / "pod.2.pcapng")) as reader:
        assert [p[ICMP].type for p in reader if ICMP in p and p.sniffed_on == "eth0"] == [8, 0]
    assert tmp_path / "next" / "pod.txt" not in evidence.keep(tmp_path, "next"), "each failure has its own"


def test_namespaces_of_one_name_do_not_hide_each_other(lab: Lab, tmp_path: Path) -> None:
    """A world that stays open, and a Lab that the failure closes."""
    lab.netns("node").run(["ip", "address", "add", "192.0.2.10/32", "dev", "lo"])
    with pytest.raises(ZeroDivisionError), Lab() as own:
        own.netns("node").run(["ip", "address", "add", "192.0.2.20/32", "dev", "lo"])
        _ = 1 / 0
    told = "".join(
        path.read_text()
        for path in evidence.keep(tmp_path, "test")
        if path.name.startswith("node") and path.suffix == ".txt"
    )
    assert "192.0.2.10/32" in told and "192.0.2.20/32" in told


def test_agents_tell_of_their_leases_beside_the_packets(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lab() as lab:
        ns, pod = lab.netns("node"), lab.netns("pod")
        with FakeApi(ns) as api:
            put_node(api, "n1", "10.244.1.0/24", "192.0.2.1")
            node = CniNode(ns, tmp_path / "run", "n1", api)
            node.start()
            try:
                lease = node.cni("ADD", "the-pod", pod).address
                _ = 1 / 0
            finally:
                node.close()
    kept = {path.name: path for path in evidence.keep(tmp_path, "test")}
    assert {"node.txt", "node.pcapng", "pod.txt", "pod.pcapng", "CniNode-n1.txt"} <= set(kept)
    told = kept["CniNode-n1.txt"].read_text()
    assert f"leases/{lease}\n" in told and '"the-pod"' in told and "info wiring listening" in told
    assert f"inet {lease}/32" in kept["pod.txt"].read_text()


def test_a_killed_run_leaves_neither_namespaces_nor_processes() -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\nfrom lab.netns import Lab\n"
        "lab = Lab(); ns = lab.netns('x')\n"
        "print(ns.popen(['sleep', '1000']).pid, flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(HERE)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    inside = int(process.stdout.readline())
    ours, theirs = _link(Path("/proc/self/ns/net")), ""
    while theirs in ("", ours):  # until it has entered
        theirs = _link(Path(f"/proc/{inside}/ns/net"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(
        lambda: not [p for p in Path("/proc").glob("[0-9]*/ns/net") if _link(p) == theirs],
        "no process is in the namespace",
    )


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""

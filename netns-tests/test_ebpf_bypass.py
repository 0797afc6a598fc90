"""Packets from pod to pod past the host's stack: what passes by, what must not, and each way between the two."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from lab import hookworld, probe
from lab.dataplane import Hooks
from lab.netns import Lab
from lab.patience import patient
from lab.serviceworld import V6, World, ask
from podwire_base.kernel.conntrack.socket import Conntrack
from podwire_base.role.features import BPF_TCX, TBF
from podwire_base.role.hostports import HostPort
from podwire_base.role.podspaces import PodSpace
from podwire_base.testing import features
from podwire_proxy.ebpf import native
from podwire_proxy.ebpf.bypass import Bypass
from podwire_proxy.ebpf.kernel import Kernel
from podwire_proxy.proxier import Proxier
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

pytestmark = pytest.mark.skipif(native.code("bypass") is None, reason="no clang at the build")
each_family = pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])
each_protocol = pytest.mark.parametrize("protocol", ["TCP", "UDP"])
SO_BINDTODEVICE = 25


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        try:
            yield made
        finally:
            made.close()


def spaces(world: World) -> list[PodSpace]:
    """POD_C is not among them."""
    found = []
    for ip in (s.POD_A, s.POD_B):
        fd = world.pods[ip].fd
        at = os.fstat(fd)
        found.append(PodSpace(at.st_dev, at.st_ino, f"/proc/self/fd/{fd}", (ip, V6[ip])))
    return found


def scenario(v6: bool, *ips: str) -> s.Scenario:
    ports = [port(s.PORT, "TCP", "t"), port(s.PORT, "UDP", "u")]
    ends = [endpoint(ip, s.NODE) for ip in ips]
    slices = endpoint_slice("my-service", ends, [("t", "TCP", s.TARGET), ("u", "UDP", s.TARGET)])
    one = s.Scenario("bypass", (service("my-service", s.VIP, ports), slices), {})
    return one.v6() if v6 else one


@contextlib.contextmanager
def bypassing(world: World, one: s.Scenario) -> Iterator[Bypass]:
    """Serve the scenario with hooks, and with POD_A and POD_B fast, until the end."""
    with contextlib.ExitStack() as stack:
        stack.callback(Hooks().clean, world)
        backend = replace(hookworld.backend(world), bypass=True)
        proxier = Proxier(backend, one.node, world.node.fd)
        stack.callback(proxier.close)
        kernel = proxier.kernel
        assert isinstance(kernel, Kernel)
        kernel.admit(hookworld.clients(world))
        tracker = one.tracker()
        tracker.flush()
        proxier.sync(tracker.dataplane, None)
        proxier.sweep()
        with features.needed(BPF_TCX):
            assert kernel.bypass is not None, kernel.told
        world.forget()
        kernel.bypass.look(spaces(world), ())
        assert kernel.bypass.fast == 2, kernel.bypass.slow
        yield kernel.bypass


def at(v6: bool, ip: str) -> str:
    return (V6.get(ip) or s._v6(ip)) if v6 else ip


def flows(world: World, v6: bool) -> set[tuple[str, str]]:
    with Conntrack(world.node.fd) as conntrack:
        return {(f.original.source, f.original.destination) for f in conntrack.flows("ip6" if v6 else "ip")}


@each_family
@each_protocol
@pytest.mark.parametrize("through", ["the pod's address", "a Service"])
def test_a_connection_passes_by_and_conntrack_sees_nothing(world: World, v6: bool, protocol: str, through: str) -> None:
    with bypassing(world, scenario(v6, s.POD_B)) as bypass:
        where = (at(v6, s.VIP), s.PORT) if through == "a Service" else (at(v6, s.POD_B), s.TARGET)
        answer = ask(world.client(s.POD_A), *where, protocol)
        assert (answer.result, answer.server) == ("ok", (at(v6, s.POD_B), s.TARGET))
        assert answer.peer == at(v6, s.POD_A)
        packets, size = bypass.passed()
        assert packets == 2 if protocol == "UDP" else packets >= 6
        assert size > packets * (54 if protocol == "TCP" else 42)
        assert (at(v6, s.POD_A), at(v6, s.POD_B)) not in flows(world, v6)


@each_family
def test_bytes_are_counted_exactly(world: World, v6: bool) -> None:
    with bypassing(world, scenario(v6, s.POD_B)) as bypass:
        to = at(v6, s.POD_B)

        def work() -> None:
            with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(patient(3))
                for size in (1, 100, 1000):
                    sock.sendto(bytes(size), (to, s.TARGET))
                    answers.append(len(sock.recv(200)))

        answers: list[int] = []
        world.client(s.POD_A).call(work)
        heads = 14 + (40 if v6 else 20) + 8
        assert bypass.passed() == (6, 6 * heads + 1101 + sum(answers))


@each_family
def test_echoes_and_fragments_pass_by(world: World, v6: bool) -> None:
    with bypassing(world, scenario(v6, s.POD_B)) as bypass:
        assert probe.ping(world.client(s.POD_A), at(v6, s.POD_B)).result == "ok"
        before = bypass.passed()[0]
        assert before >= 2
        assert probe.ping(world.client(s.POD_A), at(v6, s.POD_B), size=4000).result == "ok"
        assert v6 or bypass.passed()[0] >= before + 6, "IPv6 fragments take the usual way"


@each_family
def test_a_pod_that_is_not_known_goes_the_usual_way(world: World, v6: bool) -> None:
    with bypassing(world, scenario(v6, s.POD_C)) as bypass:
        for where in ((at(v6, s.POD_C), s.TARGET), (at(v6, s.VIP), s.PORT)):
            assert ask(world.client(s.POD_A), *where).result == "ok"
        assert ask(world.client(s.POD_C), at(v6, s.POD_B), s.TARGET).result == "ok"
        assert bypass.passed()[0] == 0


@each_family
def test_a_forged_source_does_not_pass_by(world: World, v6: bool) -> None:
    """POD_C has the address of POD_A, and sends from it to POD_B."""
    pod, forged = world.client(s.POD_C), at(v6, s.POD_A)
    with contextlib.ExitStack() as stack:
        size = 128 if v6 else 32
        pod.run(["ip", "addr", "add", f"{forged}/{size}", "dev", "lo", *(["nodad"] if v6 else [])])
        stack.callback(pod.run, ["ip", "addr", "del", f"{forged}/{size}", "dev", "lo"])
        bypass = stack.enter_context(bypassing(world, scenario(v6, s.POD_B)))

        def work() -> None:
            with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((forged, 0))
                for _ in range(10):
                    sock.sendto(b"?", (at(v6, s.POD_B), 9))

        pod.call(work)
        assert ask(world.client(s.POD_A), at(v6, s.POD_B), s.TARGET, "UDP").result == "ok"
        answers = bypass.passed()[0]
        assert answers <= 2 + 10, "at most the answer of POD_B to the real POD_A"
        sent = [entry for ip, entry in bypass.entries().items() if ip == forged]
        assert sent and sent[0].ifindex != 0


def dial_on_the_wire(world: World, v6: bool) -> tuple[str, tuple[str, int]]:
    """A socket that is bound to its device is left to nftables by the hooks."""

    def work() -> tuple[str, tuple[str, int]]:
        with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.settimeout(patient(3))
            sock.setsockopt(socket.SOL_SOCKET, SO_BINDTODEVICE, b"eth0")
            sock.connect((at(v6, s.VIP), s.PORT))
            return sock.recv(200).decode().split()[0], sock.getpeername()[:2]

    return world.client(s.POD_A).call(work)


@each_family
def test_a_pod_that_dials_a_service_on_the_wire_gets_its_answers_through_the_rules(world: World, v6: bool) -> None:
    with bypassing(world, scenario(v6, s.POD_B)) as bypass:
        assert dial_on_the_wire(world, v6) == (at(v6, s.POD_B), (at(v6, s.VIP), s.PORT))
        assert bypass.entries()[at(v6, s.POD_A)].wire > 0
        before = bypass.passed()
        assert ask(world.client(s.POD_A), at(v6, s.POD_B), s.TARGET).result == "ok", "slow, and it works"
        assert bypass.passed() == before


@each_family
def test_a_pod_with_a_translated_flow_becomes_fast_when_the_flow_has_ended(world: World, v6: bool) -> None:
    with bypassing(world, scenario(v6, s.POD_B)) as bypass:
        dial_on_the_wire(world, v6)
        ages(bypass)
        bypass.look(spaces(world), ())
        assert not bypass.entries()[at(v6, s.POD_A)].fast, "conntrack still has the flow"
        world.forget()
        ages(bypass)
        bypass.look(spaces(world), ())
        entry = bypass.entries()[at(v6, s.POD_A)]
        assert entry.fast and entry.wire == 0
        assert ask(world.client(s.POD_A), at(v6, s.POD_B), s.TARGET).result == "ok"
        assert bypass.passed()[0] > 0


def ages(bypass: Bypass) -> None:
    """Let all marks be old, and conntrack be asked again, without waiting."""
    bypass.clock = lambda before=bypass.clock: before() + 60_000_000_000  # type: ignore[misc]  # binds the clock of now


@each_family
def test_a_host_port_is_no_way_into_the_bypass(world: World, v6: bool) -> None:
    """The answers of a pod behind a hostPort have its own address: the rules must see them."""
    number = 8088
    family = "ip6" if v6 else "ip"
    to = f"[{at(v6, s.POD_B)}]:{s.TARGET}" if v6 else f"{s.POD_B}:{s.TARGET}"
    rules = f"""
        table {family} hostport {{
            chain pre {{
                type nat hook prerouting priority -95;
                tcp dport {number} dnat to {to}
            }}
        }}"""
    with bypassing(world, scenario(v6, s.POD_C)) as bypass, contextlib.ExitStack() as stack:
        world.node.run(["nft", "-f", "-"], input=rules)
        stack.callback(world.node.run, ["nft", "delete", "table", family, "hostport"])
        bypass.look(spaces(world), [HostPort(number, "TCP")])
        assert ask(world.client(s.POD_A), at(v6, s.NODE_IP), number).result == "ok"
        assert bypass.passed()[0] == 0 and bypass.entries()[at(v6, s.POD_A)].wire > 0


@each_family
def test_an_open_connection_goes_on_whichever_way_its_packets_take(world: World, v6: bool) -> None:
    ns, to = world.client(s.POD_B), at(v6, s.POD_B)
    number = s.TARGET + 9
    kind = socket.AF_INET6 if v6 else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(ns.call(lambda: socket.create_server((to, number), family=kind)))
        listener.settimeout(patient(3))
        bypass = stack.enter_context(bypassing(world, scenario(v6, s.POD_B)))
        dial = world.client(s.POD_A).call(lambda: socket.create_connection((to, number), patient(3)))
        sock, conn = stack.enter_context(dial), stack.enter_context(listener.accept()[0])
        conn.settimeout(patient(3))

        def talk() -> int:
            before = bypass.passed()[0]
            for _ in range(50):
                sock.sendall(b"question")
                assert conn.recv(8, socket.MSG_WAITALL) == b"question"
                conn.sendall(b"answer")
                assert sock.recv(6, socket.MSG_WAITALL) == b"answer"
            return bypass.passed()[0] - before

        assert talk() >= 100
        for _ in range(2):
            bypass.look([], ())  # no pod is known: all packets take the usual way
            assert talk() == 0
            bypass.look(spaces(world), ())
            assert talk() >= 100


@each_family
def test_a_policy_makes_its_pods_slow_and_only_judged_pods_are_fast(world: World, v6: bool) -> None:
    family, ip = ("ip6", V6[s.POD_B]) if v6 else ("ip", s.POD_B)
    with bypassing(world, scenario(v6, s.POD_B)) as bypass, contextlib.ExitStack() as stack:
        stack.callback(world.node.run, ["nft", "delete", "table", family, "podwire-policy"])
        kind = "ipv6_addr" if v6 else "ipv4_addr"
        world.node.run(
            ["nft", "-f", "-"],
            input=f"""
            table {family} podwire-policy {{
                set judged {{ type {kind}; elements = {{ {at(v6, s.POD_A)}, {ip} }}; }}
                map pods-in {{ type {kind} : verdict; }}
                map pods-out {{ type {kind} : verdict; }}
            }}""",
        )
        bypass.judge()
        assert bypass.fast == 2
        world.node.run(["nft", "add", "element", family, "podwire-policy", "pods-in", f"{{ {ip} : accept }}"])
        bypass.judge()
        assert (bypass.fast, bypass.slow) == (1, {"policy": 1})
        before = bypass.passed()
        assert ask(world.client(s.POD_A), ip, s.TARGET).result == "ok"
        assert bypass.passed() == before
        world.node.run(["nft", "delete", "element", family, "podwire-policy", "pods-in", f"{{ {ip} }}"])
        world.node.run(["nft", "delete", "element", family, "podwire-policy", "judged", f"{{ {ip} }}"])
        bypass.judge()
        assert (bypass.fast, bypass.slow) == (1, {"policy": 1}), "not judged yet"


def test_a_pod_with_a_rate_limit_is_slow(world: World) -> None:
    with bypassing(world, scenario(False, s.POD_B)) as bypass, contextlib.ExitStack() as stack:
        limit = [
            "tc",
            "qdisc",
            "add",
            "dev",
            "veth1",
            "root",
            "tbf",
            "rate",
            "2mbit",
            "burst",
            "32kb",
            "latency",
            "50ms",
        ]
        with features.needed(TBF):
            world.node.run(limit)
        stack.callback(world.node.run, ["tc", "qdisc", "del", "dev", "veth1", "root"])
        bypass.look(spaces(world), ())
        assert bypass.slow == {"bandwidth": 1}
        assert ask(world.client(s.POD_A), s.POD_B, s.TARGET).result == "ok"
        assert bypass.passed()[0] == 0


def test_nothing_stays_when_the_agent_ends(world: World) -> None:
    with bypassing(world, scenario(False, s.POD_B)) as bypass:
        assert ask(world.client(s.POD_A), s.POD_B, s.TARGET).result == "ok"
        assert bypass.passed()[0] > 0
    try:
        Hooks().program(world, scenario(False, s.POD_B))
        assert ask(world.client(s.POD_A), s.POD_B, s.TARGET).result == "ok"
        assert (s.POD_A, s.POD_B) in flows(world, v6=False), "through the rules again"
    finally:
        Hooks().clean(world)

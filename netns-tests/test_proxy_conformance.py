"""The conformance table with real packets, IPv4 and IPv6, through the rules in a kernel."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether

from lab import sctp
from lab.dataplane import Dataplane, Ours
from lab.netns import Lab, NetNS
from lab.patience import patient
from lab.proxyrole import until
from lab.serviceworld import ANSWER, BALANCERS, SILENCE, Answer, World, ask
from podwire.main import cli
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_base.kernel.reasons import Reason, reason_of
from podwire_base.role.features import CONNTRACK_SCTP
from podwire_base.testing import features
from podwire_proxy.decide import Packet
from podwire_proxy.host import route_localnet
from podwire_proxy.model import LOCALHOST, Destination
from podwire_proxy.nftables.layout import Layout
from podwire_proxy.nftables.plan import Planner
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service
from podwire_proxy.verdict import PASS, Kind, Verdict, forward

STICKY = [row for one in s.AFFINITY for row in (one, one.v6())]
ENOUGH = 150  # after this number of tries, an unseen one of four endpoints has a probability of 1e-18
TABLE = [row for scenario in s.SCENARIOS for row in (scenario, scenario.v6())]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab() as lab:
        made = World(lab)
        yield made
        made.close()


def program(world: World, scenario: s.Scenario) -> None:
    """For tests of the nftables backend alone."""
    Ours("nftables").program(world, scenario)


def observed(world: World, packet: Packet, expected: Verdict) -> Verdict:
    """Send as often as it takes to see every delivery that is expected, and report what happened. Nobody sees a
    reason."""
    client = world.client(packet.src)
    patience = SILENCE if expected.kind is Kind.DROP else ANSWER
    if packet.protocol == "ICMP":
        return ping(client, packet.dst, patience)
    tries = {0: 1, 1: 3}.get(len(expected.to), 12)
    wanted = {tuple(backend) for backend, _ in expected.to}
    answers: list[Answer] = []
    while len(answers) < tries or (len(answers) < ENOUGH and {a.server for a in answers} < wanted):
        answers.append(ask(client, packet.dst, packet.port, packet.protocol, src=packet.src, timeout=patience))
        if answers[-1].result == "timeout":
            break
    kinds = {kind(a) for a in answers}
    assert len(kinds) == 1, answers
    if kinds != {Kind.FORWARD}:
        return Verdict(kinds.pop())
    if {a.server for a in answers} == {(packet.dst, packet.port)} and {a.peer for a in answers} == {packet.src}:
        return PASS
    return forward((Destination(*a.server), a.peer != packet.src) for a in answers)


def kind(answer: Answer) -> Kind:
    return {"ok": Kind.FORWARD, "refused": Kind.REJECT, "timeout": Kind.DROP}[answer.result]


def ping(client: NetNS, dst: str, patience: float) -> Verdict:
    """An echo request made by scapy; the ICMP answer shows the verdict."""
    v6 = ":" in dst

    def work() -> Verdict:
        domain = (socket.AF_INET6, socket.getprotobyname("ipv6-icmp")) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
        with socket.socket(domain[0], socket.SOCK_RAW, domain[1]) as sock:
            sock.settimeout(patient(patience))
            sock.sendto(bytes(IPv6(dst=dst) / ICMPv6EchoRequest(id=7))[40:] if v6 else bytes(ICMP(id=7)), (dst, 0))
            try:
                while True:
                    data = sock.recv(2000)
                    if v6 and data[0] == 1:
                        return Verdict(Kind.REJECT if ICMPv6DestUnreach(data).code == 4 else Kind.PASS)
                    if not v6 and IP(data)[ICMP].type == 3:
                        return Verdict(Kind.REJECT if IP(data)[ICMP].code == 3 else Kind.PASS)
            except TimeoutError:
                return Verdict(Kind.DROP)

    return client.call(work)


def on_the_wire(packet: Packet, expected: Verdict) -> bool:
    """PASS can be distinguished from a refusal only if a server listens at the very address; no host sends to another's
    lo.
    """
    return (expected != PASS or packet.port == s.TARGET) and (packet.node or packet.dst != LOCALHOST)


def need_features(scenario: s.Scenario) -> None:
    """A row is skipped only if the kernel lacks a feature that its packets need, and is excused from it."""
    if any(packet.protocol == "SCTP" for packet in scenario.expect):
        features.need(CONNTRACK_SCTP, sctp.tracked())


@pytest.mark.parametrize("scenario", TABLE, ids=lambda scenario: scenario.name)
def test_real_packets(world: World, dataplane: Dataplane, scenario: s.Scenario) -> None:
    need_features(scenario)
    dataplane.program(world, scenario)
    world.forget()
    rows = {
        p: dataplane.expected(scenario, p, verdict.observable)
        for p, verdict in scenario.expect.items()
        if on_the_wire(p, verdict)
    }
    with own_addresses(world, {p.src for p in rows} & set(BALANCERS)):
        assert all_observed(world, rows) == rows


def all_observed(world: World, rows: Mapping[Packet, Verdict]) -> dict[Packet, Verdict]:
    """Most of the time is spent waiting for answers that must not come, so these waits run in parallel."""
    silent = {p: verdict for p, verdict in rows.items() if verdict.kind is Kind.DROP}
    with ThreadPoolExecutor(8) as pool:
        waiting = {p: pool.submit(observed, world, p, verdict) for p, verdict in silent.items()}
        found = {p: observed(world, p, verdict) for p, verdict in rows.items() if p not in silent}
        return found | {p: future.result() for p, future in waiting.items()}


@contextlib.contextmanager
def own_addresses(world: World, found: set[str]) -> Iterator[None]:
    """The node has these addresses too, as in a cloud that binds a load balancer's address to its nodes."""

    def change(verb: str) -> None:
        def work(ipr: IPRoute) -> None:
            for ip in found:
                ipr.addr(verb, index=1, address=ip, prefixlen=128 if ":" in ip else 32)

        world.node.netlink(work)

    change("add")
    until(lambda: all(bindable(world.node, ip) for ip in found), "fresh IPv6 addresses are tentative at first")
    try:
        yield
    finally:
        change("del")


def bindable(ns: NetNS, ip: str) -> bool:
    def work() -> bool:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET) as sock, contextlib.suppress(OSError):
            sock.bind((ip, 0))
            return True
        return False

    return ns.call(work)


@pytest.mark.parametrize("row", STICKY, ids=lambda row: row.name)
def test_affinity_of_real_connections(world: World, dataplane: Dataplane, row: s.Affinity) -> None:
    """The first choices of several clients: each time the memory is emptied, and all of a client's packets must
    agree.
    """
    need_features(row.scenario())
    for first in row.same:
        dataplane.clean(world)
        dataplane.program(world, row.scenario())
        client = world.client(first.src)
        servers = {ask(client, p.dst, p.port, p.protocol, src=p.src).server for p in (first, *row.same, *row.same)}
        assert len(servers) == 1, row.name
        for p in row.apart:
            assert ask(world.client(p.src), p.dst, p.port, p.protocol, src=p.src).result == "ok"


def test_a_bound_service_address_is_left_to_its_server(world: World, dataplane: Dataplane) -> None:
    """The cluster DNS address is on lo and belongs to no Service of ours: it must not count as unallocated."""
    scenario = next(x for x in s.SCENARIOS if "bound" in x.name)
    address = next(iter(scenario.expect)).dst
    dataplane.program(world, scenario)
    assert ask(world.client(s.POD_A), address, s.TARGET, timeout=SILENCE).result == "timeout"
    world.node.netlink(lambda ipr: ipr.addr("add", index=1, address=address, prefixlen=32))
    try:
        world.servers.listen(world.node, address, s.TARGET)
        for client in (s.POD_A, s.NODE_IP):
            assert ask(world.client(client), address, s.TARGET, src=client) == Answer("ok", (address, s.TARGET), client)
    finally:
        world.node.netlink(lambda ipr: ipr.addr("del", index=1, address=address, prefixlen=32))


def test_nft_can_list_everything_we_load(world: World) -> None:
    """nft 1.0.6 aborts on some shapes; administrators will list ours."""
    every = [*s.matrix(), *s.localhost(), *s.source_ranges(), *(row.scenario() for row in s.AFFINITY)]
    for scenario in (x for y in every for x in (y, y.v6())):
        program(world, scenario)
        for packet in scenario.expect:  # so that the dynamic maps have elements to print
            ask(world.client(packet.src), packet.dst, packet.port, packet.protocol, src=packet.src, timeout=0.05)
        for command in (["nft", "list", "ruleset"], ["nft", "-j", "list", "ruleset"]):
            done = world.node.run(command)
            # 1.0.6 prints the statement that records a client in text only
            assert done.stderr.replace("warning: stmt ops map have no json callback\n", "") == ""
            for words in ("hairpin", "numgen", "masquerade", "service-frontends", "goto"):
                assert words in done.stdout


def test_what_is_read_back_are_the_very_expressions(world: World) -> None:
    """`podwire explain` follows the rules in the kernel, not those that the proxy meant to write."""
    some = [*s.matrix()[:3], *s.source_ranges()[:1], *s.configurations()[:2], *(row.scenario() for row in s.AFFINITY)]
    for scenario in (x for y in some for x in (y, y.v6())):
        tracker = scenario.tracker()
        tracker.flush()
        layout, fake = Layout("ip6" if ":" in scenario.node.addresses[0] else "ip"), FakeConnection()
        fake.commit(Planner(layout, scenario.node).full(tracker.dataplane, None))
        world.node.run(["nft", "flush", "ruleset"])
        program(world, scenario)
        with nft_socket.Connection(world.node.fd) as conn:
            dump = conn.dump(layout.table, exprs=True)
        assert dump is not None
        planned = fake.state[layout.table].rules
        assert {name: [r.exprs for r in rules] for name, rules in dump.rules.items()} == {
            name: [r.exprs for r in rules] for name, rules in planned.items()
        }


def test_explain_and_cleanup_on_a_node(world: World) -> None:
    world.node.run(["nft", "flush", "ruleset"])
    program(world, next(x for x in s.SCENARIOS if x.name == "externalTrafficPolicy Local"))
    path = f"/proc/{os.getpid()}/fd/{world.node.fd}"

    def podwire(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, [*words, "--netns", path])
        return done.exit_code, done.output

    code, text = podwire("explain", "node", f"{s.VIP}:{s.PORT}", "--send")
    assert code == 0, text
    assert f"map services: {s.VIP} . tcp . {s.PORT} : goto lb2" in text
    assert "as explained" in text
    assert f"{s.POD_B}: out of veth1" in text
    code, text = podwire("explain", "node", f"{s.UNUSED}:{s.PORT}", "--send")
    assert (code, "no Service has this address" in text, "as explained" in text) == (0, True, True)
    with contextlib.closing(world.outside.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))) as server:
        server.bind((s.OUTSIDE, 7778))
        code, text = podwire("explain", s.GATEWAY, f"{s.OUTSIDE}:7778/udp", "--send")
        assert code == 0, text
        server.settimeout(patient(5))
        assert server.recvfrom(100)[1][0] == s.GATEWAY, "sent from the very address that was explained"
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132).close()
    except OSError:
        assert "no SCTP sockets" in podwire("explain", "node", f"{s.VIP}:{s.PORT}/sctp", "--send")[1], (
            "and never as TCP"
        )
    code, text = podwire("explain", s.OUTSIDE, f"{s.NODE_IP}:{s.NODE_PORT}")
    assert (code, f"to {s.POD_B}:{s.TARGET}, source kept" in text, s.POD_C in text) == (0, True, False)
    for bad, words in (
        ([s.OUTSIDE, s.VIP], "DST:PORT"),
        ([s.OUTSIDE, f"{s.VIP}:80", "--send"], "--send"),
        (["no/such-pod", f"{s.VIP}:80"], "pod"),
        ([s.OUTSIDE, "[fd00:96::20]:80"], "one family"),
    ):
        code, text = podwire("explain", *bad)
        assert (code, words in text, "Traceback" in text) == (1, True, False), text
    assert podwire("cleanup", "--dry-run")[1] == "would remove table ip podwire\n"
    assert podwire("cleanup")[1] == "removed table ip podwire\n"
    assert podwire("cleanup")[1] == "nothing of the proxy is here\n"
    assert "here is no table podwire, " in podwire("explain", "node", f"{s.VIP}:{s.PORT}")[1]


def test_the_rules_tell_what_became_of_a_packet(world: World) -> None:
    scenario = next(x for x in s.SCENARIOS if x.name == "externalTrafficPolicy Local, none here")
    world.node.run(["nft", "flush", "ruleset"])
    program(world, scenario)
    ask(world.client(s.OUTSIDE), s.NODE_IP, s.NODE_PORT, "UDP", src=s.OUTSIDE, timeout=SILENCE)
    world.client(s.OUTSIDE).call(lambda: one_syn(s.EXTERNAL, s.PORT))
    ask(world.client(s.POD_A), s.UNUSED, s.PORT, "UDP", timeout=SILENCE)
    ask(world.client(s.POD_A), s.VIP, 81)

    def told() -> dict[Reason | None, int]:
        listed = [
            line
            for line in world.node.run(["nft", "list", "table", "ip", "podwire"]).stdout.splitlines()
            if "counter packets" in line and "counter packets 0 " not in line
        ]
        return {
            reason_of(line.split('comment "')[1].rstrip('"')): int(line.split("counter packets ")[1].split()[0])
            for line in listed
        }

    until(lambda: len(told()) >= 3, "all are counted")
    assert told() == {Reason.NO_LOCAL_ENDPOINTS: 1, Reason.UNALLOCATED_ADDRESS: 1, Reason.WRONG_PORT: 1}


def one_syn(ip: str, number: int) -> None:
    """Send no retransmission, however long the machine takes."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect((ip, number))


def test_an_endpoint_in_the_nodes_own_namespace(world: World, dataplane: Dataplane) -> None:
    """A hostNetwork pod: packets to it are delivered locally, so postrouting (with its masquerade) never sees packets
    from elsewhere.
    """
    objects = (
        service("my-service", s.VIP, [port(s.PORT, node_port=s.NODE_PORT)], type="NodePort"),
        endpoint_slice("my-service", [endpoint(s.NODE_IP, s.NODE)], [("", "TCP", s.TARGET)]),
    )
    dataplane.program(world, s.Scenario("host network", objects, {}))
    world.servers.listen(world.node, s.NODE_IP, s.TARGET)
    for src in (s.POD_A, s.OUTSIDE, s.NODE_IP):
        for dst, number in ((s.VIP, s.PORT), (s.NODE_IP, s.NODE_PORT)):
            answer = ask(world.client(src), dst, number, src=src)
            assert (answer.result, answer.server) == ("ok", (s.NODE_IP, s.TARGET)), (src, dst)


def test_loopback_addresses_on_the_wire_are_dropped_only_with_nodeports_on_localhost(world: World) -> None:
    """A neighbour sends to 127.0.0.1 (CVE-2020-8558): route_localnet lets the packet in, the rules do not. When the
    option is off, the chain that every packet passes is removed.
    """
    mac = {
        name: ns.netlink(lambda ipr: ipr.get_links(ifname="eth0")[0].get_attr("IFLA_ADDRESS"))
        for name, ns in (("node", world.node), ("outside", world.outside))
    }
    rows = {row.node.localhost: row for row in s.localhost()}
    world.servers.listen(world.node, LOCALHOST, 7777)
    frame = bytes(
        Ether(src=mac["outside"], dst=mac["node"]) / IP(src=s.OUTSIDE, dst=LOCALHOST) / TCP(sport=50000, dport=7777)
    )

    def answered(patience: float = SILENCE) -> bool:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as sock:
            sock.bind(("eth0", 0x0800))
            sock.settimeout(patience)
            sock.send(frame)
            try:
                while True:
                    got = Ether(sock.recv(2000))
                    if TCP in got and got[TCP].sport == 7777:
                        return True
            except TimeoutError:
                return False

    world.node.run(["nft", "flush", "ruleset"])
    world.node.call(route_localnet)
    assert world.outside.call(lambda: answered(ANSWER)), "without rules such a packet is answered"
    program(world, rows[True])
    assert not world.outside.call(answered)
    program(world, rows[False])
    assert "loopback" not in world.node.run(["nft", "list", "ruleset"]).stdout


def test_a_client_of_the_node_needs_no_source_address(world: World, dataplane: Dataplane) -> None:
    """Without a source address the kernel picks one for the route, and the answer finds its way back."""
    dataplane.program(world, s.SCENARIOS[0])
    assert {ask(world.node, s.VIP, s.PORT).result for _ in range(10)} == {"ok"}

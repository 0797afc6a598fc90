"""The iptables backend in both variants: restarts, foreign changes, and under traffic changes and switches of
backend."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

import test_proxy_live
import test_proxy_resets
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient
from lab.proxyrole import Running, argv, until
from lab.serviceworld import World, ask
from podwire.main import cli
from podwire_base.kube.meta import Object
from podwire_proxy import backends
from podwire_proxy.changes import Tracker
from podwire_proxy.iptables import programs
from podwire_proxy.iptables.ipset import IpSets
from podwire_proxy.iptables.plan import Plan
from podwire_proxy.iptables.programs import Variant
from podwire_proxy.proxier import Proxier
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service
from test_proxy_live import BOTH, NODE, Client, my_service, my_slice

VARIANTS: tuple[Variant, ...] = programs.VARIANTS
each_variant = pytest.mark.parametrize("variant", VARIANTS)
CLIENTS = [f"192.0.2.{n}" for n in range(100, 230)]


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    yield made
    made.close()


def rules(ns: NetNS) -> dict[str, list[str]]:
    """Every rule of iptables, by program, without packet counters."""
    return {
        f"{program}-{variant}": [
            line
            for line in ns.run([f"{program}-{variant}-save"]).stdout.splitlines()
            if not line.startswith(("#", ":")) or "PODWIRE" in line
        ]
        for variant in VARIANTS
        for program in ("iptables", "ip6tables")
    }


def iptables(world: World, variant: Variant, table: str, rule: str) -> None:
    world.node.run([f"iptables-{variant}", "-w", "-t", table, *rule.split()])


def started(world: World, *objects: Object, variant: Variant = "nft") -> tuple[Tracker, Proxier]:
    tracker, proxier = Tracker(s.INFO), backends.proxier(s.INFO, world.node.fd, f"iptables-{variant}")
    for obj in objects:
        (tracker.service if obj["kind"] == "Service" else tracker.slice)(f"default/{obj['metadata']['name']}", obj)
    tracker.flush()
    proxier.sync(tracker.dataplane, None)
    proxier.sweep()
    return tracker, proxier


@each_variant
@pytest.mark.parametrize("v6", [False, True])
def test_a_restart_writes_nothing(world: World, variant: Variant, v6: bool) -> None:
    """The output of iptables-save equals, rule by rule, what was written, for every shape of rule."""
    some = [
        *s.matrix(),
        *s.source_ranges(),
        *s.configurations(),
        *s.localhost(),
        *(row.scenario() for row in s.AFFINITY),
    ]
    for scenario in some:
        row = scenario.v6() if v6 else scenario
        tracker = row.tracker()
        tracker.flush()
        for operations in (True, False):
            proxier = backends.proxier(row.node, world.node.fd, f"iptables-{variant}")
            done = proxier.sync(tracker.dataplane, None)
            assert bool(done.operations) == operations, (row.name, done)
            proxier.sweep()
            proxier.close()


@each_variant
def test_a_restart_with_many_services_writes_nothing(world: World, variant: Variant) -> None:
    """Sets and tables that take many netlink messages are read back completely; the last Service is reached."""
    many = [
        (
            service(f"s{n}", f"10.96.{n // 200 + 1}.{n % 200 + 1}", [port(s.PORT)]),
            endpoint_slice(f"s{n}", BOTH, [("", "TCP", s.TARGET)]),
        )
        for n in range(700)
    ]
    tracker, proxier = started(world, *(obj for both in many for obj in both), variant=variant)
    tables = world.node.run([f"iptables-{variant}-save"]).stdout.split("\n*")  # every rule here is ours
    counts = {("ip", text.lstrip("*").split("\n")[0]): text.count("\n-A ") for text in tables if "\n-A " in text}
    assert proxier.rule_counts() == counts
    proxier.close()
    proxier = backends.proxier(s.INFO, world.node.fd, f"iptables-{variant}")
    assert proxier.sync(tracker.dataplane, None).operations == 0
    proxier.close()
    assert ask(world.client(s.POD_A), "10.96.4.100", s.PORT).result == "ok"


@each_variant
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_growing_and_shrinking_lose_no_connection(world: World, variant: Variant, protocol: str) -> None:
    test_proxy_live.grow_and_shrink(world, backends.proxier(s.INFO, world.node.fd, f"iptables-{variant}"), protocol, 30)


@each_variant
def test_endpoints_that_come_and_go_altogether_leak_no_packet(world: World, variant: Variant) -> None:
    """From refused to served and back: a packet in between is refused or served, and never reaches the default
    route.
    """
    world.outside.netlink(lambda ipr: ipr.addr("add", index=1, address=s.EXTERNAL, prefixlen=32))
    world.servers.listen(world.outside, s.EXTERNAL, s.PORT)
    plain = service("my-service", s.VIP, [port(s.PORT)], externalIPs=[s.EXTERNAL])
    tracker, proxier = started(world, plain, my_slice(BOTH[0]), variant=variant)
    client = Client(world.client(s.POD_A), s.EXTERNAL)
    for round_ in range(20):
        tracker.slice("default/my-service-1", my_slice(*BOTH[: round_ % 2]))
        proxier.sync(tracker.dataplane, tracker.flush())
        client.more(3)
        proxier.sweep()
    answers = client.stop()
    proxier.close()
    assert {a.result for a in answers} == {"ok", "refused"}
    assert {a.server[0] for a in answers if a.result == "ok"} == {s.POD_B}


def flags(variant: Variant) -> tuple[str, ...]:
    return ("--backend", "iptables", "--iptables-variant", variant)


@each_variant
def test_the_role_survives_restarts_and_repairs_what_others_break(
    world: World, tmp_path: Path, variant: Variant
) -> None:
    program = f"iptables-{variant}"
    with FakeApi(world.node) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        api.apply(NODE, my_service(), my_slice(*BOTH))
        proxy = Running(world.node, kubeconfig, tmp_path, *flags(variant))
        until(proxy.ready, "the first sync")
        client = Client(world.client(s.POD_A), s.VIP)
        client.more()
        before = rules(world.node)
        proxy.stop(signal.SIGKILL)
        client.more()
        proxy = Running(world.node, kubeconfig, tmp_path, *flags(variant))
        until(proxy.ready, "the second start")
        assert rules(world.node) == before
        client.more()
        assert {a.result for a in client.stop()} == {"ok"}
        for damage in ("nat -F", "nat -F PODWIRE-SERVICES", "filter -D FORWARD 1", "nat -I PODWIRE-SERVICES -j RETURN"):
            seen = proxy.repairs()
            world.node.run([program, "-w", "-t", *damage.split()])
            # mypy knows no defaults of lambdas
            until(lambda seen=seen: proxy.repairs() > seen, damage)  # type: ignore[misc]
            assert rules(world.node) == before
            assert ask(world.client(s.POD_A), s.VIP, s.PORT).result == "ok"
        with IpSets(world.node.fd) as sets:
            sets.flush("PODWIRE-CLUSTER-IPS-4")
            until(lambda: sets.count("PODWIRE-CLUSTER-IPS-4") == 1, "the set is filled again")
        world.node.run(
            [program, "-w", "-t", "nat", "-A", "PREROUTING", "-s", "192.0.2.99", "-j", "RETURN"]
        )  # a rule of another program
        api.apply(my_slice(BOTH[1]))
        until(lambda: ask(world.client(s.POD_A), s.VIP, s.PORT).server[0] == s.POD_C, "a change goes on as before")
        log = proxy.stop()
        assert any("192.0.2.99" in rule for rule in rules(world.node)[program])
    assert log.count("another program changed what this role keeps") >= 4, log
    assert "Traceback" not in log


def no_rules(ns: NetNS) -> bool:
    found = "\n".join(line for lines in rules(ns).values() for line in lines)
    listed = ns.run(["nft", "list", "ruleset"]).stdout
    with IpSets(ns.fd) as sets:
        return "PODWIRE" not in found and "podwire" not in listed and not sets.ours("ip") and not sets.ours("ip6")


def test_switching_backends_under_traffic_loses_no_connection(world: World, tmp_path: Path) -> None:
    """Through every backend and variant and back: an old connection continues, new ones are served, the old rules are
    gone.
    """
    kinds = [
        ("--backend", "nftables"),
        flags("nft"),
        flags("legacy"),
        flags("nft"),
        ("--backend", "nftables"),
        flags("legacy"),
        ("--backend", "nftables"),
    ]
    with FakeApi(world.node) as api, contextlib.ExitStack() as stack:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        echo = endpoint_slice("echo", [endpoint(s.POD_B, s.NODE)], [("", "TCP", 9999)])
        api.apply(NODE, my_service(), my_slice(*BOTH), service("echo", s.VIP2, [port(s.PORT)]), echo)
        listener = stack.enter_context(world.client(s.POD_B).call(lambda: socket.create_server((s.POD_B, 9999))))
        clients: list[Client] = []
        old: list[tuple[socket.socket, socket.socket]] = []
        for number, kind in enumerate(kinds):
            proxy = Running(world.node, kubeconfig, tmp_path, *kind)
            until(proxy.ready, f"start {number} {kind}")
            if not clients:
                clients = [Client(world.client(s.POD_A), s.VIP), Client(world.client(s.OUTSIDE), s.VIP)]
            for a, b in old:
                a.send(b"still there?")
                assert b.recv(100) == b"still there?"
            for source in (s.POD_A, s.OUTSIDE):  # the second one's source is masqueraded
                near = stack.enter_context(
                    world.client(source).call(lambda: socket.create_connection((s.VIP2, s.PORT), patient(10)))
                )
                far = stack.enter_context(listener.accept()[0])
                far.settimeout(patient(10))
                old.append((near, far))
            for client in clients:
                client.more(30)
            until(partial(alone, world.node, kind), f"only the rules of {kind} are here")
            log = proxy.stop()
            assert ("removed what another backend left" in log) == bool(number), log
        assert {a.result for client in clients for a in client.stop()} == {"ok"}
        for a, b in old:
            b.send(b"yes")
            assert a.recv(100) == b"yes"
    assert backends.cleanup(world.node.fd) == ["table ip podwire"]
    assert no_rules(world.node)


def alone(ns: NetNS, kind: tuple[str, ...]) -> bool:
    found = {place for place, lines in rules(ns).items() if any("PODWIRE" in line for line in lines)}
    tables = "table ip podwire" in ns.run(["nft", "list", "ruleset"]).stdout
    if kind[1] == "nftables":
        with IpSets(ns.fd) as sets:
            return not found and tables and not sets.ours("ip")
    return found == {f"iptables-{kind[-1]}"} and not tables


@each_variant
def test_explain_cleanup_and_dry_run(world: World, tmp_path: Path, variant: Variant) -> None:
    row = next(row for row in s.SCENARIOS if row.name == "externalTrafficPolicy Local")
    _, proxier = started(world, *row.objects, variant=variant)
    proxier.close()
    path = f"/proc/{os.getpid()}/fd/{world.node.fd}"

    def podwire(*words: str) -> str:
        done = CliRunner().invoke(cli, [*words, "--netns", path])
        assert done.exit_code == 0, done.output
        return done.output

    text = podwire("explain", "node", f"{s.VIP}:{s.PORT}", "--send")
    assert f"-d {s.VIP}/32 -p tcp -m tcp --dport {s.PORT}" in text
    assert f"-j DNAT --to-destination {s.POD_B}:{s.TARGET}" in text
    assert "as explained" in text
    text = podwire("explain", "node", f"{s.UNUSED}:{s.PORT}", "--send")
    assert "unallocated Service addresses" in text
    assert "as explained" in text
    text = podwire("explain", s.OUTSIDE, f"{s.NODE_IP}:{s.NODE_PORT}")
    assert f"to {s.POD_B}:{s.TARGET}, source kept" in text
    assert s.POD_C not in text
    iptables(world, variant, "nat", "-I PODWIRE-SERVICES -m ttl --ttl-eq 64 -j RETURN")
    assert "another program put a rule" in podwire("explain", "node", f"{s.VIP}:{s.PORT}"), (
        "what is in the kernel is told, as it is"
    )
    dry = podwire("cleanup", "--dry-run")
    assert f"chains of table nat (iptables-{variant}, IPv4)" in dry
    assert "would remove set PODWIRE-CLUSTER-IPS-4" in dry
    assert podwire("cleanup") == dry.replace("would remove", "removed")
    assert "nothing of the proxy is here" in podwire("cleanup")
    assert no_rules(world.node)
    with FakeApi(world.node) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        api.apply(NODE, my_service(), my_slice(*BOTH))
        done = world.node.run(argv(kubeconfig, tmp_path, "--dry-run", *flags(variant)))
    assert "ipset add PODWIRE-CLUSTER-IPS-4 10.96.0.20" in done.stdout
    assert f"-j DNAT --to-destination {s.POD_C}:{s.TARGET}" in done.stdout
    assert no_rules(world.node)


@each_variant
def test_affinity_over_time(world: World, variant: Variant) -> None:
    """More clients than xt_recent could hold (100); endpoints are added and removed, the proxy restarts, and the
    timeout is shortened last, so that no client is forgotten on a slow machine.
    """
    pods = {s.POD_A: endpoint(s.POD_A, s.NODE), s.POD_B: endpoint(s.POD_B, s.NODE), s.POD_C: endpoint(s.POD_C, "n2")}

    def sticky(seconds: int) -> Object:
        return service(
            "my-service",
            s.VIP,
            [port(s.PORT)],
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": seconds}},
        )

    def addresses(ipr: object) -> None:
        for client in CLIENTS:
            ipr.addr("add", index=1, address=client, prefixlen=32)  # type: ignore[attr-defined]  # untyped pyroute2

    def homes() -> dict[str, str]:
        return {client: ask(world.outside, s.VIP, s.PORT, src=client).server[0] for client in CLIENTS}

    def put(*ips: str) -> Object:
        return endpoint_slice("my-service", [pods[ip] for ip in ips], [("", "TCP", s.TARGET)])

    world.outside.netlink(addresses)
    tracker, proxier = started(world, sticky(600), put(*pods), variant=variant)
    before = homes()
    assert set(before.values()) == set(pods)
    assert homes() == before
    tracker.slice("default/my-service-1", put(s.POD_B, s.POD_C))
    proxier.sync(tracker.dataplane, tracker.flush())
    proxier.sweep()
    after = homes()
    assert s.POD_A not in after.values()
    assert {c: home for c, home in after.items() if before[c] != s.POD_A} == {
        c: home for c, home in before.items() if home != s.POD_A
    }
    proxier.close()
    tracker.slice("default/my-service-1", put(*pods))
    tracker.flush()
    proxier = backends.proxier(s.INFO, world.node.fd, f"iptables-{variant}")
    proxier.sync(tracker.dataplane, None)
    proxier.sweep()
    assert homes() == after, "neither a restart nor an endpoint that comes moves anyone"
    with IpSets(world.node.fd) as sets:

        def remembered() -> int:
            return sum(len(members) for name, members in sets.ours("ip").items() if name.startswith("PODWIRE-A4-"))

        assert remembered() == len(CLIENTS)
        tracker.service("default/my-service", sticky(2))
        proxier.sync(tracker.dataplane, tracker.flush())
        homes()
        until(lambda: not remembered(), "all are forgotten")
    tracker.service("default/my-service", None)
    proxier.sync(tracker.dataplane, tracker.flush())
    proxier.sweep()
    with IpSets(world.node.fd) as sets:
        assert set(sets.ours("ip")) == {"PODWIRE-CLUSTER-IPS-4"}
    proxier.close()


@each_variant
def test_marks_of_others_stay(world: World, variant: Variant) -> None:
    """Our bit of the connection mark is set only while the first packet passes; bits of others and packet marks
    stay.
    """
    iptables(world, variant, "mangle", "-A PREROUTING -j CONNMARK --set-xmark 0x8001/0x8001")
    iptables(world, variant, "mangle", "-A PREROUTING -j MARK --set-mark 0x2000")
    iptables(world, variant, "mangle", "-A POSTROUTING -m mark ! --mark 0x2000 -j DROP")
    _, proxier = started(world, my_service(), my_slice(*BOTH), variant=variant)
    for _ in range(4):
        answer = ask(world.outside, s.NODE_IP, s.NODE_PORT, src=s.OUTSIDE)
        assert (answer.result, answer.peer != s.OUTSIDE) == ("ok", True)
    marks = {
        word
        for line in world.node.run(["conntrack", "-L"]).stdout.splitlines()
        if f"dport={s.NODE_PORT}" in line
        for word in line.split()
        if word.startswith("mark=")
    }
    assert marks == {f"mark={0x8001}"}
    proxier.close()


def test_the_variant_of_the_host_is_found(world: World) -> None:
    assert programs.detect(world.node.fd) == "nft", "where nothing is"
    world.node.run(["iptables-legacy", "-A", "FORWARD", "-s", "192.0.2.9", "-j", "DROP"])
    assert programs.detect(world.node.fd) == "legacy"
    _, proxier = started(world, my_service(), my_slice(*BOTH), variant="nft")
    proxier.close()
    assert programs.detect(world.node.fd) == "legacy", "our own rules do not count while others have some"
    world.node.run(["iptables-legacy", "-F"])
    assert programs.detect(world.node.fd) == "nft", "where ours are"
    for _ in range(3):
        world.node.run(["iptables-nft", "-A", "FORWARD", "-s", "192.0.2.9", "-j", "DROP"])
    world.node.run(["iptables-legacy", "-A", "FORWARD", "-s", "192.0.2.9", "-j", "DROP"])
    assert programs.detect(world.node.fd) == "nft"


@each_variant
def test_what_the_kernel_refuses_changes_nothing_and_is_told(
    world: World, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, proxier = started(world, my_service(), my_slice(*BOTH), variant=variant)
    before = rules(world.node)
    good = Plan.restore
    monkeypatch.setattr(Plan, "restore", lambda plan: good(plan).replace("-j DNAT", "-j DNATT"))
    tracker.slice("default/my-service-1", my_slice(BOTH[1]))
    with pytest.raises(programs.ProgramError, match="DNATT"):
        proxier.sync(tracker.dataplane, tracker.flush())
    assert rules(world.node) == before
    monkeypatch.undo()
    assert proxier.sync(tracker.dataplane, None).operations
    assert ask(world.client(s.POD_A), s.VIP, s.PORT).server[0] == s.POD_C
    proxier.close()


@each_variant
@pytest.mark.parametrize("v6", [False, True])
def test_flows_of_an_endpoint_that_is_gone_are_reset_where_asked_for(
    world: World, variant: Variant, v6: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The complete test of the nftables backend, on this one."""
    monkeypatch.setattr(backends, "proxier", partial(backends.proxier, choice=f"iptables-{variant}"))
    test_proxy_resets.test_flows_of_an_endpoint_that_is_gone_are_reset(world, v6)


@each_variant
@pytest.mark.parametrize(("frontend", "v6"), [((s.VIP, s.PORT), True), ((s.NODE_IP, s.NODE_PORT), False)])
def test_udp_flows_move_when_their_endpoint_goes(
    world: World, variant: Variant, frontend: tuple[str, int], v6: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "proxier", partial(backends.proxier, choice=f"iptables-{variant}"))
    test_proxy_live.test_udp_flows_move_when_their_endpoint_goes(world, frontend, v6)


@each_variant
def test_the_loss_of_the_loopback_guard_is_heard_of(world: World, variant: Variant) -> None:
    row = next(row for row in s.localhost() if row.node.localhost)
    tracker, proxier = row.tracker(), backends.proxier(row.node, world.node.fd, f"iptables-{variant}")
    proxier.sync(tracker.dataplane, None)
    with contextlib.closing(proxier):
        watchers = proxier.watch()
        iptables(world, variant, "raw", "-F PODWIRE-LOOPBACK")
        until(lambda: any(watcher.changed() for watcher in watchers), "the change is noticed")

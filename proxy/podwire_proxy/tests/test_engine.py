"""When to sync, which flows are stale, metrics, and the nfnetlink codec's bytes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from podwire_base.kernel.conntrack.codec import SEEN_REPLY, SYN_SENT, TIME_WAIT, Flow, Tuple
from podwire_base.kernel.netlink import codec as attrs
from podwire_base.kernel.nft import codec
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.fake import FakeConnection, Refused
from podwire_base.kube.errors import ConfigError
from podwire_base.patience import patient
from podwire_base.role import web
from podwire_proxy import backends, health, main
from podwire_proxy.changes import Tracker
from podwire_proxy.conntrack import challenge_ack_probe, serving, stale, stale_attempts
from podwire_proxy.dataplane import HealthCheck, Key
from podwire_proxy.flows import Swept
from podwire_proxy.metrics import Metrics
from podwire_proxy.model import PROTOCOLS, Destination, NodeInfo
from podwire_proxy.sync import RETRY_BUSY, RETRY_LAST, Pacer
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

TABLE = nft.Table("ip", "t")
SET = nft.Set(TABLE, "s", ("ipv4_addr", "inet_service"))
MAP = nft.Set(TABLE, "m", ("ipv4_addr",), ("verdict",))


def synced(pacer: Pacer, now: float, *, ok: bool = True) -> bool:
    full = pacer.start(now)
    pacer.done(now, ok=ok, full=full)
    return full


def test_first_change_at_once_then_one_sync_an_interval() -> None:
    pacer = Pacer(0.01, verify_interval=100)
    pacer.changed()
    assert pacer.due(50.0) == 0
    assert synced(pacer, 50.0) is True, "the first sync reads the kernel back"
    pacer.changed()
    assert pacer.due(50.004) == pytest.approx(0.006)
    assert pacer.due(50.02) == 0
    assert synced(pacer, 50.02) is False
    assert pacer.due(60.0) == pytest.approx(90.0), "idle until the next check of the kernel"
    assert synced(pacer, 150.0) is True


def test_long_syncs_take_at_most_half_of_the_time() -> None:
    pacer = Pacer(0.01)
    for turn in range(3):
        pacer.changed()
        full = pacer.start(turn * 2.0)
        pacer.changed()
        pacer.done(turn * 2.0 + 0.6, ok=True, full=full)
        assert pacer.due(turn * 2.0 + 0.6) == pytest.approx(0.6)
        assert pacer.due(turn * 2.0 + 1.2) == pytest.approx(0)


def test_failures_back_off_and_end_in_a_full_sync() -> None:
    pacer = Pacer(0.01)
    waits = []
    for turn in range(12):
        pacer.changed()
        synced(pacer, float(turn), ok=False)
        waits.append(pacer.due(float(turn)))
    assert waits[:3] == pytest.approx([0.1, 0.2, 0.4])
    assert waits[-1] == RETRY_LAST
    assert synced(pacer, 99.0) is True
    pacer.changed()
    assert synced(pacer, 100.0) is False


def test_where_another_program_is_in_the_way_it_is_tried_again_soon() -> None:
    pacer = Pacer(0.01)
    for turn in range(12):
        pacer.start(float(turn))
        pacer.done(float(turn), ok=False, full=True, busy=True)
        assert pacer.due(float(turn)) <= RETRY_BUSY
    pacer.done(12.0, ok=False, full=True)
    assert pacer.due(12.0) == RETRY_LAST


@pytest.mark.parametrize(
    ("no_notifications", "took", "interval"), [(False, 0.1, 600), (True, 0.1, 60), (True, 1.0, 200), (True, 9.0, 600)]
)
def test_a_backend_that_does_not_hear_everything_reads_back_often(
    no_notifications: bool, took: float, interval: float
) -> None:
    pacer = Pacer(0.01, no_notifications=no_notifications)
    assert pacer.start(0.0) is True
    pacer.done(took, ok=True, full=True)
    assert pacer.due(took) == pytest.approx(interval)
    pacer.changed()
    assert pacer.start(took + interval / 2) is False
    assert pacer.start(took + interval) is True


def test_a_change_during_a_sync_is_not_lost() -> None:
    pacer = Pacer(0.01)
    pacer.start(0.0)
    pacer.changed(full=True)
    pacer.done(0.0, ok=True, full=True)
    assert pacer.pending
    assert pacer.start(1.0) is True


def flow(front: Key, answers: Destination, client: int, *, opening: bool = False, over: bool = False) -> Flow:
    """A flow to the destination that a client with the source port `client` dialled, and the source of its answers."""
    return Flow(
        "ip",
        PROTOCOLS[front.protocol],
        Tuple("192.0.2.7", client, front.ip, front.port),
        Tuple(answers.ip, answers.port, "192.0.2.7", client),
        status=0 if opening else SEEN_REPLY,
        tcp_state=SYN_SENT if opening else TIME_WAIT if over else 0,
    )


def test_stale_flows() -> None:
    front, other = Key("10.96.0.1", "UDP", 53), Key("172.30.0.99", "UDP", 30053)
    good, gone = Destination("10.244.1.2", 53), Destination("10.244.1.3", 53)
    flows = [
        flow(front, good, 1),
        flow(front, gone, 2),
        flow(front, Destination(front.ip, front.port), 3),
        flow(other, gone, 4),
        flow(Key("10.96.0.1", "UDP", 54), gone, 5),
    ]
    assert [found.original.source_port for found in stale(flows, {front: frozenset({good})})] == [2, 3]
    assert [found.original.source_port for found in stale(flows, {front: frozenset()})] == [3], (
        "nowhere to go instead, but what was never translated meets the refusal"
    )


def test_attempts_stray_where_no_new_connection_goes() -> None:
    tracker, front = Tracker(NodeInfo("n1", ("172.30.0.11",))), Key("10.96.0.1", "TCP", 80)
    balancer = Key("192.0.2.1", "TCP", 80)
    good, gone = Destination("10.244.1.2", 80), Destination("10.244.1.3", 80)
    flows = [
        flow(front, gone, 1, opening=True),
        flow(front, good, 2, opening=True),
        flow(front, gone, 3),
        flow(Key("10.96.0.9", "TCP", 80), gone, 4, opening=True),
    ]

    def change(*ips: str, ingress: str = "") -> set[Key]:
        made = service("web", front.ip, [port(80)], type="LoadBalancer")
        made["status"] = {"loadBalancer": {"ingress": [{"ip": ingress}] if ingress else []}}
        tracker.service("default/web", made)
        tracker.slice("web", endpoint_slice("web", [endpoint(ip) for ip in ips], [("", "TCP", 80)]))
        return tracker.flush().moved

    def freed(keys: set[Key] | None) -> list[int]:
        plane = tracker.dataplane.frontends
        wanted = plane if keys is None else {key: plane[key] for key in keys & set(plane)}
        return [found.original.source_port for found in stale_attempts(flows, wanted)]

    assert change(gone.ip) == set(), "nothing was on its way to a ClusterIP that is new"
    assert change(gone.ip, good.ip) == set()
    assert freed(None) == []
    assert change(good.ip) == {front}
    assert freed({front}) == freed(None) == [1]
    assert freed({balancer}) == []
    assert change() == {front}
    assert freed(None) == [], "nowhere to go instead"
    assert change(good.ip, ingress=balancer.ip) == {front, balancer}, "somewhere to go; where routes led until now"
    assert freed({front}) == [1]


@pytest.mark.parametrize("annotation", ["podwire.io/reset-on-endpoint-removal", "podwire.io/destroy-tcp"])
def test_tcp_flows_are_stale_only_where_a_service_asks(annotation: str) -> None:
    tracker = Tracker(NodeInfo("n1", ("172.30.0.11",)))
    asking, other = Key("10.96.0.1", "TCP", 80), Key("10.96.0.2", "TCP", 80)
    for name, key, answer in (("asking", asking, "true"), ("other", other, "yes")):
        made = service(name, key.ip, [port(80), port(81, "UDP", "u")])
        made["metadata"]["annotations"] = {annotation: answer}
        problems = tracker.service(f"default/{name}", made)
        assert bool(problems) == (answer == "yes")
        tracker.slice(
            name,
            endpoint_slice(
                name, [endpoint("10.244.1.2"), endpoint("10.244.1.3", ready=False, terminating=True)], [("", "TCP", 80)]
            ),
        )
    tracker.flush()
    wanted = {key: alive for key, alive in serving(tracker.dataplane.frontends).items() if key.protocol == "TCP"}
    assert wanted == {asking: {Destination("10.244.1.2", 80), Destination("10.244.1.3", 80)}}
    flows = [flow(asking, Destination(f"10.244.1.{n}", 80), n) for n in (2, 3, 4)]
    flows += [
        flow(asking, Destination(asking.ip, 80), 5),
        flow(asking, Destination("10.244.1.4", 80), 6, over=True),
        flow(other, Destination("10.244.1.4", 80), 7),
    ]
    assert [found.original.source_port for found in stale(flows, wanted)] == [4], (
        "neither terminating, untranslated, closed, nor of others"
    )
    tracker.slice("asking", None)
    tracker.flush()
    assert [
        found.original.source_port for found in stale(flows, serving({asking: tracker.dataplane.frontends[asking]}))
    ] == [
        2,
        3,
        4,
    ]


@pytest.mark.parametrize(
    ("source", "destination"),
    [(("10.96.0.1", 80), ("10.244.1.2", 40001)), (("fd00:96::1", 80), ("fd00:244::2", 40001))],
)
def test_a_provocation_is_a_whole_packet_with_the_right_checksum(
    source: tuple[str, int], destination: tuple[str, int]
) -> None:
    raw = challenge_ack_probe(source, destination)
    made = (IPv6 if ":" in source[0] else IP)(raw)
    again = type(made)(src=made.src, dst=made.dst) / TCP(bytes(made[TCP]))
    del again[TCP].chksum
    assert type(made)(bytes(again))[TCP].chksum == made[TCP].chksum
    assert ((made.src, made[TCP].sport), (made.dst, made[TCP].dport), str(made[TCP].flags)) == (
        source,
        destination,
        "FS",
    )


def test_metrics_are_prometheus_text() -> None:
    metrics = Metrics(services=3, families=("IPv4", "IPv6"), no_local_endpoints={("IPv6", "external"): 4})
    metrics.synced(full=False, seconds=0.003, elements=7)
    metrics.swept(Swept(2, 1, 0.001, {"ip6": 2}, 5))
    metrics.synced(full=False, seconds=99.0, elements=0)
    metrics.programming.observe(0.4)
    lines = dict(line.rsplit(" ", 1) for line in metrics.render().splitlines() if not line.startswith("#"))
    name = "kubeproxy_sync_partial_proxy_rules_duration_seconds"
    for family in ("IPv4", "IPv6"):
        found = [
            lines[f'{name}_bucket{{ip_family="{family}",le="{bound}"}}']
            for bound in ("0.002", "0.004", "16.384", "+Inf")
        ]
        assert found == ["0", "1", "1", "2"]
    assert lines["podwire_proxy_services"] == "3"
    assert lines["podwire_proxy_connection_attempts_freed_total"] == "5"
    assert lines['kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"}'] == "2"
    assert lines['kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"}'] == "0"
    assert (
        lines['kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"}'] == "4"
    )
    assert lines['kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.5"}'] == "1"


COMMON = {
    "sync_proxy_rules_duration_seconds",
    "sync_full_proxy_rules_duration_seconds",
    "sync_partial_proxy_rules_duration_seconds",
    "sync_proxy_rules_last_timestamp_seconds",
    "sync_proxy_rules_last_queued_timestamp_seconds",
    "sync_proxy_rules_endpoint_changes_pending",
    "sync_proxy_rules_endpoint_changes_total",
    "sync_proxy_rules_service_changes_pending",
    "sync_proxy_rules_service_changes_total",
    "sync_proxy_rules_no_local_endpoints_total",
    "network_programming_duration_seconds",
    "proxy_healthz_total",
    "proxy_livez_total",
    "conntrack_reconciler_sync_duration_seconds",
    "conntrack_reconciler_deleted_entries_total",
}
OF_BACKEND = {
    "nftables": {"sync_proxy_rules_nftables_sync_failures_total", "sync_proxy_rules_nftables_cleanup_failures_total"},
    "iptables": {
        "sync_proxy_rules_iptables_total",
        "sync_proxy_rules_iptables_last",
        "sync_proxy_rules_iptables_restore_failures_total",
        "sync_proxy_rules_iptables_partial_restore_failures_total",
        "iptables_ct_state_invalid_dropped_packets_total",
        "iptables_localhost_nodeports_accepted_packets_total",
    },
}


@pytest.mark.parametrize("backend", OF_BACKEND)
def test_metrics_have_kube_proxys_names_and_labels(backend: str) -> None:
    """kube-proxy 1.34 and later: dashboards and alerts go on working."""
    metrics = Metrics(names=backends.choose(backend).metrics, rules=lambda: {("ip", "nat"): 12, ("ip", "filter"): 3})
    metrics.failed(full=False)
    metrics.healthz[200] += 1
    text = metrics.render()
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE kubeproxy_"))
    assert {name.removeprefix("kubeproxy_") for name in kinds} == COMMON | OF_BACKEND[backend]
    plain = {"service_changes", "endpoint_changes", "healthz_total", "_packets_total"}
    for line in text.splitlines():
        if line.startswith("kubeproxy_") and not any(word in line for word in plain):
            assert 'ip_family="IPv4"' in line, line
    assert 'kubeproxy_proxy_healthz_total{code="200"} 1' in text
    if backend == "iptables":
        assert 'kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} 12' in text
        assert 'partial_restore_failures_total{ip_family="IPv4"} 1' in text


@given(st.lists(st.tuples(st.integers(1, 100), st.binary(max_size=40)), max_size=10))
def test_attributes_round_trip(items: list[tuple[int, bytes]]) -> None:
    data = b"".join(attrs.attr(kind, value) for kind, value in items)
    assert list(attrs.walk(data)) == items
    assert len(data) % 4 == 0


@given(st.binary(max_size=200))
def test_decoding_garbage_never_raises(data: bytes) -> None:
    list(attrs.walk(data))
    list(attrs.split(data))


VALUES = st.one_of(
    st.none(),
    st.just(nft.INTERVAL_END),
    st.just(nft.Verdict(-4, "lb3")),
    st.just(nft.Verdict(0)),
    st.binary(min_size=4, max_size=8).map(lambda b: b[:4]),
)


@given(st.dictionaries(st.binary(min_size=4, max_size=4), VALUES, max_size=2500))
def test_elements_round_trip_over_as_many_messages_as_they_need(items: dict[bytes, nft.Value]) -> None:
    messages, owners = nft.encode(nft.Transaction().add(nft.Elements(MAP, items)))
    assert len(messages) == len(owners)
    found: dict[bytes, nft.Value] = {}
    for kind, _, _, _, body in attrs.split(b"".join(messages)):
        if kind == codec.SUBSYS | 12:
            assert len(body) < 1 << 16
            found.update(codec.decode_elements(body[4:]))
    assert found == items


@pytest.mark.parametrize(
    ("cidrs", "expected"),
    [
        (["10.0.0.0/8"], {b"\x0a\0\0\0": None, b"\x0b\0\0\0": nft.INTERVAL_END}),
        (["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"], {b"\x0a\0\0\0": None, b"\x0b\0\0\0": nft.INTERVAL_END}),
        (["0.0.0.0/0"], {b"\0\0\0\0": None}),
        (["255.0.0.0/8"], {b"\xff\0\0\0": None}),
        ([], {}),
        (["::/0"], {bytes(16): None}),
        (["fe80::/128"], {b"\xfe\x80" + bytes(14): None, b"\xfe\x80" + bytes(13) + b"\1": nft.INTERVAL_END}),
    ],
)
def test_intervals(cidrs: list[str], expected: dict[bytes, nft.Value]) -> None:
    assert nft.intervals(cidrs) == expected


def test_intervals_refuse_what_is_no_cidr() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0"):
        nft.intervals(["10.0.0/8"])


def test_the_fake_refuses_what_the_kernel_refuses() -> None:
    kernel, chain = FakeConnection(), nft.Chain(TABLE, "c")
    kernel.commit(nft.Transaction().add(TABLE, SET, MAP, chain))
    key = bytes((10, 0, 0, 1))
    for bad, code in (
        (nft.Transaction().delete(nft.Elements(MAP, {key: None})), errno.ENOENT),
        (nft.Transaction().add(nft.Elements(MAP, {key: nft.Verdict(-4, "missing")})), errno.ENOENT),
        (nft.Transaction().add(nft.Elements(SET, {key: None})), errno.EINVAL),
        (nft.Transaction().add(nft.Rule(chain, (nft.Lookup("missing"),))), errno.ENOENT),
        (nft.Transaction().add(nft.Elements(MAP, {key: nft.Verdict(-4, "c")})).delete(chain), errno.EBUSY),
        (
            nft.Transaction().add(nft.Elements(MAP, {key: nft.Verdict(0)}), nft.Elements(MAP, {key: nft.Verdict(1)})),
            errno.EEXIST,
        ),
    ):
        with pytest.raises(Refused) as caught:
            kernel.commit(bad)
        assert caught.value.errno == code
        assert kernel.state[TABLE].elements == {"s": {}, "m": {}}


def test_a_transaction_reads_as_text() -> None:
    tx = nft.Transaction().add(TABLE, nft.Elements(MAP, {bytes((10, 0, 0, 1)): nft.Verdict(-4, "lb3")}))
    assert [str(op) for op in tx] == ["add table ip t", "add elements m { 10.0.0.1 : goto lb3 }"]


def test_health_and_metrics_are_served() -> None:
    metrics, state = Metrics(services=5), [(True, "up to date")]

    async def ask() -> list[tuple[int, str]]:
        found = health.pages(metrics, lambda: health.Health(*state[0]), "nftables", {"mode": "nftables"})
        runner = await web.serve("127.0.0.1:0", found)
        port = runner.addresses[0][1]
        out = []
        async with aiohttp.ClientSession() as session:
            for path in ("healthz", "metrics", "healthz"):
                async with session.get(f"http://127.0.0.1:{port}/{path}") as answer:
                    out.append((answer.status, await answer.text()))
                state[0] = (False, "nf_tables: ENOMEM")
        await runner.cleanup()
        return out

    good, text, bad = asyncio.run(ask())
    assert (good[0], bad[0]) == (200, 503)
    assert json.loads(good[1])["status"]["IPv4"]["healthy"] is True
    assert "ENOMEM" in bad[1]
    assert "podwire_proxy_services 5" in text[1]


@pytest.mark.parametrize("turns", range(6))
def test_a_listener_that_goes_leaves_no_client_waiting(turns: int) -> None:
    """Whatever step the loop has reached with a connection: it is answered, closed or reset."""

    async def ask() -> None:
        runner = await web.serve(
            "127.0.0.1:0", health.pages(Metrics(), lambda: health.Health(True, ""), "nftables", {})
        )
        with socket.create_connection(runner.addresses[0]) as client:
            client.sendall(b"GET /proxyMode HTTP/1.1\r\nHost: n1\r\n\r\n")
            for _ in range(turns):
                await asyncio.sleep(0)
            await runner.cleanup()
            client.settimeout(patient(20))
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1000)[:15] in (b"", b"HTTP/1.1 200 OK")

    gc.disable()  # it would find and close a lost connection later
    try:
        asyncio.run(ask())
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "ipvs"}, "backend"),
        ({"service_cidrs": ()}, "service_cidrs"),
        ({"cluster_cidrs": ("10.244/16",)}, "cluster_cidrs"),
        ({"metrics_address": "10249"}, "metrics_address"),
        ({"metrics_address": "host:http"}, "metrics_address"),
    ],
)
def test_a_config_that_cannot_be_used_names_its_field(change: dict[str, Any], words: str) -> None:
    config = replace(main.ProxyConfig("n1", None, Path("/nowhere")), **change)
    with pytest.raises(ConfigError, match=f"^{words}: "):
        main.run(config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--node-name", "n1", "--service-cidr", "ten", "--dry-run"], "service_cidrs"),
        ([], "node-name"),
        (["--node-name", "n1", "--kubeconfig", "/does/not/exist", "--dry-run"], "/does/not/exist"),
    ],
)
def test_bad_input_gets_one_line_not_a_traceback(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(main.command, arguments)
    assert done.exit_code != 0
    assert words in done.output
    assert "Traceback" not in done.output


def test_a_health_check_port_that_is_taken_is_told_once_and_served_when_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else changes meanwhile: the listener must open by itself."""
    monkeypatch.setattr(health, "AGAIN", 0.01)
    told: list[str] = []

    async def work() -> int:
        checks = health.ServiceChecks(lambda: True, lambda service, why: told.append(why))
        other = await web.serve("127.0.0.1:0", {})
        port, changed = other.addresses[0][1], asyncio.Event()
        wanted = {"default/web": HealthCheck(port, 1)}
        for _ in range(2):
            await checks.update(wanted, ["127.0.0.1"])
            await asyncio.wait_for(checks.due(changed), patient(5))
        await other.cleanup()
        await checks.update(wanted, ["127.0.0.1"])
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/") as answer:
            status = answer.status
        waits = asyncio.ensure_future(checks.due(changed))
        await asyncio.sleep(0.05)
        assert not waits.done(), "all are there: nothing to do until something changes"
        changed.set()
        await asyncio.wait_for(waits, patient(5))
        await checks.close()
        return status

    assert asyncio.run(work()) == 200
    assert len(told) == 1
    assert told[0].startswith("healthCheckNodePort ")

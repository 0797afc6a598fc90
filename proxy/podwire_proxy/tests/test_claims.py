"""Claims that collide: which one wins, and what the others are told."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object
from podwire_base.role import hostports
from podwire_base.role.hostports import HostPort
from podwire_proxy import events
from podwire_proxy.changes import Tracker
from podwire_proxy.claims import displaced, lost
from podwire_proxy.claimwatch import ClaimWatch
from podwire_proxy.dataplane import Balance, Frontend, Key
from podwire_proxy.model import Protocol
from podwire_proxy.objects import about, claim_event
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import port, service
from podwire_proxy.verdict import NO_ENDPOINTS, PASS

SHARED = "198.51.100.7"


def made(
    name: str,
    created: str = "2026-01-01T00:00:00Z",
    uid: str = "",
    number: int = 80,
    protocol: str = "TCP",
    **spec: Any,
) -> Object:
    ip = f"10.96.1.{sum(name.encode()) % 200 + 1}"
    obj = service(name, ip, [port(number, protocol)], **({"externalIPs": [SHARED]} | spec))
    obj["metadata"] |= {"creationTimestamp": created, "uid": uid}
    return obj


def tracked(*found: Object) -> Tracker:
    tracker = Tracker(s.INFO)
    for obj in found:
        tracker.service(f"default/{obj['metadata']['name']}", obj)
    tracker.flush()
    return tracker


ELDER, YOUNGER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


@pytest.mark.parametrize(
    ("claims", "order"),
    [
        ([("b", ELDER, "z"), ("a", YOUNGER, "a")], "ba"),
        ([("b", ELDER, "x"), ("a", ELDER, "y")], "ba"),
        ([("b", ELDER, ""), ("a", ELDER, "")], "ab"),
        ([("c", ELDER, "9"), ("b", YOUNGER, "1"), ("a", YOUNGER, "2")], "cba"),
    ],
    ids=["the elder", "the lower uid", "the name", "three"],
)
def test_the_same_service_wins_whatever_came_first(claims: list[tuple[str, str, str]], order: str) -> None:
    key = Key(SHARED, "TCP", 80)
    for some in itertools.permutations(claims):
        tracker = tracked(*(made(*one) for one in some))
        left = list(order)
        while left:
            assert tracker.dataplane.frontends[key].service == f"default/{left[0]}"
            found = {name.removeprefix("default/"): lines for name, lines in lost(tracker.dataplane).items()}
            assert list(found) == left[1:]
            assert all(f"Service default/{left[0]} has it" in line for lines in found.values() for line in lines)
            tracker.service(f"default/{left.pop(0)}", None)
            tracker.flush()
        assert not tracker.dataplane.contested


def test_the_time_of_a_service_that_is_made_again_counts() -> None:
    tracker = tracked(made("a", ELDER), made("b", YOUNGER))
    assert list(lost(tracker.dataplane)) == ["default/b"]
    tracker.service("default/a", None)
    tracker.service("default/a", made("a", "2026-01-03T00:00:00Z"))
    tracker.flush()
    assert list(lost(tracker.dataplane)) == ["default/a"]


@pytest.mark.parametrize(
    "other",
    [
        {"number": 81},
        {"protocol": "UDP"},
        {"protocol": "SCTP"},
        {"externalIPs": ["198.51.100.8"]},
        {"externalIPs": ["2001:db8::7"]},
    ],
)
def test_different_ports_and_protocols_share_an_address(other: dict[str, Any]) -> None:
    assert lost(tracked(made("a"), made("b", **other)).dataplane) == {}


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ({}, {}, ["ExternalIP 198.51.100.7:80/TCP"]),
        (
            {},
            {"externalIPs": [], "type": "LoadBalancer", "ingress": [{"ip": SHARED}]},
            ["LoadBalancer 198.51.100.7:80/TCP"],
        ),
        (
            {"type": "LoadBalancer", "ingress": [{"ip": "198.51.100.8"}], "externalIPs": [SHARED]},
            {"externalIPs": [SHARED, "198.51.100.8"]},
            ["ExternalIP 198.51.100.7:80/TCP", "ExternalIP 198.51.100.8:80/TCP"],
        ),
    ],
)
def test_a_lost_claim_is_named(a: dict[str, Any], b: dict[str, Any], words: list[str]) -> None:
    found = lost(tracked(made("a", ELDER, **a), made("b", YOUNGER, **b)).dataplane)
    assert [line.split(" is not served: ")[0] for line in found["default/b"]] == words


def test_a_nodeport_of_two_services_is_one_line_and_equal_on_all_nodes() -> None:
    ports = [port(80, node_port=30080)]
    both = [service(name, f"10.96.1.{n}", ports, type="NodePort") for n, name in enumerate("ab", 1)]
    lines = []
    for ips in ((s.NODE_IP,), ("172.30.0.12", "172.30.1.12")):
        tracker = Tracker(replace(s.INFO, addresses=ips))
        for obj in both:
            tracker.service(f"default/{obj['metadata']['name']}", obj)
        tracker.flush()
        lines.append(lost(tracker.dataplane)["default/b"])
    assert lines[0] == lines[1]
    assert lines[0][0].startswith("nodePort 30080/TCP is not served: Service default/a has it")
    assert len(lines[0]) == 1


# ---- hostPorts


def with_node_port(protocol: str = "TCP", **spec: Any) -> Tracker:
    ports = [port(80, protocol, node_port=30080)]
    return tracked(service("a", "10.96.1.1", ports, **({"type": "NodePort"} | spec)))


@pytest.mark.parametrize(
    ("one", "where"),
    [
        (HostPort(30080, "TCP"), s.NODE_IP),
        (HostPort(30080, "TCP", "0.0.0.0"), s.NODE_IP),
        (HostPort(30080, "TCP", s.NODE_IP), s.NODE_IP),
        (HostPort(30080, "TCP", "172.30.0.99"), ""),
        (HostPort(30080, "TCP", "127.0.0.1"), ""),
        (HostPort(30080, "TCP", "::"), ""),
        (HostPort(30080, "UDP"), ""),
        (HostPort(30081, "TCP"), ""),
        (HostPort(80, "TCP"), ""),
    ],
)
def test_a_service_has_a_port_before_a_hostport(one: HostPort, where: str) -> None:
    plane = with_node_port().dataplane
    wanted = f"hostPort 30080/TCP does not lead to the pod: the NodePort of Service default/a has it at {where}"
    assert displaced(plane, [one]) == ({one: wanted} if where else {})


def test_a_hostport_loses_to_whatever_a_service_has_at_the_node() -> None:
    """Also where the Service refuses, but not where it lets packets pass."""
    one = HostPort(80, "TCP")
    tracker = tracked(
        service("a", "10.96.1.1", [port(80)], type="LoadBalancer", ingress=[{"ip": s.NODE_IP}, {"ip": SHARED}])
    )
    assert "the LoadBalancer of Service default/a has it at 172.30.0.11" in displaced(tracker.dataplane, [one])[one]
    key = Key(s.NODE_IP, "TCP", 80)
    assert tracker.dataplane.frontends[key].internal is NO_ENDPOINTS
    tracker.dataplane.frontends[key] = replace(tracker.dataplane.frontends[key], internal=PASS)
    assert displaced(tracker.dataplane, [one]) == {}
    tracker.dataplane.frontends[key] = Frontend(key, "ExternalIP", "default/b", Balance(()), None, "always")
    assert "the ExternalIP of Service default/b" in displaced(tracker.dataplane, [one])[one]


HOST_PORTS = st.builds(
    HostPort,
    st.integers(1, 65535),
    st.sampled_from(["TCP", "UDP", "SCTP"]),
    st.sampled_from(["", "0.0.0.0", "::", "10.0.0.1", "fd00::1"]),
    st.sampled_from(["", "default/web-0"]),
    st.sampled_from(["", "uid-1"]),
)


@given(st.frozensets(HOST_PORTS, max_size=5))
def test_hostports_survive_the_file(found: frozenset[HostPort]) -> None:
    assert set(hostports.decode(hostports.encode(found))) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        "[1]",
        '[{"port": "80", "protocol": "TCP"}]',
        '[{"port": 80}]',
        '[{"port": 80, "protocol": "ICMP"}]',
        '[{"port": 80, "protocol": "TCP", "host_ip": "x"}]',
        '[{"port": 80, "protocol": "TCP", "more": 1}]',
        '[{"port": 80, "protocol": "TCP", "pod": 1}]',
        '[{"port": 80, "protocol": ["TCP"]}]',
    ],
)
def test_a_spoiled_file_of_hostports_is_left_out(text: str) -> None:
    assert hostports.decode(text) == ()


# ---- who is told


class Told:
    """A ClaimWatch, and what it said."""

    def __init__(self, tracker: Tracker, run_dir: Path) -> None:
        self.events: list[Object] = []
        self.changed = 0
        self.tracker, self.run_dir = tracker, run_dir
        self.watch = ClaimWatch(run_dir, "n1", tracker, lambda whom, make: self.events.append(make(whom)), self._count)

    def _count(self) -> None:
        self.changed += 1

    def news(self) -> list[tuple[str, str, str]]:
        """(reason, kind and name of the object, first words of the message) of each new Event."""
        self.tracker.flush()
        self.watch.tell()
        self.watch.look_at_host_ports()
        found, self.events[:] = list(self.events), []
        about = [(e["involvedObject"]["kind"], e["involvedObject"]["name"]) for e in found]
        return [(e["reason"], f"{kind} {name}", e["message"]) for e, (kind, name) in zip(found, about, strict=True)]

    def host_ports(self, *found: HostPort) -> None:
        hostports.path(self.run_dir).write_text(hostports.encode(found))


def test_the_losing_service_is_told_once_by_event_and_status(tmp_path: Path) -> None:
    told = Told(tracked(made("a", ELDER), made("b", YOUNGER)), tmp_path)
    ((reason, who, what),) = told.news()
    assert (reason, who) == ("AddressTaken", "Service b")
    assert what.startswith("ExternalIP 198.51.100.7:80/TCP is not served: Service default/a has it")
    assert told.news() == []
    assert told.watch.status == [f"Service default/b: {what}"]
    assert told.watch.count == 1
    told.tracker.service("default/a", None)
    assert told.news() == []
    assert (told.watch.status, told.watch.count) == ([], 0)
    told.tracker.service("default/a", made("a", YOUNGER, "a"))
    assert [who for _, who, _ in told.news()] == ["Service a"], "the lower uid has it"


def test_the_pod_whose_hostport_a_service_has_is_told(tmp_path: Path) -> None:
    told = Told(with_node_port(), tmp_path)
    assert told.news() == [], "no file: no pod wiring of podwire's here"
    one = HostPort(30080, "TCP", "", "shop/web-0", "uid-1")
    told.host_ports(one, HostPort(8080, "TCP", "", "shop/web-1"))
    ((reason, who, what),) = told.news()
    assert (reason, who) == ("HostPortTaken", "Pod web-0")
    assert what.startswith("node n1: hostPort 30080/TCP does not lead to the pod: the NodePort of Service default/a")
    assert (told.changed, told.news()) == (1, [])
    assert told.watch.status[0].startswith("pod shop/web-0: hostPort 30080/TCP")
    told.tracker.service("default/a", None)
    assert (told.news(), told.watch.status, told.changed) == ([], [], 2)


def test_the_status_is_short(tmp_path: Path) -> None:
    told = Told(tracked(*(made(name) for name in "abcdef")), tmp_path)
    assert len(told.news()) == 5
    assert [line.split()[0] for line in told.watch.status] == ["Service"] * 3 + ["2"]


def test_all_nodes_name_the_event_of_a_lost_claim_alike_and_only_one_is_kept(capfd: Any) -> None:
    whom = about("Service", "default/b")
    one, other = (claim_event(whom, "x is not served", now) for now in (1.0, 2.0))
    assert one["metadata"]["name"] == other["metadata"]["name"] != claim_event(whom, "y", 1.0)["metadata"]["name"]
    kept: dict[str, Object] = {}

    async def get(path: str, **_: str) -> Object:
        return {"items": [{"metadata": {"uid": "u1"}}]}

    async def create(path: str, event: Object) -> None:
        if event["metadata"]["name"] in kept:
            raise Refused(409, "AlreadyExists", "it is there")
        kept[event["metadata"]["name"]] = event

    async def work() -> None:
        for node in ("n1", "n2"):
            api = cast(ApiClient, SimpleNamespace(get=get, create=create))
            events.Events(api, node).post(whom, lambda found: claim_event(found, "x is not served", 1.0))
        await asyncio.sleep(0.01)

    asyncio.run(work())
    assert [e["involvedObject"]["uid"] for e in kept.values()] == ["u1"]
    assert capfd.readouterr().err == ""


def test_protocols_are_the_proxys() -> None:
    """base may not import the proxy, so the names stand twice."""
    assert hostports.Protocol == Protocol

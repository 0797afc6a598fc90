"""The common faults: explain names the cause of each, by its code and in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from podwire.explain import walk as stages
from podwire.explain.catalogue import Catalogue
from podwire.explain.facts import Inside, Link, Route
from podwire.explain.steps import Way, fault
from podwire_base.kernel.nft.anytable import AnyChain, AnyRule, AnyTable, Raw
from podwire_base.kernel.reasons import Reason
from podwire_base.kube.meta import Object
from podwire_proxy.hostfacts import owner_of

from .explain_cluster import HTTP, PODS, SERVICES, SLICES, catalogue, endpoint_slice, pod
from .explain_world import LINKS, inside, node, port_of, say

CLIENT = "client"


def changed(name: str, **spec: Any) -> tuple[Object, ...]:
    """The Services, with one of them changed."""
    return tuple(
        {**one, "spec": {**one["spec"], **spec}} if one["metadata"]["name"] == name else one for one in SERVICES
    )


def with_pod(ip: str, **changes: Any) -> Callable[[str], Inside | None]:
    """The pods of a node, one of them changed."""

    def find(asked: str) -> Inside | None:
        if asked == ip:
            return inside(ip, **changes)
        return inside(asked) if asked.startswith(ip.rpartition(".")[0]) else None

    return find


def test_all_is_well() -> None:
    said = say(CLIENT, "web:80", catalogue())
    assert (said.verdict, said.reason, said.good, said.warnings, said.doubts) == ("forward", "", True, [], [])
    assert said.cause == "to one of 1 endpoint"
    assert [(end.ip, end.port, end.node) for end in said.ends] == [("10.244.1.2", 9376, "node1")]
    text = "\n".join(said.lines())
    for line in (
        "DNS          web.default.svc.cluster.local: Service default/web",
        "packet       10.244.1.9 -> 10.96.0.20:80/tcp, on node node1",
        "Service      default/web: 1 of 2 endpoints ready",
        "NAT          to 10.244.1.2:9376, source kept",
        "route        10.244.1.2: out of podwire0",
        "endpoint     10.244.1.2:9376: a server listens in pod default/10.244.1.2",
        "verdict      forward: to one of 1 endpoint",
    ):
        assert line in text


def test_the_way_goes_over_two_nodes() -> None:
    said = say("data/db-0", "web.default:80", catalogue())
    (end,) = said.ends
    assert (end.verdict, end.node, end.route) == ("forward", "node1", "via 172.30.0.11 out of eth0")
    assert any(node == "node1" and step.stage == "endpoint" for node, step in end.steps)


def test_wrong_target_port() -> None:
    slices = (endpoint_slice("web", {"addresses": ["10.244.1.2"]}, port=1234), SLICES[1])
    said = say(CLIENT, "web:80", catalogue(EndpointSlice=slices))
    assert (said.verdict, said.reason) == ("reject", fault.NOTHING_LISTENS)
    assert said.cause.startswith("the rules are right; 10.244.1.2:1234 itself refuses: nothing listens there")
    assert "the pod declares TCP 9376: is targetPort wrong?" in said.cause


def test_a_server_that_listens_on_loopback_only() -> None:
    said = say(CLIENT, "pod/web-5d4-a:7000", catalogue())
    assert (said.verdict, said.reason) == ("reject", fault.NOTHING_LISTENS)
    assert "its server listens on 127.0.0.1 only" in said.cause


def test_one_of_two_endpoints_refuses() -> None:
    slices = (endpoint_slice("web", {"addresses": ["10.244.1.2"]}, {"addresses": ["10.244.2.2"]}), SLICES[1])
    said = say(
        CLIENT, "web:80", catalogue(EndpointSlice=slices), node2={"inside": with_pod("10.244.2.2", listeners=())}
    )
    assert (said.verdict, said.reason) == ("forward", fault.NOTHING_LISTENS)
    assert said.cause.startswith("to one of 2 endpoints; 1 of 2 fail: the rules are right; 10.244.2.2:9376 itself")


def test_a_named_port_that_no_pod_has() -> None:
    services = changed("web", ports=[{**HTTP, "targetPort": "htpp"}])
    slices = (endpoint_slice("web"), SLICES[1])
    said = say(CLIENT, "web:80", catalogue(Service=services, EndpointSlice=slices))
    assert (said.verdict, said.reason) == ("reject", fault.NO_NAMED_PORT)
    assert "its targetPort is 'htpp', and none of its pods has a TCP port of that name: they have http" in said.cause


def test_a_selector_that_fits_no_pod() -> None:
    services, slices = changed("web", selector={"app": "wbe"}), (endpoint_slice("web"), SLICES[1])
    said = say(CLIENT, "web:80", catalogue(Service=services, EndpointSlice=slices))
    assert (said.verdict, said.reason) == ("reject", fault.NO_PODS)
    assert "its selector app=wbe fits no pod in namespace default" in said.cause


def unready(**spec: Any) -> Catalogue:
    ports = [{"name": "http", "containerPort": 9376}]
    container = {
        "name": "main",
        "ports": ports,
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
        **spec,
    }
    row: dict[str, Any] = {"name": "main", "ready": False, "state": {"running": {}}, "started": True}
    mine = pod("web-1", "10.244.1.2", "node1", ready=False, containers=[container], status={"containerStatuses": [row]})
    event = {
        "kind": "Event",
        "type": "Warning",
        "reason": "Unhealthy",
        "message": "Readiness probe failed: HTTP probe failed with statuscode: 503",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "involvedObject": {"kind": "Pod", "name": "web-1", "namespace": "default"},
    }
    slices = (endpoint_slice("web", {"addresses": ["10.244.1.2"], "conditions": {"ready": False}}), SLICES[1])
    rest = tuple(one for one in PODS if one["metadata"]["labels"].get("app") != "web")
    return catalogue(Pod=(mine, *rest), EndpointSlice=slices, Event=(event,))


def test_readiness_fails_and_the_probe_and_its_last_error_are_named() -> None:
    said = say(CLIENT, "web:80", unready())
    assert (said.verdict, said.reason) == ("reject", fault.NOT_READY)
    assert "the readinessProbe of container main of pod web-1 fails: HTTP GET /ready at port 8080" in said.cause
    assert "last error: Readiness probe failed: HTTP probe failed with statuscode: 503" in said.cause


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ({"tcpSocket": {"port": 5432}}, "TCP connection to port 5432"),
        ({"grpc": {"port": 9000}}, "gRPC health check at port 9000"),
        ({"exec": {"command": ["cat", "/ok"]}}, "command 'cat /ok'"),
    ],
)
def test_every_kind_of_probe_has_its_words(probe: dict[str, Any], words: str) -> None:
    assert words in say(CLIENT, "web:80", unready(readinessProbe=probe)).cause


def test_the_proxy_is_behind_the_api() -> None:
    old = (endpoint_slice("web", {"addresses": ["10.244.2.2"]}), SLICES[1])
    roles = {"proxy": {"ready": False, "message": "no answer of the API server"}}
    said = say(CLIENT, "web:80", catalogue(), written=catalogue(EndpointSlice=old), node1={"roles": roles})
    assert said.reason == fault.PROXY_BEHIND
    assert "lead to 10.244.2.2:9376, which the API no longer has" in said.cause
    assert "do not lead to 10.244.1.2:9376, which the API has" in said.cause
    assert "its proxy says (not ready): no answer of the API server" in said.cause


def test_a_service_that_the_proxy_does_not_know_yet() -> None:
    before = tuple(one for one in SERVICES if one["metadata"]["name"] != "web")
    said = say(CLIENT, "web:80", catalogue(), written=catalogue(Service=before))
    assert (said.verdict, said.reason) == ("drop", fault.PROXY_BEHIND)
    assert "the API has 1 endpoint for it, and the rules drop the packet" in said.cause


def test_flushed_tables() -> None:
    said = say(CLIENT, "web:80", catalogue(), node1={"live": None})
    assert said.reason == fault.NO_RULES
    assert said.cause.startswith("no rules of a proxy are on node node1, so Service default/web is not served there")


def foreign(verdict: str, *, hook: str = "forward", name: str = "fw") -> AnyTable:
    """A table of another program whose chain ends every packet."""
    codes = {"drop": b"\0\0\0\0", "accept": b"\0\0\0\1"}
    end = b"\x0c\0\2\x80" + b"\x08\0\1\0" + codes.get(verdict, b"")
    exprs = (Raw("queue", {}),) if verdict == "queue" else (Raw("immediate", {1: b"\0\0\0\0", 2: end}),)
    rule = AnyRule(7, "no pods here", exprs)
    return AnyTable("inet", name, {"chain": AnyChain("chain", hook, "filter", 0, "accept", (), [rule])})


def test_a_foreign_rule_drops_and_is_named_with_its_handle() -> None:
    said = say(CLIENT, "web:80", catalogue(), node1={"tables": (foreign("drop"),)})
    assert (said.verdict, said.reason) == ("drop", fault.FOREIGN_RULE)
    want = 'the rule with handle 7 "no pods here" of chain inet fw chain (forward) drops the packet'
    assert said.cause == want


LEFT_BY_KUBE_PROXY = """*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 203.0.113.9/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -p tcp -j DNAT --to-destination 10.244.1.2:9376
"""


def test_chains_of_other_networks_are_named_by_their_program() -> None:
    legacy = {"legacy": {"ip": LEFT_BY_KUBE_PROXY}}
    said = say(CLIENT, "203.0.113.9:80", catalogue(), node1=legacy)
    assert any("rule 1 of kube-proxy's chain KUBE-SVC-A" in doubt for doubt in said.doubts)
    assert say(CLIENT, "web:80", catalogue(), node1=legacy).doubts == []  # podwire's chain has translated it before
    assert any("translates the destination" in doubt for doubt in said.doubts)
    table = foreign("drop", name="flannel-ipv4")
    said = say(CLIENT, "web:80", catalogue(), node1={"tables": (table,)})
    assert said.verdict == "drop" and " of flannel's chain chain " in said.cause
    assert (owner_of("filter", "KUBE-NWPLCY-X"), owner_of("kube-proxy", "services")) == ("kube-router", "kube-proxy")
    assert owner_of("mine", "c") == ""


@pytest.mark.parametrize("hook", ["output", "postrouting", "prerouting", "input"])
def test_a_packet_from_a_node_to_itself_leaves_by_lo_and_comes_in_again(hook: str) -> None:
    said = say("node1", "172.30.0.11:22", catalogue(), node1={"tables": (foreign("drop", hook=hook),)})
    assert (said.verdict, said.reason) == ("drop", fault.FOREIGN_RULE) and f"({hook})" in said.cause


def test_a_foreign_rule_on_the_other_node_drops() -> None:
    said = say("data/db-0", "web.default:80", catalogue(), node1={"tables": (foreign("drop", hook="prerouting"),)})
    assert (said.verdict, said.reason, said.ends[0].node) == ("drop", fault.FOREIGN_RULE, "node1")


def test_what_cannot_be_judged_is_told_as_that() -> None:
    said = say(CLIENT, "web:80", catalogue(), node1={"tables": (foreign("queue"), foreign("accept", name="ok"))})
    assert said.verdict == "forward"
    assert "cannot tell" in said.doubts[0]
    assert "forward: inet ok chain: accept" in "\n".join(said.lines())


def test_a_pod_without_its_interface() -> None:
    gone = {"lo": Link("lo", 1)}
    said = say(CLIENT, "web:80", catalogue(), node1={"inside": with_pod("10.244.1.9", links=gone, addresses=())})
    assert (said.verdict, said.reason) == ("drop", fault.NO_INTERFACE)
    assert said.cause == "pod default/10.244.1.9 has no interface: its eth0 is gone"
    said = say(CLIENT, "web:80", catalogue(), node1={"inside": with_pod("10.244.1.2", links=gone, addresses=())})
    assert (said.verdict, said.reason) == ("drop", fault.NO_INTERFACE)
    assert "pod default/10.244.1.2 has no interface" in said.cause


def test_a_veth_that_was_deleted_and_a_link_that_is_down() -> None:
    links = dict(node("node1", catalogue()).links)
    del links[port_of("10.244.1.2")]
    said = say(CLIENT, "web:80", catalogue(), node1={"links": links})
    assert (said.reason, "veth2, the node's end of its veth, is gone" in said.cause) == (fault.NO_INTERFACE, True)
    down = {**node("node1", catalogue()).links, "eth0": replace(LINKS["eth0"], carrier=False)}
    said = say(CLIENT, "data/db-0:5432", catalogue(), node1={"links": down})
    assert (said.verdict, said.reason) == ("drop", fault.LINK_DOWN)
    assert "link eth0 of node node1 is without carrier" in said.cause


@pytest.mark.parametrize(("kind", "verdict"), [("none", "reject"), ("blackhole", "drop"), ("martian", "drop")])
def test_no_route_outside(kind: Any, verdict: str) -> None:
    def route(dst: str, src: str, iif: str) -> Route:
        return Route(kind, error="no route") if dst == "192.0.2.1" else node("node1", catalogue()).route(dst, src, iif)

    said = say(CLIENT, "192.0.2.1:443", catalogue(), node1={"route": route})
    assert (said.verdict, said.reason) == (verdict, fault.NO_ROUTE)
    assert "node node1 has no way to 192.0.2.1: no route" in said.cause


def test_a_pod_without_a_route_outside_and_a_node_that_does_not_forward() -> None:
    inside_pod = with_pod("10.244.1.9", route=lambda dst, src, iif: Route("none", error="no route"))
    said = say(CLIENT, "192.0.2.1:443", catalogue(), node1={"inside": inside_pod})
    assert (said.verdict, said.reason) == ("reject", fault.NO_ROUTE)
    assert said.cause == "pod default/10.244.1.9 has no route to 192.0.2.1: no route"

    def nothing(dst: str, src: str, iif: str) -> Route:
        return Route("unreachable") if iif else node("node1", catalogue()).route(dst, src, iif)

    said = say(CLIENT, "192.0.2.1:443", catalogue(), node1={"route": nothing, "forwarding": {"ip": False}})
    assert (said.reason, "net.ipv4.ip_forward is 0" in said.cause) == (fault.NO_FORWARDING, True)


def test_outside_is_passed_where_the_route_is_there() -> None:
    said = say(CLIENT, "192.0.2.1:443", catalogue())
    assert (said.verdict, said.reason, said.ends[0].route) == ("pass", "", "via 172.30.0.1 out of eth0")


def test_an_mtu_black_hole_is_seen_before_a_great_packet_falls_into_it() -> None:
    small = {**node("node2", catalogue()).links, "eth0": replace(LINKS["eth0"], mtu=1400)}
    said = say(CLIENT, "data/db-0:5432", catalogue(), node2={"links": small})
    assert (said.verdict, said.reason) == ("forward", fault.MTU)
    assert "eth0 of the first node sends packets of 1500 bytes, and eth0 of node2 takes 1400" in said.cause
    port = {**node("node1", catalogue()).links, port_of("10.244.1.2"): Link("veth2", 9, 1300, master="podwire0")}
    said = say(CLIENT, "web:80", catalogue(), node1={"links": port})
    assert "podwire0 sends packets of 1500 bytes, and veth2 takes 1300" in said.cause
    assert say(CLIENT, "data/db-0:5432", catalogue()).reason == ""


def test_the_answer_does_not_come_back() -> None:
    def route(dst: str, src: str, iif: str) -> Route:
        if dst == "10.244.1.9":
            return Route("blackhole", error="dropped by a route (blackhole)")
        return node("node2", catalogue()).route(dst, src, iif)

    said = say(CLIENT, "data/db-0:5432", catalogue(), node2={"route": route})
    assert (said.verdict, said.reason) == ("drop", fault.NO_REPLY)
    assert said.cause.startswith("the packet arrives at 10.244.2.3:5432, and the answer is lost on its way back")
    only = with_pod("10.244.2.3", route=lambda dst, src, iif: Route("none", error="no route"))
    said = say(CLIENT, "data/db-0:5432", catalogue(), node2={"inside": only})
    assert (said.reason, "has no route to 10.244.1.9" in said.cause) == (fault.NO_REPLY, True)


def test_a_full_conntrack_table() -> None:
    said = say(CLIENT, "web:80", catalogue(), node1={"conntrack": (1000, 1000)})
    assert (said.verdict, said.reason) == ("drop", fault.CONNTRACK_FULL)
    assert said.cause == "conntrack is full on node1: 1000 of 1000 flows, so a new one is dropped"


def test_a_host_port_that_a_service_shadows() -> None:
    ports = [{"containerPort": 9376, "hostPort": 30080}]
    mine = pod("hp", "10.244.1.7", "node1", labels={"app": "hp"}, containers=[{"name": "c", "ports": ports}])
    services = changed("web", type="NodePort", ports=[{**HTTP, "nodePort": 30080}])
    objects = catalogue(Pod=(*PODS, mine), Service=services)
    said = say(CLIENT, "node/node1:30080", objects)
    assert said.reason == fault.HOSTPORT_SHADOWED
    assert "hostPort 30080/TCP of pod default/hp is shadowed: Service default/web has this address" in said.cause
    other = {**mine, "spec": {**mine["spec"], "nodeName": "node2"}}
    assert say(CLIENT, "node/node1:30080", catalogue(Pod=(*PODS, other), Service=services)).reason == ""


def balanced() -> Catalogue:
    services = tuple(
        {**one, "status": {"loadBalancer": {"ingress": [{"ip": "172.30.0.200"}]}}}
        if one["metadata"]["name"] == "web"
        else one
        for one in changed("web", type="LoadBalancer")
    )
    return catalogue(Service=services)


def test_an_address_of_a_load_balancer_that_nobody_answers_for() -> None:
    said = say("192.0.2.7", "172.30.0.200:80", balanced(), enters="node1")
    assert (said.verdict, said.reason) == ("drop", fault.NO_ANNOUNCER)
    assert "no node runs the role lb" in said.cause
    lb = {"ready": True, "message": "answers for 0 of 1 load balancer addresses on eth0", "figures": {"mine": []}}
    said = say("192.0.2.7", "172.30.0.200:80", balanced(), enters="node1", node2={"roles": {"lb": lb}})
    assert "node2: answers for 0 of 1 load balancer addresses" in said.cause
    has = {"lb": {**lb, "figures": {"mine": ["172.30.0.200"]}}}
    said = say("192.0.2.7", "172.30.0.200:80", balanced(), enters="node1", node2={"roles": has})
    assert (said.verdict, said.reason) == ("forward", "")
    assert say(CLIENT, "172.30.0.200:80", balanced()).verdict == "forward", "pods do not need an announcer"


def test_a_dns_address_that_is_gone_from_the_node() -> None:
    said = say(CLIENT, "web:80", catalogue(), node1={"bound": False})
    assert (said.verdict, said.reason) == ("drop", fault.DNS_ADDRESS)
    assert said.cause.startswith("the cluster DNS at 10.96.0.10 does not answer on node node1")
    assert say(CLIENT, "10.96.0.20:80", catalogue(), node1={"bound": False}).reason == "", "no name, no DNS"
    said = say(CLIENT, "web:80", catalogue(), node1={"listeners": ()})
    assert "nothing listens there" in said.cause


def test_a_pod_that_does_not_ask_the_cluster_dns() -> None:
    said = say("plain", "web.default.svc.cluster.local:80", catalogue())
    assert any("dnsPolicy" in line for line in said.warnings)


def test_a_refusal_that_is_lost_is_silence() -> None:
    said = say(CLIENT, "web:81", catalogue())
    assert (said.verdict, said.reason) == ("reject", Reason.WRONG_PORT)
    said = say(CLIENT, "web:81", catalogue(), node1={"tables": (foreign("drop", hook="output"),)})
    assert (said.verdict, said.reason) == ("drop", fault.NO_REPLY)
    assert "the refusal is lost on its way back" in said.cause


def test_endpoints_of_one_kind_are_folded() -> None:
    ips = [f"10.244.2.{n}" for n in range(10, 110)]
    many = (endpoint_slice("web", *({"addresses": [ip]} for ip in ips)), SLICES[1])
    pods = tuple(pod(f"w{n}", ip, "node2") for n, ip in enumerate(ips))
    objects = catalogue(EndpointSlice=many, Pod=(*PODS, *pods))
    said = say(CLIENT, "web:80", objects, node2={"inside": inside, "links": _ports(ips)})
    lines = list(said.lines())
    assert len(said.ends) == 100
    assert len(lines) < 50, "\n".join(lines)
    assert any("and 95 more" in line and line.startswith("route") for line in lines)


def _ports(ips: list[str]) -> dict[str, Link]:
    return {**LINKS, **{port_of(ip): Link(port_of(ip), 100 + n, master="podwire0") for n, ip in enumerate(ips)}}


def test_a_node_that_cannot_be_asked_is_a_doubt_and_no_verdict() -> None:
    from podwire.explain.ask import explain
    from podwire.explain.names import parse, source, target

    from .explain_world import Nodes

    objects = catalogue()
    sender = source(CLIENT, objects)
    nodes = Nodes({"node1": node("node1", objects)})
    said = explain(sender, target(parse("data/db-0:5432"), objects, sender), objects, nodes)
    assert said.doubts == ["the way goes on at node node2, where nobody could look: node node2 is away"]


def test_a_further_step_can_end_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seam for policies and programs that are no base chain."""

    def denies(_facts: Any, asked: Any, seen: Any) -> Way | None:
        hit = asked.dst == "10.96.0.20" and seen.iif == "podwire0"
        return (
            Way(asked.dst, asked.port, asked.src, verdict="drop", reason=str(Reason.POLICY), cause="no")
            if hit
            else None
        )

    monkeypatch.setattr(stages, "LEAVING", [denies])
    said = say(CLIENT, "web:80", catalogue())
    assert (said.verdict, said.reason, said.cause) == ("drop", Reason.POLICY, "no")
    monkeypatch.setattr(stages, "LEAVING", [])
    monkeypatch.setattr(
        stages, "ENTERING", [lambda f, a, s: Way("", 0, "", verdict="drop", reason="policy", cause="in")]
    )
    said = say(CLIENT, "pod/web-5d4-a", catalogue())
    assert (said.verdict, said.cause, said.ends[0].ip) == ("drop", "in", "10.244.1.2")


def test_json_has_all_of_it() -> None:
    found = say(CLIENT, "web:80", catalogue()).to_json()
    assert found["verdict"] == "forward"
    assert found["endpoints"][0] | {"route": ""} == {
        "ip": "10.244.1.2", "port": 9376, "node": "node1", "pod": "default/10.244.1.2", "verdict": "forward",
        "reason": "", "cause": "", "masqueraded": False, "route": "",
    }  # fmt: skip
    assert {step["stage"] for step in found["steps"]} >= {"DNS", "source", "Service", "rules", "endpoint"}


def on_device(hook: str, device: str, family: str = "netdev", verdict: str = "drop") -> AnyTable:
    table = foreign(verdict, hook=hook)
    chain = replace(table.chains["chain"], devices=(device,) if device else ())
    return replace(table, family=family, chains={"chain": chain})


@pytest.mark.parametrize(
    ("at", "hook", "device", "family", "source", "target", "where"),
    [
        ("node1", "ingress", port_of("10.244.1.9"), "netdev", CLIENT, "web:80", f"ingress of {port_of('10.244.1.9')}"),
        ("node1", "ingress", "podwire0", "netdev", CLIENT, "web:80", "ingress of podwire0"),
        ("node1", "ingress", "podwire0", "inet", CLIENT, "web:80", "ingress of podwire0"),
        ("node1", "egress", "eth0", "netdev", CLIENT, "data/db-0:5432", "egress of eth0"),
        ("node2", "ingress", "eth0", "netdev", CLIENT, "data/db-0:5432", "ingress of eth0"),
        (
            "node1",
            "egress",
            port_of("10.244.1.2"),
            "netdev",
            CLIENT,
            "pod/web-5d4-a",
            f"egress of {port_of('10.244.1.2')}",
        ),
        ("node1", "output", "", "bridge", CLIENT, "pod/web-5d4-a", "bridge output"),
        ("node1", "postrouting", "", "bridge", CLIENT, "pod/web-5d4-a", "bridge postrouting"),
    ],
)
def test_chains_of_devices_and_of_the_bridge_are_in_the_way(
    at: str, hook: str, device: str, family: str, source: str, target: str, where: str
) -> None:
    facts: Any = {at: {"tables": (on_device(hook, device, family),)}}
    said = say(source, target, catalogue(), **facts)
    assert (said.verdict, said.reason) == ("drop", fault.FOREIGN_RULE), said.cause
    assert said.cause.endswith(f"of chain {family} fw chain ({where}) drops the packet")
    other: Any = {at: {"tables": (on_device(hook, "other0" if device else "", "netdev" if device else "arp"),)}}
    assert say(source, target, catalogue(), **other).verdict == "forward", "another device, and no hook of IP"


def test_a_chain_that_may_drop_arp_is_a_doubt() -> None:
    said = say(CLIENT, "data/db-0:5432", catalogue(), node1={"tables": (on_device("input", "", "arp"),)})
    assert said.verdict == "forward", "the MAC may be known already"
    assert any("arp fw chain (input) may drop the ARP of" in doubt for doubt in said.doubts)
    said = say(CLIENT, "data/db-0:5432", catalogue(), node1={"tables": (on_device("input", "", "arp", "accept"),)})
    assert said.doubts == []

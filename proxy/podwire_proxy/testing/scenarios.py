"""The conformance table. Judged by decide(), by trace() over the planned rules, and by real packets in netns-tests.

The addresses are those of one small world: node `n1` with two pods, a pod on another node, and a host outside the cluster.
Rows hold for IPv4; `Scenario.v6()` is the same row in IPv6.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from podwire_controlplane.api import meta

from ..changes import Tracker
from ..decide import DROP, PASS, REJECT, Outcome, Packet, Verdict
from ..model import LOCALHOST, Backend, NodeInfo, Protocol
from .builders import endpoint, endpoint_slice, port, service

NODE, NODE_IP, POD_A, POD_B, POD_C = "n1", "172.30.0.11", "10.244.1.2", "10.244.1.3", "10.244.2.2"
OUTSIDE = "172.30.0.1"  # the client outside the cluster
HOST = "192.0.2.42"  # a server outside the cluster
GATEWAY = "10.244.1.1"  # the node's address towards its pods
VIP, VIP2, EXTERNAL, BALANCER, UNUSED = "10.96.0.20", "10.96.0.21", "198.51.100.7", "198.51.100.8", "10.96.0.99"
PORT, NODE_PORT, TARGET = 80, 30080, 9376
B, C, H = Backend(POD_B, TARGET), Backend(POD_C, TARGET), Backend(HOST, TARGET)
INTERFACES = {POD_A: "veth0", POD_B: "veth1", POD_C: "veth2", NODE_IP: ""}  # where packets come into the node
INFO = NodeInfo(NODE, (NODE_IP,), "zone-a", ("10.244.0.0/16",), ("10.96.0.0/16",))
_V6 = ((NODE_IP, "fd00:30::11"), (GATEWAY, "fd00:244:1::1"), (POD_A, "fd00:244:1::2"),
       (POD_B, "fd00:244:1::3"), (POD_C, "fd00:244:2::2"),
       (OUTSIDE, "fd00:30::1"), (HOST, "2001:db8:2::42"), ("10.96.0.", "fd00:96::"), (EXTERNAL, "2001:db8:51::7"),
       (BALANCER, "2001:db8:51::8"), (f"{NODE_IP}/32", "fd00:30::11/128"), (f"{OUTSIDE}/32", "fd00:30::1/128"),
       ("10.244.0.0/16", "fd00:244::/32"), ("10.96.0.0/16", "fd00:96::/112"))


@dataclass(frozen=True)
class Scenario:
    """Objects, and the outcome of the first packet of a flow. `node`: what the proxy knows of its node."""

    name: str
    objects: tuple[meta.Object, ...]
    expect: Mapping[Packet, Outcome]
    node: NodeInfo = field(default=INFO)

    def tracker(self) -> Tracker:
        """A Tracker that has seen the objects; flush it."""
        made = Tracker(self.node)
        for obj in self.objects:
            (made.service if obj["kind"] == "Service" else made.slice)(meta.key(obj), obj)
        return made

    def v6(self) -> Scenario:
        """The same with IPv6 addresses; without what is on 127.0.0.1, which has no counterpart there."""
        objects = tuple(json.loads(_v6(json.dumps(obj))) for obj in self.objects)
        expect = {replace(p, src=_v6(p.src), dst=_v6(p.dst)): Outcome(o.verdict, frozenset(
            (Backend(_v6(b.ip), b.port), m) for b, m in o.to)) for p, o in self.expect.items() if p.dst != LOCALHOST}
        node = replace(self.node, addresses=tuple(map(_v6, self.node.addresses)),
                       pod_cidrs=tuple(map(_v6, self.node.pod_cidrs)),
                       service_cidrs=tuple(map(_v6, self.node.service_cidrs)), reserved=tuple(map(_v6, self.node.reserved)),
                       node_ports=None if self.node.node_ports is None else tuple(map(_v6, self.node.node_ports)))
        return Scenario(f"{self.name} (IPv6)", objects, expect, node)


def _v6(text: str) -> str:
    for old, new in sorted(_V6, key=lambda pair: -len(pair[0])):
        text = text.replace(old, new)
    return text.replace('"IPv4"', '"IPv6"')


def to(backends: Iterable[Backend], masquerade: bool) -> Outcome:
    return Outcome(Verdict.FORWARD, frozenset((b, masquerade) for b in backends))


def packet(src: str, dst: str, number: int = PORT, protocol: str = "TCP", *, bound: bool = False) -> Packet:
    return Packet(src, dst, protocol, number, src == NODE_IP, bound, INTERFACES.get(src, "eth0"))  # type: ignore[arg-type]  # table shorthand


def _everything(*, name: str = "my-service", protocol: str = "TCP", **spec: Any) -> meta.Object:
    return service(name, VIP, [port(PORT, protocol, node_port=NODE_PORT)], type="LoadBalancer", externalIPs=[EXTERNAL],
                   ingress=[{"ip": BALANCER}], **spec)


def _slice(*endpoints: Mapping[str, Any], protocol: str = "TCP", target: int = TARGET) -> meta.Object:
    return endpoint_slice("my-service", endpoints, [("", protocol, target)])


_BOTH = (endpoint(POD_B, NODE), endpoint(POD_C, "n2"))
_FRONTENDS = ((EXTERNAL, PORT), (BALANCER, PORT), (NODE_IP, NODE_PORT))
POD, SELF, OUT = POD_A, NODE_IP, OUTSIDE


def _row(source: str, external: Outcome, cluster: Outcome, protocol: str = "TCP") -> dict[Packet, Outcome]:
    out = {packet(source, ip, number, protocol): external for ip, number in _FRONTENDS}
    out[packet(source, VIP, PORT, protocol)] = cluster
    return out


_ALL, _ALL_M, _HERE, _HERE_M = to([B, C], False), to([B, C], True), to([B], False), to([B], True)


def matrix() -> list[Scenario]:
    """The masquerade matrix: source x frontend x traffic policy, with and without a local-traffic detector."""
    blind = replace(INFO, pod_cidrs=())
    whole = replace(INFO, masquerade_all=True)
    return [
        Scenario("Cluster/Cluster, TCP", (_everything(), _slice(*_BOTH)), {
            **_row(POD, _ALL_M, _ALL), **_row(SELF, _ALL_M, _ALL_M), **_row(OUT, _ALL_M, _ALL_M)}),
        Scenario("Cluster/Cluster, UDP", (_everything(protocol="UDP"), _slice(*_BOTH, protocol="UDP")), {
            **_row(POD, _ALL_M, _ALL, "UDP"), **_row(SELF, _ALL_M, _ALL_M, "UDP"), **_row(OUT, _ALL_M, _ALL_M, "UDP")}),
        Scenario("externalTrafficPolicy Local", (_everything(externalTrafficPolicy="Local"), _slice(*_BOTH)), {
            **_row(POD, _ALL, _ALL), **_row(SELF, _ALL_M, _ALL_M), **_row(OUT, _HERE, _ALL_M)}),
        Scenario("internalTrafficPolicy Local", (_everything(internalTrafficPolicy="Local"), _slice(*_BOTH)), {
            **_row(POD, _ALL_M, _HERE), **_row(SELF, _ALL_M, _HERE_M), **_row(OUT, _ALL_M, _HERE_M)}),
        Scenario("no detector", (_everything(externalTrafficPolicy="Local"), _slice(*_BOTH)), {
            **_row(POD, _HERE, _ALL), **_row(SELF, _ALL_M, _ALL), **_row(OUT, _HERE, _ALL)}, blind),
        Scenario("masquerade all", (_everything(externalTrafficPolicy="Local"), _slice(*_BOTH)), {
            **_row(POD, _ALL, _ALL_M), **_row(SELF, _ALL_M, _ALL_M), **_row(OUT, _HERE, _ALL_M)}, whole)]


def configurations() -> list[Scenario]:
    """How pods are told from the world, where NodePorts are, which externalIPs are refused."""
    prefix, one = (replace(INFO, pod_cidrs=(), pod_interface=name) for name in ("veth*", "veth0"))
    ports = replace(INFO, node_ports=(GATEWAY,))
    strict = replace(INFO, reserved=(*INFO.pod_cidrs, *INFO.service_cidrs, f"{NODE_IP}/32"))
    local = (_everything(externalTrafficPolicy="Local"), _slice(*_BOTH))
    return [
        Scenario("detector: interface prefix", local, {
            **_row(POD, _ALL, _ALL), **_row(SELF, _ALL_M, _ALL_M), **_row(OUT, _HERE, _ALL_M)}, prefix),
        Scenario("detector: one interface", local, {
            **_row(POD, _ALL, _ALL), **_row(POD_C, _HERE, _ALL_M),
            **_row(SELF, _ALL_M, _ALL_M), **_row(OUT, _HERE, _ALL_M)}, one),
        Scenario("NodePorts on chosen addresses", (_everything(), _slice(*_BOTH)), {
            packet(POD, GATEWAY, NODE_PORT): _ALL_M, packet(OUT, NODE_IP, NODE_PORT): PASS, packet(POD, VIP): _ALL}, ports),
        Scenario("externalIPs of others", (
            service("my-service", VIP, [port(PORT)], externalIPs=[POD_C, UNUSED, EXTERNAL]), _slice(*_BOTH)), {
                packet(POD, POD_C): PASS, packet(POD, UNUSED): DROP, packet(POD, EXTERNAL): _ALL_M}, strict)]


def localhost() -> list[Scenario]:
    """NodePorts on 127.0.0.1, an option: for the machine's own clients only, and always masqueraded."""
    near = replace(INFO, localhost=True)

    def row(outcome: Outcome, protocol: Protocol = "TCP", node: NodeInfo = near, **spec: Any) -> Scenario:
        policy = "".join(f", {key} {value}" for key, value in spec.items())
        return Scenario(f"NodePorts on 127.0.0.1: {protocol}{policy}{'' if node.localhost else ', switched off'}", (
            _everything(protocol=protocol, **spec), _slice(*_BOTH, protocol=protocol)), {
                Packet(LOCALHOST, LOCALHOST, protocol, NODE_PORT, True): outcome,
                packet(OUT, LOCALHOST, NODE_PORT, protocol): DROP if node.localhost else PASS,
                packet(OUT, NODE_IP, NODE_PORT, protocol): _HERE if "externalTrafficPolicy" in spec else _ALL_M}, node)

    return [row(_ALL_M), row(_ALL_M, "UDP"), row(_ALL_M, externalTrafficPolicy="Local"),
            row(_ALL_M, internalTrafficPolicy="Local"), row(PASS, node=INFO)]


def policies() -> list[Scenario]:
    """Traffic policies without a local endpoint, the fallback to terminating endpoints, hints."""
    elsewhere = _slice(endpoint(POD_C, "n2"))
    c, c_m = to([C], False), to([C], True)
    ending = endpoint(POD_B, NODE, ready=False, serving=True, terminating=True)
    return [
        Scenario("externalTrafficPolicy Local, none here", (_everything(externalTrafficPolicy="Local"), elsewhere), {
            **_row(POD, c, c), **_row(SELF, c_m, c_m), **_row(OUT, DROP, c_m)}),
        Scenario("internalTrafficPolicy Local, none here", (_everything(internalTrafficPolicy="Local"), elsewhere), {
            **_row(POD, c_m, DROP), **_row(SELF, c_m, DROP), **_row(OUT, c_m, DROP)}),
        Scenario("only terminating endpoints", (_everything(), _slice(ending)), {
            packet(POD, VIP): _HERE, packet(OUT, NODE_IP, NODE_PORT): _HERE_M}),
        Scenario("terminating beside ready", (_everything(), _slice(ending, endpoint(POD_C, "n2"))), {packet(POD, VIP): c}),
        Scenario("terminating here, ready elsewhere, Local", (
            _everything(externalTrafficPolicy="Local"), _slice(ending, endpoint(POD_C, "n2"))), {
                packet(POD, VIP): c, packet(OUT, NODE_IP, NODE_PORT): _HERE}),
        Scenario("not ready", (_everything(), _slice(endpoint(POD_B, NODE, ready=False), endpoint(POD_C, "n2"))), {
            packet(POD, VIP): c}),
        Scenario("zone hints", (_everything(), _slice(
            endpoint(POD_B, NODE, hints={"forZones": [{"name": "zone-a"}]}),
            endpoint(POD_C, "n2", hints={"forZones": [{"name": "zone-b"}]}))), {packet(POD, VIP): _HERE}),
        Scenario("zone hints, half written", (_everything(), _slice(
            endpoint(POD_B, NODE, hints={"forZones": [{"name": "zone-a"}]}), endpoint(POD_C, "n2"))), {
                packet(POD, VIP): _ALL}),
    ]


def edges() -> list[Scenario]:
    """No endpoints, wrong port, unallocated and bound addresses, hairpin, Services that are not ours."""
    one = _slice(endpoint(POD_B, NODE))
    plain = service("my-service", VIP, [port(PORT)])
    return [
        Scenario("no endpoints", (_everything(), _slice()), {
            **_row(POD, REJECT, REJECT), **_row(SELF, REJECT, REJECT), **_row(OUT, REJECT, REJECT)}),
        Scenario("no endpoints, Local", (_everything(externalTrafficPolicy="Local", internalTrafficPolicy="Local"),), {
            **_row(POD, REJECT, REJECT), **_row(SELF, REJECT, REJECT), **_row(OUT, REJECT, REJECT)}),
        Scenario("no endpoints, UDP", (_everything(protocol="UDP"),), {
            **_row(POD, REJECT, REJECT, "UDP"), **_row(OUT, REJECT, REJECT, "UDP")}),
        Scenario("wrong port or protocol of a known ClusterIP", (plain, one), {
            packet(POD, VIP, 81): REJECT, packet(SELF, VIP, 81): REJECT, packet(OUT, VIP, 81): REJECT,
            packet(POD, VIP, PORT, "UDP"): REJECT, packet(POD, VIP, 0, "ICMP"): REJECT}),
        Scenario("unallocated Service address", (plain, one), {
            packet(POD, UNUSED): DROP, packet(SELF, UNUSED): DROP, packet(OUT, UNUSED): DROP,
            packet(POD, UNUSED, PORT, "UDP"): DROP, packet(POD, UNUSED, 0, "ICMP"): DROP}),
        Scenario("a Service address that is bound on the node", (plain, one), {
            packet(POD, "10.96.0.10", 53, bound=True): PASS}),
        Scenario("hairpin", (_everything(), one), {
            packet(POD_B, VIP): _HERE_M, packet(POD_B, NODE_IP, NODE_PORT): _HERE_M, packet(POD_A, VIP): _HERE}),
        Scenario("hairpin, externalTrafficPolicy Local", (_everything(externalTrafficPolicy="Local"), one), {
            packet(POD_B, EXTERNAL): _HERE_M, packet(POD_B, NODE_IP, NODE_PORT): _HERE_M, packet(POD_A, EXTERNAL): _HERE}),
        Scenario("an endpoint outside the cluster", (plain, _slice(endpoint(HOST))), {packet(POD, VIP): to([H], False)}),
        Scenario("pod to pod is left alone", (plain, one), {packet(POD, POD_B, TARGET): PASS, packet(POD, OUTSIDE): PASS}),
        Scenario("headless and ExternalName", (
            service("my-service", "None", [port(PORT)]),
            service("named", "", [port(PORT)], type="ExternalName", externalName="example.com"), one), {
                packet(POD, VIP): DROP}),
        Scenario("another proxy's Service", (
            service("my-service", VIP, [port(PORT)], labels={"service.kubernetes.io/service-proxy-name": "other"}), one), {
                packet(POD, VIP): DROP}),
        Scenario("headless label on the slice", (plain, endpoint_slice(
            "my-service", [endpoint(POD_B, NODE)], [("", "TCP", TARGET)], labels={"service.kubernetes.io/headless": ""})), {
                packet(POD, VIP): REJECT}),
        Scenario("TCP and UDP on one number, named target ports", (
            service("my-service", VIP, [port(PORT, "TCP", "t"), port(PORT, "UDP", "u")]),
            endpoint_slice("my-service", [endpoint(POD_B, NODE)], [("t", "TCP", TARGET), ("u", "UDP", TARGET + 1)]),
            endpoint_slice("my-service", [endpoint(POD_C, "n2")], [("t", "TCP", TARGET + 1)], name="second")), {
                packet(POD, VIP): to([B, Backend(POD_C, TARGET + 1)], False),
                packet(POD, VIP, PORT, "UDP"): to([Backend(POD_B, TARGET + 1)], False)}),
        Scenario("two Services, same pods", (
            plain, one, service("other", VIP2, [port(8080)]),
            endpoint_slice("other", [endpoint(POD_B, NODE)], [("", "TCP", TARGET)])), {
                packet(POD, VIP): _HERE, packet(POD, VIP2, 8080): _HERE, packet(POD, VIP2): REJECT}),
        Scenario("load balancer that wants its packets (ipMode Proxy)", (
            service("my-service", VIP, [port(PORT)], type="LoadBalancer", ingress=[{"ip": BALANCER, "ipMode": "Proxy"}]),
            one), {
                packet(POD, BALANCER): PASS}),
        Scenario("LoadBalancer without NodePort", (
            service("my-service", VIP, [port(PORT)], type="LoadBalancer", ingress=[{"ip": BALANCER}]), one), {
                packet(POD, BALANCER): _HERE_M, packet(OUT, NODE_IP, NODE_PORT): PASS}),
    ]


def source_ranges() -> list[Scenario]:
    """loadBalancerSourceRanges: only the load balancer's address asks where a packet comes from, before all translation."""
    def row(*ranges: str, **spec: Any) -> tuple[meta.Object, ...]:
        return _everything(loadBalancerSourceRanges=list(ranges), **spec), _slice(*_BOTH)

    lb = [packet(source, BALANCER) for source in (POD, SELF, OUT)]
    return [
        Scenario("source ranges: the world outside", row(f" {OUT}/32 "), {
            lb[0]: DROP, lb[1]: DROP, lb[2]: _ALL_M, packet(HOST, BALANCER): DROP,
            packet(POD, VIP): _ALL, packet(POD, NODE_IP, NODE_PORT): _ALL_M, packet(OUT, NODE_IP, NODE_PORT): _ALL_M,
            packet(HOST, NODE_IP, NODE_PORT): _ALL_M, packet(HOST, EXTERNAL): _ALL_M}),
        Scenario("source ranges: pods and the node", row("10.244.0.0/16", f"{NODE_IP}/32"), {
            lb[0]: _ALL_M, lb[1]: _ALL_M, lb[2]: DROP}),
        Scenario("source ranges: everyone", row(f"{OUT}/32", "0.0.0.0/0", "::/0"), {
            lb[0]: _ALL_M, lb[1]: _ALL_M, lb[2]: _ALL_M}),
        Scenario("source ranges, externalTrafficPolicy Local", row(f"{OUT}/32", externalTrafficPolicy="Local"), {
            lb[0]: DROP, lb[1]: DROP, lb[2]: _HERE, packet(HOST, NODE_IP, NODE_PORT): _HERE}),
        Scenario("source ranges, no endpoints", (_everything(loadBalancerSourceRanges=[f"{OUT}/32"]), _slice()), {
            lb[0]: DROP, lb[2]: REJECT, packet(POD, NODE_IP, NODE_PORT): REJECT}),
    ]


@dataclass(frozen=True)
class Affinity:
    """Packets of one client. Wherever the first of `same` went, the others go; those of `apart` are not bound by it."""

    name: str
    objects: tuple[meta.Object, ...]
    same: tuple[Packet, ...]
    apart: tuple[Packet, ...] = ()
    node: NodeInfo = field(default=INFO)

    def scenario(self) -> Scenario:
        return Scenario(self.name, self.objects, dict.fromkeys((*self.same, *self.apart), PASS), self.node)

    def v6(self) -> Affinity:
        changed = self.scenario().v6()
        sent = tuple(changed.expect)
        return Affinity(changed.name, changed.objects, sent[:len(self.same)], sent[len(self.same):], changed.node)


def affinity() -> list[Affinity]:
    """sessionAffinity ClientIP: by client address and Service port, over all its frontends."""
    sticky: dict[str, Any] = {"sessionAffinity": "ClientIP"}
    brief: dict[str, Any] = {**sticky, "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 30}}}

    def everywhere(source: str, protocol: str = "TCP") -> tuple[Packet, ...]:
        return tuple(_row(source, PASS, PASS, protocol))

    two = service("my-service", VIP, [port(PORT, "TCP", "t"), port(PORT, "UDP", "u")], **sticky)
    both = endpoint_slice("my-service", _BOTH, [("t", "TCP", TARGET), ("u", "UDP", TARGET)])
    return [
        Affinity("affinity: a pod, every frontend", (_everything(**sticky), _slice(*_BOTH)), everywhere(POD)),
        Affinity("affinity: this node", (_everything(**brief), _slice(*_BOTH)), everywhere(SELF)),
        Affinity("affinity: outside, UDP", (_everything(**sticky, protocol="UDP"), _slice(*_BOTH, protocol="UDP")),
                 everywhere(OUT, "UDP")),
        Affinity("affinity: another port of the Service", (two, both), (packet(POD, VIP),), (packet(POD, VIP, PORT, "UDP"),)),
        Affinity("affinity: another client", (_everything(**sticky), _slice(*_BOTH)), (packet(POD, VIP),),
                 (packet(OUT, VIP),)),
        Affinity("affinity: externalTrafficPolicy Local, a pod", (
            _everything(**sticky, externalTrafficPolicy="Local"), _slice(*_BOTH)), everywhere(POD)),
        Affinity("affinity: externalTrafficPolicy Local, outside", (
            _everything(**sticky, externalTrafficPolicy="Local"), _slice(*_BOTH, endpoint(POD_A, NODE))),
            tuple(packet(OUT, ip, n) for ip, n in _FRONTENDS), (packet(OUT, VIP),)),
        Affinity("affinity: internalTrafficPolicy Local", (
            _everything(**sticky, internalTrafficPolicy="Local"), _slice(*_BOTH, endpoint(POD_A, NODE))),
            (packet(OUT, VIP),), tuple(packet(OUT, ip, n) for ip, n in _FRONTENDS)),
    ]


SCENARIOS = matrix() + configurations() + localhost() + policies() + edges() + source_ranges()
AFFINITY = affinity()

"""The proxy's answers over HTTP to load balancers and operators."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP

from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient
from lab.proxyrole import Running, until
from lab.serviceworld import World, ask
from podwire_base.kube.meta import Object
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

CHECK = 30500


@pytest.fixture
def world(lab: Lab) -> Iterator[World]:
    made = World(lab)
    yield made
    made.close()


def node(**spec: Any) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": s.NODE},
        "spec": spec,
        "status": {"addresses": [{"type": "InternalIP", "address": s.NODE_IP}]},
    }


def local(policy: str) -> Object:
    return service(
        "my-service",
        s.VIP,
        [port(s.PORT, node_port=s.NODE_PORT)],
        type="LoadBalancer",
        externalTrafficPolicy=policy,
        healthCheckNodePort=CHECK,
        ingress=[{"ip": s.BALANCER}],
    )


def get(ns: NetNS, number: int, path: str, host: str = "127.0.0.1") -> tuple[int, str, dict[str, str]]:
    """(status, body, headers); status 0 if nothing listens."""

    def work() -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection(host, number, timeout=patient(10))
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), dict(answer.headers)
        except (ConnectionRefusedError, ConnectionResetError):  # the latter: it was closed during our request
            return 0, "", {}
        finally:
            connection.close()

    return ns.call(work)


def test_all_that_is_asked_over_http(world: World, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        json.dumps(
            {
                "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                "kind": "KubeProxyConfiguration",
                "mode": "nftables",
                "hostnameOverride": s.NODE,
                "metricsBindAddress": "127.0.0.1:10249",
                "healthzBindAddress": "0.0.0.0:10256",
                "conntrack": {"tcpCloseWaitTimeout": "1h"},
                "nodePortAddresses": [s.NODE_IP + "/32", s.GATEWAY + "/32"],
                "typo": 1,
            }
        )
    )
    here, there = endpoint(s.POD_B, s.NODE), endpoint(s.POD_C, "n2")

    def endpoints(*found: Object) -> Object:
        made = endpoint_slice("my-service", found, [("", "TCP", s.TARGET)])
        made["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"}
        return made

    def check() -> tuple[int, str, dict[str, str]]:
        return get(world.outside, CHECK, "/anything", s.NODE_IP)

    with FakeApi(world.node) as api:
        api.apply(node(), local("Local"), endpoints(here, there))
        proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path, "--config", str(file))
        until(proxy.ready, "the first sync")
        assert get(world.node, 10249, "/proxyMode")[1] == "nftables"
        assert (
            json.loads(get(world.node, 10249, "/configz")[1])["kubeproxy.config.k8s.io"]["hostnameOverride"] == s.NODE
        )
        assert (
            world.node.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait"]).stdout.strip()
            == "3600"
        )
        timeouts = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
        assert world.node.run(["cat", timeouts]).stdout.strip() == "86400", (
            "kube-proxy's default, where the file is silent"
        )
        for address in (s.NODE_IP, s.GATEWAY):
            assert ask(world.client(s.POD_A), address, s.NODE_PORT).result == "ok"

        until(lambda: check()[0] == 200, "the health check port")
        _, body, headers = check()
        assert json.loads(body) == {
            "service": {"namespace": "default", "name": "my-service"},
            "localEndpoints": 1,
            "serviceProxyHealthy": True,
        }
        assert headers["X-Load-Balancing-Endpoint-Weight"] == "1"
        api.apply(endpoints(there))
        until(lambda: check()[0] == 503, "no endpoint here")
        text = get(world.node, 10249, "/metrics")[1]
        assert (
            'kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1' in text
        )
        assert 'kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1' in text
        api.apply(local("Cluster"))
        until(lambda: check()[0] == 0, "the port is closed with the policy")

        for path in ("/healthz", "/livez"):
            status, body, _ = get(world.outside, 10256, path, s.NODE_IP)
            assert (status, json.loads(body)["healthy"]) == (200, True)
        api.apply(node(taints=[{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]))
        until(
            lambda: get(world.outside, 10256, "/healthz", s.NODE_IP)[0] == 503, "a node that goes takes no new traffic"
        )
        assert get(world.outside, 10256, "/livez", s.NODE_IP)[0] == 200
        assert 'kubeproxy_proxy_healthz_total{code="503"}' in get(world.node, 10249, "/metrics")[1]
        log = proxy.stop()
    assert "typo: is not a key" in log


def test_what_keeps_services_from_working_is_named(world: World, tmp_path: Path) -> None:
    world.node.run(["nft", "add", "table", "ip", "filter"])
    world.node.run(["nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"])
    world.node.sysctl("net/ipv4/ip_forward", "0")
    with FakeApi(world.node) as api:
        api.apply(node())
        proxy = Running(world.node, api.kubeconfig(tmp_path / "kubeconfig"), tmp_path)
        until(proxy.ready, "the first sync")
        message = json.loads(proxy.status_file.read_text())["message"]
        log = proxy.stop()
    for words in ("net.ipv4.ip_forward is 0", "chain FORWARD of table ip filter"):
        assert words in message
        assert words in log


BACKENDS = [("nftables", "auto"), ("iptables", "nft"), ("iptables", "legacy")]


@pytest.mark.parametrize(("backend", "variant"), BACKENDS)
def test_packets_that_the_rules_count_are_on_the_metrics_page(
    world: World, tmp_path: Path, backend: str, variant: str
) -> None:
    """Invalid packets, and connections to NodePorts on 127.0.0.1: from the counters of the rules themselves."""
    own = "kubeproxy_iptables" if backend == "iptables" else "podwire_proxy"

    def shown() -> tuple[int, int]:
        lines = dict(
            line.rsplit(" ", 1) for line in get(world.node, 10249, "/metrics")[1].splitlines() if line[:1] != "#"
        )
        return (
            int(lines[f"{own}_ct_state_invalid_dropped_packets_total"]),
            int(lines[f"{own}_localhost_nodeports_accepted_packets_total"]),
        )

    def stale_attempts() -> None:
        """A reset for an unknown connection has no state that conntrack knows."""
        packet = bytes(IP(src=s.POD_A, dst=s.POD_B) / TCP(sport=9, dport=9, flags="R"))

        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
                raw.sendto(packet, (s.POD_B, 0))

        world.client(s.POD_A).call(work)

    with FakeApi(world.node) as api:
        api.apply(
            node(), local("Cluster"), endpoint_slice("my-service", [endpoint(s.POD_B, s.NODE)], [("", "TCP", s.TARGET)])
        )
        proxy = Running(
            world.node,
            api.kubeconfig(tmp_path / "kubeconfig"),
            tmp_path,
            "--backend",
            backend,
            "--iptables-variant",
            variant,
            "--localhost-node-ports",
            "--metrics-address",
            "127.0.0.1:10249",
        )
        until(proxy.ready, "the first sync")
        before = shown()
        assert before[1] == 0
        for _ in range(3):
            assert ask(world.node, "127.0.0.1", s.NODE_PORT).result == "ok"
            assert ask(world.node, s.NODE_IP, s.NODE_PORT).result == "ok"
            stale_attempts()
        until(lambda: shown() == (before[0] + 3, 3), f"three of each, and no more: {shown()}")
        proxy.stop()

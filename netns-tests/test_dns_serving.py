"""Feeder and server on a node, asked with real packets by ordinary clients over UDP and TCP."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from lab.apifake import FakeApi
from lab.dnsnode import DNS_ADDRESS, NAMESPACES, SERVICES, SLICES, DnsNode, eventually
from lab.dnsupstream import Upstream
from lab.netns import Lab

ZONE = "cluster.local."


def service(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def endpoint_slice(name: str, owner: str, addresses: list[str], **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": owner}},
            "addressType": "IPv4", "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [{"addresses": [a], "conditions": {"ready": True}} for a in addresses], **more}


class World(DnsNode):
    """With the questions that a test asks."""

    def ask(self, name: str, rtype: str = "A", *, tcp: bool = False) -> dns.message.Message:
        query = dns.message.make_query(name, rtype)
        send = dns.query.tcp if tcp else dns.query.udp
        return self.node.call(lambda: send(query, DNS_ADDRESS, timeout=5))

    def data(self, name: str, rtype: str = "A", *, tcp: bool = False) -> set[str]:
        """The records of the asked type as text; empty for NODATA and errors."""
        wanted = dns.rdatatype.from_text(rtype)
        return {r.to_text() for rrset in self.ask(name, rtype, tcp=tcp).answer if rrset.rdtype == wanted for r in rrset}


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> Iterator[World]:
    node, outside = lab.netns("node"), lab.netns("upstream")
    lab.wire(node, "eth0", outside, "eth0", "192.0.2.1/24", "192.0.2.53/24")
    with FakeApi(node) as api, Upstream(outside, "192.0.2.53") as upstream:
        api.put(NAMESPACES, {"metadata": {"name": "default"}})
        api.put(SERVICES, service("web", clusterIP="10.96.3.7", clusterIPs=["10.96.3.7"], ports=[
            {"name": "http", "port": 80, "protocol": "TCP"}]))
        api.put(SERVICES, service("db", clusterIP="None", clusterIPs=["None"], ports=[{"name": "http", "port": 80}]))
        api.put(SLICES, endpoint_slice("db-1", "db", ["10.244.1.2", "10.244.2.3"]))
        api.put(SERVICES, service("ext", type="ExternalName", externalName="www.example.com"))
        with World(node, api, tmp_path, [upstream], []) as made:
            made.start("server")
            made.start("feeder")
            eventually(lambda: made.status("dns").get("reason") == "Ready", "the server has the zone")
            yield made


def test_every_record_type_over_udp_and_tcp(world: World) -> None:
    for tcp in (False, True):
        assert world.data(f"web.default.svc.{ZONE}", tcp=tcp) == {"10.96.3.7"}
        assert world.data(f"db.default.svc.{ZONE}", tcp=tcp) == {"10.244.1.2", "10.244.2.3"}
        assert world.data(f"10-244-1-2.db.default.svc.{ZONE}", tcp=tcp) == {"10.244.1.2"}
        assert world.data("7.3.96.10.in-addr.arpa.", "PTR", tcp=tcp) == {f"web.default.svc.{ZONE}"}
        assert world.data(f"_http._tcp.web.default.svc.{ZONE}", "SRV", tcp=tcp) == {f"0 100 80 web.default.svc.{ZONE}"}
        assert world.data(f"ext.default.svc.{ZONE}", "CNAME", tcp=tcp) == {"www.example.com."}
        assert world.data(f"ext.default.svc.{ZONE}", tcp=tcp) == {"198.51.100.7"}
        assert world.data("www.example.com.", tcp=tcp) == {"198.51.100.7"}
        assert world.ask(f"nobody.default.svc.{ZONE}", tcp=tcp).rcode() == dns.rcode.NXDOMAIN
        assert world.ask("missing.example.com.", tcp=tcp).rcode() == dns.rcode.NXDOMAIN


def test_changes_show_at_once_also_for_names_that_were_missing(world: World) -> None:
    name = f"fresh.default.svc.{ZONE}"
    assert world.ask(name).rcode() == dns.rcode.NXDOMAIN
    world.api.put(SERVICES, service("fresh", clusterIP="10.96.9.9", ports=[{"port": 80}]))
    eventually(lambda: world.data(name) == {"10.96.9.9"}, "the new Service has its name")
    world.api.put(SLICES, endpoint_slice("db-1", "db", ["10.244.2.3", "10.244.2.4"]))
    eventually(lambda: world.data(f"db.default.svc.{ZONE}") == {"10.244.2.3", "10.244.2.4"}, "the pods changed")
    world.api.delete(SERVICES, "fresh", "default")
    eventually(lambda: world.ask(name).rcode() == dns.rcode.NXDOMAIN, "the deleted Service has no name")


def test_feeder_killed_and_started_again(world: World) -> None:
    world.kill("feeder")
    eventually(lambda: world.status("dns").get("reason") == "Stale", "the server says that the feeder is away")
    assert world.data(f"web.default.svc.{ZONE}") == {"10.96.3.7"}
    world.api.put(SERVICES, service("late", clusterIP="10.96.8.8", ports=[{"port": 80}]))
    world.start("feeder")
    eventually(lambda: world.data(f"late.default.svc.{ZONE}") == {"10.96.8.8"}, "the zone is fed again")
    assert world.data(f"web.default.svc.{ZONE}") == {"10.96.3.7"}


def test_not_synced_is_servfail_and_never_nxdomain(world: World) -> None:
    world.kill("feeder")
    assert world.kill("server", signal.SIGTERM) == 0
    world.start("server")
    eventually(lambda: world.status("dns").get("reason") == "NotSynced", "the server runs without a zone")

    def rcode(name: str) -> int:
        try:
            return int(world.ask(name).rcode())
        except OSError:
            return -1

    eventually(lambda: rcode(f"web.default.svc.{ZONE}") == dns.rcode.SERVFAIL, "SERVFAIL")
    assert rcode("www.example.com.") == dns.rcode.NOERROR
    world.start("feeder")
    eventually(lambda: world.data(f"web.default.svc.{ZONE}") == {"10.96.3.7"}, "the zone is whole")


def test_search_path_with_ordinary_clients(world: World, tmp_path: Path) -> None:
    resolv = tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {DNS_ADDRESS}\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n"
                      "options ndots:5 timeout:2 attempts:1\n")
    script = f"mount --bind {resolv} /etc/resolv.conf && exec \"$@\""

    def pod(*command: str) -> str:
        return world.node.run(["unshare", "--mount", "sh", "-c", script, "sh", *command], check=False).stdout

    assert pod("getent", "ahostsv4", "web").split()[0] == "10.96.3.7"
    assert pod("getent", "ahostsv4", "web.default").split()[0] == "10.96.3.7"
    assert pod("getent", "ahostsv4", "www.example.com").split()[0] == "198.51.100.7"
    assert {line.split()[0] for line in pod("getent", "ahostsv4", "db").splitlines()} == {"10.244.1.2", "10.244.2.3"}
    assert pod("getent", "ahostsv4", "ext").split()[0] == "198.51.100.7"
    assert pod("getent", "hosts", "10.96.3.7").split() == ["10.96.3.7", "web.default.svc.cluster.local"]
    assert pod("getent", "ahostsv4", "nobody") == ""
    assert pod("dig", "+search", "+short", "web").split() == ["10.96.3.7"]
    assert os.stat("/etc/resolv.conf").st_ino != resolv.stat().st_ino

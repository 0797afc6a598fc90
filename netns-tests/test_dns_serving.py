"""Feeder and server on a node. Ordinary clients send real queries over UDP and TCP."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest

from lab.dnsnode import DNS_ADDRESS, NAMESPACES, SERVICES, SLICES, DnsNode, eventually
from lab.dnsupstream import Upstream
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.patience import patient

ZONE = "cluster.local."


def service(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def endpoint_slice(name: str, owner: str, addresses: list[str], **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": owner}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": [a], "conditions": {"ready": True}} for a in addresses],
        **more,
    }


class World(DnsNode):
    """A node's DNS with the queries that a test sends."""

    def ask(self, name: str, rtype: str = "A", *, tcp: bool = False) -> dns.message.Message:
        query = dns.message.make_query(name, rtype)
        send = dns.query.tcp if tcp else dns.query.udp
        return self.node.call(lambda: send(query, DNS_ADDRESS, timeout=patient(5)))

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
        api.put(
            SERVICES,
            service(
                "web",
                clusterIP="10.96.3.7",
                clusterIPs=["10.96.3.7"],
                ports=[{"name": "http", "port": 80, "protocol": "TCP"}],
            ),
        )
        api.put(SERVICES, service("db", clusterIP="None", clusterIPs=["None"], ports=[{"name": "http", "port": 80}]))
        api.put(SLICES, endpoint_slice("db-1", "db", ["10.244.1.2", "10.244.2.3"]))
        api.put(SERVICES, service("ext", type="ExternalName", externalName="www.example.com"))
        with World(node, api, tmp_path, [upstream], []) as made:
            made.start("server")
            made.start("feeder")
            eventually(made.is_ready, "the server has the zone")
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
    resolv.write_text(
        f"nameserver {DNS_ADDRESS}\nsearch default.svc.cluster.local svc.cluster.local cluster.local\n"
        "options ndots:5 timeout:10 attempts:1\n"
    )
    script = f'mount --bind {resolv} /etc/resolv.conf && exec "$@"'

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


def test_dual_stack_and_two_servers_one_of_which_dies_under_load(lab: Lab, tmp_path: Path) -> None:
    node = lab.netns("node")
    v6 = "fd00:96::a"
    with FakeApi(node) as api:
        api.put(NAMESPACES, {"metadata": {"name": "default"}})
        api.put(SERVICES, service("web", clusterIP="fd00:96::7", clusterIPs=["fd00:96::7"], ports=[{"port": 80}]))
        flags = [
            "--listen",
            DNS_ADDRESS,
            "--listen",
            v6,
            "--service-cidr",
            "10.96.0.0/16",
            "--service-cidr",
            "fd00:96::/112",
        ]
        first, second = tmp_path / "1", tmp_path / "2"
        for path in (first, second):
            path.mkdir()
        with World(node, api, first, [], flags) as one, World(node, api, second, [], flags) as two:
            for world in (one, two):
                world.start("server")
                world.start("feeder")
            for world in (one, two):
                eventually(world.is_ready, "a server has the zone")

            def asked(address: str, count: int) -> int:
                """The number of `count` queries, each from its own port, that are answered; one try and one retry
                each.
                """
                good = 0
                for _ in range(count):
                    for _attempt in range(2):
                        try:
                            query = dns.message.make_query(f"web.default.svc.{ZONE}", "AAAA")
                            answer = dns.query.udp(query, address, timeout=patient(4))
                        except (OSError, dns.exception.Timeout):
                            continue
                        good += answer.answer[0][0].to_text() == "fd00:96::7"
                        break
                return good

            for address in (DNS_ADDRESS, v6):
                assert node.call(partial(asked, address, 20)) == 20
            names = node.call(
                lambda: dns.query.udp(
                    dns.message.make_query(dns.reversename.from_address("fd00:96::7"), "PTR"), v6, timeout=patient(5)
                )
            )
            assert names.answer[0][0].to_text() == f"web.default.svc.{ZONE}"
            assert "podwire-dns" in node.run(["nft", "list", "table", "ip6", "podwire-dns"]).stdout
            one.kill("server")
            assert node.call(partial(asked, v6, 100)) == 100
            assert two.kill("server", signal.SIGTERM) == 0
            assert two.status("dns")["reason"] == "Stopped"


def test_a_bad_setting_is_an_error_line_not_a_traceback(lab: Lab, tmp_path: Path) -> None:
    node = lab.netns("node")
    with FakeApi(node) as api, World(node, api, tmp_path, [], ["--upstream", DNS_ADDRESS]) as made:
        made.start("server")
        assert made.processes["server"].wait(patient(30)) == 1
        assert (
            made.logs().splitlines()[-1].startswith(f"podwire dns server: upstream '{DNS_ADDRESS}' is this DNS itself")
        )


def test_the_api_server_goes_away_and_comes_back_changed(lab: Lab, tmp_path: Path) -> None:
    node = lab.netns("node")
    web = service("web", clusterIP="10.96.3.7", clusterIPs=["10.96.3.7"], ports=[{"port": 80}])
    late = service("late", clusterIP="10.96.3.8", clusterIPs=["10.96.3.8"], ports=[{"port": 80}])
    with FakeApi(node) as api, World(node, api, tmp_path, [], []) as made:
        api.put(SERVICES, web)
        made.start("server")
        made.start("feeder")
        eventually(made.is_ready, "the server has the zone")
        api.close()
        assert made.data(f"web.default.svc.{ZONE}") == {"10.96.3.7"}
        made.kill("server")
        made.start("server")
        eventually(made.is_ready, "a server that starts now is fed from the feeder's memory")
        assert made.data(f"web.default.svc.{ZONE}") == {"10.96.3.7"}
        again = api.restart(node)
        again.put(SERVICES, late)
        again.delete(SERVICES, "web", "default")
        with again:
            eventually(lambda: made.data(f"late.default.svc.{ZONE}") == {"10.96.3.8"}, "the new Service has its name")
            eventually(lambda: made.ask(f"web.default.svc.{ZONE}").rcode() == dns.rcode.NXDOMAIN, "the old one is gone")

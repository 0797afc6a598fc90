"""What the DNS needs on its node comes back after other programs removed it: addresses on lo, lo itself, the rules."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import dns.exception
import dns.message
import dns.query
import pytest

from lab.dnsnode import DNS_ADDRESS, NAMESPACES, SERVICES, DnsNode, eventually
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.patience import patient
from podwire_dns import healing

V6 = "fd00:96::a"
NAME = "web.default.svc.cluster.local."
WEB = {
    "metadata": {"name": "web", "namespace": "default"},
    "spec": {"clusterIP": "10.96.3.7", "clusterIPs": ["10.96.3.7"], "ports": [{"name": "http", "port": 80}]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsNode]:
    with Lab() as lab:
        node = lab.netns("node")
        with FakeApi(node) as api:
            api.put(NAMESPACES, {"metadata": {"name": "default"}})
            api.put(SERVICES, WEB)
            flags = ["--listen", DNS_ADDRESS, "--listen", V6]
            with DnsNode(node, api, tmp_path_factory.mktemp("run"), [], flags) as made:
                assert healing.LOOK_SECONDS <= 5  # at most half of the time that a repair may take
                made.first = (
                    "from podwire_dns import healing, server; healing.LOOK_SECONDS = server.STATUS_SECONDS = 0.2"
                )
                made.start("server")
                made.start("feeder")
                eventually(made.is_ready, "the server has the zone")
                yield made


def answered(world: DnsNode, address: str) -> bool:
    query = dns.message.make_query(NAME, "A")
    try:
        return bool(world.node.call(lambda: dns.query.udp(query, address, timeout=0.3)).answer)
    except (OSError, dns.exception.Timeout):
        return False


def rules(world: DnsNode) -> str:
    """The rules of both tables, without their handles; they stay the same over a repair."""
    found = json.loads(world.node.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]
    kept = [each["rule"] for each in found if "rule" in each and each["rule"]["table"] == "podwire-dns"]
    return json.dumps([{key: value for key, value in rule.items() if key != "handle"} for rule in kept])


@pytest.mark.parametrize(
    "harm",
    [
        f"ip addr del {DNS_ADDRESS}/32 dev lo",
        "ip addr flush dev lo",
        f"ip -6 addr del {V6}/128 dev lo",
        "ip link set lo down",
    ],
)
def test_the_addresses_come_back(world: DnsNode, harm: str) -> None:
    before = world.status("dns")["figures"].get("repairs", 0)
    world.node.run(harm.split())
    began = time.monotonic()
    eventually(lambda: world.status("dns")["figures"].get("repairs", 0) > before, "the status has the repair")
    eventually(lambda: answered(world, DNS_ADDRESS) and answered(world, V6), "both addresses answer again")
    assert time.monotonic() - began < patient(10)
    assert " on lo, 20" in world.status("dns")["figures"]["repaired"]
    assert "another program removed what the DNS needs, put back" in world.logs()
    assert world.status("dns")["ready"]


@pytest.mark.parametrize(
    "harm",
    [
        "delete table ip podwire-dns",
        "flush table ip podwire-dns",
        "flush ruleset",
        "flush chain ip6 podwire-dns output",
        "add rule ip podwire-dns output drop",
        "insert rule ip podwire-dns prerouting accept",
    ],
)
def test_the_rules_come_back(world: DnsNode, harm: str) -> None:
    before, repairs = rules(world), world.status("dns")["figures"].get("repairs", 0)
    assert before.count("cluster DNS") == 16
    world.node.run(["nft", *harm.split()])
    began = time.monotonic()
    eventually(lambda: world.status("dns")["figures"].get("repairs", 0) > repairs, "the status has the repair")
    eventually(lambda: rules(world) == before, "the rules are back")
    assert time.monotonic() - began < patient(10)
    assert "nft table ip" in world.status("dns")["figures"]["repaired"]

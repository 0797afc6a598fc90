"""What the DNS needs on its node comes back after other programs removed it: addresses on lo, lo itself, the rules."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import pytest

from lab.dnsnode import DNS_ADDRESS, NAMESPACES, SERVICES, DnsNode, eventually
from lab.fakeapi import FakeApi
from lab.netns import Lab
from lab.patience import patient

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
                # the kernel tells of it: the looks at counts are an hour away
                made.first = (
                    "from podwire_dns import healing, role; role.STATUS_SECONDS = 0.2; healing.LOOK_SECONDS = 3600"
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
    assert "another program changed what this role keeps in the kernel, mended" in world.logs()
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


@pytest.mark.parametrize(
    "harm", [f"ip addr del {DNS_ADDRESS}/32 dev lo", "nft insert rule ip podwire-dns output accept"]
)
def test_counts_find_what_no_notification_told(tmp_path: Path, harm: str) -> None:
    """A queue that overflowed, a kernel that tells less: the looks find it."""
    with Lab() as lab:
        node = lab.netns("node")
        with FakeApi(node) as api, DnsNode(node, api, tmp_path, [], ["--listen", DNS_ADDRESS]) as made:
            made.first = (
                "from podwire_dns import healing, role; role.STATUS_SECONDS = 0.2; healing.LOOK_SECONDS = 0.3; "
                "healing._watches = tuple"
            )
            made.start("server")
            eventually(lambda: "serving" in made.logs(), "the server runs")
            node.run(harm.split())
            eventually(lambda: made.status("dns")["figures"].get("repairs", 0) == 1, "it was mended")
            assert "; mended: " in made.status("dns")["message"] or not made.status("dns")["ready"]

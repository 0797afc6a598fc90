"""Upstreams with faults: over TLS, slow, flapping, lying, truncating, silent. And the effect of prefetch and
serve-stale."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from lab.dnsnode import DNS_ADDRESS, NAMESPACES, DnsNode, eventually
from lab.dnstls import Authority, TlsUpstream
from lab.dnsupstream import Upstream
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS
from lab.patience import patient, wait_until
from podwire_dns.sources import is_local

FIRST, SECOND = "192.0.2.53", "198.18.0.53"
SERVERNAME = "resolver.test"


class Outside:
    """A node with two upstream namespaces; `start(upstreams, flags)` runs its DNS."""

    def __init__(self, lab: Lab, tmp_path: Path, stack: ExitStack) -> None:
        self.node, self.tmp_path, self.stack = lab.netns("node"), tmp_path, stack
        self.places: list[NetNS] = []
        for index, (gateway, address) in enumerate((("192.0.2.1", FIRST), ("198.18.0.1", SECOND))):
            place = lab.netns(f"upstream {index}")
            lab.wire(self.node, f"eth{index}", place, "eth0", f"{gateway}/24", f"{address}/24")
            self.places.append(place)
        self.api = stack.enter_context(FakeApi(self.node))
        self.api.put(NAMESPACES, {"metadata": {"name": "default"}})
        self.authority = Authority(tmp_path)

    def plain(self, index: int = 0, world: dict[str, str] | None = None) -> Upstream:
        made = Upstream(self.places[index], (FIRST, SECOND)[index], *([world] if world else []))
        return self.stack.enter_context(made)

    def tls(self, index: int = 0, *names: str, client: bool = False) -> TlsUpstream:
        certificate, key = self.authority.server(*(names or (SERVERNAME,)))
        made = TlsUpstream(
            self.places[index], (FIRST, SECOND)[index], certificate, key, self.authority.ca if client else None
        )
        return self.stack.enter_context(made)

    def start(self, *flags: str) -> DnsNode:
        made = self.stack.enter_context(DnsNode(self.node, self.api, self.tmp_path, [], list(flags)))
        made.start("server")
        made.start("feeder")
        eventually(made.is_ready, "the server has the zone")
        return made

    def start_one(self, *flags: str) -> DnsNode:
        """With an upstream over TLS, and without a spare server, which has a connection of its own."""
        return self.start("--no-spare", "--upstream", f"tls://{FIRST}", *flags)

    def ask(self, name: str, seconds: float = 10) -> dns.message.Message:
        return self.node.call(lambda: dns.query.udp(dns.message.make_query(name, "A"), DNS_ADDRESS, timeout=seconds))

    def address(self, name: str, seconds: float = 10) -> list[str]:
        return [r.address for rrset in self.ask(name, seconds).answer for r in rrset]


@pytest.fixture
def outside(lab: Lab, tmp_path: Path) -> Iterator[Outside]:
    with ExitStack() as stack:
        yield Outside(lab, tmp_path, stack)


def corefile(outside: Outside, text: str) -> str:
    path = outside.tmp_path / "Corefile"
    path.write_text(".:53 {\n kubernetes cluster.local\n cache 30\n" + text + "\n}\n")
    return str(path)


# DNS over TLS


def test_tls_upstream_one_connection_for_many_queries(outside: Outside) -> None:
    upstream = outside.tls()
    outside.start_one("--tls-servername", SERVERNAME, "--tls-ca", str(outside.authority.ca))
    for index in range(1, 31):
        assert outside.address(f"n{index}.example.com.") == [f"198.51.100.{index}"]
    assert upstream.handshakes == 1, "the connection is kept"
    assert upstream.udp_queries == 0, "nothing goes in the clear"
    upstream.drop()
    assert outside.address("n40.example.com.") == ["198.51.100.40"], "a broken connection is opened again"
    assert upstream.handshakes == 2
    upstream.once = True
    for index in range(50, 56):
        assert outside.address(f"n{index}.example.com.") == [f"198.51.100.{index}"], (
            "an upstream that closes after each answer"
        )


def test_tls_answers_in_any_order(outside: Outside) -> None:
    upstream = outside.tls()
    outside.start_one("--tls-servername", SERVERNAME, "--tls-ca", str(outside.authority.ca))
    assert outside.address("n9.example.com.") == ["198.51.100.9"]
    upstream.swapped = True

    def both() -> list[str]:
        names = ("n1.example.com.", "n2.example.com.")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(patient(10))
            sock.connect((DNS_ADDRESS, 53))
            for number, name in enumerate(names):
                sock.send(dns.message.make_query(name, "A", id=number).to_wire())
            answers = [dns.message.from_wire(sock.recv(4096)) for _ in names]
        return [r.address for answer in sorted(answers, key=lambda a: a.id) for rrset in answer.answer for r in rrset]

    assert outside.node.call(both) == ["198.51.100.1", "198.51.100.2"]
    assert upstream.handshakes == 1


@pytest.mark.parametrize(
    ("issued", "believes", "works"),
    [((SERVERNAME,), True, True), (("somebody.test",), True, False), ((SERVERNAME,), False, False)],
    ids=["right", "another name", "unknown authority"],
)
def test_tls_certificates_are_verified(outside: Outside, issued: tuple[str, ...], believes: bool, works: bool) -> None:
    upstream = outside.tls(0, *issued)
    flags = ["--tls-ca", str(outside.authority.ca)] if believes else []
    world = outside.start("--upstream", f"tls://{FIRST}", "--tls-servername", SERVERNAME, *flags)
    answer = outside.ask("n1.example.com.")
    assert bool(answer.answer) == works
    if not works:
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert "n1.example.com." not in upstream.asked, "the query went to another upstream"
        eventually(lambda: "certificate verify failed" in world.logs(), "the log says why")


def test_tls_by_corefile_with_a_clients_certificate(outside: Outside) -> None:
    upstream = outside.tls(client=True)
    cert, key = outside.authority.client("client.test")
    outside.start(
        "--corefile",
        corefile(
            outside,
            f" forward . tls://{FIRST} {{\n  tls_servername {SERVERNAME}\n"
            f"  tls {cert} {key} {outside.authority.ca}\n }}",
        ),
    )
    assert outside.address("n1.example.com.") == ["198.51.100.1"]
    assert upstream.handshakes >= 1


def test_tls_by_address_and_failover_to_the_next(outside: Outside) -> None:
    """Without a server name the certificate must contain the address. The first one stops answering, breaks, then
    returns.
    """
    first, second = outside.tls(0, FIRST), outside.tls(1, SECOND)
    upstreams = ["--upstream", f"tls://{FIRST}", "--upstream", f"tls://{SECOND}"]
    world = outside.start(*upstreams, "--tls-ca", str(outside.authority.ca))
    assert outside.address("n1.example.com.") == ["198.51.100.1"]
    assert "n1.example.com." in first.asked
    first.mode = "silent"
    for index in range(2, 6):
        assert outside.address(f"n{index}.example.com.") == [f"198.51.100.{index}"]
    assert "n5.example.com." in second.asked
    eventually(lambda: "upstream does not answer" in world.logs(), "the log names it")
    first.mode = "good"
    first.drop()
    counter = iter(range(60, 199))
    wait_until(  # there are 139 names to ask for
        lambda: bool(outside.address(f"n{next(counter)}.example.com.")) and "upstream answers again" in world.logs(),
        "the first one is asked again",
        pause=0.2,
    )


# Over UDP


def test_only_the_right_answer_is_believed(outside: Outside) -> None:
    upstream = outside.plain()
    outside.start("--upstream", FIRST)
    names = iter(range(1, 100))
    for mode in ("lie", "wrong id", "wrong source", "not an answer", "truncate", "slow"):
        upstream.mode = mode
        for _ in range(3):
            number = next(names)
            assert outside.address(f"n{number}.example.com.") == [f"198.51.100.{number}"], mode
    upstream.mode = "good"
    assert outside.ask("evil.example.com.").rcode() == dns.rcode.NXDOMAIN, "what was forged is not in the cache either"


def test_answers_too_large_for_udp_come_over_tcp(outside: Outside) -> None:
    many = {"big.example.com.": "60 TXT " + " ".join(f'"{"x" * 200}"' for _ in range(20))}
    upstream = outside.plain(world=many)
    outside.start("--upstream", FIRST)
    upstream.mode = "truncate"

    def ask(tcp: bool) -> dns.message.Message:
        query = dns.message.make_query("big.example.com.", "TXT")
        return outside.node.call(
            lambda: (dns.query.tcp if tcp else dns.query.udp)(query, DNS_ADDRESS, timeout=patient(5))
        )

    assert ask(False).flags & dns.flags.TC
    assert len(ask(True).answer[0][0].to_text()) > 4000


def test_an_upstream_without_edns(outside: Outside) -> None:
    upstream = outside.plain()
    upstream.mode = "no edns"
    outside.start("--no-spare", "--upstream", FIRST)  # a spare learns it by a query of its own
    for index, edns in enumerate((False, True, False), 1):
        query = dns.message.make_query(f"n{index}.example.com.", "A", use_edns=edns)
        found = outside.node.call(partial(dns.query.udp, query, DNS_ADDRESS, timeout=10))
        assert [record.address for rrset in found.answer for record in rrset] == [f"198.51.100.{index}"]
        assert (found.edns >= 0) == edns
    assert upstream.asked[-1] != upstream.asked[-2], "it is remembered"


def test_a_flapping_upstream_loses_no_query(outside: Outside) -> None:
    """Every second query gets no answer; a healthy upstream is available."""
    first, second = outside.plain(0), outside.plain(1)
    outside.start("--upstream", FIRST, "--upstream", SECOND)
    first.mode = "flap"
    for index in range(1, 41):
        assert outside.address(f"n{index}.example.com.") == [f"198.51.100.{index}"]
    assert second.asked


def test_a_slow_upstream_is_not_a_dead_one(outside: Outside) -> None:
    """An answer later than the first time-out: the other upstream gets the query too, and the first answer is used."""
    first, second = outside.plain(0), outside.plain(1)
    first.delay = 1.2
    world = outside.start("--upstream", FIRST, "--upstream", SECOND)
    first.mode = "slow"
    for index in range(1, 6):
        assert outside.address(f"n{index}.example.com.") == [f"198.51.100.{index}"]
    assert second.asked
    first.mode = second.mode = "slow"
    assert outside.address("n50.example.com.") == ["198.51.100.50"]
    assert world.processes["server"].poll() is None


def test_expired_answers_are_served_while_the_upstream_is_silent(outside: Outside) -> None:
    upstream = outside.plain(world={"short.example.com.": "1 A 198.51.100.7"})
    outside.start("--upstream", FIRST, "--serve-stale", "60")
    assert outside.address("short.example.com.") == ["198.51.100.7"]
    time.sleep(1.1)
    upstream.mode = "silent"
    answer = outside.ask("short.example.com.")
    assert [r.address for rrset in answer.answer for r in rrset] == ["198.51.100.7"]
    assert answer.answer[0].ttl == 0
    upstream.mode = "good"
    eventually(lambda: outside.ask("short.example.com.").answer[0].ttl == 1, "a fresh answer replaces it")


def test_popular_answers_are_fetched_before_they_expire(outside: Outside) -> None:
    upstream = outside.plain(world={"hot.example.com.": "5 A 198.51.100.7"})
    outside.start("--upstream", FIRST)

    def asked() -> int:
        return upstream.asked.count("hot.example.com.")

    end = time.monotonic() + patient(20)
    ttls = []
    while asked() < 2 and time.monotonic() < end:
        ttls.append(outside.ask("hot.example.com.").answer[0].ttl)
        time.sleep(0.05)
    assert asked() >= 2, "more where the upstream got no time to answer the second"
    assert min(ttls) >= 1, "it never expired: no client waited for the upstream"


def test_resolv_conf_is_the_default_upstream_and_is_followed(outside: Outside) -> None:
    """Its own address in the file is skipped; a change takes effect without a restart."""
    first, second = outside.plain(0), outside.plain(1)
    resolv = outside.tmp_path / "resolv.conf"
    resolv.write_text(f"search example\nnameserver {DNS_ADDRESS}\nnameserver {FIRST}\n")
    world = outside.start("--upstream", str(resolv))
    assert f"nameserver {DNS_ADDRESS} is this DNS itself" in world.logs()
    assert outside.address("n1.example.com.") == ["198.51.100.1"]
    assert "n1.example.com." in first.asked
    resolv.write_text(f"nameserver {SECOND}\n")
    counter = iter(range(10, 199))
    wait_until(  # the file is looked at every 5 s; there are 189 names to ask for
        lambda: bool(outside.address(f"n{next(counter)}.example.com.") and second.asked),
        "the new nameserver is asked",
        pause=0.2,
    )
    assert world.processes["server"].poll() is None


@pytest.mark.parametrize("form", ["resolv.conf", "resolv.conf with a number", "Corefile", "Corefile with force_tcp"])
def test_an_upstream_with_a_link_local_address(lab: Lab, outside: Outside, form: str) -> None:
    """Router advertisements and DHCPv6 give such nameservers."""
    place = lab.netns("on the link")
    lab.wire(outside.node, "up0", place, "eth0", "fe80::1/64", "fe80::53/64")
    for ns, address in ((outside.node, "fe80::1%up0"), (place, "fe80::53%eth0")):
        # the default arguments bind the loop variables
        eventually(lambda ns=ns, address=address: ns.call(lambda: is_local(address)), f"{address} can be used")  # type: ignore[misc]
    made = outside.stack.enter_context(Upstream(place, "fe80::53%eth0"))
    resolv = outside.tmp_path / "resolv.conf"
    link = outside.node.call(lambda: socket.if_nametoindex("up0")) if "number" in form else "up0"
    resolv.write_text(f"nameserver fe80::53%{link}\n")
    if form.startswith("Corefile"):
        more = " {\n force_tcp\n }" if "tcp" in form else ""
        outside.start("--corefile", corefile(outside, f"forward . fe80::53%up0{more}"))
    else:
        outside.start("--upstream", str(resolv))
    assert outside.address("n1.example.com.") == ["198.51.100.1"]
    assert "n1.example.com." in made.asked
    assert bool(made.udp_queries) == ("tcp" not in form)


def test_the_default_is_the_nodes_own_resolv_conf(outside: Outside) -> None:
    """In a mount namespace whose /etc/resolv.conf names the upstream and, first, this server."""
    outside.plain()
    resolv = outside.tmp_path / "resolv.conf"
    resolv.write_text(f"nameserver {DNS_ADDRESS}\nnameserver {FIRST}\n")
    server = outside.node.popen(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            f'mount --bind {resolv} /etc/resolv.conf && exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "podwire_dns.main",
            "server",
            "--run-dir",
            str(outside.tmp_path),
        ]
    )
    try:

        def answered() -> bool:
            try:
                return outside.address("n1.example.com.", 0.5) == ["198.51.100.1"]
            except (OSError, dns.exception.Timeout):  # before it listens
                return False

        eventually(answered, "the node's own upstream is asked")
    finally:
        server.terminate()
        server.wait(patient(30))

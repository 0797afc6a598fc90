"""Where a Corefile sends each name: blocks, several forwards, `except`, ports and reverse zones."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from podwire_dns import corefile, exchange, names, sources, upstream
from podwire_dns.cache import Cache
from podwire_dns.config import BadConfig, DnsConfig
from podwire_dns.forward import Route, Tls
from podwire_dns.sources import Sources
from podwire_dns.testing import builders
from podwire_dns.upstream import Forwarder

A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def read(text: str) -> tuple[DnsConfig, list[str]]:
    return corefile.apply(text, builders.CONFIG)


def sent(config: DnsConfig, name: str) -> str:
    """Whom the forwarder asks for a name; "" for nobody."""
    found = Forwarder(config.routes(), Cache(), batches=False).route(names.to_wire(name + ".") + b"\0\1\0\1")
    return " ".join(address.removesuffix("#53") for address in found.addresses) if found else ""


SPLIT = [
    # issue's own: what is excepted in one block is forwarded in another
    (
        f". {{\n forward . {A} {{\n  except corp.test\n }}\n}}\ncorp.test {{\n forward . {B}\n}}\n",
        {"a.test": A, "corp.test": B, "x.y.corp.test": B, "xcorp.test": A},
    ),
    # several forwards: the first that takes the name, not the longest
    (
        f". {{\n forward corp.test {B}\n forward . {A} {{\n  except in.corp.test test\n }}\n forward test {C}\n}}\n",
        {"a.example": A, "in.corp.test": B, "x.test": C, "a.corp.test": B},
    ),
    (
        f". {{\n forward . {A} {{\n  except a.test\n }}\n forward . {B} {{\n  except b.a.test\n }}\n}}\n",
        {"x.test": A, "x.a.test": B, "b.a.test": ""},
    ),
    # one forward for one zone only
    (f". {{\n forward corp.test {A}\n}}\n", {"x.corp.test": A, "corp.test": A, "test": "", "x.example": ""}),
    (f"corp.test {{\n forward . {A}\n}}\n", {"x.corp.test": A, "test": ""}),
    (f"corp.test {{\n forward in.corp.test {A}\n}}\n", {"x.in.corp.test": A, "corp.test": ""}),
    (f"corp.test {{\n forward test {A}\n}}\n", {"x.corp.test": A, "x.test": ""}),
    # a block without forward, or whose forward does not take it, asks nobody
    (f". {{\n forward . {A}\n}}\ncorp.test {{\n errors\n}}\n", {"x.corp.test": "", "x.test": A}),
    (
        f". {{\n forward . {A}\n}}\ncorp.test {{\n forward in.corp.test {B}\n}}\n",
        {"corp.test": "", "in.corp.test": B, "x.test": A},
    ),
    (f"a.test b.test {{\n forward . {A}\n}}\ntest {{\n}}\n", {"x.a.test": A, "b.test": A, "c.test": ""}),
    # an except that names what another block has, or the cluster
    (
        (
            f". {{\n forward . {A} {{\n  except cluster.local 10.0.0.0/8 corp.test\n }}\n}}\n"
            f"x.corp.test {{\n forward . {B}\n}}\n"
        ),
        {"corp.test": "", "x.corp.test": B, "1.2.3.10.in-addr.arpa": "", "1.2.3.11.in-addr.arpa": A},
    ),
    # upper case, final dots, comma, scheme, ports
    (f"dns://Corp.TEST.:53, other.test:53 {{\n forward . {A}:5353\n}}\n", {"x.corp.test": f"{A}#5353"}),
    # reverse zones of both families
    (
        f"2001:db8::/32 {{\n forward . {A}\n}}\n192.168.0.0/16:53 10.1.16.0/20 {{\n forward . {B}\n}}\n",
        {
            "8.b.d.0.1.0.0.2.ip6.arpa": A,
            "1.8.b.d.0.1.0.0.2.ip6.arpa": A,
            "9.b.d.0.1.0.0.2.ip6.arpa": "",
            "2001": "",
            "5.168.192.in-addr.arpa": B,
            "16.1.10.in-addr.arpa": B,
            "9.31.1.10.in-addr.arpa": B,
            "32.1.10.in-addr.arpa": "",
        },
    ),
    (
        f"2001:db8::1/31:53 {{\n forward . {A}\n}}\n10.1.2.3/8 {{\n forward 10.5.0.0/16 {B}\n forward . {C}\n}}\n",
        {"8.b.d.0.1.0.0.2.ip6.arpa": A, "9.b.d.0.1.0.0.2.ip6.arpa": A, "5.10.in-addr.arpa": B, "6.10.in-addr.arpa": C},
    ),
    # IPv6 upstreams, with a scope
    (f". {{\n forward . fe80::1%eth0 [fe80::2%eth0]:54 {A}\n}}\n", {"x": f"fe80::1%eth0 fe80::2%eth0#54 {A}"}),
]


@pytest.mark.parametrize(("text", "wanted"), SPLIT, ids=range(len(SPLIT)))
def test_each_name_goes_where_coredns_sends_it(text: str, wanted: dict[str, str]) -> None:
    config, notes = read(text)
    assert notes == []
    assert {name: sent(config, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f". {{\n forward . {A}\n}}\n. {{\n forward . {B}\n}}\n",
            "line 4: the zone '.' has a server block already, at Cor",
        ),
        (f"a.test {{\n}}\n. A.test. {{\n forward . {A}\n}}\n", "line 3: the zone 'a.test' has a server block already"),
        (f". {{\n forward . {A}\n forward a.test {B}\n}}\n", "line 3: 'a.test' is forwarded twice"),
        ("2001:db8::1 {\n}\n", "line 1: '2001:db8::1' is an address; write a reverse zone as a CIDR"),
        ("192.0.2.1:53 {\n}\n", "line 1: '192.0.2.1:53' is an address"),
        ("2001:db8::/129 {\n}\n", "line 1: '2001:db8::/129' is not a CIDR"),
        ("10.0.0.0/x {\n}\n", "line 1: '10.0.0.0/x' is not a CIDR"),
        ("corp.test:0 {\n}\n", "line 1: '0' is not a port"),
        ("corp.test:dns {\n}\n", "line 1: 'dns' is not a number"),
        ("a.test,b.test {\n}\n", "line 1: 'a.test,b.test' is not a DNS name"),
        (f". {{\n forward a..b {A}\n}}\n", "line 2: 'a..b' is not a DNS name"),
        (f". {{\n forward . {A} {{\n  except a_*.b\n }}\n}}\n", "line 3: 'a_*.b' is not a DNS name"),
        (". {\n forward . dns.example\n}\n", "line 2: upstream: 'dns.example' is not an IP address"),
        (f". {{\n forward . {A}:99999\n}}\n", f"line 2: upstream '{A}:99999' has a bad port"),
        (f". {{\n forward . {A} {{\n  policy best\n }}\n}}\n", "line 3: the policy must be one of"),
    ],
)
def test_what_cannot_be_is_named(text: str, said: str) -> None:
    with pytest.raises(BadConfig) as caught:
        read(text)
    assert said in str(caught.value)


def test_what_has_no_effect_is_named() -> None:
    config, notes = read(
        f"""cluster.local:53 {{
    forward . {B}
}}
corp.test {{
    forward other.test {B}
}}
.:53 {{
    forward . {A}
}}
.:1053 tls://.:853 x.test:5353 {{
    forward . {C}
}}
"""
    )
    third = "Corefile line 10: '.:1053 tls://.:853 x.test:5353'"
    assert notes == [
        f"{third} is skipped for '.:1053': this DNS listens on port 53 only",
        f"{third} listens with tls, which is not supported",
        f"{third} is skipped for 'x.test:5353': this DNS listens on port 53 only",
        f"Corefile line 2: 'forward . {B}' is not used for cluster.local.: this server answers such names itself",
        f"Corefile line 5: 'forward other.test {B}' is never used: it forwards no name of this server block",
    ]
    assert [sent(config, name) for name in ("x.other.test", "x.test", "corp.test")] == [A, A, ""]


def test_the_port_is_that_of_the_clusters_block() -> None:
    config, notes = read(f".:53 {{\n forward . {A}\n}}\ncluster.test:1053 {{\n kubernetes\n}}\n")
    assert (config.port, config.cluster_domain, config.routes()) == (1053, "cluster.test", {})
    assert len(notes) == 1


@pytest.mark.parametrize("force_tcp", [False, True])
def test_an_upstream_with_a_scope_is_asked_by_name_of_its_link(
    monkeypatch: pytest.MonkeyPatch, force_tcp: bool
) -> None:
    """The compiled exchange takes packed addresses, which lose the scope."""
    asked: list[tuple[str, int]] = []

    class Exchange:
        def __init__(self, _loop: object, host: str, port: int, *_: object) -> None:
            asked.append((host, port))

        def close(self) -> None:
            pass

    async def connect(_protocol: object, host: str, port: int, **_: object) -> None:
        asked.append((host, port))
        raise OSError("it was asked, and that is all")

    async def work() -> None:
        monkeypatch.setattr(upstream, "UdpExchange", Exchange)
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
        forwarder = Forwarder({b"\0": Route(("fe80::1%eth0#5353",), force_tcp=force_tcp)}, Cache())
        forwarder.ask((names.to_wire("a.test.") + b"\0\1\0\1", False, False), lambda _: None)
        await asyncio.sleep(0.05)
        forwarder.close()

    asyncio.run(work())
    assert set(asked) == {("fe80::1%eth0", 5353)}


def test_the_socket_address_of_a_scope() -> None:
    index = socket.if_nametoindex("lo")
    made = exchange.socket_address
    assert made("fe80::1%lo", 53) == made(f"fe80::1%{index}", 53) == ("fe80::1", 53, 0, index)
    assert made("fe80::1", 53) == ("fe80::1", 53)
    assert made("192.0.2.1", 53) == ("192.0.2.1", 53)


def test_a_certificate_is_for_the_address_without_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def connect(_protocol: object, host: str, _port: int, **more: object) -> None:
        asked.append((host, more["server_hostname"]))
        raise OSError("it was asked, and that is all")

    async def work() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", connect)
        for tls in (Tls(), Tls("dns.test")):
            forwarder = Forwarder({b"\0": Route(("tls://fe80::1%eth0#853",), tls=tls)}, Cache())
            assert await forwarder.resolve((names.to_wire("a.test.") + b"\0\1\0\1", False, False)) is None
            forwarder.close()

    asyncio.run(work())
    assert set(asked) == {("fe80::1%eth0", "fe80::1"), ("fe80::1%eth0", "dns.test")}


def test_our_own_link_local_address_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[object] = []

    class Socket(socket.socket):
        def bind(self, address: object) -> None:
            bound.append(address)

    monkeypatch.setattr(socket, "socket", Socket)
    assert sources.is_local("fe80::1%lo")
    assert bound == [("fe80::1", 0, 0, socket.if_nametoindex("lo"))]


def test_a_link_that_is_not_there_is_no_answer() -> None:
    async def work() -> None:
        forwarder = Forwarder({b"\0": Route(("fe80::1%none0#5353",))}, Cache())
        assert await forwarder.resolve((names.to_wire("a.test.") + b"\0\1\0\1", False, False)) is None
        forwarder.close()

    asyncio.run(work())


def test_a_scope_in_addresses_of_our_own_is_named() -> None:
    for setting in ("listen", "dns_addresses"):
        with pytest.raises(BadConfig, match=f"{setting}: 'fe80::1%eth0' has a scope"):
            replace(builders.CONFIG, **{setting: ("fe80::1%eth0",)}).schema()  # type: ignore[arg-type]  # a tuple fits


def test_a_scope_of_resolv_conf_is_kept(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(
        "nameserver fe80::1%eth0\nnameserver FE80::2%eth1\nnameserver 192.0.2.1%eth0\n"
    )
    (tmp_path / "Corefile").write_text(f". {{\n forward . {tmp_path}/resolv.conf\n}}\n")
    sources = Sources(
        DnsConfig("n", None, tmp_path, corefile=str(tmp_path / "Corefile")),
    )
    assert sources.load().routes()[b"\0"].addresses == ("fe80::1%eth0#53", "fe80::2%eth1#53")
    assert len(sources.notes) == 1

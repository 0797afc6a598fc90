"""The range and the rules of the way out through slirp4netns; netns-tests/test_internet.py sends packets."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from click.testing import CliRunner

from podwire.cluster import internet, outward
from podwire.main import cli
from podwire_base.kernel.nft.fake import FakeConnection

OWN = tuple(map(ip_address, ("127.0.0.1", "192.168.7.2", "::1", "fe80::1", "2001:db8::2")))


@pytest.mark.parametrize(
    "taken",
    [
        (),
        ("198.19.252.0/24",),
        ("198.19.252.7",),
        ("198.18.0.0/15",),
        ("198.19.0.0/16", "10.253.0.0/17", "fd00::/8", "0.0.0.0/0"),
    ],
)
def test_the_range_overlaps_nothing(taken: tuple[str, ...]) -> None:
    found = ip_network(outward.choose_cidr(taken))
    assert found.prefixlen == 24 and not found.overlaps(ip_network("10.0.2.0/24"))
    assert not any(found.overlaps(ip_network(t)) for t in taken if ":" not in t and t != "0.0.0.0/0")


def test_a_machine_with_routes_to_everything_gets_none() -> None:
    assert outward.choose_cidr(("198.18.0.0/15", "10.0.0.0/8")) == ""


def test_options_that_keep_the_machine_safe() -> None:
    words = outward.command("/usr/bin/slirp4netns", "/run/netns/x", "198.19.252.0/24", 5, 6)
    assert {"--configure", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp"} < set(words)
    assert "--cidr=198.19.252.0/24" in words and "--enable-ipv6" not in words
    assert outward.resolver("198.19.252.0/24") == "198.19.252.3"


def test_what_is_closed() -> None:
    v4, v6 = outward.closed("ip", OWN, False), outward.closed("ip6", OWN, False)
    assert set(v4) == {"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.7.2/32"}
    assert set(v6) == {"::/127", "fe80::/10", "fe80::1/128", "2001:db8::2/128"}
    assert outward.closed("ip", OWN, True) == ("0.0.0.0/8", "127.0.0.0/8")


def test_the_tables_can_be_written_twice() -> None:
    fake = FakeConnection()
    for _ in range(2):
        fake.commit(outward.plan(OWN, False))
    assert len([line for line in outward.plan(OWN, False).lines() if "add chain" in line]) == 6


def test_without_the_program_a_wish_is_refused_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internet, "program", lambda: "")
    done = CliRunner().invoke(cli, ["up", "--name", "t-none", "--internet"])
    assert done.exit_code == 1 and "slirp4netns is not installed" in " ".join(done.output.split())
    done = CliRunner().invoke(cli, ["up", "--name", "t-none", "--no-internet", "--host-access"])
    assert done.exit_code == 1 and "--host-access needs --internet" in done.output

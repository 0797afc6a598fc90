"""Rules that log with the kernel: the reader gets packet and reason, the rules read back as they were written."""

from __future__ import annotations

import select
import socket

import pytest

from lab.netns import Lab
from podwire_base.kernel import nflog
from podwire_base.kernel.ip import Family
from podwire_base.kernel.netns import within
from podwire_base.kernel.nflogsocket import Reader
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.kernel.reasons import Reason
from podwire_proxy.nftables import kernel


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_a_logged_packet_reaches_the_reader_with_its_reason(lab: Lab, family: Family) -> None:
    ns = lab.netns("nflog")
    ns.run(["ip", "link", "set", "lo", "up"])
    table = nft.Table(family, "nflog")
    chain = nft.Chain(table, "out", "output", "filter", 0)
    exprs = (nft.Limit(2, 2), nft.Log(nflog.GROUP, nflog.prefix(Reason.NO_ENDPOINTS), nflog.LENGTH))
    rules = (
        nft.Rule(chain, (nft.Meta("l4proto"), nft.Cmp(b"\x11"), *exprs), "logged"),
        nft.Rule(chain, (nft.Meta("l4proto"), nft.Cmp(b"\x11"), nft.Counter(), nft.drop()), "dropped"),
    )
    loopback = "127.0.0.1" if family == "ip" else "::1"

    def send() -> None:
        with socket.socket(socket.AF_INET if family == "ip" else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            for _ in range(6):
                try:
                    sock.sendto(b"x" * 500, (loopback, 4242))
                except PermissionError:
                    pass  # dropped on the way out

    with nft_socket.Connection(ns.fd) as conn:
        conn.commit(nft.Transaction().remake(table).add(chain, *rules))
        dump = conn.dump(table, exprs=True)
        assert dump is not None
        assert dump.rules["out"][0].exprs[-2:] == exprs
        reader = within(ns.fd, Reader)
        try:
            with pytest.raises(OSError, match="not permitted"):
                within(ns.fd, Reader)  # a group has one reader
            within(ns.fd, send)
            assert select.select([reader], [], [], 10)[0]
            found, overruns = reader.read()
        finally:
            reader.close()
        assert overruns == 0
        assert 1 <= len(found) <= 3, "the limit holds"
        assert {(one.reason, one.packet.protocol, one.packet.dst, one.packet.dport) for one in found} == {
            (Reason.NO_ENDPOINTS, 17, loopback, 4242)
        }
        assert conn.packets(table, "out")["dropped"] == 6, "who is not logged is refused too"


def test_the_proxy_tries_whether_it_can_log_and_leaves_nothing(lab: Lab) -> None:
    ns = lab.netns("nflog")
    assert kernel.can_log(ns.fd)
    with nft_socket.Connection(ns.fd) as conn:
        assert not list(conn.tables())

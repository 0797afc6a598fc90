"""A host without nf_tables: the iptables backend (legacy variant) starts, serves and is cleaned up there; the nftables
backend reports what is missing. The kernel's answers are those of nfnetlink without the subsystem.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from podwire_base.kernel.ip import Family
from podwire_base.kernel.netlink import socket as netlink_socket
from podwire_base.kernel.netlink.codec import ERROR, HEADER, message
from podwire_base.kernel.nft import socket as nft_socket
from podwire_proxy import backends, host
from podwire_proxy.decide import decide
from podwire_proxy.hostfacts import findings
from podwire_proxy.iptables import kernel, leftovers, programs
from podwire_proxy.iptables.backend import Iptables
from podwire_proxy.iptables.fake import Kernel
from podwire_proxy.iptables.plan import SetOp
from podwire_proxy.iptables.programs import Variant
from podwire_proxy.nftables.backend import Nftables
from podwire_proxy.testing import scenarios as s
from podwire_proxy.verdict import combined


class Refusing:
    """A netlink socket that answers every request with one errno."""

    def __init__(self, code: int) -> None:
        self.code, self.asked = code, b""

    def send(self, data: bytes) -> int:
        self.asked = data
        return len(data)

    def recv(self, *_: int) -> bytes:
        head = self.asked[: HEADER.size]
        return message(ERROR, 0, struct.pack("=i", -self.code) + head, HEADER.unpack(head)[3])

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@pytest.fixture(params=[errno.EINVAL, errno.EOPNOTSUPP], ids=["EINVAL", "EOPNOTSUPP"])
def lacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink_socket, "open_socket", lambda *_, **__: Refusing(request.param))


class Sets:
    """IpSets over the fake kernel of IPv4."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __enter__(self) -> Sets:
        return self

    def __exit__(self, *_: object) -> None: ...
    def close(self) -> None: ...

    def create(self, name: str, family: Family, *, timeout: bool) -> None:
        self.kernel._set(SetOp("create", name))

    def add(self, name: str, members: Sequence[str]) -> None:
        self.kernel._set(SetOp("add", name, tuple(members)))

    def destroy(self, name: str) -> bool:
        self.kernel._set(SetOp("destroy", name))
        return True

    def ours(self, family: Family) -> dict[str, set[str]]:
        return {name: set(members) for name, members in self.kernel.sets.items()} if family == "ip" else {}


@pytest.fixture
def legacy(lacking: None, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The programs of both variants are installed; those of the nft variant must not be called."""
    made = Kernel()

    def text() -> str:
        state = made.read()
        lines = []
        for table in sorted({chain.table for chain in state.chains}):
            mine = {chain.name: rules for chain, rules in state.chains.items() if chain.table == table}
            lines += [f"*{table}", *(f":{name} - [0:0]" for name in mine)]
            lines += [f"-A {name} {rule}" for name, rules in mine.items() for rule in rules]
        return "\n".join(lines)

    def save(variant: Variant, family: Family, ns_fd: int | None) -> str:
        assert (variant, family) == ("legacy", "ip")
        return text()

    def restore(variant: Variant, family: Family, ns_fd: int | None, given: str, wait: int = 0) -> None:
        assert (variant, family) == ("legacy", "ip")
        made.restore(given)

    def tables(family: Family, ns_fd: int | None) -> tuple[str, ...]:
        return tuple({chain.table for chain in made.chains}) if family == "ip" else ()

    monkeypatch.setattr(programs, "installed", lambda variant: True)
    monkeypatch.setattr(programs, "program", lambda variant, family, verb: f"/sbin/{variant}-{verb}")
    monkeypatch.setattr(programs, "save", save)
    monkeypatch.setattr(programs, "restore", restore)
    monkeypatch.setattr(programs, "legacy_tables", tables)
    monkeypatch.setattr(kernel, "IpSets", lambda ns_fd: Sets(made))
    monkeypatch.setattr(kernel, "Legacy", lambda ns_fd: Refusing(0))
    monkeypatch.setattr(leftovers, "_with_libiptc", lambda family, tables: {})
    return made


def test_the_nftables_backend_says_what_is_missing(lacking: None) -> None:
    assert nft_socket.missing()
    with pytest.raises(OSError, match=r"--backend nftables: nf_tables.*use --backend iptables") as caught:
        backends.proxier(s.INFO, choice="nftables")
    assert caught.value.errno == errno.EOPNOTSUPP


def test_nothing_of_nftables_is_found_and_nothing_fails(lacking: None) -> None:
    backend = Nftables()
    assert backend.existing() == backend.cleanup() == []
    assert backend.observe() is None
    backend.remove_idle(s.INFO)
    assert backend.foreign().tables == ()


def test_another_refusal_is_not_taken_for_a_missing_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink_socket, "open_socket", lambda *_, **__: Refusing(errno.EPERM))
    with pytest.raises(OSError, match="EPERM"):
        nft_socket.missing()


@pytest.mark.parametrize("choice", ["iptables", "iptables-legacy"])
def test_the_iptables_backend_starts_serves_and_goes(legacy: Kernel, choice: str) -> None:
    row = s.SCENARIOS[0]
    tracker = row.tracker()
    tracker.flush()
    proxier = backends.proxier(row.node, choice=choice)
    assert proxier.no_notifications, "the legacy variant"
    assert proxier.sync(tracker.dataplane, None).operations
    assert backends.retire(proxier) == [], "nothing of nftables is here, and the own variant stays"
    assert proxier.foreign_commits() == 0
    proxier.sweep_rules()
    tracker.slice("default/my-service-1", None)
    assert proxier.sync(tracker.dataplane, tracker.flush()).operations
    live = Iptables().live({"ip": legacy.read()})
    sent = next(iter(row.expect))
    assert combined(way.verdict for way in live.traces(sent, row.node)) == decide(tracker.dataplane, sent)
    found = findings(host.facts(backends.foreign()))
    assert not any("legacy" in line for line in found)
    proxier.close()
    assert any("iptables-legacy" in line for line in backends.existing())
    assert backends.cleanup()
    assert not backends.existing()


def test_the_nft_variant_fails_where_it_is_asked_for(legacy: Kernel) -> None:
    with pytest.raises(OSError, match="nf_tables"):
        backends.proxier(s.INFO, choice="iptables-nft")

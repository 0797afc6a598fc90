"""The nfnetlink codec with the kernel: written rules are read back, and nft(8) prints them."""

from __future__ import annotations

import errno
import json
import select
import threading

import pytest

from lab.netns import Lab, NetNS
from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket

TABLE = nft.Table("ip", "codec")
CIDRS = nft.Set(TABLE, "cidrs", ("ipv4_addr",), interval=True)
MAP = nft.Set(TABLE, "slots", ("ipv4_addr", "inet_proto", "inet_service", "mark"), ("ipv4_addr", "inet_service"))
VMAP = nft.Set(TABLE, "verdicts", ("ipv4_addr", "inet_proto", "inet_service"), ("verdict",))
KEY = nft.key(bytes((10, 96, 0, 1)), b"\6", (443).to_bytes(2, "big"))


def whole() -> nft.Transaction:
    pre = nft.Chain(TABLE, "pre", hook="prerouting", type="nat", priority=-100)
    target = nft.Chain(TABLE, "target")
    return (
        nft.Transaction()
        .remake(TABLE)
        .add(
            CIDRS,
            nft.Elements(CIDRS, nft.intervals(["10.244.0.0/16", "192.168.0.0/25", "192.168.0.128/25"])),
            MAP,
            nft.Elements(MAP, {KEY + nft.host32(7): nft.key(bytes((10, 244, 1, 2)), b"\x24\xa0")}),
            target,
            nft.Rule(target, (nft.Numgen(3), nft.drop()), comment="never reached"),
            VMAP,
            nft.Elements(VMAP, {KEY: nft.Verdict(-4, "target")}),
            pre,
            nft.Rule(
                pre, (nft.Payload("network", 12, 4), nft.Lookup("cidrs"), nft.Counter(), nft.accept()), comment="inside"
            ),
        )
    )


def test_what_is_written_is_read_back(lab: Lab) -> None:
    ns = lab.netns("codec")
    with nft_socket.Connection(ns.fd) as conn:
        assert conn.dump(TABLE) is None
        conn.commit(whole())
        conn.commit(whole())  # idempotent
        dump = conn.dump(TABLE)
        assert dump is not None
        assert dump.sets == {s.name: s for s in (CIDRS, MAP, VMAP)}
        assert dump.elements["slots"] == {KEY + nft.host32(7): nft.key(bytes((10, 244, 1, 2)), b"\x24\xa0")}
        assert dump.elements["verdicts"] == {KEY: nft.Verdict(-4, "target")}
        assert dump.elements["cidrs"] == nft.intervals(["10.244.0.0/16", "192.168.0.0/24"])
        assert {name: [rule.comment for rule in rules] for name, rules in dump.rules.items()} == {
            "pre": ["inside"],
            "target": ["never reached"],
        }
        assert dump.chains["pre"] == nft.Chain(TABLE, "pre", "prerouting", "nat", -100)
        conn.commit(nft.Transaction().remove(TABLE))
        assert conn.tables() == []


def test_a_flushed_set_holds_what_comes_after(lab: Lab) -> None:
    ns = lab.netns("codec")
    fresh = nft.intervals(["10.1.0.0/24"])
    with nft_socket.Connection(ns.fd) as conn:
        conn.commit(whole())
        conn.commit(nft.Transaction().flush(CIDRS, MAP).add(nft.Elements(CIDRS, fresh)))
        dump = conn.dump(TABLE)
        assert dump is not None
        assert (dump.elements["cidrs"], dump.elements["slots"]) == (fresh, {})


def test_nft_prints_it(lab: Lab) -> None:
    ns = lab.netns("codec")
    nft_socket.apply(whole(), ns.fd)
    text = ns.run(["nft", "list", "ruleset"]).stdout
    for line in (
        "10.244.0.0/16, 192.168.0.0/24",
        "10.96.0.1 . tcp . 443 . 0x00000007 : 10.244.1.2 . 9376",
        "10.96.0.1 . tcp . 443 : goto target",
        'accept comment "inside"',
    ):
        assert line in text, text
    assert json.loads(ns.run(["nft", "-j", "list", "ruleset"]).stdout)["nftables"]


def test_a_refused_transaction_changes_nothing_and_names_the_operation(lab: Lab) -> None:
    ns = lab.netns("codec")
    with nft_socket.Connection(ns.fd) as conn:
        conn.commit(whole())
        before = conn.dump(TABLE)
        other = nft.key(bytes((10, 96, 0, 2)), b"\6", b"\0\1")
        with pytest.raises(nft.NftError, match=r"10\.96\.0\.2 \. tcp \. 1.*ENOENT") as caught:
            conn.commit(
                nft.Transaction().delete(
                    nft.Elements(VMAP, {KEY: nft.Verdict(-4, "target")}), nft.Elements(VMAP, {other: None})
                )
            )
        assert caught.value.errno == errno.ENOENT
        assert conn.dump(TABLE) == before


def test_a_big_batch_is_one_transaction(lab: Lab) -> None:
    ns = lab.netns("codec")
    items: dict[bytes, nft.Value] = {
        KEY + nft.host32(i): nft.key(bytes((10, 244, 1, 2)), b"\x24\xa0") for i in range(20000)
    }
    with nft_socket.Connection(ns.fd) as conn:
        conn.commit(whole().add(nft.Elements(MAP, items)))
        dump = conn.dump(TABLE)
        assert dump is not None
        assert dump.elements["slots"] == items


def test_a_dump_is_whole_while_others_change_their_tables(lab: Lab) -> None:
    """A new pod writes an element in another table: a proxy that starts meanwhile must still get its read-back."""
    ns = lab.netns("codec")
    items: dict[bytes, nft.Value] = {
        KEY + nft.host32(i): nft.key(bytes((10, 244, 1, 2)), b"\x24\xa0") for i in range(20000)
    }
    other = nft.Set(nft.Table("ip", "other"), "s", ("ipv4_addr",))
    stop, commits = threading.Event(), 0

    def churn() -> None:
        nonlocal commits
        with nft_socket.Connection(ns.fd) as conn:
            conn.commit(nft.Transaction().add(other.table, other))
            while not stop.is_set():
                one = nft.Elements(other, {bytes((10, 0, 0, 1)): None})
                conn.commit(nft.Transaction().add(one))
                conn.commit(nft.Transaction().delete(one))
                commits += 2

    with nft_socket.Connection(ns.fd) as conn:
        conn.commit(whole().add(nft.Elements(MAP, items)))
        thread = threading.Thread(target=churn)
        thread.start()
        try:
            before = commits
            for _ in range(3):
                dump = conn.dump(TABLE)
                assert dump is not None
                assert dump.elements["slots"] == items
            assert commits > before
        finally:
            stop.set()
            thread.join()


def watcher(ns: NetNS, ours: int) -> nft_socket.Watcher:
    return nft_socket.Watcher(TABLE, ours, ns.fd)


def test_the_watcher_hears_others_and_not_ourselves(lab: Lab) -> None:
    ns = lab.netns("codec")
    with nft_socket.Connection(ns.fd) as conn:
        watch = watcher(ns, conn.port_id)
        try:
            conn.commit(whole())
            assert not watch.changed()
            ns.run(["nft", "add", "table", "ip", "other"])
            assert not watch.changed()
            ns.run(["nft", "flush", "chain", "ip", "codec", "pre"])
            assert watch.changed()
            ns.run(["nft", "flush", "ruleset"])
            assert watch.changed()
            assert not watch.changed()
        finally:
            watch.close()


def test_nft_prints_names_of_links(lab: Lab) -> None:
    """nft reads a key of one field in the byte order with which the set was made."""
    ns = lab.netns("codec")
    links = nft.Set(TABLE, "links", ("ifname",))
    with nft_socket.Connection(ns.fd) as conn:
        conn.commit(nft.Transaction().remake(TABLE).add(links, nft.Elements(links, {b"veth1".ljust(16, b"\0"): None})))
    listed = ns.run(["nft", "list", "ruleset"]).stdout
    assert '"veth1"' in listed
    ns.run(["nft", "-f", "-"], input="flush ruleset\n" + listed)
    assert ns.run(["nft", "list", "ruleset"]).stdout == listed


def test_the_hooks_of_arp_devices_and_bridges_have_their_names(lab: Lab) -> None:
    ns = lab.netns("hooks")
    for line in (
        "arp a; chain arp a i { type filter hook input priority 0; policy drop; }",
        "arp a; chain arp a o { type filter hook output priority 0; }",
        'netdev n; chain netdev n i { type filter hook ingress device "lo" priority 0; }',
        "bridge b; chain bridge b f { type filter hook forward priority 0; }",
    ):
        ns.run(["nft", f"add table {line.replace('; chain', '; add chain', 1)}"])
    with nft_socket.Connection(ns.fd) as conn:
        found = {
            (table.family, chain.name): (chain.hook, chain.devices, chain.policy)
            for table in conn.everything()
            for chain in table.chains.values()
        }
    assert found == {
        ("arp", "i"): ("input", (), "drop"),
        ("arp", "o"): ("output", (), "accept"),
        ("netdev", "i"): ("ingress", ("lo",), "accept"),
        ("bridge", "f"): ("forward", (), "accept"),
    }


def test_counts_change_with_each_change_and_commits_of_others_are_heard(lab: Lab) -> None:
    ns = lab.netns("counts")
    with nft_socket.Connection(ns.fd) as conn:
        heard = nft_socket.Commits(conn.port_id, ns.fd)
        try:
            conn.commit(whole())
            readable, _, _ = select.select([heard], [], [], 0.2)
            assert not readable, "our own commit"
            before = conn.counts([TABLE], contents=True)
            assert before == conn.counts([TABLE], contents=True)
            for harm in (
                f"add rule ip {TABLE.name} target counter",
                f"delete element ip {TABLE.name} cidrs {{ 192.168.0.0/24 }}",
                f"flush chain ip {TABLE.name} pre",
                f"delete table ip {TABLE.name}",
            ):
                ns.run(["nft", harm])
                assert select.select([heard], [], [], 5)[0], harm
                assert not heard.changed(), "a hint: the table is not known"
                after = conn.counts([TABLE], contents=True)
                assert after != before, harm
                before = after
            ns.run(["nft", "add table ip another"])
            assert select.select([heard], [], [], 5)[0]
            assert conn.counts([TABLE]) == before == ()
        finally:
            heard.close()

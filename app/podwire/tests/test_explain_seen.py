"""Where `--send` says that a packet was last seen."""

from __future__ import annotations

from podwire.explain.seen import Sight, last_seen
from podwire_base.kernel.netlink.codec import attr, nest, text, u32
from podwire_base.kernel.nft import trace
from podwire_base.kernel.nft.trace import Traced

CLIENT, POD = "10.244.1.9", "10.244.2.3"
LINKS = {2: "eth0", 3: "podwire0"}


def passed(*hooks: str, ident: int = 1, src: str = CLIENT, dst: str = POD, oif: int = 0) -> list[Traced]:
    return [
        message
        for hook in hooks
        for message in (
            Traced("podwire-trace", f"{hook}-end", "rule", 0, "-1", ident, src, dst, 1, oif),
            Traced("podwire-trace", f"{hook}-end", "policy", 0, "accept", ident),
        )
    ]


def dropped(ident: int = 1, kind: str = "rule") -> Traced:
    return Traced("fw", "c", kind, 7, "drop", ident, CLIENT, POD)  # type: ignore[arg-type]  # one of the literals


def test_a_packet_that_left_and_did_not_arrive() -> None:
    first = Sight("node1", passed("prerouting", "forward", "postrouting", oif=2), LINKS)
    assert last_seen([first, Sight("node2", [], LINKS)], CLIENT)[0] == "the packet, on node1: left by eth0"


def test_a_packet_that_a_rule_of_the_second_node_ended() -> None:
    second = [*passed("prerouting"), dropped()]
    told, lines = last_seen([Sight("node1", passed("postrouting"), LINKS), Sight("node2", second, LINKS)], CLIENT)
    assert told == "the packet, on node2: the rule with handle 7 of table fw, chain c, ended it"
    assert lines[-1] == "node2: packet passed prerouting"
    told = last_seen([Sight("node1", [*passed("prerouting"), dropped(kind="policy")], LINKS)], CLIENT)[0]
    assert told == "the packet, on node1: the chain's policy of table fw, chain c, ended it"


def test_an_answer_was_seen_after_the_packet() -> None:
    back = passed("prerouting", "forward", "postrouting", ident=2, src=POD, dst=CLIENT, oif=3)
    sights = [Sight("node1", [*passed("postrouting"), *back], LINKS), Sight("node2", passed("input"), LINKS)]
    assert last_seen(sights, CLIENT)[0] == "the answer, on node1: left by podwire0"
    lost = [*passed("postrouting"), *passed("prerouting", ident=2, src=POD, dst=CLIENT), dropped(2)]
    assert last_seen([Sight("node1", lost, LINKS)], CLIENT)[0].startswith(
        "the answer, on node1: the rule with handle 7"
    )


def test_what_nobody_saw_and_what_the_kernel_dropped_itself() -> None:
    assert last_seen([Sight("node1", [], {})], CLIENT)[0].startswith("no node's rules saw the packet")
    told = last_seen([Sight("node1", passed("prerouting"), {})], CLIENT)[0]
    assert told == "the packet, on node1: behind prerouting, and not after: no route, or the kernel itself dropped it"
    assert last_seen([Sight("", passed("input"), {})], CLIENT)[0] == "the packet, on this node: handed to its sockets"


def test_the_messages_of_the_kernel_are_read() -> None:
    header = bytes((0x45, 0)) + bytes(10) + bytes((10, 244, 1, 9)) + bytes((10, 244, 2, 3))
    body = text(1, "fw") + text(2, "c") + attr(3, (7).to_bytes(8, "big")) + u32(4, 3)
    body += nest(5, u32(1, 0)) + u32(6, 99) + attr(8, header) + u32(10, 1) + u32(12, 2)
    assert trace.decode(body) == Traced("fw", "c", "rule", 7, "drop", 99, CLIENT, POD, 1, 2)
    assert trace.decode(text(1, "fw")) is None

"""The election by simulation, the frames against scapy, and the view of the API."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from podwire_base.kube import loadbalancer as lb
from podwire_base.kube.client.reflector import Event
from podwire_proxy.l2 import addresses, election, frames
from podwire_proxy.l2.announcer import Announcer, LbConfig
from podwire_proxy.l2.election import BEAT, LISTEN, PROBE, Beat, Election, decode, encode
from podwire_proxy.l2.packets import PacketSocket as Link
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

MINE, OTHER = bytes.fromhex("02aa00000001"), bytes.fromhex("02bb00000002")
IPS = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
STEP = 0.05


# ---- the election


class Node:
    """One simulated node: beats and probes on its own clock's phase."""

    def __init__(self, name: str, now: float, phase: float) -> None:
        self.election = Election("c", name, now, synced=True)
        self.alive = self.api = self.plugged = True
        self.next_beat, self.next_probe = now + phase, now + phase / 2
        self.mine: frozenset[str] = frozenset()


class PacketSocket:
    """Steps of 50 ms; nothing is lost, and every frame arrives at once."""

    def __init__(self, phases: list[float]) -> None:
        self.now, self.phases = 0.0, phases
        self.nodes = {f"n{i}": Node(f"n{i}", 0.0, phase) for i, phase in enumerate(phases)}
        self.only: dict[str, frozenset[str] | None] = dict.fromkeys(IPS)
        self.moves = 0

    def restart(self, name: str) -> None:
        self.nodes[name] = Node(name, self.now, self.phases[int(name[1:])])

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.now += STEP
            for node in self.nodes.values():
                if node.alive:
                    self._turn(node)

    def _turn(self, node: Node) -> None:
        contact, now = node.election.contact, self.now
        if now >= node.next_probe:
            node.next_probe = now + PROBE
            if contact.wanted(now, bool(node.mine) or node.election.witness(now)):
                if node.api:
                    contact.worked(now)
                else:
                    contact.failed()
        if now >= node.next_beat:
            node.next_beat = now + BEAT
            beat = decode(encode(node.election.tell(now)))
            assert beat is not None
            for other in self.nodes.values():
                if other.alive and other.plugged and node.plugged:
                    other.election.hear(beat, now)
        owners = node.election.owners(self.only, self.nodes, now)
        mine = frozenset(ip for ip, name in owners.items() if name == node.election.node)
        self.moves += len(mine - node.mine)
        node.mine = mine

    def owners(self, ip: str) -> list[str]:
        """Nodes that answer for the address, of those whose answers arrive."""
        return [name for name, node in self.nodes.items() if node.alive and node.plugged and ip in node.mine]

    def settled(self) -> bool:
        return all(len(self.owners(ip)) == 1 for ip in IPS)


phases = st.lists(st.floats(0, BEAT), min_size=1, max_size=6)


@given(phases)
def test_every_address_has_one_owner_once_all_have_listened(found: list[float]) -> None:
    packets = PacketSocket(found)
    packets.run(LISTEN - 2 * STEP)
    assert not any(packets.owners(ip) for ip in IPS), "no node answers before it has listened"
    packets.run(1)
    assert packets.settled()


@pytest.mark.parametrize("end", ["alive", "api", "plugged"])
@given(phases=st.lists(st.floats(0, BEAT), min_size=2, max_size=6), ip=st.sampled_from(IPS))
def test_the_next_one_takes_over_within_two_seconds(end: str, phases: list[float], ip: str) -> None:
    packets = PacketSocket(phases)
    packets.run(4)
    before = {one: packets.owners(one) for one in IPS}
    (gone,) = before[ip]
    setattr(packets.nodes[gone], end, False)
    packets.run(1.7)
    assert packets.settled()
    assert packets.owners(ip) != [gone]
    for one in IPS:
        assert before[one] == [gone] or packets.owners(one) == before[one], "only the addresses of that node move"
    moves = packets.moves
    packets.run(10)
    assert packets.moves <= moves + (len(IPS) if end == "plugged" else 0), "and nothing moves again"


@given(phases, st.floats(0.5, 20))
def test_an_api_server_that_is_away_for_all_moves_nothing(found: list[float], seconds: float) -> None:
    packets = PacketSocket(found)
    packets.run(4)
    moves = packets.moves
    for node in packets.nodes.values():
        node.api = False
    packets.run(seconds)
    for node in packets.nodes.values():
        node.api = True
    packets.run(5)
    assert packets.moves == moves


@given(phases, st.floats(0, 10), st.booleans())
def test_a_machine_that_stood_still_with_all_its_nodes_moves_nothing(
    found: list[float], seconds: float, fresh: bool
) -> None:
    """No node listened meanwhile, so missing beats mean nothing; nor has a node listened that has just begun to."""
    packets = PacketSocket([*found, 0.0])
    packets.nodes["n0"].alive = not fresh
    packets.run(4)
    before, moves = [packets.owners(ip) for ip in IPS], packets.moves
    packets.restart("n0") if fresh else None
    packets.run(0.1)
    packets.now += seconds
    packets.run(0.5)
    assert (before, moves) == ([packets.owners(ip) for ip in IPS], packets.moves)


CHANGES = st.lists(
    st.tuples(st.sampled_from(["kill", "start", "cut", "mend", "unplug", "plug"]), st.integers(0, 3), st.floats(0, 3)),
    max_size=12,
)


@given(st.lists(st.floats(0, BEAT), min_size=4, max_size=4), CHANGES)
def test_whatever_happens_it_ends_with_one_owner_each(found: list[float], steps: list[tuple[str, int, float]]) -> None:
    packets = PacketSocket(found)
    for what, number, seconds in steps:
        node = packets.nodes[f"n{number}"]
        if what == "start" and not node.alive:
            packets.restart(f"n{number}")
        elif what in ("cut", "mend"):
            node.api = what == "mend"
        elif what in ("unplug", "plug"):
            node.plugged = what == "plug"
        elif what == "kill":
            node.alive = False
        packets.run(seconds)
    packets.run(5)
    if any(node.alive and node.plugged for node in packets.nodes.values()):
        assert packets.settled()
        on_the_wire = [node for node in packets.nodes.values() if node.alive and node.plugged]
        fit = {node.election.node for node in on_the_wire if node.api}
        if fit:
            assert all(set(packets.owners(ip)) <= fit for ip in IPS), "a node that is cut off has none"


def test_only_nodes_that_can_serve_and_that_the_api_calls_ready() -> None:
    election = Election("c", "n1", 0.0, synced=True)
    for name in ("n2", "n3"):
        election.hear(Beat("c", name, True), 2.0)
    now = 2.1
    assert set(election.owners({"192.0.2.1": frozenset({"n2"})}, ["n1", "n2"], now).values()) == {"n2"}
    assert election.owners({"192.0.2.1": frozenset({"n9"})}, ["n1", "n2"], now) == {}
    assert set(election.owners(dict.fromkeys(IPS), ["n3"], now).values()) == {"n3"}
    assert election.owners({"192.0.2.1": None}, [], now), "no Node is ready: any node is better than none"
    assert not election.hear(Beat("another cluster", "n4", True), now)
    assert "n4" not in election.alive(now)
    election.leaving = True
    assert not election.tell(now).ready


def test_addresses_spread_over_the_nodes_and_the_rest_stays_when_one_goes() -> None:
    election = Election("c", "n0", 0.0, synced=True)
    for number in range(1, 5):
        election.hear(Beat("c", f"n{number}", True), 2.0)
    many: dict[str, frozenset[str] | None] = {f"192.0.2.{n}": None for n in range(250)}
    before = election.owners(many, [], 2.1)
    assert all(30 <= list(before.values()).count(f"n{n}") <= 70 for n in range(5))
    election.hear(Beat("c", "n3", False), 2.2)
    after = election.owners(many, [], 2.2)
    assert {ip for ip in many if before[ip] != after[ip]} == {ip for ip in many if before[ip] == "n3"}


@given(st.binary(max_size=300))
def test_garbage_on_the_wire_is_no_beat_and_no_question(data: bytes) -> None:
    assert decode(data) is None
    frames.beat_body(data)
    for kind in (b"\x08\x06", b"\x86\xdd", b"\x88\xb5"):
        frames.read(data[:12].ljust(12, b"\0") + kind + data)


# ---- frames


def test_arp_questions_and_answers() -> None:
    asked = bytes(
        Ether(src=OTHER.hex(":"), dst="ff:ff:ff:ff:ff:ff")
        / ARP(op=1, hwsrc=OTHER.hex(":"), psrc="192.0.2.9", pdst=IPS[0])
    )
    claim, question = frames.read(asked)
    assert (claim, question) == (frames.Claim("192.0.2.9", OTHER), frames.Question(IPS[0], "192.0.2.9", OTHER))
    assert isinstance(question, frames.Question)
    answer = Ether(frames.answer(question, MINE))
    assert (answer.dst, answer.src) == (OTHER.hex(":"), MINE.hex(":"))
    assert (answer[ARP].op, answer[ARP].psrc, answer[ARP].hwsrc, answer[ARP].pdst, answer[ARP].hwdst) == (
        2,
        IPS[0],
        MINE.hex(":"),
        "192.0.2.9",
        OTHER.hex(":"),
    )
    assert len(bytes(answer)) >= 60
    probe = bytes(Ether() / ARP(op=1, hwsrc=OTHER.hex(":"), psrc="0.0.0.0", pdst=IPS[0]))
    assert frames.read(probe) == [frames.Question(IPS[0], "", OTHER)]
    told = [Ether(frame) for frame in frames.announcements(IPS[0], MINE)]
    assert [(p.dst, p[ARP].op, p[ARP].psrc, p[ARP].pdst, p[ARP].hwsrc) for p in told] == [
        ("ff:ff:ff:ff:ff:ff", op, IPS[0], IPS[0], MINE.hex(":")) for op in (1, 2)
    ]
    assert [frames.read(bytes(p)) for p in told] == [[frames.Claim(IPS[0], MINE)]] * 2, "gratuitous: no question"


@pytest.mark.parametrize("source", ["2001:db8::9", "::"])
def test_neighbor_questions_and_answers(source: str) -> None:
    group = frames.solicited_node(IPS[2])
    assert group == "ff02::1:ff00:1"
    option = ICMPv6NDOptSrcLLAddr(lladdr=OTHER.hex(":")) if source != "::" else b""
    asked = bytes(Ether(src=OTHER.hex(":")) / IPv6(src=source, dst=group, hlim=255) / ICMPv6ND_NS(tgt=IPS[2]) / option)
    (question,) = frames.read(asked)
    assert question == frames.Question(IPS[2], "" if source == "::" else source, OTHER)
    assert isinstance(question, frames.Question)
    for answer, solicited in (
        (Ether(frames.answer(question, MINE)), int(source != "::")),
        (Ether(frames.announcements(IPS[2], MINE)[0]), 0),
    ):
        said = answer[ICMPv6ND_NA]
        assert (said.tgt, said.S, said.O, said[ICMPv6NDOptDstLLAddr].lladdr) == (IPS[2], solicited, 1, MINE.hex(":"))
        assert answer[IPv6].hlim == 255
        assert answer[IPv6].dst == (source if solicited else "ff02::1")
        again = IPv6(bytes(answer[IPv6])[:40]) / ICMPv6ND_NA(bytes(answer[IPv6])[40:72])
        del again[ICMPv6ND_NA].cksum
        assert ICMPv6ND_NA(bytes(again)[40:]).cksum == said.cksum
        assert frames.read(bytes(answer)) == [frames.Claim(IPS[2], MINE)]
    routed = bytes(Ether() / IPv6(src="2001:db8::9", dst=group, hlim=254) / ICMPv6ND_NS(tgt=IPS[2]))
    assert frames.read(routed) == [], "from beyond a router: a forgery (RFC 4861, 7.1.1)"


def test_a_beat_survives_the_wire() -> None:
    beat = Beat("uid", "node-1", True, 0.2, 5.0)
    assert decode(frames.beat_body(frames.beat(MINE, encode(beat)))) == beat
    assert frames.beat_body(frames.beat(MINE, encode(beat))[:40]) == b""


# ---- the view of the API


def view(*objects: Any, text: str = "192.0.2.0/24") -> addresses.View:
    made = addresses.View(lb.parse({"data": {"addresses": text}})[0])
    for obj in objects:
        name = f"default/{obj['metadata']['name']}"
        (made.service if obj["kind"] == "Service" else made.slice)(name, obj)
    return made


def test_which_nodes_can_serve_an_address() -> None:
    def balancer(name: str, ip: str, **spec: Any) -> Any:
        return service(name, "10.96.0.1", [port(80)], type="LoadBalancer", ingress=[{"ip": ip}], **spec)

    slices = [
        endpoint_slice(
            "near",
            [
                endpoint("10.244.1.2", "n1"),
                endpoint("10.244.2.2", "n2", ready=False),
                endpoint("10.244.3.2", "n3", terminating=True),
            ],
            name="s1",
        ),
        endpoint_slice("near", [endpoint("10.244.4.2", "n4")], name="s2"),
    ]
    made = view(
        balancer("any", IPS[0]),
        balancer("near", IPS[1], externalTrafficPolicy="Local"),
        *slices,
        balancer("elsewhere", "198.51.100.1"),
        service("none", "10.96.0.2", [port(80)]),
    )
    assert made.addresses() == {IPS[0]: None, IPS[1]: frozenset({"n1", "n4"})}
    assert made.wants_slices
    assert made.holder(IPS[1]) == "default/near"
    assert not made.slice("default/s2", slices[1]), "nothing new"
    assert made.slice("default/s2", None)
    assert made.addresses()[IPS[1]] == frozenset({"n1"})
    made.service("default/near", None)
    assert not made.wants_slices
    assert set(made.addresses()) == {IPS[0]}


def balancer(number: int, policy: str = "Cluster") -> Any:
    return service(
        f"s{number}",
        "10.96.0.1",
        [port(80)],
        type="LoadBalancer",
        ingress=[{"ip": f"192.0.2.{number}"}],
        externalTrafficPolicy=policy,
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["Cluster", "Local", "gone", "slice", "no slice"]), st.integers(1, 3), st.integers(1, 3)
        ),
        max_size=20,
    )
)
def test_the_view_after_any_changes_is_a_fresh_ones_and_each_change_is_noticed(
    steps: list[tuple[str, int, int]],
) -> None:
    objects: dict[str, Any] = {}
    made = view()
    for what, number, node in steps:
        before = dict(made.addresses())
        if what in ("Cluster", "Local", "gone"):
            name, obj = f"default/s{number}", balancer(number, what) if what != "gone" else None
            noticed = made.service(name, obj)
        else:
            name = f"default/s{number}-{node}"
            obj = (
                endpoint_slice(f"s{number}", [endpoint("10.244.1.2", f"n{node}")], name=name[8:])
                if what == "slice"
                else None
            )
            noticed = made.slice(name, obj)
        objects[name] = obj
        assert made.addresses() == view(*filter(None, objects.values())).addresses()
        assert noticed or made.addresses() == before


@pytest.mark.parametrize("status", ["x", *({"loadBalancer": part} for part in ("x", {"ingress": [5]}, {"ingress": 5}))])
def test_what_cannot_be_read_is_not_kept(status: Any) -> None:
    """Every beat reads the stored data: one malformed object would end the role on all nodes."""
    slice_ = endpoint_slice("s1", [endpoint("10.244.1.2", "n1")])
    made = view(balancer(1, "Local"), slice_)
    told = made.addresses()
    with pytest.raises((AttributeError, TypeError)):
        made.service("default/s1", {**balancer(1, "Local"), "status": status})
    with pytest.raises((AttributeError, TypeError)):
        made.slice("default/s1-1", {**slice_, "endpoints": [5]})
    assert made.addresses() == told == {"192.0.2.1": frozenset({"n1"})}
    assert made.slice("default/s1-1", None)
    assert made.addresses() == {"192.0.2.1": frozenset()}


def test_a_node_that_cannot_be_read_is_not_kept(tmp_path: Path) -> None:
    one = Announcer(LbConfig("n1", None, tmp_path), Link("none"), Election("c", "n1", 0.0))
    with pytest.raises(AttributeError):
        one.on_node(Event("ADDED", "n2", {"metadata": {"name": "n2"}, "status": {"conditions": [5]}}, None))
    assert not one.nodes


def test_a_pool_that_is_new_is_listened_for_before_anything_is_answered(tmp_path: Path) -> None:
    """However long the role has been running: until now no node sent beats, so no node knows of the others."""

    async def filled() -> Announcer:
        one = Announcer(LbConfig("n1", None, tmp_path), Link("none"), Election("c", "n1", time.monotonic() - 1000))
        one.election.synced = True
        one.on_service(Event("ADDED", "default/s1", balancer(1), None))
        one.on_config(
            Event("ADDED", f"{lb.CONFIG_NAMESPACE}/{lb.CONFIG_NAME}", {"data": {"addresses": "192.0.2.0/24"}}, None)
        )
        one.decide()
        return one

    one = asyncio.run(filled())
    assert one.view.addresses() and not one.mine
    owners = [one.election.owners(one.view.addresses(), (), time.monotonic() + LISTEN * part) for part in (0.3, 0.6, 1)]
    assert owners == [{}, {}, {"192.0.2.1": "n1"}]


def test_slices_of_others_and_beats_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All slices and beats of a cluster arrive here: neither the addresses nor the hashes are computed again."""
    made = view(balancer(1), balancer(2, "Local"), endpoint_slice("s2", [endpoint("10.244.1.2", "n1")]))
    told = made.addresses()
    for owner in ("s1", "other"):
        assert not made.slice(
            f"default/{owner}-9", endpoint_slice(owner, [endpoint("10.244.1.3", "n3")], name=f"{owner}-9")
        )
    assert made.addresses() is told
    assert not made.service("default/s1", balancer(1)), "nothing new"
    hashed: list[str] = []

    def counted(ip: str, node: str) -> bytes:
        hashed.append(node)
        return rank(ip, node)

    rank = election.rank
    monkeypatch.setattr(election, "rank", counted)
    one = Election("c", "n1", 0.0, synced=True)
    for turn in range(20):
        one.hear(Beat("c", "n2", True), 2 + turn * BEAT)
        assert one.owners(told, ["n1", "n2"], 2 + turn * BEAT)[IPS[1]] == "n1"
    assert len(hashed) == 3, "two nodes for one address, one for the other"


def test_a_list_of_many_services_is_decided_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decided: list[int] = []
    monkeypatch.setattr(Announcer, "decide", lambda self: decided.append(len(self.view.services)))

    async def listed() -> None:
        one = Announcer(LbConfig("n1", None, tmp_path), Link("none"), Election("c", "n1", 0.0))
        for number in range(1, 200):
            one.on_service(Event("ADDED", f"default/s{number}", balancer(number), None))
        await asyncio.sleep(0.1)

    asyncio.run(listed())
    assert decided == [199]


def test_which_nodes_the_api_calls_usable() -> None:
    def node(name: str, ready: str | None = None, **metadata: Any) -> Any:
        conditions = [{"type": "Ready", "status": ready}] if ready else []
        return {"metadata": {"name": name, **metadata}, "status": {"conditions": conditions}}

    found = [
        node("a"),
        node("b", "True"),
        node("c", "Unknown"),
        node("d", "True", labels={addresses.EXCLUDE: ""}),
        node("e", "True", deletionTimestamp="2026-01-01T00:00:00Z"),
    ]
    assert addresses.usable(found) == {"a", "b"}


ONE, TWO = "192.0.2.1", "192.0.2.2"  # of balancer(1) and balancer(2)


def machine(name: str, *ips: str, **spec: Any) -> Any:
    found = [{"type": "InternalIP", "address": ip} for ip in ips]
    return {"metadata": {"name": name}, "spec": spec, "status": {"addresses": found}}


@pytest.mark.parametrize(
    ("change", "owner"),
    [
        (lambda one: one.on_node(Event("ADDED", "n2", machine("n2", "198.51.100.9", ONE), None)), "Node n2"),
        (lambda one: one.on_node(Event("ADDED", "n1", machine("n1", ONE), None)), "Node n1"),
        (
            lambda one: one.on_node(Event("ADDED", "n2", machine("n2", podCIDR="192.0.2.0/31"), None)),
            "podCIDR of Node n2",
        ),
        (
            lambda one: one.on_api_slice(
                Event("ADDED", "default/kubernetes", endpoint_slice("kubernetes", [endpoint(ONE)]), None)
            ),
            "the API server",
        ),
        (lambda one: one.machines.gateways((ONE,)), "a default gateway"),
    ],
)
def test_an_address_that_a_machine_gets_is_given_up_at_once(tmp_path: Path, change: Any, owner: str) -> None:
    """However it got the Service: the controller may need a moment to take it back, or be away."""

    async def joined() -> tuple[set[str], set[str], list[str]]:
        one = Announcer(LbConfig("n1", None, tmp_path), Link("none"), Election("c", "n1", 0.0, synced=True))
        for number in (1, 2):
            one.on_service(Event("ADDED", f"default/s{number}", balancer(number), None))
        one.on_config(Event("ADDED", "x", {"data": {"addresses": "192.0.2.0/24"}}, None))
        one.election.started = time.monotonic() - 10
        one.decide()
        before = one.mine
        change(one)
        one.decide()
        return before, one.mine, one.view.conflicts()

    before, after, conflicts = asyncio.run(joined())
    assert before == {ONE, TWO}
    assert after == {TWO}
    assert conflicts == [f"{ONE} ({owner})"]


def test_a_heartbeat_of_a_node_changes_no_owner() -> None:
    owners = addresses.Owners()
    owners.node("n1", machine("n1", ONE))
    assert owners.occupied(lb.parse({"data": {"addresses": "192.0.2.0/24"}})[0]).addresses == {ONE: "Node n1"}
    beat = machine("n1", ONE)
    beat["status"]["conditions"] = [{"type": "Ready", "lastHeartbeatTime": "t"}]
    owners.node("n1", beat)
    assert not owners.changed
    owners.node("n1", None)
    assert owners.changed
    assert not owners.occupied(lb.parse({"data": {"addresses": "192.0.2.0/24"}})[0]).addresses

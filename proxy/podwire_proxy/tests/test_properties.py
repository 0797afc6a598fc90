"""Any sequence of changes equals a fresh build; the oracle and the planned rules agree; a change costs what it is."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft.codec import TableDump
from podwire_base.kernel.nft.fake import FakeConnection
from podwire_base.kernel.nft.objects import Elements
from podwire_base.kube import meta
from podwire_proxy.changes import Tracker
from podwire_proxy.convert import RESET_ANNOTATION
from podwire_proxy.decide import Packet, Verdict, decide
from podwire_proxy.model import NodeInfo
from podwire_proxy.nftables.layout import OWN_CHAINS, Layout
from podwire_proxy.nftables.plan import Planner, assign
from podwire_proxy.nftables.trace import Tracer
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

NAMES = ("a", "b", "c")
VIPS = ("10.96.0.1", "10.96.0.2", "10.96.0.3")
LAYOUT = Layout("ip")
PODS = (s.POD_A, s.POD_B, s.POD_C, "10.244.2.3")
ports = st.sampled_from([80, 81]).flatmap(lambda number: st.sampled_from(["TCP", "UDP"]).map(lambda p: (number, p)))


@st.composite
def services(draw: st.DrawFn) -> meta.Object:
    """Three names share three addresses, so that Services collide, move and change type."""
    drawn = draw(st.lists(ports, min_size=1, max_size=2, unique=True))
    spec: dict[str, Any] = {"type": draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"]))}
    node_ports = spec["type"] in ("NodePort", "LoadBalancer")
    made = [port(n, p, f"p{i}", 30000 + n if node_ports else 0) for i, (n, p) in enumerate(drawn)]
    for field in ("internalTrafficPolicy", "externalTrafficPolicy"):
        spec[field] = draw(st.sampled_from(["Cluster", "Local"]))
    if draw(st.booleans()):
        spec["externalIPs"] = [s.EXTERNAL]
    if spec["type"] == "LoadBalancer":
        spec["ingress"] = [{"ip": s.BALANCER}]
        spec["loadBalancerSourceRanges"] = draw(
            st.sampled_from([[], [s.OUTSIDE + "/32"], ["10.244.0.0/16", "172.30.0.0/24"]])
        )
    if draw(st.booleans()):
        spec["sessionAffinity"] = "ClientIP"
    labels = {"service.kubernetes.io/service-proxy-name": "x"} if draw(st.integers(0, 9)) == 0 else {}
    found = service(draw(st.sampled_from(NAMES)), draw(st.sampled_from((*VIPS, "None"))), made, labels=labels, **spec)
    found["metadata"]["annotations"] = {RESET_ANNOTATION: "true"} if draw(st.booleans()) else {}
    return found


@st.composite
def slices(draw: st.DrawFn) -> meta.Object:
    owner = draw(st.sampled_from(NAMES))
    places = draw(st.lists(st.sampled_from(PODS), max_size=4))
    flags: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {}, optional={name: st.booleans() for name in ("ready", "serving", "terminating")}
    )
    found = [endpoint(ip, s.NODE if ip.startswith("10.244.1.") else "n2", **draw(flags)) for ip in places]
    taken = [(f"p{i}", p, draw(st.sampled_from([9376, 9377]))) for i in range(2) for p in ("TCP", "UDP")]
    return endpoint_slice(owner, found, taken, name=f"{owner}-{draw(st.integers(1, 2))}")


@st.composite
def nodes(draw: st.DrawFn) -> NodeInfo:
    addresses = draw(st.sampled_from([(), (s.NODE_IP,), ("172.30.0.12",)]))
    return NodeInfo(s.NODE, addresses, "", s.INFO.pod_cidrs, s.INFO.service_cidrs)


# A change: an object to add or replace, the key of one to delete, or new facts of the node.
changes = st.lists(
    st.one_of(
        services(),
        slices(),
        nodes(),
        st.sampled_from([("service", f"default/{n}") for n in NAMES]),
        st.sampled_from([("slice", f"default/{n}-{i}") for n in NAMES for i in (1, 2)]),
    ),
    max_size=12,
)


def play(tracker: Tracker, change: Any) -> None:
    if isinstance(change, NodeInfo):
        tracker.node(change)
    elif isinstance(change, tuple):
        (tracker.service if change[0] == "service" else tracker.slice)(change[1], None)
    else:
        (tracker.service if change["kind"] == "Service" else tracker.slice)(meta.key(change), change)


def fresh(done: list[Any]) -> Tracker:
    """A tracker that sees only what is left in the end."""
    last: dict[tuple[str, str], Any] = {}
    node = s.INFO
    for change in done:
        if isinstance(change, NodeInfo):
            node = change
        elif isinstance(change, tuple):
            last.pop(change, None)
        else:
            last[("service" if change["kind"] == "Service" else "slice", meta.key(change))] = change
    tracker = Tracker(node)
    for change in last.values():
        play(tracker, change)
    tracker.flush()
    return tracker


def content(dump: TableDump) -> dict[str, object]:
    """What a table means: slots are a set (their order is history), balancers nobody uses do not count."""
    out: dict[str, object] = {name: dict(held) for name, held in dump.elements.items() if name != "endpoints"}
    slots: dict[bytes, list[tuple[bool, object]]] = {}
    for key, value in dump.elements["endpoints"].items():
        slots.setdefault(key[:-4], []).append((int.from_bytes(key[-4:], "little") >= 1 << 15, value))
    out["endpoints"] = {key: sorted(found, key=repr) for key, found in slots.items()}
    return out


def own_chains(dump: TableDump) -> dict[str, list[str]]:
    """Chains that come and go with Services, and their rules."""
    return {name: [rule.comment for rule in rules] for name, rules in dump.rules.items() if name.startswith(OWN_CHAINS)}


@settings(max_examples=150, deadline=None)
@given(changes, *[st.sets(st.integers(0, 12))] * 3)
def test_any_sequence_of_changes_equals_a_fresh_build(
    done: list[Any], syncs: set[int], sweeps: set[int], restarts: set[int]
) -> None:
    """Coalesced at will, swept at once or late, with restarts in between that read the kernel back."""
    tracker, kernel, planner = Tracker(s.INFO), FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker.flush()
    kernel.commit(first := planner.full(tracker.dataplane, None))
    planner.committed(first)
    for index, change in enumerate([*done, None]):
        if change is not None:
            play(tracker, change)
        if index in restarts:
            tracker.flush()
            planner = Planner(LAYOUT, tracker.dataplane.node)
            transactions = [planner.full(tracker.dataplane, kernel.dump(LAYOUT.table))]
        elif index in syncs or change is None:
            transactions = [planner.change(tracker.dataplane, delta)] if (delta := tracker.flush()) else []
        else:
            continue
        for tx in transactions:
            kernel.commit(tx)
            planner.committed(tx)
        if index in sweeps or change is None:
            kernel.commit(swept := planner.sweep())
            planner.committed(swept)
        assert planner.mirror.elements == kernel.state[LAYOUT.table].elements
    expected = fresh(done)
    assert tracker.dataplane == expected.dataplane
    other, new = FakeConnection(), Planner(LAYOUT, expected.dataplane.node)
    other.commit(new.full(expected.dataplane, None))
    assert {key: planner.allowed[key] for key in new.allowed} == new.allowed, "the same endpoints may be remembered"
    assert content(kernel.state[LAYOUT.table]) == content(other.state[LAYOUT.table])
    assert own_chains(kernel.state[LAYOUT.table]) == own_chains(other.state[LAYOUT.table])


def packets() -> st.SearchStrategy[Packet]:
    """Sources that can really appear here: the node's pods, the node, the world outside."""
    targets = [(ip, n) for ip in (*VIPS, "10.96.0.77", s.EXTERNAL, s.BALANCER) for n in (80, 81, 9)]
    targets += [(ip, n) for ip in (s.NODE_IP, "172.30.0.12") for n in (30080, 30081)] + [(s.POD_B, 9376)]
    sources = st.sampled_from([s.POD_A, s.POD_B, s.NODE_IP, s.OUTSIDE])
    return st.builds(
        lambda src, to, protocol: s.packet(src, to[0], to[1], protocol),
        sources,
        st.sampled_from(targets),
        st.sampled_from(["TCP", "UDP", "ICMP"]),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(services(), slices()), max_size=8), st.lists(packets(), min_size=1, max_size=20))
def test_oracle_and_rules_agree(objects: list[meta.Object], sent: list[Packet]) -> None:
    tracker = fresh(objects)
    kernel = FakeConnection()
    kernel.commit(Planner(LAYOUT, s.INFO).full(tracker.dataplane, None))
    tracer = Tracer(kernel.state[LAYOUT.table], s.INFO)
    assert {p: tracer.outcome(p) for p in sent} == {p: decide(tracker.dataplane, p) for p in sent}


@given(st.lists(st.binary(min_size=1, max_size=1), unique=True), st.sets(st.binary(min_size=1, max_size=1)))
def test_slots_stay_dense_and_move_as_little_as_can_be(old: list[bytes], wanted: set[bytes]) -> None:
    new = assign(old, sorted(wanted))
    assert set(new) == wanted
    assert len(new) == len(wanted)
    kept = [value for value in old[: len(new)] if value in wanted]
    assert [value for index, value in enumerate(new) if index < len(old) and old[index] == value] == kept


@settings(deadline=None)
@given(st.lists(st.tuples(st.sets(st.integers(1, 5)), st.booleans()), max_size=10))
def test_sweeping_late_or_early_never_takes_a_slot_in_use(steps: list[tuple[set[int], bool]]) -> None:
    """One Service grows and shrinks; after each commit every slot that can be drawn is there, after a sweep no
    other."""
    tracker, kernel, planner = Tracker(s.INFO), FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker.service("default/a", service("a", VIPS[0], [port(80)]))
    tracker.flush()
    kernel.commit(tx := planner.full(tracker.dataplane, None))
    planner.committed(tx)
    for members, swept in steps:
        tracker.slice("x", endpoint_slice("a", [endpoint(f"10.244.2.{n}") for n in members], [("", "TCP", 80)]))
        tx = planner.change(tracker.dataplane, tracker.flush())
        kernel.commit(tx)
        planner.committed(tx)
        if swept:
            kernel.commit(tx := planner.sweep())
            planner.committed(tx)
        slots = kernel.state[LAYOUT.table].elements["endpoints"]
        tracer = Tracer(kernel.state[LAYOUT.table], s.INFO)
        packet = s.packet(s.POD_A, VIPS[0], 80)
        assert tracer.outcome(packet) == decide(tracker.dataplane, packet)
        assert len(slots) == len(members) if swept else len(slots) >= len(members)


def _cluster(count: int) -> Tracker:
    """`count` Services of five endpoints."""
    tracker = Tracker(s.INFO)
    for number in range(count):
        name = f"s{number}"
        ip = f"10.96.{number // 200}.{number % 200 + 1}"
        tracker.service(f"default/{name}", service(name, ip, [port(80)]))
        tracker.slice(f"default/{name}-1", _five(name))
    return tracker


def _five(name: str, count: int = 5) -> meta.Object:
    return endpoint_slice(name, [endpoint(f"10.244.2.{i + 1}", "n2") for i in range(count)], [("", "TCP", 9376)])


def cost(size: int, endpoints: int) -> tuple[int, int, int]:
    """(elements written, verdicts among them, elements swept later) when one of `size` Services gets `endpoints`
    endpoints."""
    tracker, kernel, planner = _cluster(size), FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker.flush()
    for tx in (planner.full(tracker.dataplane, None), planner.sweep()):
        kernel.commit(tx)
        planner.committed(tx)
    tracker.slice("default/s3-1", _five("s3", endpoints))
    tx = planner.change(tracker.dataplane, tracker.flush())
    kernel.commit(tx)
    planner.committed(tx)
    verdicts = sum(
        len(op.thing.items) for op in tx if isinstance(op.thing, Elements) and op.thing.set.name == "services"
    )
    return tx.elements, verdicts, planner.sweep().elements


def test_a_change_costs_what_it_is_and_not_what_the_cluster_is() -> None:
    # One more endpoint: its slot, and the Service's verdict deleted and written. One less: only the verdict, the slot
    # later.
    assert cost(10, 6) == cost(500, 6) == (3, 2, 0)
    assert cost(10, 4) == cost(500, 4) == (2, 2, 1)


def test_nothing_to_do_is_nothing_sent_and_a_restart_writes_nothing() -> None:
    tracker, kernel, planner = _cluster(50), FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker.flush()
    kernel.commit(planner.full(tracker.dataplane, None))
    tracker.slice("default/s3-1", _five("s3"))
    assert not tracker.flush()
    again = Planner(LAYOUT, s.INFO)
    assert again.full(tracker.dataplane, kernel.dump(LAYOUT.table)).ops == []
    assert not again.sweep()


def test_what_others_break_is_mended_and_only_that() -> None:
    tracker, kernel, planner = _cluster(50), FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker.flush()
    kernel.commit(planner.full(tracker.dataplane, None))
    whole = kernel.dump(LAYOUT.table)
    broken = kernel.dump(LAYOUT.table)
    assert whole is not None
    assert broken is not None
    broken.rules["postrouting"].pop()
    broken.elements["cluster-ips"].popitem()
    broken.elements["endpoints"].popitem()
    kernel.state[LAYOUT.table] = broken
    tx = planner.full(tracker.dataplane, kernel.dump(LAYOUT.table))
    assert tx.elements == 2
    kernel.commit(tx)
    now = kernel.dump(LAYOUT.table)
    assert now is not None
    assert (now.elements, now.rules) == (whole.elements, whole.rules)


def test_a_table_of_another_shape_is_replaced_in_one_transaction() -> None:
    kernel, planner = FakeConnection(), Planner(LAYOUT, s.INFO)
    tracker = _cluster(3)
    tracker.flush()
    kernel.commit(planner.full(tracker.dataplane, None))
    old = kernel.dump(LAYOUT.table)
    assert old is not None
    old.sets["services"] = Layout("ip6").sets()["services"]
    kernel.commit(Planner(LAYOUT, s.INFO).full(tracker.dataplane, old))
    tracer = Tracer(kernel.state[LAYOUT.table], s.INFO)
    assert tracer.outcome(Packet(s.POD_A, "10.96.0.1", "TCP", 80)).verdict is Verdict.FORWARD
    assert len(kernel.committed) == 2


def test_only_two_base_chains_reach_the_verdict_map_of_services() -> None:
    """The kernel checks every element of a verdict map again for each base chain that leads to it, at each commit that
    adds one: a third base chain would make a change of an endpoint count half as dear again, at 44,000 Services by
    milliseconds."""
    tracker, kernel = _cluster(3), FakeConnection()
    tracker.flush()
    kernel.commit(Planner(LAYOUT, s.INFO).full(tracker.dataplane, None))
    dump = kernel.state[LAYOUT.table]

    def maps(chain: str) -> set[str]:
        found: set[str] = set()
        for expr in (expr for rule in dump.rules[chain] for expr in rule.exprs):
            if isinstance(expr, nft.Lookup) and dump.sets[expr.set].data == ("verdict",):
                found.add(expr.set)
            elif isinstance(expr, nft.Immediate) and isinstance(expr.value, nft.Verdict) and expr.value.chain:
                found |= maps(expr.value.chain)
        return found

    reach = {name: maps(name) for name, chain in dump.chains.items() if chain.hook}
    assert {name for name, found in reach.items() if "services" in found} == {"prerouting", "output"}
    assert {name for name, found in reach.items() if "outside" in found} == {"prerouting"}

"""The iptables backend's own: its text, its chains and sets, and the cost of a change. test_backends.py tests the
behaviour of every backend.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kernel.ip import FAMILIES, Family, packed
from podwire_base.kernel.reasons import Reason, reason_of
from podwire_base.kube import meta
from podwire_base.role import beat
from podwire_proxy.changes import Tracker
from podwire_proxy.explain import explain
from podwire_proxy.iptables import programs
from podwire_proxy.iptables.fake import Kernel
from podwire_proxy.iptables.fixed import static_rules
from podwire_proxy.iptables.layout import Chain, hooks, is_ours, same_address
from podwire_proxy.iptables.live import Chains
from podwire_proxy.iptables.plan import KernelState, Plan, Planner, SetOp
from podwire_proxy.iptables.text import parse, take_apart
from podwire_proxy.iptables.trace import run_bpf
from podwire_proxy.model import Destination
from podwire_proxy.testing import scenarios as s
from podwire_proxy.testing.builders import endpoint, endpoint_slice, port, service

from .strategies import VIPS


def planned(row: s.Scenario) -> Kernel:
    """A kernel that has taken the scenario, as iptables-restore gave it."""
    tracker, kernel = row.tracker(), Kernel()
    tracker.flush()
    kernel.commit(Planner("ip", row.node).full(tracker.dataplane, KernelState()))
    return kernel


def test_a_rule_of_somebody_else_is_named() -> None:
    row = s.SCENARIOS[0]
    kernel = planned(row)
    chain = Chain("nat", "PODWIRE-SERVICES")
    kernel.chains[chain] = ["-m u32 --u32 0x0=0x1 -j DROP", *kernel.chains[chain]]
    words = explain(Chains({"ip": kernel.read()}, "nft"), row.node, next(iter(row.expect))).lines[-1]
    assert "--u32" in words
    assert "chains PODWIRE-* of iptables-nft" in words


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_that_drops_or_refuses_carries_its_reason(family: Family) -> None:
    for row in (one if family == "ip" else one.v6() for one in s.SCENARIOS):
        tracker = row.tracker()
        tracker.flush()
        for rules in Planner(family, row.node).full(tracker.dataplane, KernelState()).write.values():
            for rule in map(take_apart, rules):
                assert (reason_of(rule.comment) is not None) is (rule.target in ("DROP", "REJECT")) or (
                    reason_of(rule.comment) is Reason.LOCALHOST_NODE_PORT
                ), rule


def _cluster(count: int, endpoints: int = 5) -> tuple[Tracker, Kernel, Planner]:
    """`count` Services, in a kernel."""
    tracker, kernel, planner = Tracker(s.INFO), Kernel(), Planner("ip", s.INFO)
    for number in range(count):
        tracker.service(
            f"default/s{number}", service(f"s{number}", f"10.96.{number // 200}.{number % 200 + 1}", [port(80)])
        )
        tracker.slice(f"default/s{number}-1", _some(f"s{number}", endpoints))
    tracker.flush()
    take(kernel, planner, planner.full(tracker.dataplane, KernelState()))
    return tracker, kernel, planner


def take(kernel: Kernel, planner: Planner, plan: Plan) -> Plan:
    kernel.commit(plan)
    planner.committed(plan)
    return plan


def _some(name: str, count: int) -> meta.Object:
    return endpoint_slice(name, [endpoint(f"10.244.2.{i + 1}", "n2") for i in range(count)], [("", "TCP", 9376)])


def cost(size: int, endpoints: int) -> tuple[int, int]:
    """(rules written, chains written) when one of `size` Services gets `endpoints` endpoints."""
    tracker, kernel, planner = _cluster(size)
    tracker.slice("default/s3-1", _some("s3", endpoints))
    plan = take(kernel, planner, planner.change(tracker.dataplane, tracker.flush()))
    assert not planner.unswept
    assert plan.tables == ("nat",)
    assert plan.restore().count("\n") == plan.elements + len(plan.write) + 2
    return plan.elements, len(plan.write)


def test_a_change_costs_what_it_is_and_not_what_the_cluster_is() -> None:
    # The Service's own chain, whole: its endpoints and the rule that marks what comes from off the cluster.
    assert cost(10, 6) == cost(500, 6) == (7, 1)
    assert cost(10, 4) == cost(500, 4) == (5, 1)


def test_a_new_service_costs_its_bucket_and_no_more() -> None:
    """One chain in a thousand leads to it: with 3,000 Services it holds no more than a handful of others."""
    for size in (10, 3000):
        tracker, kernel, planner = _cluster(size, 1)
        tracker.service("default/new", service("new", "10.96.200.7", [port(80)]))
        tracker.slice("default/new-1", _some("new", 1))
        plan = take(kernel, planner, planner.change(tracker.dataplane, tracker.flush()))
        assert plan.elements < 80
        assert len(plan.write) <= 4


def test_the_way_to_a_service_is_short() -> None:
    """The number of rules that a packet is compared with on its way to the last of 3,000 Services."""
    _, kernel, _ = _cluster(3000, 1)
    chains = kernel.read().chains
    leaves = [
        len(rules) for (_, name), rules in chains.items() if name.startswith("PODWIRE-A-") and name.count("-") == 3
    ]
    assert len(chains[Chain("nat", "PODWIRE-SERVICES")]) <= 32
    assert max(leaves) <= 3000 / 1024 * 4


def test_what_others_break_is_mended_and_only_that() -> None:
    tracker, kernel, planner = _cluster(50)
    whole = kernel.read()
    kernel.chains[Chain("nat", "PODWIRE-POSTROUTING")].pop()
    del kernel.chains[Chain("nat", "PREROUTING")]
    kernel.sets["PODWIRE-CLUSTER-IPS-4"].pop()
    plan = planner.full(tracker.dataplane, kernel.read())
    assert set(plan.write) == {Chain("nat", "PODWIRE-POSTROUTING"), Chain("nat", "PREROUTING")}
    assert [op.kind for op in plan.before] == ["add"]
    kernel.commit(plan)
    assert kernel.read() == whole


def test_a_refusal_goes_after_what_replaces_it() -> None:
    """Endpoints are added: `nat` matches the packets at once, and `filter` drops its refusal in a later commit. They
    are removed: `filter` is first.
    """
    tracker, kernel, planner = _cluster(3, 0)
    tracker.slice("default/s1-1", _some("s1", 1))
    plan = take(kernel, planner, planner.change(tracker.dataplane, tracker.flush()))
    assert plan.tables == ("nat",)
    assert planner.unswept
    assert take(kernel, planner, planner.sweep()).tables == ("filter",)
    tracker.slice("default/s1-1", _some("s1", 0))
    plan = take(kernel, planner, planner.change(tracker.dataplane, tracker.flush()))
    text = plan.restore()
    assert text.index("*filter") < text.index("*nat")
    assert not planner.unswept


def test_a_client_is_not_remembered_for_an_endpoint_that_comes_back() -> None:
    tracker, kernel, planner = Tracker(s.INFO), Kernel(), Planner("ip", s.INFO)
    tracker.service("default/a", service("a", VIPS[0], [port(80)], sessionAffinity="ClientIP"))
    tracker.slice("x", _some("a", 2))
    tracker.flush()
    take(kernel, planner, planner.full(tracker.dataplane, KernelState()))
    clients = [name for name in kernel.sets if name.startswith("PODWIRE-A4-")]
    assert len(clients) == 2
    for name in clients:
        kernel.sets[name].add("10.244.9.9")
    tracker.slice("x", _some("a", 1))
    plan = take(kernel, planner, planner.change(tracker.dataplane, tracker.flush()))
    assert [op.kind for op in plan.after] == ["flush"]
    tracker.slice("x", _some("a", 2))
    take(kernel, planner, planner.change(tracker.dataplane, tracker.flush()))
    assert sorted(len(kernel.sets[name]) for name in clients) == [0, 1]
    tracker.service("default/a", None)
    take(kernel, planner, planner.change(tracker.dataplane, tracker.flush()))
    assert {op.kind for op in take(kernel, planner, planner.sweep()).after} == {"destroy"}
    assert set(kernel.sets) == {"PODWIRE-CLUSTER-IPS-4"}


@pytest.mark.parametrize("which", FAMILIES)
@given(st.integers(0, (1 << 128) - 1), st.integers(0, (1 << 128) - 1), st.integers(0, 127))
def test_the_program_for_hairpins(which: Family, one: int, other: int, bit: int) -> None:
    size = 4 if which == "ip" else 16
    a, b = ((number & ((1 << size * 8) - 1)).to_bytes(size, "big") for number in (one, other))
    near = ((one ^ 1 << bit % (size * 8)) & ((1 << size * 8) - 1)).to_bytes(size, "big")
    program = same_address(which).split('"')[1]
    start = bytes(12 if which == "ip" else 8)
    assert run_bpf(program, start + a + a)
    assert not run_bpf(program, start + a + near)
    assert run_bpf(program, start + a + b) == (a == b)


def test_names_fit_and_odd_names_of_objects_end_no_rule() -> None:
    tracker = Tracker(s.INFO)
    odd = 'x" -j ACCEPT\n-A X'
    tracker.service(f"default/{odd}", service(odd, VIPS[0], [port(80)], sessionAffinity="ClientIP"))
    tracker.slice("x", endpoint_slice(odd, [endpoint(s.POD_B)], [("", "TCP", 80)]))
    tracker.flush()
    plan = Planner("ip", s.INFO).full(tracker.dataplane, KernelState())
    assert all(len(chain.name) <= 28 for chain in plan.write)
    assert all(len(op.name) <= 31 for op in plan.before)
    assert "-j ACCEPT" not in [take_apart(rule).target for rules in plan.write.values() for rule in rules]
    assert all(line[0] in "*:-C" for line in plan.restore().splitlines())
    assert 'default/x? -j ACCEPT?-A X"' in plan.restore()


def test_read_back_is_what_was_written() -> None:
    lines = [
        "*nat",
        ":PREROUTING ACCEPT [0:0]",
        ":DOCKER - [0:0]",
        ":PODWIRE-MARK - [0:0]",
        "-A PREROUTING -j DOCKER",
        '-A PREROUTING -m comment --comment "podwire: Services" -j PODWIRE-SERVICES',
        "-A PODWIRE-MARK -j CONNMARK --set-xmark 0x4000/0x4000",
        "COMMIT",
    ]
    assert parse("\n".join(lines)) == {
        Chain("nat", "PODWIRE-MARK"): ("-j CONNMARK --set-xmark 0x4000/0x4000",),
        Chain("nat", "PREROUTING"): ('-m comment --comment "podwire: Services" -j PODWIRE-SERVICES',),
    }


@pytest.mark.parametrize("which", FAMILIES)
def test_what_stands_fast_names_only_what_is_there(which: Family) -> None:
    fixed = static_rules(which, s.INFO)
    rules = [rule for chains in (fixed, hooks(which, s.INFO)) for rules in chains.values() for rule in rules]
    named = {take_apart(rule).target for rule in rules}
    assert {target for target in named if is_ours(target)} <= {chain.name for chain in fixed}


def test_refused_packets_are_logged_by_as_many_rules_whatever_services_there_are() -> None:
    tracker = s.SCENARIOS[0].tracker()
    tracker.flush()
    logs = [rule for rules in static_rules("ip", s.INFO).values() for rule in rules if "-j NFLOG" in rule]
    plan = Planner("ip", s.SCENARIOS[0].node).full(tracker.dataplane, KernelState())
    assert sum("-j NFLOG" in line for line in plan.lines()) == len(logs) > 3
    assert all("--limit " in rule for rule in logs)
    silent = static_rules("ip", s.INFO, logs=False)
    assert not any("-j NFLOG" in rule for rules in silent.values() for rule in rules)


def test_a_plan_can_be_shown() -> None:
    tracker = s.SCENARIOS[0].tracker()
    tracker.flush()
    lines = list(Planner("ip", s.SCENARIOS[0].node).full(tracker.dataplane, KernelState()).lines())
    assert lines[0] == "ipset create PODWIRE-CLUSTER-IPS-4 hash:ip"
    assert str(SetOp("create", "x", timeout=True)) == "ipset create x hash:ip timeout 0"
    assert any(f"-j DNAT --to-destination {s.POD_B}:{s.TARGET}" in line for line in lines)
    assert packed(Destination(s.POD_B, 1).ip) == bytes((10, 244, 1, 3))


def test_a_program_that_is_missing_or_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_PATH", "/nowhere")
    monkeypatch.setattr(programs, "present", lambda *_: False)  # reading the kernel's tables needs root
    with pytest.raises(
        programs.ProgramError, match="iptables-nft-restore is not installed; install the package iptables"
    ):
        programs.detect()
    with pytest.raises(programs.ProgramError, match="ip6tables-legacy-save is not installed"):
        programs.program("legacy", "ip6", "save")
    with pytest.raises(programs.ProgramError, match=r"sh: line 2: no such thing \(-A X\)"):
        programs.run(["/bin/sh", "-c", "echo line 2: no such thing >&2; exit 1"], None, "*nat\n-A X\nCOMMIT\n")
    with pytest.raises(programs.ProgramError, match="sh: failed without an error message"):
        programs.run(["/bin/sh", "-c", "exit 1"], None)


def test_a_program_that_reads_late_gets_its_whole_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """An iptables-restore that is slow to read gets what does not fit into a pipe too."""
    monkeypatch.setattr(beat, "SECONDS", 0.01)
    command = ["timeout", "20", "sh", "-c", "sleep 0.1; wc -c"]
    assert programs.run(command, None, "-A X\n" * 100_000) == "500000\n"

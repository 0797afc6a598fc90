"""Whole calls without a process: variables and stdin in, exit status and text out, over a fake kernel."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.role import bugs, logs
from podwire_base.role.asking import Asker
from podwire_base.role.judging import Asked
from podwire_cni import listener
from podwire_cni.commands import Plugin, Sandbox
from podwire_cni.ipam.allocator import Allocator, Lease
from podwire_cni.ipam.ranges import podcidr_range
from podwire_cni.nodetable import PodRules
from podwire_cni.ops import AddNeighbour, AddRoute, CreateVeth, inverse, undo
from podwire_cni.plan import NodeNet, host_veth, mac_for
from podwire_cni.skel import Reply, run
from podwire_cni.testing.kernel import FakeFirewall, FakeKernel
from podwire_cni.testing.store import FakeStore
from podwire_cni.types import Attachment, IPAddress

NODE = NodeNet(((podcidr_range(ip_network("10.244.1.0/28")),),))
DUAL = NodeNet((NODE.ranges[0], (podcidr_range(ip_network("fd00:1::/64")),)))
STEPS = 11  # of one IPv4 ADD; the last position that can fail


class Host:
    """A node: the state that outlives a process (kernel, leases) and the process (plugin)."""

    def __init__(self, node: NodeNet | None = NODE, boot: str = "boot1") -> None:
        self.kernel, self.firewall, self.held, self.node = FakeKernel(), FakeFirewall(), dict[IPAddress, Lease](), node
        self.restart(boot)

    def restart(self, boot: str = "boot1", *, damaged: IPAddress | None = None) -> list[str]:
        store = FakeStore(self.held)
        if damaged is not None:
            del self.held[damaged]
            store.broken.add(damaged)
        self.plugin = Plugin(self.kernel, self.firewall, Allocator(store), lambda: self.node, boot)
        return self.plugin.reconcile()

    def call(
        self,
        command: str,
        container: str = "c1",
        sandbox: Sandbox | None = None,
        env: Mapping[str, str] | None = None,
        **conf: Any,
    ) -> Reply:
        variables = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": "/proc/9/ns/net",
            "CNI_IFNAME": "eth0",
            **(env or {}),
        }
        stdin = json.dumps({"cniVersion": "1.1.0", "name": "podwire", "type": "podwire-cni", **conf})
        return run(variables, stdin.encode(), sandbox or Sandbox(9, ""), lambda _: self.plugin)

    def state(self) -> tuple[set[str], set[IPAddress], set[IPAddress], set[Attachment]]:
        return set(self.kernel.veths), set(self.kernel.neighbours), set(self.held), set(self.firewall.pods)


def body(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply.text)
    return found


def test_add_answers_with_what_it_did() -> None:
    host = Host()
    reply = host.call("ADD")
    assert reply.status == 0
    assert body(reply)["ips"] == [{"address": "10.244.1.2/32", "gateway": "10.244.1.1", "interface": 2}]
    assert body(reply)["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]
    create = next(op for op in host.kernel.applied[0] if isinstance(op, CreateVeth))
    assert (create.peer, create.peer_mac, create.mtu) == ("eth0", "0a:58:0a:f4:01:02", 1500)
    assert len(host.kernel.applied[0]) == STEPS


def test_two_families_give_two_addresses() -> None:
    host = Host(DUAL)
    got = body(host.call("ADD"))
    assert [ip["address"] for ip in got["ips"]] == ["10.244.1.2/32", "fd00:1::2/128"]
    assert [r["gw"] for r in got["routes"]] == ["10.244.1.1", "fd00:1::1"]
    assert len(host.kernel.neighbours) == 2


def test_the_policy_role_is_asked_at_the_end_of_add_and_del() -> None:
    host, asked = Host(DUAL), list[Asked]()

    class Down(Asker):
        def there(self) -> bool:
            return True

        def ask(self, one: Asked) -> str:
            asked.append(one)
            assert host.kernel.veths or one.verb == "DEL", "the pod is there by then"
            return "the role is down"  # is no reason for a pod not to start: the kernel isolates it

    host.plugin.asker = Down(Path("/nowhere"))
    args = {"CNI_ARGS": "K8S_POD_NAMESPACE=x;K8S_POD_NAME=p;K8S_POD_UID=u1"}
    assert host.call("ADD", env=args).status == 0
    assert host.call("DEL", env=args).status == 0
    assert asked == [Asked("ADD", "c1", "x/p", "u1", ("10.244.1.2", "fd00:1::2")), Asked("DEL", "c1", "x/p", "u1")]


@pytest.mark.parametrize("step", range(STEPS))
def test_add_refused_at_any_step_leaves_nothing(step: int) -> None:
    host = Host()
    host.kernel.fail_at = step
    reply = host.call("ADD")
    assert (reply.status, body(reply)["code"]) == (1, 5)
    assert host.state() == (set(), set(), set(), set())
    assert host.call("ADD").status == 0


@pytest.mark.parametrize(
    ("command", "sandbox", "env", "conf", "code"),
    [
        ("ADD", Sandbox(None, "No such file"), {}, {}, 3),
        ("ADD", Sandbox(9, "", is_netns=False), {}, {}, 4),
        ("ADD", Sandbox(9, "", is_node=True), {}, {}, 4),
        ("ADD", Sandbox(9, "", is_node=True), {"CNI_NETNS_OVERRIDE": "true"}, {}, 0),
        ("ADD", Sandbox(9, "", no_pod="/proc/1/ns/net"), {}, {}, 4),
        ("ADD", Sandbox(9, "", no_pod="/proc/1/ns/net"), {"CNI_NETNS_OVERRIDE": "true"}, {}, 4),
        ("CHECK", Sandbox(9, "", no_pod="/run/netns/n2"), {}, {}, 4),
        ("DEL", Sandbox(9, "", no_pod="/proc/1/ns/net"), {}, {}, 0),
        ("ADD", None, {"CNI_IFNAME": ""}, {}, 4),
        ("ADD", None, {}, {"cniVersion": "7"}, 1),
        ("ADD", None, {}, {"ipam": {"subnet": "10.9.0.0/24"}}, 7),
        ("ADD", None, {}, {"ipam": {"subnet": "10.244.1.0/28", "gateway": "10.244.1.2"}}, 7),
        ("CHECK", None, {}, {}, 7),
        ("CHECK", None, {}, {"cniVersion": "0.3.1"}, 1),
        ("GC", None, {}, {}, 7),
        ("STATUS", None, {}, {}, 0),
        ("VERSION", None, {}, {}, 0),
        ("DEL", Sandbox(None), {"CNI_NETNS": ""}, {}, 0),
        ("NONSENSE", None, {}, {}, 4),
    ],
)
def test_table_of_calls(
    command: str, sandbox: Sandbox | None, env: dict[str, str], conf: dict[str, Any], code: int
) -> None:
    reply = Host().call(command, "c1", sandbox, env, **conf)
    assert (reply.status, body(reply).get("code", 0) if reply.text else 0) == (int(code > 0), code)


def test_a_mac_belongs_to_one() -> None:
    """If a port had the MAC of the bridge or of a neighbour, packets would be sent to the wrong port."""
    host = Host()
    ask: dict[str, Any] = {"runtimeConfig": {"mac": NODE.bridge_mac}}
    assert body(host.call("ADD", **ask))["code"] == 7 and "podwire0" in body(host.call("ADD", **ask))["msg"]
    assert host.call("ADD", "first").status == 0
    ask["runtimeConfig"]["mac"] = next(iter(host.held.values())).mac
    assert "first/eth0" in body(host.call("ADD", **ask))["msg"] and len(host.held) == 1


BROKEN = [
    {"hairpin": True},  # an unknown key
    {"cniVersion": "0.1.0"},
    {"ipam": {"type": "dhcp", "subnet": "nowhere"}},
    {"bridge": "a name that is no name"},
    {"prevResult": {"ips": "none"}},
    {"runtimeConfig": {"portMappings": "all", "other": 1}},
    {"isGateway": False},
]


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: next(iter(change)))
def test_del_ends_well_with_an_edited_configuration(change: dict[str, Any]) -> None:
    host = Host()
    assert host.call("ADD").status == 0
    assert host.call("ADD", "c2", **change).status == 1
    reply = host.call("DEL", **change)
    assert (reply.status, reply.text) == (0, b"") and host.state() == (set(), set(), set(), set())
    if change != {"isGateway": False}:  # this one is refused by ADD alone
        assert reply.ignored is not None and reply.ignored.msg


@given(
    st.binary(max_size=40)
    | st.recursive(st.none() | st.booleans() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_del_ends_well_with_any_text(stdin: bytes) -> None:
    host = Host()
    host.call("ADD")
    env = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_ARGS": "IP=nowhere;x;K8S"}
    assert run(env, stdin, Sandbox(None), lambda _: host.plugin).status == 0
    assert host.state() == (set(), set(), set(), set())


def test_del_ends_well_where_the_tables_refuse() -> None:
    host = Host()
    host.call("ADD")

    def refused(owner: Attachment, pod: PodRules) -> None:
        raise OSError(28, "refused")

    host.firewall.detach = refused  # type: ignore[method-assign]  # nftables that take no change
    assert host.call("DEL").status == 0 and host.held == {} and host.kernel.veths == {}


def test_macspoofchk_is_refused_where_nothing_checks() -> None:
    assert Host().call("ADD", macspoofchk=True).status == 0
    open_node = Host(replace(NODE, anti_spoofing=False))
    assert open_node.call("ADD", "c2").status == 0
    reply = open_node.call("ADD", macspoofchk=True)
    assert body(reply)["code"] == 7 and "--no-anti-spoofing" in body(reply)["msg"]


def test_without_podcidr_nothing_can_be_added() -> None:
    host = Host(None)
    assert body(host.call("ADD"))["code"] == 11
    assert body(host.call("STATUS"))["code"] == 50
    assert host.call("DEL").status == 0


def test_status_tells_an_exhausted_pool() -> None:
    host = Host()
    for i in range(13):
        assert host.call("ADD", f"c{i}").status == 0
    assert body(host.call("ADD", "more"))["code"] == 11
    assert body(host.call("STATUS"))["code"] == 50


def test_status_tells_of_ranges_of_the_configuration() -> None:
    host, ipam = (
        Host(),
        {"ranges": [[{"subnet": "10.244.1.0/28", "rangeStart": "10.244.1.5", "rangeEnd": "10.244.1.5"}]]},
    )
    assert host.call("STATUS", ipam=ipam).status == 0
    assert host.call("ADD", "a", ipam=ipam).status == 0
    assert body(host.call("STATUS", ipam=ipam))["code"] == 50 and host.call("STATUS").status == 0


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_a_bug_is_an_error_object_and_its_traceback_is_logged(command: str) -> None:
    """The runtime gets a code of ours and is sent to the log, which has the line that raised it."""
    host, written = Host(), io.StringIO()
    host.kernel.remove = host.kernel.apply = None  # type: ignore[assignment,method-assign]  # on purpose: our fault
    reply = host.call(command)
    assert (reply.status, body(reply)["code"]) == (1, 999)
    assert "bug of podwire: TypeError" in body(reply)["msg"] and "log" in body(reply)["details"]
    bugs.forget()
    logs.configure(json_lines=True, stream=written)
    try:
        listener._log(reply, 0.1)
    finally:
        logs.configure()
    line = json.loads(written.getvalue())
    assert (line["level"], line["event"]) == ("error", f"bug of podwire: {command.lower()}")
    assert "Traceback" in line["traceback"] and "commands.py" in line["traceback"]


def test_what_the_kernel_refuses_is_no_bug() -> None:
    host = Host()
    host.kernel.fail_at = 0
    assert body(host.call("ADD"))["code"] == 5


def test_gc_carries_on_after_errors() -> None:
    host = Host()
    for name in ("a", "b", "c"):
        host.call("ADD", name)
    real, broken = host.kernel.remove, host_veth(Attachment("a", "eth0"))

    def remove(ops: Any, meanwhile: Any = None) -> None:
        if any(getattr(op, "link", "") == broken for op in ops):
            raise OSError(16, "busy")
        real(ops, meanwhile)

    host.kernel.remove = remove  # type: ignore[method-assign]  # one link that cannot be deleted
    valid: dict[str, Any] = {"cni.dev/valid-attachments": [{"containerID": "c", "ifname": "eth0"}]}
    reply = host.call("GC", **valid)
    assert reply.status == 1 and "a/eth0" in body(reply)["msg"]
    assert {lease.owner.container_id for lease in host.held.values()} == {"a", "c"}


def test_reconcile_frees_what_a_crash_or_reboot_left() -> None:
    host = Host()
    for name in ("whole", "cut-off", "lost"):
        host.call("ADD", name)
    cut = next(a for a, lease in host.held.items() if lease.owner.container_id == "cut-off")
    lease = host.held[cut]
    host.held[cut] = Lease(lease.address, lease.owner, lease.pod, lease.pod_uid, lease.boot_id)
    del host.kernel.veths[host_veth(Attachment("lost", "eth0"))]
    assert len(host.restart()) == 2
    assert {lease.owner.container_id for lease in host.held.values()} == {"whole"}
    assert set(host.kernel.veths) == {host_veth(Attachment("whole", "eth0"))}
    host.restart("boot2")
    assert host.state() == (set(), set(), set(), set())


@pytest.mark.parametrize("family", [0, 1])
def test_a_damaged_lease_is_that_of_the_pods_other_address(family: int) -> None:
    host = Host(DUAL)
    for name in ("a", "b"):
        host.call("ADD", name)
    before = dict(host.held)
    address = [a for a, lease in before.items() if lease.owner.container_id == "a"][family]
    told = host.restart(damaged=address)
    assert told == [f"{address} of a/eth0: its lease was unreadable, written anew"]
    assert host.held == before and host.plugin.pods().keys() == {lease.owner for lease in before.values()}
    assert host.call("DEL", "a").status == 0 and host.call("DEL", "b").status == 0
    assert host.state() == (set(), set(), set(), set())


def test_a_damaged_lease_that_says_nobodys_name_keeps_its_address_until_no_pod_has_it() -> None:
    host = Host()
    host.call("ADD")
    (address,) = host.held
    assert host.restart(damaged=address) == [] and host.held == {}, "one family only: its owner cannot be known"
    assert host.call("ADD", "c2").status == 0 and address not in host.held
    host.kernel.neighbours.pop(address)
    assert host.restart() == [] and host.plugin.allocator.store.damaged() == frozenset()


def test_repair_rejoins_ports_and_drops_strangers() -> None:
    host = Host()
    host.call("ADD")
    veth = host_veth(Attachment("c1", "eth0"))
    host.kernel.veths[veth] = (10, 0)
    host.kernel.veths["veth0123456789a"] = (11, 1)
    host.kernel.veths["ifb0123456789a"] = (12, 0)
    host.kernel.veths["ifb0"] = (13, 0)
    host.kernel.neighbours.clear()
    assert len(host.plugin.repair()) == 3
    assert host.kernel.veths == {veth: (10, 1), "ifb0": (13, 0)} and len(host.kernel.neighbours) == 1
    assert host.plugin.repair() == []


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["ADD", "ADD", "DEL", "restart"]), st.integers(0, 4), st.none() | st.integers(0, STEPS - 1)
    ),
    max_size=25,
)


@given(CALLS)
def test_any_sequence_equals_a_fresh_build(calls: list[tuple[str, int, int | None]]) -> None:
    """The state in the kernel and on disk depends only on the present pods, not on the history."""
    host, alive = Host(), set[str]()
    for command, n, fail_at in calls:
        name = f"c{n}"
        if command == "restart":
            assert host.restart() == []
            continue
        host.kernel.fail_at = fail_at if command == "ADD" and name not in alive else None
        reply = host.call(command, name)
        assert reply.status == int(command == "ADD" and (name in alive or fail_at is not None))
        if command == "DEL":
            alive.discard(name)
        elif reply.status == 0:
            alive.add(name)
    assert set(host.kernel.veths) == {host_veth(Attachment(name, "eth0")) for name in alive}
    assert {lease.owner.container_id for lease in host.held.values()} == alive
    assert host.kernel.neighbours == {address: mac_for(address) for address in host.held}


def test_undo_is_the_inverse_last_step_first() -> None:
    host = Host()
    host.call("ADD")
    ops = host.kernel.applied[0]
    back = undo(ops)
    assert [type(op).__name__ for op in back] == ["DeleteNeighbour", "DeleteLink"]
    assert [inverse(op) for op in ops if isinstance(op, AddRoute)] == [None, None]
    pod_side = [op for op in ops if isinstance(op, AddNeighbour) and op.place == "pod"]
    assert [inverse(op) for op in pod_side] == [None]
    host.kernel.remove(back)
    assert host.state()[:2] == (set(), set())

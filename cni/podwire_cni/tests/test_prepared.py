"""A prepared plan equals, byte for byte, the pod's own plan."""

from __future__ import annotations

import contextlib
import errno
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podwire_base.kernel.netlink.codec import NetlinkError
from podwire_base.kernel.nft import ruleset as nft
from podwire_cni import nodetable, prepared, program
from podwire_cni.conf import parse_range
from podwire_cni.errors import CNIError, ErrorCode
from podwire_cni.ipam.ranges import podcidr_range
from podwire_cni.kernel import Kernel
from podwire_cni.native import attach
from podwire_cni.nodetable import PodRules
from podwire_cni.ops import SetUp, with_ipv6
from podwire_cni.plan import LONGEST_ALIAS, NodeNet, add_plan, alias_of, host_veth, mac_for
from podwire_cni.prepared import PodPlan
from podwire_cni.template import Template, cut
from podwire_cni.types import VERSIONS, Attachment, Call, IPAddress, NetConf, PortMapping, Route

CIDRS = (("10.244.0.0/16",), ("fd00:1::/64",), ("10.244.0.0/16", "fd00:1::/64"), ("fd00:1::/64", "192.0.2.0/24"))
ROUTE = Route(ip_network("10.0.0.0/8"))
NAMES = st.text("abcdefghij0123456789-.", min_size=1, max_size=120)
NODES = [NodeNet(tuple((podcidr_range(ip_network(cidr)),) for cidr in cidrs)) for cidrs in CIDRS]
NODES.append(NodeNet(((parse_range({"subnet": "10.9.0.0/20", "gateway": "10.9.3.3"}, "r"),),), mtu=1450, bridge="br-x"))


@st.composite
def pods(draw: st.DrawFn) -> PodPlan:
    node = draw(st.sampled_from(NODES))
    homes = [ranges[0] for ranges in node.ranges]
    addresses: list[tuple[IPAddress, object]] = []
    for home in homes:
        number = draw(st.integers(int(home.start), int(home.end)))
        addresses.append((IPv4Address(number) if home.subnet.version == 4 else IPv6Address(number), home))
    args = {"K8S_POD_NAMESPACE": draw(NAMES), "K8S_POD_NAME": draw(NAMES)} if draw(st.booleans()) else {}
    call = Call(
        "ADD",
        Attachment(draw(NAMES), draw(st.sampled_from(("eth0", "net1", "q")))),
        "/run/netns/" + draw(st.text(max_size=20)),
        args,
    )
    conf = NetConf(draw(st.sampled_from(VERSIONS)), "podwire", mtu=draw(st.sampled_from((None, 1500, 9000))))
    return PodPlan(call, conf, node, addresses)  # type: ignore[arg-type]  # mypy does not follow the ranges


@given(pods(), st.integers(0, 1 << 20))
def test_a_prepared_program_is_what_the_plan_makes(pod: PodPlan, pod_fd: int) -> None:
    ready = pod.program(pod_fd)
    assert ready is not None and pod.prepared is not None
    alias = alias_of(pod.call)
    room = min(-(-len(alias) // 32) * 32, LONGEST_ALIAS)
    ops = [
        op._replace(alias=alias.ljust(room, "\0")) if isinstance(op, SetUp) and op.alias else op for op in pod.plan.ops
    ]
    assert ready == program.program(ops, pod_fd)


@given(pods())
def test_a_prepared_result_is_what_the_plan_makes(pod: PodPlan) -> None:
    assert pod.text() == prepared.printed(pod.plan.result, pod.conf)


@given(pods(), st.booleans())
def test_prepared_elements_are_what_the_table_asks_for(pod: PodPlan, remove: bool) -> None:
    addresses = tuple(address for address, _ in pod.addresses)
    rules = PodRules(host_veth(pod.call.attachment), mac_for(addresses[-1]), addresses)
    whole = b"".join(nft.encode(nodetable.change(rules, remove=remove))[0])
    assert nodetable.encoded(rules, remove=remove) == whole


def test_others_go_by_their_plan() -> None:
    node, call = NODES[0], Call("ADD", Attachment("c", "eth0"), "/x")
    homes = [(IPv4Address("10.244.3.4"), node.ranges[0][0])]
    own_mac, own_route = NetConf("1.0.0", "n", mac="02:00:00:00:00:01"), NetConf("1.0.0", "n", routes=(ROUTE,))
    for conf in (own_mac, own_route):
        pod = PodPlan(call, conf, node, homes)
        assert pod.program(3) is None
        assert pod.text() == prepared.printed(add_plan(call, conf, node, homes).result, conf)
    with_port = PodRules("veth0", mac_for(homes[0][0]), (homes[0][0],), (PortMapping(80, 80),))
    assert nodetable.encoded(with_port) is None


def test_kinds_are_bounded() -> None:
    node = NodeNet(NODES[0].ranges)
    for mtu in range(1000, 1000 + 3 * prepared.MOST_KINDS):
        PodPlan(
            Call("ADD", Attachment("c", "eth0")),
            NetConf("1.0.0", "n", mtu=mtu),
            node,
            [(IPv4Address("10.244.3.4"), node.ranges[0][0])],
        )
    assert len(node.prepared) <= prepared.MOST_KINDS


def test_a_long_name_is_cut_where_the_kernel_would_refuse_it() -> None:
    call = Call("ADD", Attachment("c", "eth0"), args={"K8S_POD_NAMESPACE": "n" * 63, "K8S_POD_NAME": "é" * 200})
    assert len(alias_of(call).encode()) <= LONGEST_ALIAS and alias_of(call).endswith("é")


def test_a_stencil_that_would_lie_is_none() -> None:
    def make(word: str) -> bytes:
        return f"{word} {len(word)}".encode()

    assert cut(make, lambda word: [word.encode()], "abc", "xyzw") is None, "the length differs, too"
    found = cut(make, lambda word: [word.encode()], "abc", "xyz")
    assert found is not None and found.fill([b"klm"]) == make("klm")
    assert Template(b"aXXbXc", [b"X", b"XX"]).fill([b"1", b"2"]) == b"a2b1c", "the longest first"


@pytest.mark.skipif(attach.library().left_out, reason=attach.library().problem)
def test_the_library_says_what_failed() -> None:
    library = attach.load()
    assert library is not None
    out = library.run(
        -1,
        0,
        -1,
        -1,
        program.program(
            add_plan(
                Call("ADD", Attachment("c", "eth0")),
                NetConf("1.0.0", "n"),
                NODES[0],
                [(IPv4Address("10.244.3.4"), NODES[0].ranges[0][0])],
            ).ops,
            0,
        )[0],
    )
    assert out is not None and (out.status, out.error) == (attach.FAILED, 9), "EBADF: no such socket"


@pytest.mark.parametrize(("node", "again"), [(NODES[0], False), (NODES[2], True)], ids=["IPv4", "both"])
def test_only_a_pod_with_ipv6_is_tried_again_with_it(
    monkeypatch: pytest.MonkeyPatch, node: NodeNet, again: bool
) -> None:
    kernel, applied = object.__new__(Kernel), list[object]()

    def refused(pod: PodPlan, pod_fd: int) -> None:
        raise CNIError(ErrorCode.IO_FAILURE, "refused") from NetlinkError(errno.EACCES, 0)

    monkeypatch.setattr(kernel, "_wire", refused)
    monkeypatch.setattr(kernel, "apply", lambda ops, pod_fd: applied.extend(ops))
    pod = PodPlan(
        Call("ADD", Attachment("c", "eth0")),
        NetConf("1.0.0", "n"),
        node,
        [(ranges[0].start + 5, ranges[0]) for ranges in node.ranges],
    )
    with contextlib.nullcontext() if again else pytest.raises(CNIError):
        kernel.attach_pod(pod, 3)
    assert applied == (list(with_ipv6(pod.plan.ops)) if again else [])

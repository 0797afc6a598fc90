"""Several bridges on one node, beside the node's own: pods with addresses of a plain subnet, with and without a
gateway."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from lab.cninode import CniNode, ask, peer_server, put_node, wait_until
from lab.fakeapi import FakeApi
from lab.netns import Lab, NetNS

NODE, OUTSIDE, FRIEND = "192.0.2.1", "192.0.2.42", "192.0.2.200"
TENTATIVE = 0x40


class Place:
    def __init__(self, lab: Lab, api: FakeApi, node: CniNode, outside: NetNS) -> None:
        self.lab, self.api, self.node, self.outside = lab, api, node, outside

    def conf(self, bridge: str, *subnets: str, **more: Any) -> dict[str, Any]:
        """The configuration from a conflist that an administrator wrote."""
        return {
            "cniVersion": "1.1.0",
            "name": bridge,
            "type": "podwire-cni",
            "socket": str(self.node.run_dir / "cni.sock"),
            "bridge": bridge,
            "ipam": {"ranges": [[{"subnet": s}] for s in subnets]},
            **more,
        }

    def pod(
        self, name: str, conf: dict[str, Any], *, netns: NetNS | None = None, ifname: str = "eth0", args: str = ""
    ) -> tuple[NetNS, list[str]]:
        made = netns or self.lab.netns(name)
        answer = self.node.cni("ADD", name, made, conf, CNI_IFNAME=ifname, CNI_ARGS=args)
        assert answer.status == 0, answer.out + self.node.log()
        return made, [ip["address"] for ip in answer.body["ips"]]

    def drop(self, name: str, conf: dict[str, Any], ifname: str = "eth0") -> None:
        assert self.node.cni("DEL", name, None, conf, CNI_IFNAME=ifname).status == 0


@pytest.fixture
def place(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    ns, outside = lab.netns("node"), lab.netns("outside")
    lab.wire(ns, "eth0", outside, "eth0", f"{NODE}/24", f"{OUTSIDE}/24")
    outside.netlink(lambda ipr: ipr.addr("add", index=ipr.link_lookup(ifname="eth0")[0], address=FRIEND, prefixlen=24))
    for subnet in ("10.50.0.0/24", "10.51.0.0/24"):
        # a default
        outside.netlink(lambda ipr, subnet=subnet: ipr.route("add", dst=subnet, gateway=NODE))  # type: ignore[misc]
    with FakeApi(ns) as api:
        put_node(api, "n1", "10.244.1.0/24", NODE)
        node = CniNode(ns, tmp_path_factory.mktemp("run"), "n1", api)
        node.start()
        yield Place(lab, api, node, outside)
        node.close()


def neighbour(ns: NetNS, address: str) -> str:
    """The MAC that `ns` knows for an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ns.netlink(
        lambda ipr: "".join(
            str(n.get("NDA_LLADDR")) for n in ipr.get_neighbours(family=family) if n.get("NDA_DST") == address
        )
    )


def tell(place: Place, target: NetNS, source: NetNS, address: str) -> str:
    with peer_server(target, address) as port:
        return ask(source, address, port)


def test_a_plain_subnet(place: Place) -> None:
    conf = place.conf("lan0", "10.50.0.0/24", addressing="subnet", ipMasq=True, nonMasqueradeCIDRs=[f"{FRIEND}/32"])
    a, (a_ip,) = place.pod("a", conf)
    b, (b_ip,) = place.pod("b", conf)
    c, (c_ip,) = place.pod("c", place.node.conf())
    assert (a_ip, b_ip, c_ip) == ("10.50.0.2/24", "10.50.0.3/24", "10.244.1.2/32")
    assert tell(place, b, a, "10.50.0.3") == "10.50.0.2"
    assert neighbour(a, "10.50.0.3") == "0a:58:0a:32:00:03", "they meet on the link, not by the node"
    assert tell(place, c, a, "10.244.1.2") in ("10.50.0.2", "10.244.1.1"), "by the node, from one bridge to the other"
    assert tell(place, place.outside, a, OUTSIDE) == NODE, "masqueraded"
    assert tell(place, place.outside, a, FRIEND) == "10.50.0.2", "not masqueraded"
    assert tell(place, b, place.node.ns, "10.50.0.3") == "10.50.0.1"
    for name in ("a", "b"):
        place.drop(name, conf)
    place.drop("c", place.node.conf())
    assert place.node.leases() == {} and not [name for name in place.node.links() if name.startswith("veth")]


def test_a_bridge_that_leads_nowhere(place: Place) -> None:
    conf = place.conf("dark0", "10.51.0.0/24", addressing="subnet", isGateway=False)
    a, _ = place.pod("a", conf)
    b, _ = place.pod("b", conf)
    assert tell(place, b, a, "10.51.0.3") == "10.51.0.2"
    routes = a.netlink(
        lambda ipr: [(r.get("RTA_DST"), r.get("RTA_GATEWAY")) for r in ipr.get_routes(table=254, family=2)]
    )
    assert routes == [("10.51.0.0", None)]
    assert place.node.ns.netlink(lambda ipr: ipr.get_addr(index=ipr.link_lookup(ifname="dark0")[0], family=2)) == ()
    with pytest.raises(OSError, match="unreachable"):
        tell(place, place.outside, a, OUTSIDE)


def test_two_interfaces_of_one_pod_and_what_each_network_collects(place: Place) -> None:
    lan = place.conf("lan0", "10.50.0.0/24", addressing="subnet", isGateway=False)
    main = place.node.conf(
        "1.1.0", ipam={"routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.77.0.0/16", "gw": "10.244.1.1"}]}
    )
    pod, _ = place.pod("both", main)
    place.pod("both", lan, netns=pod, ifname="net1")
    other, _ = place.pod("other", lan)
    routes = pod.netlink(
        lambda ipr: {(str(r.get("RTA_DST")), str(r.get("RTA_GATEWAY"))) for r in ipr.get_routes(table=254, family=2)}
    )
    assert routes == {
        ("None", "10.244.1.1"),
        ("10.77.0.0", "10.244.1.1"),
        ("10.244.1.1", "None"),
        ("10.50.0.0", "None"),
    }
    assert (
        place.node.cni(
            "GC", "", None, {**main, "cni.dev/valid-attachments": [{"containerID": "both", "ifname": "eth0"}]}
        ).status
        == 0
    )
    assert sorted(place.node.leases()) == ["10.244.1.2", "10.50.0.2", "10.50.0.3"], (
        "another network's are not its business"
    )
    assert (
        place.node.cni(
            "GC", "", None, {**lan, "cni.dev/valid-attachments": [{"containerID": "other", "ifname": "eth0"}]}
        ).status
        == 0
    )
    assert sorted(place.node.leases()) == ["10.244.1.2", "10.50.0.3"]
    assert other.netlink(lambda ipr: ipr.link_lookup(ifname="eth0")) and pod.netlink(
        lambda ipr: ipr.link_lookup(ifname="eth0")
    )


def test_an_address_that_comes_back_with_another_mac_is_announced(place: Place) -> None:
    conf = place.conf("lan0", "10.50.0.0/24", "fd50::/64", addressing="subnet")
    a, _ = place.pod("a", conf)
    fixed = {"ips": ["10.50.0.77", "fd50::77"]}
    for mac in ("0a:58:0a:32:00:4d", "02:00:00:00:00:77"):
        asked = {**conf, "runtimeConfig": {**fixed, "mac": mac}}
        b, addresses = place.pod("b", asked)
        assert addresses == ["10.50.0.77/24", "fd50::77/64"]
        flags = b.netlink(lambda ipr: [int(x["flags"]) & TENTATIVE for x in ipr.get_addr(family=socket.AF_INET6)])
        assert not any(flags[:1]), "usable at once"
        for address in ("10.50.0.77", "fd50::77"):
            wait_until(
                lambda address=address, mac=mac: neighbour(a, address) in ("", mac),  # type: ignore[misc]  # bound now
                "the old entry is corrected, and nothing was sent yet",
            )
            tell(place, b, a, address)
            assert neighbour(a, address) == mac
        place.drop("b", asked)


def test_networks_survive_restarts_and_are_mended(place: Place) -> None:
    conf = place.conf("lan0", "10.50.0.0/24", addressing="subnet", ipMasq=True)
    node = place.node
    a, _ = place.pod("a", conf)
    node.stop(kill=True)
    node.ns.netlink(lambda ipr: ipr.link("del", index=ipr.link_lookup(ifname="lan0")[0]))
    node.ns.run(["nft", "delete", "table", "ip", "podwire-cni"])
    node.start()
    wait_until(lambda: "made a port of lan0 again" in node.log(), "the bridge has its port again")
    assert tell(place, place.outside, a, OUTSIDE) == NODE
    b, _ = place.pod("b", conf)
    assert tell(place, b, a, "10.50.0.3") == "10.50.0.2"


@pytest.mark.parametrize("addressing", ["routed", "subnet"])
def test_a_change_of_ranges_cuts_off_nobody(place: Place, addressing: str) -> None:
    """An edited conflist, or a second one that names the same bridge, is refused while pods would lose their
    gateway.
    """
    conf = place.conf("lan0", "10.50.0.0/25", addressing=addressing)
    other = {**place.conf("lan0", "10.51.0.0/24", addressing=addressing), "name": "other"}
    a, _ = place.pod("a", conf)
    pod = place.lab.netns("b")
    moved = {"ranges": [[{"subnet": "10.50.0.0/24", "gateway": "10.50.0.254"}]]}
    for refused, words in (
        (other, "pods of other ranges are on it: 10.50.0.2"),
        ({**conf, "ipam": moved}, "pods on it have another gateway: 10.50.0.1"),
        ({**conf, "isGateway": False}, "pods on it have another gateway: 10.50.0.1"),
    ):
        answer = place.node.cni("ADD", "b", pod, refused)
        assert (answer.status, answer.body["code"]) == (1, 7) and words in answer.body["msg"], answer.out
    wider = place.conf("lan0", "10.50.0.0/24", addressing=addressing)
    b, _ = place.pod("b", wider, netns=pod)
    assert tell(place, a, place.node.ns, "10.50.0.2") == tell(place, b, place.node.ns, "10.50.0.3") == "10.50.0.1"
    assert tell(place, b, a, "10.50.0.3") == "10.50.0.2"
    for name in ("a", "b"):
        place.drop(name, wider)
    c, (address,) = place.pod("c", other)
    assert tell(place, c, place.node.ns, address.split("/")[0]) == "10.51.0.1", (
        "no pod is left that would lose its gateway"
    )


def test_the_addresses_of_a_bridge_that_has_no_pods_any_more_may_move(place: Place) -> None:
    """A bridge gets another name in its conflist."""
    old, new = (place.conf(bridge, "10.50.0.0/24", addressing="subnet", ipMasq=True) for bridge in ("lan0", "lan1"))
    place.pod("a", old)
    answer = place.node.cni("ADD", "b", place.lab.netns("b"), new)
    assert (answer.status, answer.body["code"]) == (1, 7) and "of lan0" in answer.body["msg"], "it still has one"
    place.drop("a", old)
    b, (address,) = place.pod("b", new)
    assert tell(place, place.outside, b, OUTSIDE) == NODE and address == "10.50.0.3/24"
    assert "lan0" not in place.node.links() and "lan1" in place.node.links()
    assert [file.name for file in (place.node.run_dir / "cni/networks").iterdir()] == ["lan1.json"]


def test_host_ports_of_another_bridge(place: Place) -> None:
    conf = place.conf(
        "lan0",
        "10.50.0.0/24",
        addressing="subnet",
        runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    )
    a, _ = place.pod("a", conf)
    with a.call(lambda: socket.create_server(("0.0.0.0", 80))) as server:
        for client, target, seen in (
            (place.outside, NODE, OUTSIDE),
            (place.node.ns, "127.0.0.1", "10.50.0.1"),
            (a, NODE, "10.50.0.1"),
        ):
            # a default
            with client.call(lambda target=target: socket.create_connection((target, 8080), 5)):  # type: ignore[misc]
                assert server.accept()[1][0] == seen


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ipam": {}}, "ipam.ranges is missing"),
        (
            {"ipam": {"ranges": [[{"subnet": "10.244.0.0/16"}]]}},
            "10.244.0.0/16 of the bridge lan0 lies over 10.244.1.0/24 of podwire0",
        ),
        ({"bridge": "", "addressing": "subnet"}, "addressing and isGateway are for a bridge of its own"),
        ({"bridge": "a/b"}, "bridge"),
        ({"addressing": "flat"}, "addressing"),
        ({"nonMasqueradeCIDRs": ["x"]}, "nonMasqueradeCIDRs[0]"),
    ],
)
def test_what_cannot_be(place: Place, more: dict[str, Any], words: str) -> None:
    pod = place.lab.netns("pod")
    answer = place.node.cni("ADD", "a", pod, {**place.conf("lan0", "10.50.0.0/24"), **more})
    assert (answer.status, answer.body["code"]) == (1, 7) and words in answer.body["msg"] and answer.body["details"]
    assert place.node.leases() == {} and "lan0" not in place.node.links()


def test_links_of_others_are_left_alone(place: Place) -> None:
    """A bridge with the uplink's name would disconnect the node, and a bridge of another program would lose its
    addresses.
    """
    ns = place.node.ns
    ns.run(["ip", "link", "add", "br0", "type", "bridge"])
    ns.run(["ip", "addr", "add", "198.51.100.1/24", "dev", "br0"])

    def shown() -> str:
        # Duplicate address detection ends in its own time: the flag says nothing about what podwire did.
        return ns.run(["ip", "-o", "addr"]).stdout.replace(" tentative", "")

    before = shown()
    for bridge, words in (
        ("eth0", "which is not a bridge"),
        ("lo", "which is not a bridge"),
        ("br0", "other software made it"),
    ):
        answer = place.node.cni("ADD", "a", place.lab.netns("pod"), place.conf(bridge, "10.50.0.0/24"))
        assert (answer.status, answer.body["code"]) == (1, 7) and words in answer.body["msg"]
    for subnet in ("192.0.2.0/24", "192.0.0.0/16"):
        answer = place.node.cni("ADD", "a", place.lab.netns("pod"), place.conf("lan0", subnet))
        assert answer.status == 1 and "route to 192.0.2.0/24" in answer.body["msg"], "the uplink's own addresses"
    assert shown() == before and place.node.leases() == {}


def test_routes_are_what_the_configuration_says(place: Place) -> None:
    """Routes include those of spec 1.1.0 with numbers; CHECK knows them, and finds a missing one."""
    conf = place.conf(
        "lan0",
        "10.50.0.0/24",
        ipam={
            "ranges": [[{"subnet": "10.50.0.0/24"}]],
            "routes": [
                {"dst": "0.0.0.0/0", "mtu": 1300, "advmss": 1200},
                {"dst": "10.60.0.0/16", "gw": "10.50.0.1", "priority": 50},
                {"dst": "10.61.0.0/16", "table": 1000},
                {"dst": "10.62.0.0/16", "scope": 253},
            ],
        },
    )
    pod = place.lab.netns("a")
    added = place.node.cni("ADD", "a", pod, conf)
    assert added.status == 0, added.out
    assert [r.get("priority") for r in added.body["routes"]] == [None, 50, None, None]
    shown = pod.run(["ip", "route", "show", "table", "all", "dev", "eth0"]).stdout
    words = {line.split()[0]: line for line in shown.splitlines()}
    assert "via 10.50.0.1" in words["default"] and "mtu 1300 advmss 1200" in words["default"]
    assert "metric 50" in words["10.60.0.0/16"] and "table 1000" in words["10.61.0.0/16"]
    assert "scope link" in words["10.62.0.0/16"] and "via" not in words["10.62.0.0/16"]
    check = {**conf, "prevResult": added.body}
    assert place.node.cni("CHECK", "a", pod, check).status == 0
    pod.run(["ip", "route", "del", "10.61.0.0/16", "table", "1000"])
    assert "10.61.0.0/16" in place.node.cni("CHECK", "a", pod, check).body["msg"]


def test_a_second_interface_leaves_the_first_its_default_route(place: Place) -> None:
    pod, (first,) = place.pod("a", place.node.conf("1.1.0"))
    conf = place.conf("lan0", "10.50.0.0/24", addressing="subnet")
    added = place.node.cni("ADD", "a", pod, conf, CNI_IFNAME="net1")
    assert added.status == 0, added.out
    with peer_server(place.outside, OUTSIDE) as port:
        assert ask(pod, OUTSIDE, port) == NODE, "masqueraded, as by eth0"
    with peer_server(pod, "10.50.0.2") as port:
        assert ask(place.node.ns, "10.50.0.2", port) == "10.50.0.1"
    routes = pod.run(["ip", "route", "show", "default"]).stdout.splitlines()
    assert len(routes) == 1 and "dev eth0" in routes[0]
    assert place.node.cni("CHECK", "a", pod, {**conf, "prevResult": added.body}, CNI_IFNAME="net1").status == 0
    place.drop("a", conf, "net1")
    with peer_server(pod, first.split("/")[0]) as port:
        assert ask(place.node.ns, first.split("/")[0], port) == "10.244.1.1"

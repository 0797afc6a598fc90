"""Three nodes with live wiring agents. n1 and n3 share a link; n2 is behind a router.

Like a cloud's network, the router has no routes to pods, and it drops packets from addresses that it did not assign.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cninode import CniNode, put_node, wait_until
from .fakeapi import FakeApi
from .netns import Lab, NetNS

SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17


@dataclass
class Machine:
    """One node, and the data of its Node object."""

    node: CniNode
    address: str
    address6: str
    cidr: str
    cidr6: str


@dataclass
class Routed:
    lab: Lab
    api: FakeApi
    router: NetNS
    machines: dict[str, Machine]
    made: list[tuple[CniNode, str]] = field(default_factory=list)

    def tell(self, name: str) -> None:
        """Write the Node object of this machine with its present data to the API."""
        m = self.machines[name]
        put_node(self.api, name, m.cidr or None, m.address or None, m.address6 or None, cidr6=m.cidr6)

    def pod(self, on: str, name: str, **more: Any) -> tuple[NetNS, list[str]]:
        """Make a pod and return (its namespace, its addresses)."""
        pod, node = self.lab.netns(name), self.machines[on].node
        answer = node.cni("ADD", name, pod, node.conf("1.1.0", **more))
        assert answer.status == 0, answer.out + node.log()
        self.made.append((node, name))
        return pod, [ip["address"].split("/")[0] for ip in answer.body["ips"]]

    def clear(self) -> None:
        for node, name in self.made:
            assert node.cni("DEL", name).status == 0
        self.made.clear()


def figure(node: CniNode, name: str) -> int:
    """Return a figure from the wiring agent's status, -1 if the status does not have it."""
    return int(node.status().get("figures", {}).get(name, -1))


def give(ns: NetNS, link: str, *addresses: str) -> None:
    for address in addresses:
        ip, prefix = address.split("/")
        ns.netlink(
            lambda ipr, ip=ip, prefix=prefix: ipr.addr(  # type: ignore[misc]  # defaults bind them
                "add",
                index=ipr.link_lookup(ifname=link)[0],
                address=ip,
                prefixlen=int(prefix),
                **({"flags": 2} if ":" in ip else {}),
            )
        )


def by_way_of(ns: NetNS, *gateways: str) -> None:
    """Set the default routes through `gateways`, one for each IP family."""
    for gateway in gateways:
        ns.netlink(
            lambda ipr, gateway=gateway: ipr.route(  # type: ignore[misc]  # as above
                "replace", dst="::/0" if ":" in gateway else "0.0.0.0/0", gateway=gateway
            )
        )


def no_checksum_offload(ns: NetNS, link: str) -> None:
    """Disable checksum offload on `link`: the kernel computes every checksum before a packet leaves."""

    def work() -> None:
        value = array.array("B", struct.pack("=II", ETHTOOL_STXCSUM, 0))
        request = struct.pack("16sP16x", link.encode(), value.buffer_info()[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, SIOCETHTOOL, request)

    ns.call(work)


@contextlib.contextmanager
def routed_nodes(
    make_dir: Callable[[str], Path], *flags: str, ipv4: bool = True, ipv6: bool = False
) -> Iterator[Routed]:
    """Yield the running nodes. ipv4, ipv6: the IP families of nodes and pods."""
    with Lab() as lab, contextlib.ExitStack() as stack:
        router, n1, n2, n3 = (lab.netns(name) for name in ("router", "n1", "n2", "n3"))
        router.netlink(lambda ipr: ipr.link("add", ifname="near", kind="bridge", state="up"))
        for ns, port in ((n1, "p1"), (n3, "p3")):
            lab.wire(ns, "eth0", router, port)
            router.netlink(
                lambda ipr, port=port: ipr.link(  # type: ignore[misc]  # a default binds it
                    "set", index=ipr.link_lookup(ifname=port)[0], master=ipr.link_lookup(ifname="near")[0]
                )
            )
        lab.wire(n2, "eth0", router, "far")
        give(router, "near", "192.0.2.254/24", "fd0a::fe/64")
        give(router, "far", "198.51.100.254/24", "fd0b::fe/64")
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter"):
            router.sysctl(key, "1")
        machines: dict[str, Machine] = {}
        give(n1, "eth0", "192.0.2.1/24")
        api = stack.enter_context(FakeApi(n1, "192.0.2.1"))
        for name, ns, number, prefix, prefix6 in (
            ("n1", n1, 1, "192.0.2", "fd0a:"),
            ("n2", n2, 2, "198.51.100", "fd0b:"),
            ("n3", n3, 3, "192.0.2", "fd0a:"),
        ):
            give(
                ns,
                "eth0",
                *([f"{prefix}.{number}/24"] if number > 1 else []),
                *([f"{prefix6}:{number}/64"] if ipv6 else []),
            )
            by_way_of(ns, f"{prefix}.254", *([f"{prefix6}:fe"] if ipv6 else []))
            node = CniNode(ns, make_dir(name), name, api, flags=flags)
            stack.callback(node.close)
            machines[name] = Machine(
                node,
                f"{prefix}.{number}" if ipv4 else "",
                f"{prefix6}:{number}" if ipv6 else "",
                f"10.244.{number}.0/24" if ipv4 else f"fd00:{number}::/64",
                f"fd00:{number}::/64" if ipv4 and ipv6 else "",
            )
        world = Routed(lab, api, router, machines)
        for name, machine in machines.items():
            world.tell(name)
            machine.node.start(wait=False)
        for name, machine in machines.items():
            wait_until(
                # as above
                lambda node=machine.node: node.ready() and figure(node, "routes") >= 2,  # type: ignore[misc]
                f"agent of {name} knows the others",
            )
        yield world

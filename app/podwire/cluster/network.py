"""The embedded cluster's links: named network namespaces, a switch, nodes and hosts outside the cluster. This module
uses pyroute2, only for the set-up.

The run directory has a file for each namespace before the namespace is created (mounts.py). So `podwire down` finds
every namespace, even after a crash of `podwire up`. A symbolic link in /run/netns leads to the file, so
`ip netns list`, `exec` and `del` know the namespace. The machine's own namespace stays unchanged: every link is created
inside a namespace of the cluster.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from podwire_base.kernel.netns import CLONE_NEWNET, call_in, in_thread, unshare

from . import mounts
from .config import BASE, NETNS, ClusterConfig

if TYPE_CHECKING:
    from pyroute2 import IPRoute

T = TypeVar("T")
BRIDGE = "sw0"
_IPV6 = {
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.default.accept_dad": "0",  # nobody else has these addresses, and a duplicate check takes a second
    "net.ipv6.conf.default.dad_transmits": "0",
}
SWITCH = "switch"  # the namespace with the switch that connects the nodes; names of nodes end in a digit


class NameTaken(Exception):
    """A network namespace of another program has the name. The message says what to do."""


def create(config: ClusterConfig, name: str) -> None:
    """Create the namespace of a node, a host or the switch, with lo up. Raises OSError and NameTaken."""
    mounts.hold(config.ns_dir)
    target = config.netns(name)

    def work() -> None:
        unshare(CLONE_NEWNET)
        mounts.pin(target)

    link(target)
    in_thread(work)
    netlink(target, lambda ipr: ipr.link("set", index=1, state="up"))


def link(target: Path) -> None:
    """Make the symbolic link in /run/netns that gives `target` its name for `ip netns`. Raises OSError and
    NameTaken.
    """
    name = NETNS / target.name
    while True:
        try:
            NETNS.mkdir(parents=True, exist_ok=True)
            return name.symlink_to(target)
        except FileNotFoundError:
            continue  # another cluster's teardown removed the empty directory
        except FileExistsError:
            if name.is_symlink() and name.readlink().is_relative_to(BASE):
                name.unlink(missing_ok=True)  # of a run that was not taken down
            elif name.is_symlink() or mounts.points(str(name)):
                raise NameTaken(
                    f"{name} is a network namespace of another program: `ip netns del {name.name}`, or choose another "
                    "--name"
                ) from None
            else:
                name.unlink(missing_ok=True)  # an empty file, whose namespace is gone


def exists(target: Path) -> bool:
    """Whether the file still is a network namespace. `ip netns del` and umount leave an empty file."""
    return str(target) in mounts.points(str(target))


def netlink(netns: Path, work: Callable[[IPRoute], T]) -> T:
    """Run `work` with a pyroute2 socket of the namespace at `netns`. A socket belongs to the namespace of the thread
    that opens it, so a thread in the namespace opens it.
    """
    from pyroute2 import IPRoute

    def body() -> T:
        with IPRoute() as ipr:
            return work(ipr)

    return call_in(str(netns), body)


def sysctl(netns: Path, settings: dict[str, str]) -> None:
    """Write sysctls inside the namespace. settings: key -> value. Skip a key that this kernel does not have."""

    def work() -> None:
        for key, value in settings.items():
            path = Path("/proc/sys") / key.replace(".", "/")
            if path.exists():
                path.write_text(value)

    call_in(str(netns), work)


def make_switch(config: ClusterConfig) -> None:
    create(config, SWITCH)
    sysctl(
        config.netns(SWITCH),
        {
            "net.ipv4.ip_forward": "1",
            "net.ipv4.conf.all.send_redirects": "0",
            "net.ipv4.conf.default.send_redirects": "0",
            "net.ipv6.conf.all.disable_ipv6": "0",
            **(_IPV6 if config.cluster_cidr6 else {}),
        },
    )

    def work(ipr: IPRoute) -> None:
        ipr.link("add", ifname=BRIDGE, kind="bridge", address="02:70:77:00:00:01")
        index = ipr.link_lookup(ifname=BRIDGE)[0]
        ipr.addr("add", index=index, address=config.gateway, prefixlen=config.node_prefix)
        if config.cluster_cidr6:
            ipr.addr(
                "add", index=index, address=config.gateway6, prefixlen=ipaddress.ip_network(config.node_cidr6).prefixlen
            )
        ipr.link("set", index=index, state="up")

    netlink(config.netns(SWITCH), work)


def _join(
    config: ClusterConfig, name: str, port: str, address: str, prefix: int, gateway: str, *, bridged: bool
) -> None:
    """Connect a namespace to the switch by a veth pair: eth0 in the namespace and `port` on the switch. Set the address
    and the default route of eth0.
    """
    peer = os.open(config.netns(name), os.O_RDONLY | os.O_CLOEXEC)
    try:

        def here(ipr: IPRoute) -> None:
            ipr.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": peer})
            index = ipr.link_lookup(ifname=port)[0]
            if bridged:
                ipr.link("set", index=index, master=ipr.link_lookup(ifname=BRIDGE)[0])
            else:
                ipr.addr("add", index=index, address=gateway, prefixlen=prefix)
            ipr.link("set", index=index, state="up")

        netlink(config.netns(SWITCH), here)
    finally:
        os.close(peer)

    def there(ipr: IPRoute) -> None:
        index = ipr.link_lookup(ifname="eth0")[0]
        ipr.addr("add", index=index, address=address, prefixlen=prefix)
        ipr.link("set", index=index, state="up")
        ipr.route("add", dst="default", gateway=gateway)

    netlink(config.netns(name), there)


def ensure(config: ClusterConfig) -> list[str]:
    """Make the switch and the nodes' namespaces: those that are missing, or that lost their links. Returns the names of
    those that were made. Raises OSError and NameTaken.
    """
    made = []
    if not whole(config, SWITCH):
        unmake(config, SWITCH)
        make_switch(config)
        made.append(SWITCH)
    for node in config.node_names():
        if made[:1] == [SWITCH] or not whole(config, node):
            unmake(config, node)
            make_node(config, node)
            made.append(node)
        link(config.netns(node))
    link(config.netns(SWITCH))
    return made


def wire(config: ClusterConfig, node: str, *, up: bool) -> None:
    """Switch the node's port on the switch on or off."""

    def work(ipr: IPRoute) -> None:
        for index in ipr.link_lookup(ifname=node):
            ipr.link("set", index=index, state="up" if up else "down")

    netlink(config.netns(SWITCH), work)


def unlink(target: Path) -> None:
    """Remove the symbolic link in /run/netns that `link` made."""
    name = NETNS / target.name
    if name.is_symlink() and name.readlink() == target:
        name.unlink(missing_ok=True)


def whole(config: ClusterConfig, name: str) -> bool:
    """Whether the namespace of a node or the switch is there, with its address on its link."""
    target = config.netns(name)
    device, address = (BRIDGE, config.gateway) if name == SWITCH else ("eth0", config.node_address(name))

    def look(ipr: IPRoute) -> bool:
        found = ipr.link_lookup(ifname=device)
        return bool(found) and address in {a.get_attr("IFA_LOCAL") for a in ipr.get_addr(index=found[0], family=2)}

    return exists(target) and netlink(target, look)


def unmake(config: ClusterConfig, name: str) -> None:
    """Remove the namespace of a node or of the switch, and the node's port on the switch. The port comes first: without
    its namespace, the kernel would remove it at a time of its own.
    """
    if name != SWITCH and exists(config.netns(SWITCH)):

        def delete(ipr: IPRoute) -> None:
            for index in ipr.link_lookup(ifname=name):
                ipr.link("del", index=index)

        netlink(config.netns(SWITCH), delete)
    mounts.unpin(config.netns(name))


def make_node(config: ClusterConfig, node: str) -> None:
    create(config, node)
    if config.cluster_cidr6:
        sysctl(config.netns(node), {"net.ipv6.conf.all.disable_ipv6": "0", **_IPV6})
    _join(config, node, node, config.node_address(node), config.node_prefix, config.gateway, bridged=True)
    if config.cluster_cidr6:
        netlink(config.netns(node), lambda ipr: _add_ipv6(ipr, config, node))
    settings = {"net.ipv4.ip_forward": "1"}
    if config.bridge_nf >= 0:
        settings["net.bridge.bridge-nf-call-iptables"] = str(config.bridge_nf)
    sysctl(config.netns(node), settings)


def _add_ipv6(ipr: IPRoute, config: ClusterConfig, node: str) -> None:
    index = ipr.link_lookup(ifname="eth0")[0]
    prefix = ipaddress.ip_network(config.node_cidr6).prefixlen
    ipr.addr("add", index=index, address=config.node_address6(node), prefixlen=prefix)
    ipr.route("add", dst="default", gateway=config.gateway6, family=socket.AF_INET6)


def make_outside(config: ClusterConfig, host: str, address: str, gateway: str, prefix: int = 24) -> None:
    """Create a host outside the cluster. The switch is the host's router."""
    create(config, host)
    _join(config, host, host[:15], address, prefix, gateway, bridged=False)

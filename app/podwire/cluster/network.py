"""The embedded cluster's links: named network namespaces, a switch, nodes and hosts outside the cluster. This module
uses pyroute2, only for the set-up.

The run directory records the name of each namespace before the namespace is created. So `podwire down` finds every
namespace, even after a crash of `podwire up`. The machine's own namespace stays unchanged: every link is created inside
a namespace of the cluster.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from podwire_base.kernel.netns import CLONE_NEWNET, call_in, in_thread, unshare

from .config import ClusterConfig

if TYPE_CHECKING:
    from pyroute2 import IPRoute

T = TypeVar("T")
NETNS = Path("/run/netns")
MS_BIND, MNT_DETACH = 4096, 2
BRIDGE = "sw0"
_libc = ctypes.CDLL(None, use_errno=True)


def path_of(namespace: str) -> str:
    return str(NETNS / namespace)


def create(config: ClusterConfig, namespace: str) -> None:
    """Create a named namespace that `ip netns` shows. This function makes the bind mount itself, because `ip netns add`
    leaves another mount behind.
    """
    with (config.run_dir / "netns").open("a") as file:
        file.write(namespace + "\n")
    target = NETNS / namespace
    while not target.exists():
        NETNS.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another cluster's teardown removed the empty directory
            target.touch()

    def work() -> None:
        unshare(CLONE_NEWNET)
        if _libc.mount(b"/proc/thread-self/ns/net", str(target).encode(), b"none", MS_BIND, None):
            raise OSError(ctypes.get_errno(), f"mount {target}: {os.strerror(ctypes.get_errno())}")

    in_thread(work)
    netlink(namespace, lambda ipr: ipr.link("set", index=1, state="up"))


def delete(namespace: str) -> bool:
    """Unmount and unlink the namespace. The kernel then deletes the links in it. Returns False if the namespace does
    not exist.
    """
    target = NETNS / namespace
    while _libc.umount2(str(target).encode(), MNT_DETACH) == 0:
        pass
    try:
        target.unlink()
    except FileNotFoundError:
        return False
    return True


def netlink(namespace: str, work: Callable[[IPRoute], T]) -> T:
    """Run `work` with a pyroute2 socket of `namespace`. A socket belongs to the namespace of the thread that opens it,
    so a thread in `namespace` opens it.
    """
    from pyroute2 import IPRoute

    def body() -> T:
        with IPRoute() as ipr:
            return work(ipr)

    return call_in(path_of(namespace), body)


def sysctl(namespace: str, settings: dict[str, str]) -> None:
    """Write sysctls inside the namespace. settings: key -> value. Skip a key that this kernel does not have."""

    def work() -> None:
        for key, value in settings.items():
            path = Path("/proc/sys") / key.replace(".", "/")
            if path.exists():
                path.write_text(value)

    call_in(path_of(namespace), work)


def make_switch(config: ClusterConfig) -> None:
    create(config, config.switch)
    sysctl(
        config.switch,
        {
            "net.ipv4.ip_forward": "1",
            "net.ipv4.conf.all.send_redirects": "0",
            "net.ipv4.conf.default.send_redirects": "0",
            "net.ipv6.conf.all.disable_ipv6": "0",
        },
    )

    def work(ipr: IPRoute) -> None:
        ipr.link("add", ifname=BRIDGE, kind="bridge", address="02:70:77:00:00:01")
        index = ipr.link_lookup(ifname=BRIDGE)[0]
        ipr.addr("add", index=index, address=config.gateway, prefixlen=config.node_prefix)
        ipr.link("set", index=index, state="up")

    netlink(config.switch, work)


def _join(
    config: ClusterConfig, namespace: str, port: str, address: str, prefix: int, gateway: str, *, bridged: bool
) -> None:
    """Connect `namespace` to the switch by a veth pair: eth0 in the namespace and `port` on the switch. Set the address
    and the default route of eth0.
    """
    peer = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
    try:

        def here(ipr: IPRoute) -> None:
            ipr.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_fd": peer})
            index = ipr.link_lookup(ifname=port)[0]
            if bridged:
                ipr.link("set", index=index, master=ipr.link_lookup(ifname=BRIDGE)[0])
            else:
                ipr.addr("add", index=index, address=gateway, prefixlen=prefix)
            ipr.link("set", index=index, state="up")

        netlink(config.switch, here)
    finally:
        os.close(peer)

    def there(ipr: IPRoute) -> None:
        index = ipr.link_lookup(ifname="eth0")[0]
        ipr.addr("add", index=index, address=address, prefixlen=prefix)
        ipr.link("set", index=index, state="up")
        ipr.route("add", dst="default", gateway=gateway)

    netlink(namespace, there)


def make_node(config: ClusterConfig, node: str) -> None:
    namespace = config.namespace(node)
    create(config, namespace)
    _join(config, namespace, node, config.node_address(node), config.node_prefix, config.gateway, bridged=True)
    settings = {"net.ipv4.ip_forward": "1"}
    if config.bridge_nf >= 0:
        settings["net.bridge.bridge-nf-call-iptables"] = str(config.bridge_nf)
    sysctl(namespace, settings)


def make_outside(config: ClusterConfig, host: str, address: str, gateway: str, prefix: int = 24) -> str:
    """Create a host outside the cluster and return the name of its namespace. The switch is the host's router."""
    namespace = config.namespace(host)
    create(config, namespace)
    _join(config, namespace, host[:15], address, prefix, gateway, bridged=False)
    return namespace

"""Network namespaces for tests. The kernel removes them when the test process ends.

A namespace is anonymous: it exists as long as this process has its descriptor open. There is no mount and no name, so a
run that is interrupted, even by SIGKILL, leaves no namespace, link or rule. The kernel kills the processes in the
namespace when this process ends (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from pyroute2 import IPRoute

from podwire_base.kernel.netns import CLONE_NEWNET, in_thread, unshare, within

from .patience import patient, wait_until

T = TypeVar("T")
watchers: list[Callable[[NetNS], None]] = []  # called with each new namespace
witnesses: list[
    Callable[[list[NetNS]], None]
] = []  # called with the namespaces of a Lab that an exception ends, while they are open
PR_SET_PDEATHSIG = 1
IFA_F_TENTATIVE, LINK_SCOPE = 0x40, 253
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Make the kernel kill this process when the thread that started it ends. Use it as preexec_fn."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Inside(Protocol):
    """A place to run a function: a network namespace of the lab or of a running cluster."""

    def call(self, work: Callable[[], T]) -> T: ...


class NetNS:
    """One network namespace with lo up. path: for nsenter, CNI_NETNS or open().

    at: the path of an existing namespace, which stays. Close this object before that namespace is removed.
    """

    def __init__(self, name: str, at: str = "") -> None:
        self.name = name
        self.tap: object = None
        self._undo = contextlib.ExitStack()

        def make() -> int:
            unshare(CLONE_NEWNET)
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        if at:
            self.fd = os.open(at, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self.fd = in_thread(make)
            self.netlink(lambda ipr: ipr.link("set", index=1, state="up"))
        for watcher in watchers:
            watcher(self)

    def on_close(self, undo: Callable[[], None]) -> None:
        self._undo.callback(undo)

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        if self.fd >= 0:
            self._undo.close()
            os.close(self.fd)
            self.fd = -1

    def call(self, work: Callable[[], T]) -> T:
        """Run a Python function inside the namespace. Sockets that the function opens stay in the namespace."""
        return within(self.fd, work)

    def netlink(self, work: Callable[[IPRoute], T]) -> T:
        """Run `work` with a pyroute2 socket inside the namespace. IPRoute opens its sockets in the thread that uses it,
        so one thread makes the IPRoute and runs `work`.
        """

        def body() -> T:
            with IPRoute() as ipr:
                return work(ipr)

        return self.call(body)

    def sysctl(self, key: str, value: str) -> None:
        """Write /proc/sys/<key> inside the namespace. key: with slashes."""

        def work() -> None:
            with open(f"/proc/sys/{key}", "w") as file:
                file.write(value)

        self.call(work)

    def popen(self, command: list[str], **kwargs: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["nsenter", f"--net={self.path}", "--", *command],
            text=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl, no lock, no allocation
            **kwargs,
        )

    def run(
        self, command: list[str], *, check: bool = True, timeout: float = 20, **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the namespace and capture its output. If `check` is true, a failure raises an error with
        the command's stderr.
        """
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", "--", *command],
            capture_output=True,
            text=True,
            timeout=patient(timeout),
            check=False,
            preexec_fn=die_with_parent,
            **kwargs,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done


def usable(*namespaces: NetNS) -> None:
    """Wait until each IPv6 address is usable, except link-local addresses. Even without duplicate address detection, a
    kernel worker must run before an address is usable.
    """

    def tentative(ipr: IPRoute) -> bool:
        found = ipr.get_addr(family=socket.AF_INET6)
        return any(one["flags"] & IFA_F_TENTATIVE and one["scope"] != LINK_SCOPE for one in found)

    for ns in namespaces:
        # the default argument binds the loop variable
        wait_until(lambda ns=ns: not ns.netlink(tentative), f"addresses of {ns.name} can be used")  # type: ignore[misc]


class Lab:
    """Namespaces and the links between them. Closing the Lab removes all of them."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._made: list[NetNS] = []

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is not None and not issubclass(kind, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                for witness in witnesses:
                    witness(self._made)

    def netns(self, name: str) -> NetNS:
        ns = NetNS(name)
        self._stack.callback(ns.close)
        self._made.append(ns)
        return ns

    def route(self, ns: NetNS, dst: str, gateway: str) -> None:
        """Add a route to `ns`. dst: "address/prefix" or "default"."""
        ns.netlink(
            lambda ipr: ipr.route(
                "add", dst=dst, gateway=gateway, family=socket.AF_INET6 if ":" in gateway else socket.AF_INET
            )
        )

    def router(self, name: str) -> NetNS:
        """Make a namespace that forwards IPv4 and IPv6."""
        ns = self.netns(name)
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            ns.sysctl(key, "1")
        return ns

    def wire(self, a: NetNS, a_dev: str, b: NetNS, b_dev: str, a_addr: str = "", b_addr: str = "") -> None:
        """Connect two namespaces by a veth pair that is up. a_addr, b_addr: "address/prefix" of each end, several
        separated by spaces. An end with an IPv6 address does no duplicate address detection.
        """
        a.netlink(lambda ipr: ipr.link("add", ifname=a_dev, kind="veth", peer={"ifname": b_dev, "net_ns_fd": b.fd}))
        for ns, dev, addr in ((a, a_dev, a_addr), (b, b_dev, b_addr)):
            if ":" in addr:
                ns.sysctl(f"net/ipv6/conf/{dev}/accept_dad", "0")

            def up(ipr: IPRoute, dev: str = dev, addr: str = addr) -> None:
                index = ipr.link_lookup(ifname=dev)[0]
                for each in addr.split():
                    address, prefix = each.split("/")
                    ipr.addr("add", index=index, address=address, prefixlen=int(prefix))
                ipr.link("set", index=index, state="up")

            ns.netlink(up)
        usable(*(ns for ns, addr in ((a, a_addr), (b, b_addr)) if ":" in addr))

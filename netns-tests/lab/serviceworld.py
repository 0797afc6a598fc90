"""The world of podwire_proxy.testing.scenarios as namespaces: a node, two pods on it, a pod elsewhere, a host
outside.

Pods are attached to the node as podwire attaches pods: each has a /32 (/128) address and a default route through the
node, and all traffic is routed. Servers answer every connection and datagram with its destination address and its
source address, as the servers of probe.py do.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import threading
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from podwire_proxy.model import LOCALHOST
from podwire_proxy.testing import scenarios as s

from . import probe, sctp
from .netns import Lab, NetNS, usable
from .patience import patient

V6 = {ip: s._v6(ip) for ip in (s.NODE_IP, s.POD_A, s.POD_B, s.POD_C, s.OUTSIDE, s.HOST)}
BALANCERS = [
    at for ip in (s.BALANCER, s.BALANCER2) for at in (ip, s._v6(ip))
]  # used as a source address, for clouds that bind it to a node
IPV6_FREEBIND = 78
LINK_SCOPE = 253  # RT_SCOPE_LINK
ANSWER, SILENCE = 5.0, 0.3  # seconds
GATEWAYS = ("10.244.1.1", "fd00:244:1::1")


@dataclass(frozen=True)
class Answer:
    """result: "ok", "refused", "timeout" or the name of an errno. server: the (address, port) that answered. peer: the
    client's address as the server saw it.
    """

    result: str
    server: tuple[str, int] = ("", 0)
    peer: str = ""


class Servers:
    """TCP and UDP servers on several (namespace, address, port). One thread runs all servers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listening: set[tuple[int, str, int]] = set()
        self._wake, self._stop = socket.socketpair()
        self._selector.register(self._stop, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def listen(self, ns: NetNS, ip: str, port: int) -> None:
        """Start a TCP and a UDP server. Do nothing if servers already listen on this address and port."""
        if (ns.fd, ip, port) in self._listening:
            return
        self._listening.add((ns.fd, ip, port))
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET

        def open_both() -> list[socket.socket]:
            made = [socket.socket(family, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
            for sock in made:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:  # a fresh address is tentative for a moment, even without DAD
                    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
                sock.bind((ip, port))
            made[0].listen(512)
            return made

        for sock in ns.call(open_both):
            self._selector.register(sock, selectors.EVENT_READ, (ip, port))

    def listen_sctp(self, ns: NetNS, ip: str, ports: tuple[int, ...]) -> None:
        self._selector.register(ns.call(lambda: sctp.server(ip)), selectors.EVENT_READ, (ip, ports))

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._wake.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._stop:
                    return
                with contextlib.suppress(OSError):
                    self._answer(sock, *key.data)

    def _answer(self, sock: socket.socket, ip: str, port: int | tuple[int, ...]) -> None:
        if isinstance(port, tuple):
            sctp.answer(sock, ip, port)
        else:
            probe.answer(sock, ip, port)


def ask(
    ns: NetNS, dst: str, port: int, protocol: str = "TCP", *, src: str = "", sport: int = 0, timeout: float = ANSWER
) -> Answer:
    """Make one connection (or send one datagram) from inside `ns` and return the result.

    timeout: use ANSWER if an answer must come, so that a server without CPU time for a second or two does not cause a
    failure. Use SILENCE if no answer should come or if the request will be repeated.
    """
    if protocol == "SCTP":
        return _ask_sctp(ns, dst, port, src, timeout)
    found = (probe.tcp if protocol == "TCP" else probe.udp)(ns, dst, port, src=src, sport=sport, timeout=timeout)
    return Answer(found.result, found.server, found.peer[0])


def _ask_sctp(ns: NetNS, dst: str, port: int, src: str, timeout: float) -> Answer:
    """Send an SCTP request in a crafted packet, which works without SCTP in the kernel."""
    try:
        ip, number, peer = ns.call(lambda: sctp.ask(dst, port, src, patient(timeout))).decode().split()
    except ConnectionRefusedError:
        return Answer("refused")
    except TimeoutError:
        return Answer("timeout")
    except OSError as err:
        return Answer(errno.errorcode.get(err.errno or 0, str(err)))
    return Answer("ok", (ip, int(number)), peer)


class World:
    """All namespaces with their links and servers. `client(address)` returns the namespace that has this address."""

    def __init__(self, lab: Lab) -> None:
        self.node, self.outside = lab.netns("node"), lab.netns("outside")
        self.pods = {ip: lab.netns(ip) for ip in (s.POD_A, s.POD_B, s.POD_C)}
        for ns in (self.node, *self.pods.values(), self.outside):
            ns.sysctl("net/ipv6/conf/all/accept_dad", "0")
            ns.sysctl("net/ipv6/conf/default/accept_dad", "0")
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.node.sysctl(key, "1")
        for key in ("net/ipv4/icmp_ratelimit", "net/ipv6/icmp/ratelimit"):
            self.node.sysctl(
                key, "0"
            )  # the kernel limits ICMP errors to one per host and second, and the tests need more
        self.node.sysctl("net/ipv4/conf/all/send_redirects", "0")
        self.node.sysctl("net/ipv4/conf/all/route_localnet", "1")  # for the rows of NodePorts on 127.0.0.1
        self.node.sysctl("net/ipv4/conf/default/send_redirects", "0")
        lab.wire(self.node, "eth0", self.outside, "eth0", f"{s.NODE_IP}/24", f"{s.OUTSIDE}/24")
        self._outside()
        for index, (ip, ns) in enumerate(self.pods.items()):
            lab.wire(self.node, f"veth{index}", ns, "eth0")
            self._pod(ip, ns, f"veth{index}")
        usable(self.node, self.outside, *self.pods.values())
        self.servers = Servers()
        for ip, ns in (*self.pods.items(), (s.HOST, self.outside)):
            for address in (ip, V6[ip]):
                for port in (s.TARGET, s.TARGET + 1):
                    self.servers.listen(ns, address, port)
                self.servers.listen_sctp(ns, address, (s.TARGET, s.TARGET + 1))
        self.servers.start()

    def close(self) -> None:
        self.servers.close()

    def forget(self) -> None:
        """Delete the node's flows: the next packet of a used source port starts a new flow."""

        def flush() -> None:
            with NFCTSocket() as conntrack:
                conntrack.flush()

        self.node.call(flush)

    def client(self, ip: str) -> NetNS:
        if ip == LOCALHOST or ip in BALANCERS:
            return self.node
        for v4, ns in (*self.pods.items(), (s.NODE_IP, self.node), (s.OUTSIDE, self.outside), (s.HOST, self.outside)):
            if ip in (v4, V6[v4]):
                return ns
        raise KeyError(ip)

    def _outside(self) -> None:
        def links(ipr: IPRoute, mine: str) -> int:
            index: int = ipr.link_lookup(ifname="eth0")[0]
            ipr.addr("add", index=index, address=mine, prefixlen=64)
            return index

        def node(ipr: IPRoute) -> None:
            links(ipr, V6[s.NODE_IP])
            ipr.route("add", dst="default", gateway=s.OUTSIDE)
            ipr.route("add", dst="default", gateway=V6[s.OUTSIDE], family=socket.AF_INET6)

        def world(ipr: IPRoute) -> None:
            links(ipr, V6[s.OUTSIDE])
            for ip, size in ((s.HOST, 32), (V6[s.HOST], 128)):
                ipr.addr("add", index=1, address=ip, prefixlen=size)
            for net in ("10.244.0.0/16", "10.96.0.0/16", "198.51.100.0/24"):
                ipr.route("add", dst=net, gateway=s.NODE_IP)
            for net in ("fd00:244::/32", "fd00:96::/112", "2001:db8:51::/64"):
                ipr.route("add", dst=net, gateway=V6[s.NODE_IP], family=socket.AF_INET6)

        self.node.netlink(node)
        self.outside.netlink(world)

    def _pod(self, ip: str, ns: NetNS, veth: str) -> None:
        sizes = ((ip, GATEWAYS[0], 32, socket.AF_INET), (V6[ip], GATEWAYS[1], 128, socket.AF_INET6))

        def inside(ipr: IPRoute) -> None:
            index = ipr.link_lookup(ifname="eth0")[0]
            for address, gateway, size, family in sizes:
                ipr.addr("add", index=index, address=address, prefixlen=size)
                ipr.route("add", dst=f"{gateway}/{size}", oif=index, family=family, scope=LINK_SCOPE)
                ipr.route("add", dst="default", gateway=gateway, oif=index, family=family)

        def outside(ipr: IPRoute) -> None:
            index = ipr.link_lookup(ifname=veth)[0]
            for address, gateway, size, family in sizes:
                ipr.addr("add", index=index, address=gateway, prefixlen=size)
                ipr.route("add", dst=f"{address}/{size}", oif=index, family=family, scope=LINK_SCOPE)

        ns.netlink(inside)
        self.node.netlink(outside)

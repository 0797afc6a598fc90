"""Reads the addresses of a network namespace, and finds its uplink. I/O, without pyroute2."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from .ip import IPAddress
from .netlink import rtnetlink as nl
from .netlink.socket import RouteSocket


def local_addresses() -> tuple[IPAddress, ...]:
    """Returns every address of the calling thread's network namespace, in the order of the links. Raises OSError."""
    with RouteSocket() as sock:
        return tuple(dict.fromkeys(nl.address_of(body)[0] for body in sock.everything(nl.GETADDR, nl.all_addresses())))


def gateways() -> tuple[IPAddress, ...]:
    """Returns the gateways of all default routes of the calling thread's network namespace. Raises OSError."""
    with RouteSocket() as sock:
        return tuple(
            dict.fromkeys(
                ip for f in (nl.AF_INET, nl.AF_INET6) for body in _routes(sock, f) for ip in nl.gateways_of(body)
            )
        )


def _routes(sock: RouteSocket, family: int) -> Iterator[bytes]:
    return sock.everything(nl.GETROUTE, nl.all_routes(family))


def routes_by(protocol: int) -> tuple[frozenset[bytes], int]:
    """Returns (the messages of the routes with this protocol number, the number of all other routes) of the calling
    thread's network namespace. Raises OSError.
    """
    with RouteSocket() as sock:
        found = [body for f in (nl.AF_INET, nl.AF_INET6) for body in _routes(sock, f)]
    own = frozenset(body for body in found if body[nl.RTM_PROTOCOL] == protocol)
    return own, sum(body[nl.RTM_PROTOCOL] != protocol for body in found)


def destinations() -> tuple[nl.IPNetwork, ...]:
    """Returns the destinations of all routes but default routes, of every table, of the calling thread's network
    namespace. Raises OSError.
    """
    with RouteSocket() as sock:
        found = (nl.destination_of(body) for f in (nl.AF_INET, nl.AF_INET6) for body in _routes(sock, f))
        return tuple(dict.fromkeys(network for network in found if network is not None))


def uplink(address: str = "") -> str:
    """Returns the name of the link that has `address`, in the calling thread's network namespace. If no link has the
    address, returns the link of the default route with the lowest metric (IPv4 before IPv6), or "" if there is no
    default route. Raises OSError.
    """
    with RouteSocket() as sock:
        for body in sock.everything(nl.GETADDR, nl.all_addresses()) if address else ():
            found, index = nl.address_of(body)
            if str(found) == address:
                return socket.if_indextoname(index)
        for family in (nl.AF_INET, nl.AF_INET6):
            routes = [route for body in _routes(sock, family) if (route := nl.default_route_of(body))]
            if routes:
                return socket.if_indextoname(min(routes)[1])
    return ""

"""What `podwire publish` says and keeps: a port of the machine that leads to a port of a Service. This module does no
I/O.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from podwire_base.kube.conditions import is_true
from podwire_base.kube.meta import Object, labels
from podwire_base.numerals import decimal

Protocol = Literal["TCP", "UDP"]
LOOPBACK = ("127.0.0.1", "::1")
WORDS = "[ADDRESS:]PORT:[NAMESPACE/]SERVICE:PORT[/udp]"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class BadPublication(Exception):
    """The words are no publication. The message names the words and the form that they should have."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the machine listens. address: "" for 127.0.0.1 and ::1. port: 0 for any free port."""

    address: str
    port: int
    protocol: Protocol = "TCP"

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self.address,) if self.address else LOOPBACK

    def __str__(self) -> str:
        host = f"[{self.address}]:" if ":" in self.address else f"{self.address}:" if self.address else ""
        return f"{host}{self.port}{'/udp' if self.protocol == 'UDP' else ''}"


@dataclass(frozen=True, slots=True)
class Publication:
    """place: where the machine listens. namespace, service: the Service. port: its port, a number or the port's
    name.
    """

    place: Place
    namespace: str
    service: str
    port: str

    @property
    def key(self) -> str:
        """Return the key of the Service, as of any object: namespace/name."""
        return f"{self.namespace}/{self.service}"

    def __str__(self) -> str:
        host = str(self.place).removesuffix("/udp")
        return f"{host}:{self.key}:{self.port}{'/udp' if self.place.protocol == 'UDP' else ''}"


def _protocol(text: str) -> tuple[str, Protocol]:
    rest, slash, word = text.rpartition("/")
    if slash and word.lower() in ("tcp", "udp"):
        return rest, "UDP" if word.lower() == "udp" else "TCP"
    if slash and word.lower() == "sctp":
        raise BadPublication(f"{text!r}: only TCP and UDP can be published")
    return text, "TCP"


def _port(text: str, whole: str) -> int:
    if (number := decimal(text)) is None:
        raise BadPublication(f"{whole!r}: {text!r} is not a port of this machine; expected {WORDS}")
    return number


def _place(text: str, protocol: Protocol, whole: str) -> Place:
    address, colon, port = text.rpartition(":")
    if not colon:
        return Place("", _port(port, whole), protocol)
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        found = ipaddress.ip_address(bare)
    except ValueError:
        raise BadPublication(f"{whole!r}: {address!r} is not an address of this machine; expected {WORDS}") from None
    if found.version == 6 and bare == address:
        raise BadPublication(f"{whole!r}: write the IPv6 address in brackets: [{address}]")
    return Place(str(found), _port(port, whole), protocol)


def parse_place(text: str) -> Place:
    """Parse "[ADDRESS:]PORT[/udp]". Raises BadPublication."""
    rest, protocol = _protocol(text)
    return _place(rest, protocol, text)


def parse_service(text: str, space: str = "default") -> tuple[str, str, str]:
    """Parse "[NAMESPACE/]SERVICE[:PORT]" and return (namespace, service, port or ""). Raises BadPublication."""
    name, _, port = text.partition(":")
    namespace, _, own = name.removeprefix("svc/").removeprefix("service/").rpartition("/")
    if not _NAME.fullmatch(own) or not _NAME.fullmatch(namespace or space):
        raise BadPublication(f"{text!r} names no Service; expected [NAMESPACE/]SERVICE[:PORT]")
    return namespace or space, own, port


def parse(text: str, space: str = "default") -> Publication:
    """Parse "[ADDRESS:]PORT:[NAMESPACE/]SERVICE:PORT[/udp]". space: the namespace if the text names none. Raises
    BadPublication.
    """
    rest, protocol = _protocol(text)
    left, _, port = rest.rpartition(":")
    here, colon, service = left.rpartition(":")
    if not colon:
        raise BadPublication(f"{text!r}: expected {WORDS}, such as 8080:web:80")
    good = decimal(port) if port.isascii() and port.isdecimal() else _NAME.fullmatch(port)
    if not good:
        raise BadPublication(f"{text!r}: {port!r} is neither number nor name of a Service's port; expected {WORDS}")
    namespace, own, _ = parse_service(service, space)
    return Publication(_place(here, protocol, text), namespace, own, port)


# ---- where it leads


@dataclass(frozen=True, slots=True)
class Target:
    """address, port: what a node connects to. nodes: the nodes that can, none is better than another. why: the reason
    why there is none; "" if there is one.
    """

    address: str = ""
    port: int = 0
    nodes: tuple[str, ...] = ()
    why: str = ""


def _service_port(service: Object, wanted: str, protocol: Protocol) -> Object | None:
    for port in (service.get("spec") or {}).get("ports") or []:
        if (port.get("protocol") or "TCP") == protocol and wanted in (str(port.get("port")), port.get("name")):
            found: Object = port
            return found
    return None


def _ports(service: Object) -> str:
    found = [
        f"{p.get('port')}/{(p.get('protocol') or 'TCP').lower()}" + (f" ({p['name']})" if p.get("name") else "")
        for p in (service.get("spec") or {}).get("ports") or []
    ]
    return ", ".join(found) or "none"


def _ready(slices: Iterable[Object], name: str, protocol: Protocol) -> list[tuple[str, int, str]]:
    """Return (address, port, node) of each ready endpoint of the named port."""
    found = []
    for one in slices:
        for port in one.get("ports") or []:
            if (port.get("name") or "") != name or (port.get("protocol") or "TCP") != protocol or not port.get("port"):
                continue
            for endpoint in one.get("endpoints") or []:
                if (endpoint.get("conditions") or {}).get("ready") is not False and endpoint.get("addresses"):
                    found.append((endpoint["addresses"][0], int(port["port"]), endpoint.get("nodeName") or ""))
    return found


def target(
    publication: Publication, service: Object | None, slices: Iterable[Object], nodes: Iterable[Object], pick: int = 0
) -> Target:
    """Return where connections of a publication go now. slices: the EndpointSlices of its Service. pick: any number; it
    chooses among the endpoints of a headless Service.

    A node's own connection to a ClusterIP goes the way of every Service (host to ClusterIP), so this needs no address
    that the world could reach. With internalTrafficPolicy Local only a node that has an endpoint can connect.
    """
    if service is None:
        return Target(why=f"there is no Service {publication.key}")
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return Target(why=f"Service {publication.key} is an ExternalName: it has no address in the cluster")
    port = _service_port(service, publication.port, publication.place.protocol)
    if port is None:
        wanted = f"{publication.port}/{publication.place.protocol.lower()}"
        return Target(why=f"Service {publication.key} has no port {wanted}; its ports: {_ports(service)}")
    endpoints = _ready(slices, port.get("name") or "", publication.place.protocol)
    served_by_another = "service.kubernetes.io/service-proxy-name" in labels(service)  # kube-dns: by each node itself
    if not endpoints and not served_by_another:
        return Target(why=f"Service {publication.key} has no ready endpoint")
    able = tuple(n["metadata"]["name"] for n in nodes if is_true(n, "Ready"))
    if not able:
        return Target(why="no node is Ready")
    address, number = str(spec.get("clusterIP") or ""), int(port["port"])
    if address in ("", "None") and endpoints:
        address, number, _ = endpoints[pick % len(endpoints)]
    elif spec.get("internalTrafficPolicy") == "Local":
        able = tuple(n for n in able if n in {node for _, _, node in endpoints})
        if not able:
            return Target(
                why=f"Service {publication.key} has no ready endpoint on a Ready node (internalTrafficPolicy)"
            )
    return Target(address, number, able)


def slices_of(slices: Iterable[Object], publication: Publication) -> list[Object]:
    return [
        one
        for one in slices
        if one["metadata"].get("namespace") == publication.namespace
        and labels(one).get("kubernetes.io/service-name") == publication.service
    ]


# ---- what other commands publish

_WEB_NAMES = ("http", "https", "web")


def web_port(service: Object) -> Object | None:
    """Return the port of a Service that a browser would ask: by its name, by appProtocol, by the usual numbers, or else
    its first TCP port; None if it has no TCP port.
    """
    ports = [p for p in (service.get("spec") or {}).get("ports") or [] if (p.get("protocol") or "TCP") == "TCP"]

    def rank(port: Mapping[str, object]) -> int:
        name, app = str(port.get("name") or ""), str(port.get("appProtocol") or "").lower()
        named = app in ("http", "https") or name.partition("-")[0] in _WEB_NAMES
        return 0 if named else 1 if port.get("port") in (80, 443, 8080, 8443) else 2

    return min(ports, key=rank, default=None)


def is_https(port: Object) -> bool:
    name, app = str(port.get("name") or ""), str(port.get("appProtocol") or "").lower()
    return (
        app == "https" or name.startswith("https") or (port.get("port") in (443, 8443) and not name.startswith("http"))
    )


def url(place: Place, secure: bool) -> str:
    """Return the URL of a published TCP port, as a browser on this machine reaches it."""
    address = place.address or LOOPBACK[0]
    if ipaddress.ip_address(address).is_unspecified:
        address = LOOPBACK[0]
    host = f"[{address}]" if ":" in address else address
    return f"http{'s' if secure else ''}://{host}:{place.port}/"


def of_balancers(services: Iterable[Object]) -> list[Publication]:
    """Return a publication, at any free port, for each TCP and UDP port of each Service of type LoadBalancer."""
    return [
        Publication(
            Place("", 0, port.get("protocol") or "TCP"),
            s["metadata"]["namespace"],
            s["metadata"]["name"],
            str(port["port"]),
        )
        for s in services
        if (s.get("spec") or {}).get("type") == "LoadBalancer"
        for port in s["spec"].get("ports") or []
        if (port.get("protocol") or "TCP") in ("TCP", "UDP")
    ]

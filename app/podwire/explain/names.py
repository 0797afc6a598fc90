"""SRC and DST as people write them, and what they mean in a cluster. Pure.

    SRC   10.244.0.4 | node | node/NAME | [NAMESPACE/]POD | [NAMESPACE/]pod/NAME | deploy/NAME (sts, ds, rs, job)
    DST   ADDRESS:PORT | [NAMESPACE/]NAME:PORT | svc/NAME:PORT | pod/NAME:PORT | deploy/NAME:PORT | node/NAME:PORT |
          any DNS name:PORT, with /tcp, /udp, /sctp or /icmp behind the port

A PORT is a number or the name of a port. It may be left out where there is only one, and for ICMP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from podwire_base.kube.meta import Object, key, name, namespace
from podwire_base.numerals import decimal
from podwire_proxy.model import normal_ip

from . import dnsnames
from .catalogue import KINDS, Catalogue, cluster_ips, endpoints, external_name, headless, node_ips, pod_ips

PROTOCOLS = ("TCP", "UDP", "SCTP", "ICMP")
_SCHEMES = {"http": 80, "https": 443}
_SUFFIX = re.compile(r"/(tcp|udp|sctp|icmp)$", re.I)
_PORT_NAME = re.compile(r"[a-z0-9-]{1,63}")
Kind = Literal["Service", "headless", "pod", "node", "address", "external name", "nothing"]


class BadName(Exception):
    """A word does not name what it should. The message says what would."""


@dataclass(frozen=True, slots=True)
class Dialled:
    """DST, taken apart. port: a number, a name or "". kind: one of KINDS' values, "" if the word does not say."""

    text: str
    host: str
    port: str
    protocol: str
    kind: str = ""
    space: str = ""
    given: bool = False  # the user named the protocol


@dataclass(frozen=True, slots=True)
class Source:
    """Who sends. kind: "pod", "node" or "outside". node: where the packet meets rules first, "" if not known."""

    kind: Literal["pod", "node", "outside"]
    ips: tuple[str, ...]
    node: str = ""
    pod: Object | None = None
    words: str = ""

    def address(self, v6: bool) -> str:
        """Returns the address of one family. Raises BadName."""
        found = next((ip for ip in self.ips if (":" in ip) == v6), "")
        if not found:
            raise BadName(f"SRC {self.words} has no {'IPv6' if v6 else 'IPv4'} address; both must be of one family")
        return found


@dataclass(frozen=True, slots=True)
class Target:
    """What DST means. points: (address, port) that the client dials, one or more; () if the name leads nowhere.
    names: how the name became addresses, a line each. service: the Service that the name is. problem: why there is no
    point. reason: its code. notes: what is worth knowing.
    """

    kind: Kind
    words: str
    points: tuple[tuple[str, int], ...]
    protocol: str
    names: tuple[str, ...] = ()
    service: Object | None = None
    problem: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()


def is_ip(text: str) -> bool:
    try:
        normal_ip(text)
    except ValueError:
        return False
    return True


def parse(text: str, protocol: str = "") -> Dialled:
    """Takes DST apart. protocol: of --proto, "" if not given. Raises BadName."""
    rest, found = text, _SUFFIX.search(text)
    if found:
        rest = text[: found.start()]
    if found and protocol and found[1].upper() != protocol.upper():
        raise BadName(
            f"DST {text!r} says {found[1].lower()} and --proto says {protocol.lower()}: leave one of them out"
        )
    chosen = (found[1] if found else protocol or "tcp").upper()
    default = ""
    scheme, separator, behind = rest.partition("://")
    if separator:
        if scheme.lower() not in _SCHEMES:
            raise BadName(f"DST {text!r}: of URLs only http:// and https:// are known")
        rest, default = behind.partition("/")[0], str(_SCHEMES[scheme.lower()])
    host, port = _host_and_port(rest, text)
    kind, space, host = _kind(host)
    port = port or default
    if port.isdecimal() and not decimal(port):
        raise BadName(f"{text!r}: expected DST:PORT with a port from 1 to 65535")
    if port and not (port.isascii() and port.isdecimal()) and not _PORT_NAME.fullmatch(port):
        raise BadName(f"{text!r}: expected DST:PORT; {port!r} is neither a number nor the name of a port")
    if chosen == "ICMP" and port:
        raise BadName(f"DST {text!r}: ICMP has no ports; leave :{port} out")
    return Dialled(text, host, port, chosen, kind, space, bool(found or protocol or default))


def _host_and_port(rest: str, text: str) -> tuple[str, str]:
    if rest.startswith("["):
        host, bracket, port = rest[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise BadName(f"DST {text!r}: expected [ADDRESS]:PORT, such as [fd00::1]:53/udp")
        return host, port[1:]
    if is_ip(rest):  # an IPv6 address without brackets, or an address without a port
        return rest, ""
    host, _, port = rest.partition(":")
    if not host or ":" in port:
        raise BadName(
            f"{text!r}: expected DST:PORT[/udp], such as 10.96.0.1:443, [fd00::1]:53/udp, web:80 or deploy/web:http"
        )
    return host, port


def _kind(words: str) -> tuple[str, str, str]:
    """Returns (kind, namespace, name) of "[NAMESPACE/][KIND/]NAME"."""
    parts = words.split("/")
    if len(parts) == 3 and parts[1].lower() in KINDS:
        return KINDS[parts[1].lower()], parts[0], parts[2]
    if len(parts) == 2:
        kind = KINDS.get(parts[0].lower(), "")
        return (kind, "", parts[1]) if kind else ("", parts[0], parts[1])
    if len(parts) != 1 or not words:
        raise BadName(
            f"{words!r}: expected [NAMESPACE/]NAME or KIND/NAME with one of {', '.join(sorted(set(KINDS.values())))}"
        )
    return "", "", words


# ---- SRC


def source(text: str, catalogue: Catalogue, space: str = "default", node: str = "") -> Source:
    """Returns who sends. node: --from-node, where the packet enters or whose packet it is. Raises BadName."""
    if text in ("", "node"):
        return _node_source(node, catalogue) if node else Source("node", (), "", None, "node")
    if is_ip(text):
        return _address_source(normal_ip(text), catalogue, node)
    kind, own_space, own = _kind(text)
    if kind == "Node":
        return _node_source(own, catalogue)
    where = own_space or space
    if kind == "Service":
        raise BadName(f"SRC {text}: a Service sends nothing; name one of its pods")
    if kind not in ("", "Pod"):
        pods = catalogue.pods_of(kind, where, own)
        if not pods:
            raise BadName(f"SRC {text}: {kind} {where}/{own} has no pod that runs: `podwire get pods -n {where}`")
        return _pod_source(pods[0], f"{text} (pod {name(pods[0])}, the first of {len(pods)})")
    pod = catalogue.find("Pod", where, own)
    if pod is None and not kind and catalogue.find("Node", "", own) is not None:
        return _node_source(own, catalogue)
    if pod is None:
        raise BadName(f"SRC {text}: no pod {own!r} in namespace {where!r}: `podwire get pods -A`")
    return _pod_source(pod, text)


def _pod_source(pod: Object, words: str) -> Source:
    if pod["spec"].get("hostNetwork"):  # its packets are the node's own
        return Source("node", tuple(pod_ips(pod)), str(pod["spec"].get("nodeName") or ""), pod, words)
    return Source("pod", tuple(pod_ips(pod)), str(pod["spec"].get("nodeName") or ""), pod, words)


def _node_source(own: str, catalogue: Catalogue) -> Source:
    node = catalogue.find("Node", "", own)
    if node is None and catalogue.of("Node"):
        known = ", ".join(name(one) for one in catalogue.of("Node"))
        raise BadName(f"no node {own!r}; the nodes are {known}")
    return Source("node", tuple(node_ips(node)) if node else (), own, None, f"node {own}")


def _address_source(ip: str, catalogue: Catalogue, node: str) -> Source:
    if pod := catalogue.pod_at(ip):
        made = _pod_source(pod, f"{ip} (pod {key(pod)})")
        return replace(made, ips=(ip,))
    if own := catalogue.node_at(ip):
        return Source("node", (ip,), own, None, f"{ip} (node {own})")
    return Source("outside", (ip,), node, None, ip)


# ---- DST


def target(dialled: Dialled, catalogue: Catalogue, sender: Source, space: str = "default", v6: bool = False) -> Target:
    """Returns what DST means for this sender. v6: of several addresses the IPv6 one. Raises BadName."""
    if is_ip(dialled.host):
        return _address_target(dialled, catalogue)
    home = namespace(sender.pod) if sender.pod else space
    if dialled.kind or dialled.space:
        found = _object_target(dialled, catalogue, dialled.space or home, v6)
        if found is not None:
            return found
        kinds = dialled.kind or "Service or pod"
        raise BadName(f"DST {dialled.text}: there is no {kinds} {dialled.space or home}/{dialled.host}")
    if sender.kind != "pod":  # no search path: the name of an object, else a DNS name
        found = _object_target(replace(dialled, kind="Service"), catalogue, home, v6)
        found = found or _object_target(dialled, catalogue, home, v6)
        if found is not None:
            return found
    named = _dns_target(dialled, catalogue, sender, v6)
    if named.points or sender.kind != "pod":
        return named
    other = _object_target(dialled, catalogue, home, v6)
    if other is not None and other.kind in ("pod", "node"):
        note = f"the DNS has no name {dialled.host}; taken for the {other.words}"
        return replace(other, notes=(note, *other.notes))
    return named


def _address_target(dialled: Dialled, catalogue: Catalogue) -> Target:
    ip = normal_ip(dialled.host)
    if dialled.protocol == "ICMP":
        return Target("address", ip, ((ip, 0),), "ICMP")
    if not dialled.port:
        raise BadName(f"{dialled.text!r}: expected DST:PORT[/udp], such as 10.96.0.1:443 or [fd00::1]:53/udp")
    owner = next((s for s in catalogue.of("Service") if ip in cluster_ips(s)), None)
    pod = catalogue.pod_at(ip)
    if not dialled.port.isdecimal():
        if owner is not None:
            number, protocol, _ = service_port(owner, dialled)
            return Target("address", ip, ((ip, number),), protocol)
        if pod is not None:
            return Target("address", ip, ((ip, pod_port(pod, dialled)),), dialled.protocol)
        raise BadName(f"{dialled.text!r}: expected DST:PORT; {ip} is no Service and no pod, so its port is a number")
    return Target("address", ip, ((ip, int(dialled.port)),), dialled.protocol)


def _object_target(dialled: Dialled, catalogue: Catalogue, space: str, v6: bool) -> Target | None:
    """Returns the target that is an object of the API, by its kind; without a kind a Service, a pod or a node."""
    kinds = [dialled.kind] if dialled.kind else ["Service", "Pod", *(["Node"] if not dialled.space else [])]
    for kind in kinds:
        if kind == "Service" and (service := catalogue.find("Service", space, dialled.host)):
            return service_target(service, dialled, catalogue, v6)
        if kind == "Pod" and (pod := catalogue.find("Pod", space, dialled.host)):
            return _pods_target([pod], f"pod {key(pod)}", dialled, v6)
        if kind == "Node" and (node := catalogue.find("Node", "", dialled.host)):
            return _node_target(node, dialled, v6)
        if kind not in ("Service", "Pod", "Node"):
            pods = catalogue.pods_of(kind, space, dialled.host)
            if pods:
                return _pods_target(pods, f"{kind} {space}/{dialled.host}", dialled, v6)
            raise BadName(f"DST {dialled.text}: {kind} {space}/{dialled.host} has no pod that runs")
    return None


def _pods_target(pods: list[Object], words: str, dialled: Dialled, v6: bool) -> Target:
    points, missing = [], []
    for pod in pods:
        ips = pod_ips(pod)
        ip = next((one for one in ips if (":" in one) == v6), ips[0] if ips else "")
        if ip:
            points.append((ip, 0 if dialled.protocol == "ICMP" else pod_port(pod, dialled)))
        else:
            missing.append(
                f"pod {key(pod)} has no address: its phase is {(pod.get('status') or {}).get('phase', 'unknown')}"
            )
    problem = missing[0] if missing and not points else ""
    return Target(
        "pod",
        words,
        tuple(points),
        dialled.protocol,
        (),
        None,
        problem,
        "no-address" if problem else "",
        tuple(missing),
    )


def _node_target(node: Object, dialled: Dialled, v6: bool) -> Target:
    ips = node_ips(node)
    if not ips:
        raise BadName(f"node {name(node)} has no address")
    ip = next((one for one in ips if (":" in one) == v6), ips[0])
    if dialled.protocol != "ICMP" and not dialled.port.isdecimal():
        raise BadName(f"DST {dialled.text}: a port of a node needs a number")
    return Target("node", f"node {name(node)}", ((ip, int(dialled.port or 0)),), dialled.protocol)


def pod_port(pod: Object, dialled: Dialled) -> int:
    """Returns the number of the pod's port. Raises BadName with the ports that the pod declares."""
    if dialled.port.isdecimal():
        return int(dialled.port)
    declared = [
        port
        for container in pod["spec"].get("containers") or []
        for port in container.get("ports") or []
        if str(port.get("protocol") or "TCP") == dialled.protocol
    ]
    if not dialled.port and len(declared) == 1:
        return int(declared[0]["containerPort"])
    found = next((port for port in declared if dialled.port and port.get("name") == dialled.port), None)
    if found:
        return int(found["containerPort"])
    known = ", ".join(f"{p['containerPort']}{' ' + p['name'] if p.get('name') else ''}" for p in declared) or "none"
    what = f"no port named {dialled.port!r}" if dialled.port else "a port is missing"
    raise BadName(f"DST {dialled.text}: {what}; pod {key(pod)} declares {dialled.protocol} ports: {known}")


def service_port(service: Object, dialled: Dialled) -> tuple[int, str, Object | None]:
    """Returns (number, protocol, the Service's port). A number that the Service does not have is dialled all the same,
    and the rules say what becomes of it. Raises BadName.
    """
    ports = (service.get("spec") or {}).get("ports") or []
    told = ", ".join(
        f"{p['port']}/{p.get('protocol') or 'TCP'}{' ' + p['name'] if p.get('name') else ''}" for p in ports
    )
    if dialled.protocol == "ICMP":
        return 0, "ICMP", None
    if not dialled.port:
        fitting = [p for p in ports if not dialled.given or (p.get("protocol") or "TCP") == dialled.protocol]
        if len(fitting) != 1:
            raise BadName(f"DST {dialled.text}: name one port of Service {key(service)}: {told or 'it has none'}")
        return int(fitting[0]["port"]), str(fitting[0].get("protocol") or "TCP"), fitting[0]
    if not dialled.port.isdecimal():
        found = next((p for p in ports if p.get("name") == dialled.port), None)
        if found is None:
            raise BadName(f"DST {dialled.text}: Service {key(service)} has no port named {dialled.port!r}: {told}")
        return int(found["port"]), str(found.get("protocol") or "TCP"), found
    same = [p for p in ports if int(p["port"]) == int(dialled.port)]
    exact = next((p for p in same if (p.get("protocol") or "TCP") == dialled.protocol), None)
    if exact is None and same and not dialled.given:  # the only protocol with this number is meant
        return int(dialled.port), str(same[0].get("protocol") or "TCP"), same[0]
    return int(dialled.port), dialled.protocol, exact


def service_target(
    service: Object, dialled: Dialled, catalogue: Catalogue, v6: bool, names: tuple[str, ...] = ()
) -> Target:
    """Returns the target of a client that has the Service's name. Raises BadName."""
    words = f"Service {key(service)}"
    if other := external_name(service):
        return _outside_target(
            replace(dialled, host=other), catalogue, (*names, f"{words} is an alias of {other}"), v6, {key(service)}
        )
    number, protocol, port = service_port(service, dialled)
    if headless(service):
        return _headless_target(service, port, number, protocol, catalogue, v6, names)
    ips = cluster_ips(service)
    if not ips:
        return Target("Service", words, (), protocol, names, service, f"{words} has no ClusterIP yet", "no-cluster-ip")
    ip = next((one for one in ips if (":" in one) == v6), ips[0])
    return Target("Service", words, ((ip, number),), protocol, names, service)


def _headless_target(
    service: Object,
    port: Object | None,
    number: int,
    protocol: str,
    catalogue: Catalogue,
    v6: bool,
    names: tuple[str, ...],
) -> Target:
    """A headless Service's name gives the pods' own addresses, and nothing translates the port."""
    spec, words = service["spec"], f"headless Service {key(service)}"
    hidden = not spec.get("publishNotReadyAddresses")
    found = []
    for _, endpoint, ip in endpoints(catalogue.slices(key(service))):
        if not (hidden and (endpoint.get("conditions") or {}).get("ready") is False):
            found.append(ip)
    fitting = [ip for ip in dict.fromkeys(found) if (":" in ip) == v6] or list(dict.fromkeys(found))
    if not fitting:
        problem = f"{words} has no ready endpoint, so its name has no address"
        return Target("headless", words, (), protocol, names, service, problem, "no-endpoints")
    real = {
        p.get("port")
        for one in catalogue.slices(key(service))
        for p in one.get("ports") or []
        if port is None or (p.get("name") or "") == (port.get("name") or "")
    }
    notes: tuple[str, ...] = ()
    if port is not None and real and number not in real:
        wanted = ", ".join(str(one) for one in sorted(filter(None, real)))
        notes = (
            f"nothing translates the port of a headless Service: {number} stays {number}; its pods serve {wanted}",
        )
    return Target("headless", words, tuple((ip, number) for ip in fitting), protocol, names, service, notes=notes)


def _dns_target(dialled: Dialled, catalogue: Catalogue, sender: Source, v6: bool) -> Target:
    host = dialled.host.rstrip(".").lower()
    asked = dnsnames.search(dialled.host, sender.pod, catalogue.domain) if sender.kind == "pod" else [host]
    told: list[tuple[str, str]] = []
    for full in asked:
        if not dnsnames.inside(full, catalogue.domain):
            names = tuple(f"{one}: NXDOMAIN, {why}" for one, why in told)
            if dnsnames.meant_inside(full, catalogue):
                told.append((full, "not a name of the cluster, and the upstreams have no such name"))
                continue
            return _outside_target(replace(dialled, host=full), catalogue, names, v6, set())
        found = dnsnames.look(full, catalogue)
        if isinstance(found, str):
            told.append((full, found))
            continue
        names = (*(f"{one}: NXDOMAIN, {why}" for one, why in told), f"{full}: {found.words}")
        if found.service is not None and not found.ips:
            return service_target(found.service, dialled, catalogue, v6, names)
        ips = [ip for ip in found.ips if (":" in ip) == v6] or list(found.ips)
        if dialled.protocol != "ICMP" and not dialled.port.isdecimal():
            raise BadName(f"DST {dialled.text}: the port of one pod needs a number")
        return Target("pod", found.words, tuple((ip, int(dialled.port or 0)) for ip in ips), dialled.protocol, names)
    problem = (
        f"no DNS name {dialled.host}: {dnsnames.best(host, told)}{dnsnames.elsewhere(host, catalogue, sender.pod)}"
    )
    names = tuple(f"{one}: NXDOMAIN, {why}" for one, why in told)
    return Target("nothing", dialled.host, (), dialled.protocol, names, None, problem, "no-such-name")


def _outside_target(dialled: Dialled, catalogue: Catalogue, names: tuple[str, ...], v6: bool, seen: set[str]) -> Target:
    """A name outside the cluster, or the alias of an ExternalName Service, which may lead back into the cluster."""
    host = dialled.host.rstrip(".")
    if is_ip(host):
        problem = f"{host} is an address, and an alias (CNAME) must be a name: resolvers get no answer"
        return Target("external name", host, (), dialled.protocol, names, None, problem, "no-such-name")
    if dnsnames.inside(host, catalogue.domain):
        found = dnsnames.look(host, catalogue)
        if isinstance(found, str):
            return Target(
                "nothing", host, (), dialled.protocol, names, None, f"no DNS name {host}: {found}", "no-such-name"
            )
        if found.service is not None and key(found.service) not in seen:
            if other := external_name(found.service):
                line = f"{host} is an alias of {other}"
                return _outside_target(
                    replace(dialled, host=other), catalogue, (*names, line), v6, seen | {key(found.service)}
                )
            return service_target(found.service, dialled, catalogue, v6, (*names, f"{host}: {found.words}"))
        problem = f"the aliases go in a circle at {host}"
        return Target("nothing", host, (), dialled.protocol, names, None, problem, "alias-circle")
    line = f"{host}: not a name of the cluster, the DNS forwards it to its upstreams"
    return Target("external name", host, (), dialled.protocol, (*names, line), None, "", "not-resolved")

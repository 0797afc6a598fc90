"""The checks that probes make: who sends what, and which answer is right. Each function is one row of table.py.

They need nothing but the API and the probes, so they hold any cluster's network against what Kubernetes promises.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator

from podwire_base.kube.meta import Object
from podwire_base.patience import patient

from .objects import HOST_PORT, PORT
from .rows import Finding, LeftOut
from .world import Answer, Probe, Request, World

MANY = 30  # connections, to see more than one endpoint: with two of them all go to one in 1 of 5e8 runs
LARGE = 20_000  # bytes of a datagram that IP must cut
Findings = AsyncIterator[Finding]


def _two_nodes(world: World) -> None:
    if len({p.node for p in world.probes}) < 2:
        raise LeftOut("there is one node only")


def _hosts(world: World) -> list[Probe]:
    if not world.hosts:
        raise LeftOut(f"no probe in the nodes' own network: {world.left_out.get('host-network', 'none was made')}")
    return list(world.hosts.values())


def _said(answer: Answer) -> str:
    return str(answer.get("error") or answer.get("host") or answer)


def _to(request: Request, what: str) -> str:
    return f"{request['do'].upper()} {what} {request['to']}:{request['port']}"


def _packet(request: Request) -> tuple[str, int, str]:
    return request["to"], request["port"], "udp" if request["do"] in ("udp", "mtu") else request["do"]


def _pair(do: str, to: Probe, **more: object) -> Request:
    return {"do": do, "to": to.ip, "port": PORT, **more}


def _cluster_ip(world: World, service: str) -> str:
    return str(world.services[service]["spec"]["clusterIP"])


async def _pods(world: World, pairs: list[tuple[Probe, Probe]], **more: object) -> Findings:
    """TCP and UDP for each pair. The server must be the right one, and see the client's own address."""
    for source in dict.fromkeys(a for a, _ in pairs):
        targets = [b for a, b in pairs if a is source]
        requests = [_pair(do, to, **more) for to in targets for do in ("tcp", "udp")]
        answers = await world.ask(source, requests)
        for request, to, (answer,) in zip(requests, [t for t in targets for _ in range(2)], answers, strict=True):
            good = answer.get("host") == to.name and answer.get("peer") == source.ip
            said = _said(answer) if "error" in answer else f"{_said(answer)} saw {answer.get('peer')}"
            yield Finding(source.name, _to(request, to.name), said, good, _packet(request))


async def same_node(world: World) -> Findings:
    """Two pods of one node reach each other, TCP and UDP, and see each other's own address."""
    a, b = world.probes[0], world.probes[-1]
    async for found in _pods(world, [(a, b), (b, a)]):
        yield found


async def other_node(world: World) -> Findings:
    """Pods of all nodes reach each other, TCP and UDP, and see each other's own address."""
    _two_nodes(world)
    each = world.probes[:-1]
    async for found in _pods(world, [(a, b) for a in each for b in each if a is not b]):
        yield found


async def _service(
    world: World, sources: list[Probe], address: str, port: int, label: str, *, own_address: bool = False
) -> Findings:
    """TCP and UDP from each source: every connection is answered, by more than one endpoint where there are several."""
    ends = {p.name for p in world.probes}
    for source in sources:
        requests: list[Request] = [
            {"do": do, "to": address, "port": port, "count": MANY, "timeout": 2} for do in ("tcp", "udp")
        ]
        for request, answers in zip(requests, await world.ask(source, requests), strict=True):
            bad = [a for a in answers if "error" in a]
            hosts = {a["host"] for a in answers if "host" in a}
            peers = {a["peer"] for a in answers if "peer" in a and a["host"] != source.name}
            good = not bad and hosts <= ends and len(hosts) > 1 and (not own_address or peers <= {source.ip})
            said = f"{len(answers) - len(bad)} of {len(answers)} from {len(hosts)} pods"
            if own_address and peers - {source.ip}:
                said += f", who saw {', '.join(sorted(peers - {source.ip}))}"
            yield Finding(
                source.name,
                _to(request, label),
                said + (f", {bad[0]['error']}" if bad else ""),
                good,
                _packet(request),
            )


async def cluster_ip(world: World) -> Findings:
    """Pods of all nodes reach a Service of type ClusterIP and all its endpoints, TCP and UDP; their address is kept."""
    async for found in _service(
        world, world.probes[:-1], _cluster_ip(world, "cluster-ip"), 80, "cluster-ip", own_address=True
    ):
        yield found


async def node_to_service(world: World) -> Findings:
    """Programs in the nodes' own network reach pods and Services."""
    hosts = _hosts(world)
    async for found in _service(world, hosts, _cluster_ip(world, "cluster-ip"), 80, "cluster-ip"):
        yield found
    for source in hosts:
        requests = [_pair("tcp", to) for to in world.probes]
        for request, to, (answer,) in zip(requests, world.probes, await world.ask(source, requests), strict=True):
            yield Finding(
                source.name, _to(request, to.name), _said(answer), answer.get("host") == to.name, _packet(request)
            )


async def node_port(world: World) -> Findings:
    """Pods reach a Service's NodePort on every node, TCP and UDP."""
    ports = {p["protocol"]: int(p["nodePort"]) for p in world.services["node-port"]["spec"]["ports"]}
    addresses = {p.node: p.node_ip for p in world.probes}
    source = world.probes[0]
    for node, address in addresses.items():
        requests: list[Request] = [
            {"do": p.lower(), "to": address, "port": n, "count": 6, "timeout": 2} for p, n in ports.items()
        ]
        for request, answers in zip(requests, await world.ask(source, requests), strict=True):
            bad = [a for a in answers if "error" in a]
            said = f"{len(answers) - len(bad)} of {len(answers)}" + (f", {bad[0]['error']}" if bad else "")
            yield Finding(source.name, _to(request, node), said, not bad, _packet(request))


async def load_balancer(world: World) -> Findings:
    """A Service of type LoadBalancer gets an address, and pods reach it there."""
    path = f"/api/v1/namespaces/{world.space}/services/load-balancer"
    end = time.monotonic() + patient(10)
    while not (given := _ingress(await world.api.get(path))):
        if time.monotonic() > end:
            raise LeftOut("no controller of this cluster gives addresses to Services of type LoadBalancer")
        await asyncio.sleep(0.2)
    try:
        ipaddress.ip_address(given)
    except ValueError:
        raise LeftOut(f"the load balancer has a name, {given}, which only the world outside can ask") from None
    async for found in _service(world, world.probes[:1], given, 80, "load-balancer"):
        yield found


def _ingress(service: Object) -> str:
    found = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    return next((str(i.get("ip") or i.get("hostname") or "") for i in found), "")


async def no_endpoints(world: World) -> Findings:
    """A Service without endpoints refuses at once."""
    request: Request = {"do": "tcp", "to": _cluster_ip(world, "nobody"), "port": 80, "timeout": 3, "count": 2}
    (answers,) = await world.ask(world.probes[0], [request])
    good = all(a.get("error") == "ECONNREFUSED" for a in answers)
    yield Finding(world.probes[0].name, _to(request, "nobody"), ", ".join(map(_said, answers)), good, _packet(request))


async def without_selector(world: World) -> Findings:
    """A Service without selector leads to the endpoints that its EndpointSlice names."""
    request: Request = {"do": "tcp", "to": _cluster_ip(world, "by-hand"), "port": 80, "count": 3}
    (answers,) = await world.ask(world.probes[0], [request])
    good = {a.get("host") for a in answers} == {world.probes[-2].name}
    yield Finding(world.probes[0].name, _to(request, "by-hand"), ", ".join(map(_said, answers)), good, _packet(request))


async def hairpin(world: World) -> Findings:
    """A pod reaches itself through its own Service, TCP and UDP."""
    source, address = world.probes[0], _cluster_ip(world, "single")
    requests: list[Request] = [{"do": do, "to": address, "port": 80, "count": 3} for do in ("tcp", "udp")]
    for request, answers in zip(requests, await world.ask(source, requests), strict=True):
        good = all(a.get("host") == source.name for a in answers)
        yield Finding(source.name, _to(request, "single"), ", ".join(map(_said, answers)), good, _packet(request))


async def host_port(world: World) -> Findings:
    """A hostPort is reached from other nodes, TCP and UDP."""
    target = world.host_port
    if target is None:
        raise LeftOut(f"no pod with a hostPort: {world.left_out.get('host-port', 'none was made')}")
    sources = [p for p in world.probes[:-1] if p.node != target.node] or world.probes[-1:]
    for source in sources:
        requests: list[Request] = [
            {"do": do, "to": target.node_ip, "port": HOST_PORT, "timeout": 2} for do in ("tcp", "udp")
        ]
        for request, (answer,) in zip(requests, await world.ask(source, requests), strict=True):
            good = answer.get("host") == target.name
            yield Finding(source.name, _to(request, "hostPort"), _said(answer), good, _packet(request))


async def names(world: World) -> Findings:
    """Names of Services in every form: with and without namespace and domain, A, PTR and SRV records, unknown names."""
    space, domain, address = world.space, world.domain, _cluster_ip(world, "cluster-ip")
    pods = sorted(p.ip for p in world.probes)
    forms = ("cluster-ip", f"cluster-ip.{space}", f"cluster-ip.{space}.svc", f"cluster-ip.{space}.svc.{domain}.")
    full = f"cluster-ip.{space}.svc.{domain}"
    reverse = ipaddress.ip_address(address).reverse_pointer
    lookups: list[tuple[Request, object]] = [({"do": "resolve", "name": n}, [address]) for n in forms]
    lookups += [
        ({"do": "resolve", "name": "headless"}, pods),
        ({"do": "resolve", "name": "external-name"}, [address]),
        ({"do": "query", "name": reverse, "type": 12}, [full]),
        ({"do": "query", "name": f"_tcp._tcp.{full}", "type": 33}, [f"{full}:80"]),
        ({"do": "query", "name": f"nowhere.{space}.svc.{domain}", "type": 1}, 3),
    ]
    for source in world.probes[:-1]:
        answers = await world.ask(source, [request for request, _ in lookups])
        for (request, wanted), answer in zip(lookups, answers, strict=True):
            got = answer.get("addresses") or answer.get("answers") or answer.get("rcode")
            said = str(answer.get("text") or answer.get("error") or got)
            yield Finding(source.name, f"{request['do']} {request['name']}", said, got == wanted)


async def api_server(world: World) -> Findings:
    """Pods reach the API server at the Service `kubernetes`."""
    found = await world.api.get("/api/v1/namespaces/default/services/kubernetes")
    address, port = str(found["spec"]["clusterIP"]), int(found["spec"]["ports"][0]["port"])
    for source in world.probes[:-1]:
        request: Request = {"do": "touch", "to": address, "port": port}
        (answer,) = await world.ask(source, [request])
        yield Finding(
            source.name,
            f"TCP kubernetes {address}:{port}",
            answer.get("error") or "connected",
            not answer,
            (address, port, "tcp"),
        )


async def mtu(world: World) -> Findings:
    """Packets of the interface's whole size arrive uncut on other nodes, or the sender is told the size that does."""
    each = world.probes[:-1] if len(world.probes) > 2 else world.probes
    for source, to in zip(each, [*each[1:], each[0]], strict=True):
        request = _pair("mtu", to)
        (answer,) = await world.ask(source, [request])
        passes, lost = int(answer.get("passes") or 0), answer.get("lost") or []
        swallowed = [size for size in lost if passes < size]
        good = bool(passes) and not swallowed
        said = answer.get("error") or (
            f"{passes} of {answer['mtu']} bytes"
            if good
            else f"packets of {swallowed[0]} bytes vanish, {passes or 'none'} pass"
        )
        yield Finding(source.name, _to(request, to.name), said, good, _packet(request))


async def large_datagrams(world: World) -> Findings:
    """A datagram of 20,000 bytes arrives in fragments, both ways, between pods and through a Service."""
    source, to = world.probes[0], world.probes[-2]
    for request, label in (
        (_pair("udp", to, size=LARGE, reply=LARGE), to.name),
        (
            {"do": "udp", "to": _cluster_ip(world, "cluster-ip"), "port": 80, "size": LARGE, "reply": LARGE},
            "cluster-ip",
        ),
    ):
        ((answer,),) = await world.ask(source, [request])
        good = answer.get("size") == LARGE and answer.get("bytes") == LARGE
        said = answer.get("error") or f"{answer.get('size')} bytes there, {answer.get('bytes')} back"
        yield Finding(source.name, _to(request, label), said, good, _packet(request))


async def sctp(world: World) -> Findings:
    """Pods reach each other by SCTP."""
    source, to = world.probes[0], world.probes[-2]
    request = _pair("sctp", to)
    ((answer,),) = await world.ask(source, [request])
    if answer.get("error") in ("EPROTONOSUPPORT", "ESOCKTNOSUPPORT"):
        raise LeftOut("the nodes' kernel has no SCTP")
    yield Finding(source.name, _to(request, to.name), _said(answer), answer.get("host") == to.name, _packet(request))


async def outside(world: World) -> Findings:
    """Pods of all nodes reach a server outside the cluster."""
    if world.options.outside is None:
        raise LeftOut("name a server outside the cluster with --outside HOST:PORT")
    host, port = world.options.outside
    for source in world.probes[:-1]:
        (answer,) = await world.ask(source, [{"do": "touch", "to": host, "port": port, "timeout": 5}])
        yield Finding(
            source.name, f"TCP {host}:{port}", answer.get("error") or "connected", not answer, (host, port, "tcp")
        )

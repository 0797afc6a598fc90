"""`podwire explain` shows what the Service rules in a node's kernel do with a packet. `podwire cleanup` removes the
rules.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from podwire_base.kernel.addresses import local_addresses
from podwire_base.kernel.netns import call_in
from podwire_base.kube.errors import ConfigError
from podwire_base.kube.meta import Object, key, labels, seniority
from podwire_node.runtime import Sandbox
from podwire_proxy import backends
from podwire_proxy.decide import Packet
from podwire_proxy.explain import SHOWN, Claims, Explanation, explain
from podwire_proxy.hostfacts import leftovers
from podwire_proxy.model import PROTOCOLS, NodeInfo, normal_ip
from podwire_proxy.verdict import Kind

from ..cluster.record import load
from ..downgrade import AgentRuns, downgrade
from .common import Failed, find_kubeconfig, kubeconfig_option, with_api
from .pods import cluster_option, find_cluster, find_pod

HERE = "/proc/self/ns/net"
# the option's earlier name
former_name = click.option(
    "--cluster",
    "cluster",
    hidden=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, value: ctx.params.update(cluster=value) if value else None,
)
OWNERS = {
    "podwire-cni": "the pod wiring (podwire wiring)",
    "podwire-leases": "the pod wiring (podwire wiring)",
    "podwire-tunnel": "the pod wiring (podwire wiring)",
    "podwire-dns": "the cluster DNS (podwire dns)",
    "kube-proxy": "kube-proxy in nftables mode (kube-proxy --cleanup)",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace. path: the path of the namespace file. node: the name of the node, "" if it has none."""

    path: str
    node: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """ip: the packet's source address. on: the place whose rules are explained. at: the network namespace that can send
    the packet, None for a host outside this machine.
    """

    ip: str
    on: Place
    at: Place | None


def _node(cluster: str | None, name: str) -> Place:
    cluster = find_cluster(cluster)
    found = load(cluster)
    if found is None:
        raise Failed(f"no cluster {cluster!r} on this machine; leave --node out for this machine itself")
    if name not in found.node_names():
        raise Failed(f"cluster {cluster!r} has no node {name!r}; its nodes are {', '.join(found.node_names())}")
    return Place(str(found.netns(name)), name)


def _place(cluster: str | None, node: str | None, netns: str | None) -> Place:
    if netns:
        return Place(netns)
    return _node(cluster, node) if node else Place(HERE)


def _addresses(place: Place) -> tuple[str, ...]:
    try:
        return tuple(sorted(map(str, call_in(place.path, local_addresses))))
    except OSError as err:
        raise Failed(f"{place.path}: {err.strerror}; this needs root") from err


def _is_ip(text: str) -> bool:
    try:
        normal_ip(text)
    except ValueError:
        return False
    return True


def _first(addresses: tuple[str, ...], v6: bool) -> str:
    usable = [ip for ip in addresses if (":" in ip) == v6 and not ip.startswith(("127.", "fe80:")) and ip != "::1"]
    if not usable:
        raise Failed(f"SRC has no {'IPv6' if v6 else 'IPv4'} address")
    return usable[0]


def _source(text: str, cluster: str | None, where: Place, v6: bool) -> Source:
    """Parse SRC: an address, the word node, or a pod as [namespace/]name or pod/name. Raises Failed."""
    if text == "node":
        return Source(_first(_addresses(where), v6), where, where)
    if _is_ip(text):
        ip = normal_ip(text)
        if (":" in ip) != v6:
            raise Failed(f"SRC {text} is an IPv{4 if v6 else 6} address, DST is not; both must be of one family")
        return Source(ip, where, where if ip in _addresses(where) else None)
    space, _, own = text.removeprefix("pod/").rpartition("/")
    cluster = find_cluster(cluster)
    pod: Sandbox = find_pod(cluster, space or "default", own)
    process = pod.process()
    if process is None:
        raise Failed(f"pod {text} is not running: `podwire get pods`")
    inside = Place(f"/proc/{process.pid}/ns/net")
    return Source(_first(_addresses(inside), v6), _node(cluster, pod.directory.parent.parent.name), inside)


def _destination(text: str) -> tuple[str, int, str]:
    """Parse "DST:PORT[/udp]" and return (host, port, "TCP" | "UDP" | "SCTP"). Raises Failed."""
    rest, _, protocol = text.rpartition("/") if text.lower().endswith(("/tcp", "/udp", "/sctp")) else (text, "", "tcp")
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise Failed(f"{text!r}: expected DST:PORT[/udp], such as 10.96.0.1:443, [fd00::1]:53/udp or my-service:80")
    return host.strip("[]"), int(port), protocol.upper()


def _objects(kubeconfig: str | None) -> tuple[list[Object], list[Object]]:
    async def ask(api: object) -> tuple[list[Object], list[Object]]:
        get = api.get  # type: ignore[attr-defined]  # ApiClient
        return (await get("/api/v1/services"))["items"], (await get("/apis/discovery.k8s.io/v1/endpointslices"))[
            "items"
        ]

    return with_api(kubeconfig, ask)


def _claims(services: list[Object], slices: list[Object]) -> Claims:
    counts: dict[str, tuple[int, int]] = {}
    for found in slices:
        name = f"{found['metadata'].get('namespace')}/{labels(found).get('kubernetes.io/service-name')}"
        ready = [(e.get("conditions") or {}).get("ready") is not False for e in found.get("endpoints") or []]
        total, good = counts.get(name, (0, 0))
        counts[name] = total + len(ready), good + sum(ready)
    out: dict[tuple[str, str, int], tuple[str, int, int]] = {}
    for service in sorted(services, key=seniority):  # of two with one address and port, the first has it
        spec = service.get("spec") or {}
        ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        ips = [
            *(spec.get("clusterIPs") or []),
            *(spec.get("externalIPs") or []),
            *(i["ip"] for i in ingress if i.get("ip")),
        ]
        families = {":" in ip for ip in spec.get("clusterIPs") or []}  # a Service has no address of another family
        for port in spec.get("ports") or []:
            for ip in ips:
                if (":" in ip) in families:
                    place = ip, port.get("protocol") or "TCP", port.get("port")
                    out.setdefault(place, (key(service), *counts.get(key(service), (0, 0))))
    return out


def _resolve(host: str, services: list[Object]) -> str:
    space, _, own = host.rpartition("/")
    for service in services:
        if key(service) == f"{space or 'default'}/{own}":
            ip = str(service["spec"].get("clusterIP") or "")
            if not _is_ip(ip):
                raise Failed(
                    f"Service {key(service)} has no ClusterIP (headless or ExternalName), so no proxy serves it"
                )
            return ip
    raise Failed(f"DST {host!r} is neither an address nor a Service ([namespace/]name)")


def _route(place: Place, dst: str) -> str:
    """Return the node's route to an address as text, from `ip route get`, which uses all routing tables and rules."""
    done = subprocess.run(
        ["nsenter", f"--net={place.path}", "ip", "-j", "route", "get", dst], capture_output=True, text=True, check=False
    )
    with contextlib.suppress(ValueError, IndexError):
        found = json.loads(done.stdout)[0]
        if found.get("type") == "local":
            return "delivered on this node"
        return f"{'via ' + found['gateway'] + ' ' if 'gateway' in found else ''}out of {found.get('dev', '?')}"
    return done.stderr.strip() or "no route"


def _send(at: Place, packet: Packet) -> tuple[str, str]:
    """Send a real connection or datagram from the packet's source address. Return (verdict, one line of text). Raises
    Failed.
    """

    def work() -> tuple[str, str]:
        kind = socket.SOCK_DGRAM if packet.protocol == "UDP" else socket.SOCK_STREAM
        family = socket.AF_INET6 if ":" in packet.dst else socket.AF_INET
        started = time.monotonic()
        try:
            made = socket.socket(family, kind, PROTOCOLS[packet.protocol])
        except OSError as err:
            raise Failed(f"--send: this kernel has no {packet.protocol} sockets: {err.strerror}") from err
        with made as sock:
            sock.settimeout(1.5)
            try:
                sock.bind((packet.src, 0))
                sock.connect((packet.dst, packet.port))
                if packet.protocol == "UDP":
                    sock.send(b"podwire explain")
                    sock.recv(2048)
            except ConnectionRefusedError:
                return "reject", "refused"
            except TimeoutError:
                # A server need not answer a datagram that it does not understand.
                return ("silent" if packet.protocol == "UDP" else "drop"), "no answer within 1.5 s"
            except OSError as err:
                return "reject", str(err.strerror)
            word = "answered" if kind == socket.SOCK_DGRAM else "connected"
            return "forward", f"{word} in {(time.monotonic() - started) * 1000:.1f} ms"

    return call_in(at.path, work)


def _lines(place: Place, packet: Packet, found: Explanation) -> Iterator[str]:
    yield f"packet       {packet.src} -> {packet.dst}:{packet.port}/{packet.protocol.lower()}" + (
        f", on node {place.node}" if place.node else ""
    )
    yield from found.lines
    passed = found.verdict is not None and found.verdict.kind is Kind.PASS
    for ip in dict.fromkeys(b.ip for b, _ in found.to[:SHOWN]) if found.to else [packet.dst] * passed:
        yield f"route        {ip}: {_route(place, ip)}"


@click.command("explain")
@click.argument("src")
@click.argument("dst")
@click.option(
    "--node", help="A node of the cluster on this machine. Default: the node of the pod SRC, else this machine."
)
@click.option("--netns", type=click.Path(exists=True), help="Use the node in this network namespace.")
@cluster_option
@former_name
@click.option(
    "--interface", default="", help="Interface on which the packet enters the node (for detectors by interface)."
)
@click.option("--send", is_flag=True, help="Also send a real packet and compare.")
@kubeconfig_option
def explain_(
    src: str,
    dst: str,
    node: str | None,
    netns: str | None,
    cluster: str | None,
    interface: str,
    send: bool,
    kubeconfig: str | None,
) -> None:
    """Show what the rules in the kernel do with a packet from SRC to DST:PORT[/udp].

    SRC: an address, "node", or a pod as [namespace/]name or pod/name. DST: an address, or a Service as
    [namespace/]name.
    """
    host, port, protocol = _destination(dst)
    services, slices = [], []  # type: tuple[list[Object], list[Object]]
    if not _is_ip(host) or kubeconfig or not netns:
        try:
            named = load(cluster) if cluster else None
            services, slices = _objects(str(named.kubeconfig) if named else find_kubeconfig(kubeconfig))
        except Failed:
            if not _is_ip(host):  # an address needs only the kernel's rules
                raise
    ip = normal_ip(host) if _is_ip(host) else _resolve(host, services)
    source = _source(src, cluster, _place(cluster, node, netns), ":" in ip)
    addresses = _addresses(source.on)

    live = call_in(source.on.path, backends.observe)
    packet = Packet(source.ip, ip, protocol, port, node=source.ip in addresses, interface=interface)  # type: ignore[arg-type]
    node_info = live.node(source.on.node, addresses) if live else NodeInfo(source.on.node, addresses)
    found = explain(live, node_info, packet, _claims(services, slices), backends.places())
    for line in _lines(source.on, packet, found):
        click.echo(line)
    if send:
        if source.at is None:
            raise Failed(
                f"--send: {source.ip} is not an address of the node; SRC must be a pod, `node`, or one of its addresses"
            )
        verdict, text = _send(source.at, packet)
        fitting = {"forward", "drop", "pass"} if verdict == "silent" else {verdict, "pass"}
        agrees = found.verdict is not None and found.verdict.kind in fitting
        click.echo(f"sent         {text}: {'as explained' if agrees else 'NOT as explained'}")
        if not agrees:
            raise SystemExit(1)


def _for_downgrade(place: Place, run_dir: Path) -> None:
    if not (run_dir / "cni").is_dir():
        raise Failed(f"--run-dir: {run_dir} is not an agent's run directory; no agent ran there since the last boot")
    try:
        done = call_in(place.path, lambda: list(downgrade(run_dir)))
    except (AgentRuns, ConfigError) as err:
        raise Failed(str(err)) from err
    except OSError as err:
        raise Failed(f"{run_dir}: {err.strerror}; this needs root" if err.strerror else str(err)) from err
    for line in done:
        click.echo(f"removed {line}")
    click.echo("pods, leases, rules and routes stay; now start the agent of the version before")


@click.command("cleanup")
@click.option("--dry-run", is_flag=True, help="List what would be removed, and rules of other programs.")
@click.option("--node", help="A node of the cluster on this machine. Default: this machine.")
@click.option("--netns", type=click.Path(exists=True), help="Clean up in this network namespace.")
@click.option(
    "--for-downgrade",
    is_flag=True,
    help="Remove only what the version before cannot read; pods, leases and rules stay for its agents.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/podwire/node"),
    show_default=True,
    help="The agent's, for --for-downgrade.",
)
@cluster_option
@former_name
def cleanup(
    dry_run: bool, node: str | None, netns: str | None, cluster: str | None, for_downgrade: bool, run_dir: Path
) -> None:
    """Remove all rules of the Service proxy from a node's kernel. Services stop being served there.

    Stop the proxy first: a running proxy writes its rules again.
    """
    place = _place(cluster, node, netns)
    if for_downgrade:
        if dry_run:
            raise Failed("--dry-run: does not go with --for-downgrade")
        _for_downgrade(place, run_dir)
        return
    try:
        others = call_in(place.path, backends.foreign)
        ours = call_in(place.path, backends.existing)
        for line in ours if dry_run else call_in(place.path, backends.cleanup):
            click.echo(f"{'would remove' if dry_run else 'removed'} {line}")
    except OSError as err:
        raise Failed(f"{place.path}: {err.strerror}; this needs root" if err.strerror else str(err)) from err
    if not ours:
        click.echo("nothing of the proxy is here")
    for table in (table for one in others for table in one.tables):
        if (name := table.partition(" ")[2]) in OWNERS:
            click.echo(f"left alone: table {table}, which belongs to {OWNERS[name]}")
    for left in leftovers(chain for one in others for chain in one.chains):
        click.echo(f"left alone: {left}" + (f", of {left.owner} ({left.fix})" if left.owner else ""))

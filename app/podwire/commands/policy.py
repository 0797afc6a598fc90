"""`podwire policy`: which network policies there are, what a pod's are, and what they do with a packet."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus

import click

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object
from podwire_policy.model import DIRECTIONS, PROTOCOLS, Direction, Pod
from podwire_policy.overview import Overview, rule_words, trail_words

from ..explain.names import is_ip
from .choosing import completing
from .common import Failed, kubeconfig_option, make_table, print_table, with_api

PATHS = {
    "namespaces": "/api/v1/namespaces",
    "pods": "/api/v1/pods",
    "nodes": "/api/v1/nodes",
    "policies": "/apis/networking.k8s.io/v1/networkpolicies",
    "clusters": "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
}
PAGE = "500"  # objects of one answer
MOST = 1000  # rows of a truth table
_TIERS = {"admin": "Admin {}", "namespaces": "", "baseline": "Baseline {}"}
_space = click.option("-n", "--namespace", "space", default="default", show_default=True, help="Of names without one.")
_form = click.option("-o", "--output", "show", type=click.Choice(("json",)), help="Form of the output.")
_ICMP = {"ICMP": 1}


@click.group()
def group() -> None:
    """Network policies: which there are, the rules of a pod, and what becomes of a packet by them.

    These commands read the API and ask no node. `podwire explain` follows a packet through the nodes' rules.
    """


async def read(api: ApiClient, pods: Iterable[Object] | None = None) -> Overview:
    """Returns the policies of the cluster and what they are about. pods: those of the cluster, if they are known. A
    cluster may lack ClusterNetworkPolicies.
    """
    made, policies = Overview(), dict[str, list[Object]]()
    for kind in ("policies", "clusters"):
        try:
            policies[kind] = await _listed(api, PATHS[kind])
        except Refused as err:
            if kind == "policies" or err.code != HTTPStatus.NOT_FOUND:
                raise
    if not any(policies.values()) and pods is not None:
        return made
    for kind in ("namespaces", "pods", "nodes"):
        known = pods if kind == "pods" else None
        made.take(kind, await _listed(api, PATHS[kind]) if known is None else known)
    for kind, found in policies.items():
        made.take(kind, found)
    return made


async def _listed(api: ApiClient, path: str) -> list[Object]:
    found, more = list[Object](), dict[str, str]()
    while True:
        page = await api.get(path, limit=PAGE, **more)
        found += page["items"]
        mark = page["metadata"].get("continue")
        if not mark:
            return found
        more = {"continue": mark}


@group.command("list")
@click.option("-n", "--namespace", "space", default="", help="NetworkPolicies of this namespace alone.")
@_form
@kubeconfig_option
def list_(space: str, show: str | None, kubeconfig: str | None) -> None:
    """List the policies in the order in which they judge, with what is probably not meant.

    NOTES names a policy or a rule that selects nothing, a port that no pod has, and fields that cannot be used.
    """
    found = with_api(kubeconfig, read)
    rows: list[Object] = [
        {
            "policy": policy.key,
            "tier": _TIERS[policy.tier].format(policy.priority),
            "inForce": not policy.staged,
            "pods": len(found.selected(policy)),
            "ingress": None if policy.ingress is None else len(policy.ingress),
            "egress": None if policy.egress is None else len(policy.egress),
            "notes": [*(["staged: not in force"] if policy.staged else []), *found.notes(policy)],
        }
        for policy in found.policies
        if not space or policy.key.startswith(f"{space}/")
    ]
    lost = {f"{kind}/{own}": why for (kind, own), why in found.unreadable.items()}
    if show == "json":
        click.echo(json.dumps({"policies": rows, "unreadable": lost}, indent=2))
        return
    if not rows:
        click.echo("no policies found")
    grid = make_table("POLICY", "TIER", "PODS", "INGRESS", "EGRESS", "NOTES")
    for row in rows:
        ways = (_rules(row[way]) for way in DIRECTIONS)
        grid.add_row(row["policy"], row["tier"], str(row["pods"]), *ways, "; ".join(row["notes"]))
    if rows:
        print_table(grid)
    for own, told in sorted(lost.items()):
        click.echo(f"! {own} does not count: {told}")


def _rules(number: int | None) -> str:
    if number is None:
        return "-"
    return "denied" if not number else f"{number} rule{'s' * (number > 1)}"


@group.command("show")
@click.argument("pod", shell_complete=completing("pods"))
@_space
@_form
@kubeconfig_option
def show_(pod: str, space: str, show: str | None, kubeconfig: str | None) -> None:
    """Show the policies that select POD, and their rules in the order in which they judge."""
    found = with_api(kubeconfig, read)
    own = _pod(found, pod, space)
    ways = {direction: _effective(found, own, direction) for direction in DIRECTIONS}
    if show == "json":
        click.echo(json.dumps({"pod": own.key, "node": own.node, "addresses": own.ips, **ways}, indent=2))
        return
    click.echo(f"{own.key} on {own.node or 'no node'}: {', '.join(own.ips)}")
    for direction, way in ways.items():
        names = way["isolatedBy"]
        words = f"isolated by {', '.join(names)}" if names else "not isolated: what no rule denies is allowed"
        click.echo(f"\n{direction}: {words}")
        grid = make_table("POLICY", "TIER", "RULE", "DOES", "FROM" if direction == "ingress" else "TO", "PORTS")
        for row in way["rules"]:
            does = row["action"] if row["inForce"] else f"{row['action']} (staged)"
            grid.add_row(row["policy"], row["tier"], str(row["rule"]), does, row["peers"], row["ports"])
        if grid.rows:
            print_table(grid)


def _effective(found: Overview, own: Pod, direction: Direction) -> Object:
    """Returns who isolates a pod in a direction, and the rules of all policies that speak of it."""
    speaking = [policy for policy in found.selecting(own) if policy.rules(direction) is not None]
    rules = [
        {
            "policy": policy.key,
            "tier": _TIERS[policy.tier].format(policy.priority),
            "rule": at,
            "action": rule.action,
            "inForce": not policy.staged,
            **dict(zip(("peers", "ports"), rule_words(rule), strict=True)),
        }
        for policy in speaking
        for at, rule in enumerate(policy.rules(direction) or ())
    ]
    return {"isolatedBy": [p.key for p in speaking if p.tier == "namespaces" and not p.staged], "rules": rules}


@group.command("test")
@click.argument("src", shell_complete=completing("pods"))
@click.argument("dst")
@click.option(
    "-p",
    "--protocol",
    default="TCP",
    show_default=True,
    type=click.Choice([*PROTOCOLS, *_ICMP], case_sensitive=False),
    help="Of the packets. ICMP has no ports.",
)
@_space
@_form
@kubeconfig_option
def test_(src: str, dst: str, protocol: str, space: str, show: str | None, kubeconfig: str | None) -> None:
    """Print what the policies do with packets from SRC to DST:PORT, for each pair of pods.

    SRC and DST are [NAMESPACE/]POD, NAMESPACE/* for all its pods, * for all pods, or an address. The exit status is 0
    if all are allowed, 2 if all are denied, else 3.
    """
    name = protocol.upper()
    number = {**PROTOCOLS, **_ICMP}[name]
    host, port = _host_and_port(dst, number in _ICMP.values())
    found = with_api(kubeconfig, read)
    pairs = [
        (source, target)
        for source in _ends(found, src, space)
        for target in _ends(found, host, space)
        if (":" in source[1]) == (":" in target[1]) and (source != target or src == host)
    ]
    if not pairs:
        raise Failed(
            f"there is no packet from {src} to {host}: no pod has such a name, or they have no IP family in common"
        )
    if len(pairs) > MOST:
        raise Failed(f"these are {len(pairs)} pairs, and a table has at most {MOST}; name fewer pods")
    rows = []
    for (one, ip), (other, to) in pairs:
        judged = found.judge(ip, to, number, port)
        why = [f"{trail.direction}: {trail_words(trail)}" for trail in judged.trails]
        rows.append((one, other, judged.allowed, "; ".join(why) or "no policy selects either end"))
    if show == "json":
        keys = ("source", "destination", "allowed", "why")
        click.echo(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        grid = make_table("SOURCE", "DESTINATION", name, "WHY")
        for row in rows:
            grid.add_row(row[0], f"{row[1]}:{port}" if port else row[1], "allowed" if row[2] else "denied", row[3])
        print_table(grid)
    passed = [row[2] for row in rows]
    raise SystemExit(0 if all(passed) else 3 if any(passed) else 2)


def _host_and_port(text: str, portless: bool) -> tuple[str, int]:
    if portless or is_ip(text):
        if portless:
            return text.strip("[]"), 0
        raise Failed(f"{text}: a port is missing; write DST:PORT, and [ADDRESS]:PORT for IPv6")
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise Failed(f"{text}: is not DST:PORT with PORT a number from 1 to 65535")
    return host.strip("[]"), int(port)


def _ends(found: Overview, text: str, space: str) -> list[tuple[str, str]]:
    """Returns (words, address) of every end that a word of the command line means."""
    if is_ip(text):
        return [(text, text)]
    if text == "*" or text.endswith("/*"):
        wanted = text.removesuffix("*")
        return [end for pod in _sorted(found.pods.values()) if pod.key.startswith(wanted) for end in _addresses(pod)]
    return _addresses(_pod(found, text, space))


def _sorted(pods: Iterable[Pod]) -> list[Pod]:
    return sorted(pods, key=lambda pod: pod.key)


def _addresses(pod: Pod) -> list[tuple[str, str]]:
    single = len(pod.ips) == 1
    return [(pod.key if single else f"{pod.key} ({ip})", ip) for ip in pod.ips]


def _pod(found: Overview, text: str, space: str) -> Pod:
    own = text.removeprefix("pod/")
    own = own if "/" in own else f"{space}/{own}"
    if why := found.unreadable.get(("pods", own)):
        raise Failed(f"pod {own} cannot be read: {why}")
    if own not in found.pods:
        raise Failed(
            f"no pod {own}, or it has no address, has ended, or is on the host's network: no policy is about it"
        )
    return found.pods[own]

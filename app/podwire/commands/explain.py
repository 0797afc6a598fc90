"""`podwire explain` says what becomes of a packet, and why. `podwire cleanup` removes the Service rules of a node."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from podwire_base.kernel.netns import call_in
from podwire_base.kube.client import config as client_config
from podwire_base.kube.errors import ConfigError
from podwire_base.role import waits
from podwire_observe import sysctls
from podwire_proxy import backends
from podwire_proxy.backend import NotGone
from podwire_proxy.hostfacts import Foreign, leftovers

from ..cluster.config import ClusterConfig
from ..cluster.record import load
from ..downgrade import AgentRuns, downgrade
from ..explain import lookup, onnode, policies, sending
from ..explain.answer import Answer
from ..explain.ask import explain
from ..explain.catalogue import Catalogue
from ..explain.names import BadName
from ..explain.steps import Unreachable
from ..release import release
from . import policy
from .common import Failed, kubeconfig_option, with_api
from .pods import cluster_option, find_cluster

HERE = "/proc/self/ns/net"
API_SECONDS = 15.0
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


def _node(cluster: str | None, name: str) -> Place:
    found = _record(find_cluster(cluster))
    if name not in found.node_names():
        raise Failed(f"cluster {found.name!r} has no node {name!r}; its nodes are {', '.join(found.node_names())}")
    return Place(str(found.netns(name)), name)


def _record(cluster: str) -> ClusterConfig:
    found = load(cluster)
    if found is None:
        raise Failed(f"no cluster {cluster!r} on this machine; leave --node out for this machine itself")
    return found


def find_node_dir(cluster: str | None, node: str) -> Path:
    return _record(find_cluster(cluster)).node_dir(node)


def _place(cluster: str | None, node: str | None, netns: str | None) -> Place:
    if netns:
        return Place(netns)
    return _node(cluster, node) if node else Place(HERE)


@click.command("explain")
@click.argument("words", nargs=-1, required=True, metavar="[SRC] DST")
@click.option(
    "--from-node",
    "--node",
    "node",
    help="The node that sends, or that the packet enters. Default: the node of SRC, else this machine.",
)
@click.option("-n", "--namespace", "space", default="default", show_default=True, help="Of names without a namespace.")
@click.option(
    "--proto", type=click.Choice(["tcp", "udp", "sctp", "icmp"], case_sensitive=False), help="The same as DST:PORT/udp."
)
@click.option("-6", "--ipv6", "v6", is_flag=True, help="Of several addresses take the IPv6 one.")
@click.option("--netns", type=click.Path(exists=True), help="Use the node in this network namespace.")
@cluster_option
@former_name
@click.option(
    "--interface", default="", help="Interface on which the packet enters the node (for detectors by interface)."
)
@click.option("--send", is_flag=True, help="Also send a few real packets, follow them, and compare.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@kubeconfig_option
def explain_(
    words: tuple[str, ...],
    node: str | None,
    space: str,
    proto: str | None,
    v6: bool,
    netns: str | None,
    cluster: str | None,
    interface: str,
    send: bool,
    as_json: bool,
    kubeconfig: str | None,
) -> None:
    """Say what becomes of a packet from SRC to DST, step by step, and why.

    SRC: an address, "node", node/NAME, a pod as [NAMESPACE/]NAME, or deploy/NAME (sts, ds, rs, job). Without SRC the
    node of --from-node sends.

    DST: ADDRESS:PORT, [NAMESPACE/]SERVICE:PORT, svc/, pod/, deploy/ or node/NAME:PORT, or a DNS name:PORT, with /udp,
    /sctp or /icmp behind it. PORT: a number or a name; it may be left out where there is only one.

    Only --send sends packets. The exit status is 1 if they meet another fate than the one explained.
    """
    if len(words) > 2:
        raise Failed(f"expected SRC and DST, got {len(words)} words")
    src, dst = words if len(words) == 2 else ("node", words[0])
    try:
        asked = lookup.question(src, dst, node or "", space, proto or "", v6, netns or "", cluster, kubeconfig)
        found = explain(asked.source, asked.target, asked.catalogue, asked.reach, interface=interface)
        _tell_policies(found, asked.catalogue, kubeconfig)
        if send:
            sending.prove(asked, found)
    except (BadName, Unreachable, sending.CannotSend) as err:
        raise Failed(str(err)) from err
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        for line in found.lines():
            click.echo(line)
    if found.agrees is False:
        raise SystemExit(1)


def _tell_policies(found: Answer, catalogue: Catalogue, kubeconfig: str | None) -> None:
    """Add the policies' part. Without the right to read them the answer stays as it is."""
    if catalogue.of("Pod") and found.ends:
        with contextlib.suppress(Failed):
            pods = catalogue.of("Pod")
            policies.tell(found, with_api(kubeconfig, lambda api: policy.read(api, pods)), catalogue)


@click.command("node-walk", hidden=True)
@click.option(
    "--run-dir", type=click.Path(path_type=Path, file_okay=False), help="The agent's. Default: the one that exists."
)
def node_walk(run_dir: Path | None) -> None:
    """Answer one request of `podwire explain` about this node: a line of JSON on stdin, the answer on stdout."""
    where, name = run_dir or lookup.agents_run_dir(), lookup.this_node()
    try:
        request = json.loads(sys.stdin.readline())
        answer = onnode.answer(onnode.Place(HERE, name, where), request)
    except (ValueError, AttributeError) as err:
        raise Failed(f"stdin: not a request: {err}") from err
    except (onnode.Misshapen, OSError) as err:
        raise Failed(str(err)) from err
    click.echo(json.dumps(answer))


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


def _release(kubeconfig: str | None, *, dry_run: bool) -> None:
    """Take the finalizer off as far as the credentials allow, and say what could not be done."""
    why = "no --kubeconfig says how to reach the API server"
    if kubeconfig or client_config.in_cluster(os.environ):
        try:
            for line in with_api(kubeconfig, lambda api: waits.within(release(api, dry_run=dry_run), API_SECONDS)):
                click.echo(line)
            return
        except Failed as err:
            why = err.message
        except TimeoutError:
            why = f"the API server did not answer within {API_SECONDS:.0f} s"
    click.echo(
        f"left alone: the finalizer of Services with a load balancer's address: {why}. Where podwire gave addresses, "
        "run `podwire cleanup --load-balancers` with an admin's kubeconfig, or a deleted Service stays Terminating",
        err=True,
    )


def _tell_others(others: Sequence[Foreign]) -> None:
    """Say which tables and chains of other programs stay."""
    for table in (table for one in others for table in one.tables):
        if (name := table.partition(" ")[2]) in OWNERS:
            click.echo(f"left alone: table {table}, which belongs to {OWNERS[name]}")
    for left in leftovers(chain for one in others for chain in one.chains):
        click.echo(f"left alone: {left}" + (f", of {left.owner} ({left.fix})" if left.owner else ""))


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
    help="The agent's, with what the role observe found, and for --for-downgrade.",
)
@click.option(
    "--load-balancers",
    is_flag=True,
    help="Only take podwire's finalizer off all Services of the cluster, so that none stays Terminating.",
)
@click.option("--kubeconfig", envvar="KUBECONFIG", help="For the Services' finalizer.  [default: in-cluster]")
@cluster_option
@former_name
def cleanup(
    dry_run: bool,
    node: str | None,
    netns: str | None,
    cluster: str | None,
    for_downgrade: bool,
    run_dir: Path,
    load_balancers: bool,
    kubeconfig: str | None,
) -> None:
    """Remove all rules of the Service proxy from a node's kernel. Services stop being served there.

    Stop the proxy first: a running proxy writes its rules again. On this machine it also takes podwire's finalizer off
    the cluster's Services, as far as the credentials allow.
    """
    if load_balancers:
        for line in with_api(kubeconfig, lambda api: release(api, dry_run=dry_run)):
            click.echo(line)
        return
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
        where = find_node_dir(cluster, node) if node else run_dir
        for line in call_in(place.path, lambda: list(sysctls.restore(where, dry_run=dry_run))):
            click.echo(f"{'would put back' if dry_run else 'put back'} {line}")
    except NotGone as err:
        for line in err.removed:
            click.echo(f"removed {line}")
        raise Failed(str(err)) from err
    except OSError as err:
        raise Failed(f"{place.path}: {err.strerror}; this needs root" if err.strerror else str(err)) from err
    if not ours:
        click.echo("nothing of the proxy is here")
    if node is None and netns is None:
        _release(kubeconfig, dry_run=dry_run)
    _tell_others(others)

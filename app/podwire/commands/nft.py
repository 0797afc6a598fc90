"""`podwire nft list`: the ruleset of a node, with the Service or pod that each element and chain belongs to."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from podwire_base.kernel.netns import call_in
from podwire_base.kernel.nft.codec import FAMILY_NAMES, TableDump
from podwire_base.kernel.nft.objects import show
from podwire_base.kernel.nft.socket import Connection, missing
from podwire_cni.plan import host_veth
from podwire_cni.types import Attachment

from ..explain import lookup, onnode
from ..explain.owners import Owners, chains, lines, owners, parse_rules
from ..explain.steps import Unreachable
from .common import Failed, kubeconfig_option
from .pods import cluster_option


@click.group("nft")
def group() -> None:
    """Show podwire's nftables rulesets with names."""


@group.command("list")
@click.option("--node", help="A node of the cluster on this machine. Default: this machine.")
@click.option("--netns", type=click.Path(exists=True), help="The node in this network namespace.")
@click.option("--table", "wanted", default="", help="Only tables of this name, such as podwire or podwire-cni.")
@click.option("--json", "as_json", is_flag=True, help="The elements with their owners as JSON.")
@cluster_option
@kubeconfig_option
def list_(
    node: str | None, netns: str | None, wanted: str, as_json: bool, cluster: str | None, kubeconfig: str | None
) -> None:
    """Print the ruleset, with the Service, pod or node behind each element.

    Other programs' tables are left out: `nft list ruleset` prints them.
    """
    try:
        where, catalogue = lookup.node_and_objects(node or "", netns or "", cluster, kubeconfig)
        found = call_in(where.path, lambda: list(_dumps(wanted)))
    except Unreachable as err:
        raise Failed(str(err)) from err
    except OSError as err:
        raise Failed(f"{where.path}: {err.strerror or err}; this needs root") from err
    if not found:
        what = f"table {wanted!r}" if wanted else "nftables table of podwire"
        raise Failed(f"there is no {what} here: with the iptables backend, iptables-save prints the chains PODWIRE-*")
    who = owners(catalogue, _links(where))
    if as_json:
        click.echo(json.dumps([_data(dump, who) for dump in found], indent=2))
        return
    for why in sorted(set(catalogue.missing.values())):
        click.echo(f"# names are missing: {why}")
    for dump in found:
        for line in lines(dump, who, _texts(where.path, dump)):
            click.echo(line)


def _dumps(wanted: str) -> Iterator[TableDump]:
    if missing():
        return
    with Connection() as conn:
        for table in conn.tables():
            if not table.name.startswith("podwire") or table.family not in FAMILY_NAMES.values():
                continue
            if wanted in ("", table.name) and (dump := conn.dump(table, exprs=True)) is not None:
                yield dump


def _texts(path: str, dump: TableDump) -> dict[tuple[str, int], str]:
    """Returns the rules as nft(8) prints them; {} without the program, and the rules are told by their comments."""
    table = dump.table
    # "-t" leaves the elements out, which may be many thousands
    command = ["nft", "-a", "-n", "-t", "list", "table", table.family, table.name]
    try:
        done = subprocess.run(["nsenter", f"--net={path}", *command], capture_output=True, text=True, check=False)
    except OSError:
        return {}
    return parse_rules(done.stdout) if not done.returncode else {}


def _links(where: onnode.Place) -> Mapping[str, str]:
    """Returns the pods' ports on the node -> the pod, from the leases."""
    found: dict[str, str] = {}
    if where.run_dir is None:
        return found
    for file in sorted(Path(where.run_dir, "cni", "leases").glob("[0-9a-f]*")):
        try:
            lease = json.loads(file.read_text().partition("\n")[0])
            port = host_veth(Attachment(str(lease["containerID"]), str(lease["ifname"])))
            found[port] = str(lease.get("pod") or lease["containerID"][:12])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _data(dump: TableDump, who: Owners) -> dict[str, object]:
    named = chains(dump, who)
    return {
        "family": dump.table.family,
        "table": dump.table.name,
        "elements": [
            {
                "set": name,
                "element": show(dump.sets[name], raw, value),
                "owner": who.element(dump.sets[name], raw, value),
            }
            for name, held in sorted(dump.elements.items())
            for raw, value in sorted(held.items())
        ],
        "chains": [
            {
                "chain": name,
                "owner": named.get(name, ""),
                "rules": [{"handle": rule.handle, "comment": rule.comment} for rule in rules],
            }
            for name, rules in dump.rules.items()
        ],
    }

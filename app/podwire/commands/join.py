"""`podwire init`, `token` and `revoke` on the first machine of a cluster, `podwire join` on the others."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import itertools
import json
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import click

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, ConfigError, Refused
from podwire_controlplane.allocators import service_ranges
from podwire_controlplane.server import auth, identity, pki, tokens
from podwire_controlplane.server import join as server_join

from .. import bootstrapping, joining
from ..deploy import plan
from .common import Failed, kubeconfig_option, with_api, with_own_api

_HOURS = click.FloatRange(0.01, tokens.LIFE / 3600)


def _address(text: str, option: str, port: int = 6443) -> tuple[str, int]:
    """Parse ADDRESS or ADDRESS:PORT and return (address, port). An IPv6 address before a port has brackets."""
    host, given = text, ""
    if text.count(":") == 1 or "]:" in text:
        host, _, given = text.rpartition(":")
    try:
        number = int(given or port)
        if not 0 < number < 65536:
            raise ValueError
        return str(ipaddress.ip_address(host.strip("[]"))), number
    except ValueError:
        raise Failed(f"{option}: {text!r} is not ADDRESS or ADDRESS:PORT, such as 192.168.56.11:6443") from None


def url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def write_credentials(
    data: Path, address: str, port: int, addresses: server_join.Addresses, more: tuple[str, ...]
) -> bool:
    """Write the CA (only once), the server certificate, and the kubeconfigs of the admin and of the controllers.
    Returns False, without a change, if they exist already for these addresses.
    """
    api, stamp = data / "api", json.dumps([address, port, *more, asdict(addresses)])
    known = (api / "made-for.json").exists() and (api / "made-for.json").read_text() == stamp
    if known and pki.acts_as(api / "controllers.kubeconfig", auth.CONTROLLERS, ()):
        return False
    api.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (api / "ca-key.pem").exists():
        authority = pki.Authority(pki.Pair((api / "ca.pem").read_text(), (api / "ca-key.pem").read_text()))
    else:
        authority = pki.Authority()
        pki.write_private(api / "ca.pem", authority.certificate)
        pki.write_private(api / "ca-key.pem", authority.pair.key)
    first = str(service_ranges(addresses.service_cidr)[0][1])
    names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{addresses.cluster_domain}",
        socket.gethostname(),
    ]
    server = authority.server(names, dict.fromkeys(["127.0.0.1", address, first, *more]))
    pki.write_private(api / "server.pem", server.certificate)
    pki.write_private(api / "server-key.pem", server.key)
    pki.write_private(api / "cluster.json", json.dumps(asdict(addresses)))
    for path, where, user, groups in (
        (data / "admin.kubeconfig", url_host(address), "admin", (auth.ADMINS,)),
        (api / "controllers.kubeconfig", "127.0.0.1", auth.CONTROLLERS, ()),
    ):
        pki.write_private(
            path,
            pki.kubeconfig(
                "podwire", f"https://{where}:{port}", authority.certificate, user, authority.client(user, groups)
            ),
        )
    pki.write_private(api / "made-for.json", stamp)
    return True


def _kept(api: Path) -> list[tokens.Token]:
    """Return the tokens in join.json that are valid now."""
    return server_join.read_tokens(api)


def join_token(api: Path, wanted: str | None, hours: float, *, new: bool) -> str:
    """Return the join token for new names: `wanted`, the present valid token, or a new token. The token is valid for
    `hours` from now. With `new`, the present token is replaced. Tokens for single nodes stay.
    """
    kept, now = _kept(api), time.time()
    present = next((row.secret for row in kept if not row.node), "")
    secret = wanted or ("" if new else present) or secrets.token_urlsafe(32)
    fresh = tokens.Token(secret, "", now, now + hours * 3600)
    pki.write_private(api / "join.json", tokens.encode([fresh, *(row for row in kept if row.node)]))
    return secret


def bound_token(api: Path, node: str, hours: float) -> str:
    """Return a new join token for `node` only. It replaces an earlier token for the same node; other tokens stay."""
    now, secret = time.time(), secrets.token_urlsafe(32)
    fresh = tokens.Token(secret, node, now, now + hours * 3600)
    kept = [row for row in _kept(api) if row.node != node]
    pki.write_private(api / "join.json", tokens.encode([*kept, fresh]))
    return secret


@click.command()
@click.option(
    "--advertise",
    required=True,
    metavar="ADDRESS[:PORT]",
    help="Address at which other machines reach this API server.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/podwire"),
    show_default=True,
    help="The control plane's files: certificates, tokens, store.",
)
@click.option(
    "--cluster-cidr",
    default="10.244.0.0/16",
    show_default=True,
    metavar="CIDR[,CIDR]",
    help="Pod addresses; each node gets a /24 of them, and a /64 of an IPv6 range.",
)
@click.option(
    "--service-cidr",
    default="10.96.0.0/16",
    show_default=True,
    metavar="CIDR[,CIDR]",
    help="Service addresses; an IPv4 and an IPv6 range make Services dual-stack.",
)
@click.option("--dns-address", default=None, help="Default: the tenth Service address.")
@click.option("--cluster-domain", default="cluster.local", show_default=True, help="The DNS zone of the cluster.")
@click.option(
    "--also", multiple=True, metavar="ADDRESS", help="Further addresses that the server's certificate is for."
)
@click.option(
    "--token", help="The join token, at least 32 characters; default: the token that is valid now, else a random one."
)
@click.option(
    "--token-hours",
    default=24.0,
    show_default=True,
    type=_HOURS,
    help="Hours for which machines can join with the token.",
)
@click.option("--new-token", is_flag=True, help="Make a new join token; the old one becomes invalid.")
def init(
    advertise: str,
    data_dir: Path,
    cluster_cidr: str,
    service_cidr: str,
    dns_address: str | None,
    cluster_domain: str,
    also: tuple[str, ...],
    token: str | None,
    token_hours: float,
    new_token: bool,
) -> None:
    """Make a cluster's certificates and addresses on its first machine, and the token with which others join.

    It can be repeated: the CA stays. Afterwards `podwire install --only control-plane --listen ADDRESS:PORT` starts the
    API server.
    """
    address, port = _address(advertise, "--advertise")
    if (ip := ipaddress.ip_address(address)).is_loopback or ip.is_unspecified or ip.is_link_local:
        raise Failed(
            f"--advertise: others cannot reach {address}; give this machine's address on the network of the nodes"
        )
    more = tuple(_address(text, "--also")[0] for text in also)
    if token is not None and len(token) < server_join.MIN_TOKEN:
        raise Failed(f"--token: has {len(token)} characters; at least {server_join.MIN_TOKEN} are needed")
    try:
        services, pods = service_ranges(service_cidr), service_ranges(cluster_cidr)
        for one, other in itertools.product(services, pods):
            if one.version == other.version and one.overlaps(other):
                raise ValueError(f"{one} and {other} overlap")
        if missing := {one.version for one in services} - {one.version for one in pods}:
            raise ValueError(f"Services have IPv{missing.pop()} addresses only where pods do")
        dns = str(ipaddress.ip_address(dns_address)) if dns_address else str(services[0][10])
    except (ValueError, IndexError) as error:
        raise Failed(f"--cluster-cidr, --service-cidr or --dns-address: {error}") from error
    addresses = server_join.Addresses(cluster_cidr, service_cidr, dns, cluster_domain)
    try:
        fresh = write_credentials(data_dir, address, port, addresses, more)
        secret = join_token(data_dir / "api", token, token_hours, new=new_token)
    except (OSError, ValueError) as error:
        raise Failed(f"{data_dir}: {error}") from error
    listen = f"{url_host(address)}:{port}"
    click.echo(
        f"{'made' if fresh else 'kept'} certificates in {data_dir}/api; export KUBECONFIG={data_dir}/admin.kubeconfig"
    )
    click.echo(f"here:      podwire install --only control-plane --listen {listen} --data-dir {data_dir}")
    click.echo(f"each node: podwire join https://{listen} --token {secret}")


@click.command()
@click.argument("node", required=False, default="")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/podwire"),
    show_default=True,
    help="As for `podwire init`.",
)
@click.option("--hours", default=24.0, show_default=True, type=_HOURS, help="Hours for which the token is valid.")
@click.option(
    "--bootstrap",
    is_flag=True,
    help="Make a bootstrap token of Kubernetes (a Secret in kube-system); the API server must run.",
)
def token(node: str, data_dir: Path, hours: float, bootstrap: bool) -> None:
    """Make a join token on the cluster's first machine. With NODE, only a machine of exactly this name can join with
    it, also if the name is taken: earlier certificates of the name are then revoked.
    """
    if why := node and identity.bad_name(node):
        raise Failed(f"NODE: {why}")
    try:
        address, port = json.loads((data_dir / "api/made-for.json").read_text())[:2]
        if bootstrap:
            admin = str(data_dir / "admin.kubeconfig")
            secret = with_api(admin, lambda api: bootstrapping.make(api, node, hours))
        elif node:
            secret = bound_token(data_dir / "api", node, hours)
        else:
            secret = join_token(data_dir / "api", None, hours, new=True)
    except FileNotFoundError as error:
        raise Failed(f"{data_dir} has no control plane: run `podwire init` first") from error
    except (OSError, ValueError) as error:
        raise Failed(f"{data_dir}: {error}") from error
    name = f" --node-name {node} --again" if node else ""
    click.echo(f"podwire join https://{url_host(address)}:{port} --token {secret}{name}")


@click.command()
@click.argument("node")
@kubeconfig_option
def revoke(node: str, kubeconfig: str | None) -> None:
    """Refuse every certificate of NODE from now on, also on connections that are open. The name stays reserved. A
    machine of this name joins again with a token that `podwire token NODE` makes. Node object and pods stay.
    """

    async def work(api: ApiClient) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await api.request("POST", auth.REVOKE_PATH, {"node": node})
        return found

    found = with_own_api(kubeconfig, work)
    serials = ", ".join(found["serials"]) or "none is on record"
    click.echo(f"certificates of {node} are refused (serial numbers: {serials})")
    if not found["known"]:
        click.echo(f"no machine joined as {node} by this version; one with an older certificate is refused too")


@click.command()
@click.argument("server")
@click.option(
    "--token",
    default="",
    envvar="PODWIRE_JOIN_TOKEN",
    help="As `podwire init` or `podwire token` printed it; not needed to renew a certificate. [PODWIRE_JOIN_TOKEN]",
)
@click.option("--node-name", default=socket.gethostname, help="Name of this node; default: the host's name.")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False), default=Path("/"), hidden=True)
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait for the API server's answer.")
@click.option(
    "--again", is_flag=True, help="Get a new certificate even if there is one; the present one proves who asks."
)
def join(server: str, token: str, node_name: str, root: Path, wait: float, again: bool) -> None:
    """Make this machine a node of the cluster at SERVER (https://ADDRESS:PORT): its certificate and the cluster's
    addresses. The name must be new in the cluster, or the token must be for this name (`podwire token NODE`).

    Writes /etc/podwire/node.kubeconfig and settings in /etc/podwire/agent.env; `podwire install` then starts the agent,
    which renews the certificate when two thirds of its year are over.
    """
    kubeconfig, env = root / joining.KUBECONFIG, root / plan.SETTINGS.lstrip("/")
    if kubeconfig.exists() and not again:
        click.echo(f"this machine has joined already: {kubeconfig} (--again makes a new one)")
        return
    if why := identity.bad_name(node_name):
        raise Failed(f"--node-name: {why}")
    try:
        (server,) = client_config.server_urls("", server)
        if not token and not kubeconfig.exists():
            raise Failed("--token: is missing; `podwire token` on the first machine makes one")
        addresses = _joined(server, token, node_name, kubeconfig, wait) if token else None
        if addresses is None:
            asyncio.run(joining.renew(kubeconfig))
        else:
            given = {
                "PODWIRE_KUBECONFIG": "/etc/podwire/node.kubeconfig",
                "PODWIRE_NODE_NAME": node_name,
                **{f"PODWIRE_{field.upper()}": value for field, value in asdict(addresses).items()},
            }
            pki.write_private(env, plan.merged_settings(env.read_text() if env.exists() else "", given, {}))
    except (ApiError, ConfigError, bootstrapping.Distrusted, aiohttp.ClientError) as error:
        raise Failed(str(error)) from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Failed(f"{server}: {error!r}") from error
    click.echo(f"joined as {node_name}; now: podwire install --only agent --pods --address ADDRESS")


def _joined(server: str, token: str, node: str, kubeconfig: Path, wait: float) -> server_join.Addresses | None:
    """Join with the token and write the kubeconfig. Returns None if the name is taken and this machine has a
    certificate for it. Raises ApiError, Distrusted, OSError and ValueError.
    """
    try:
        key = functools.partial(joining.pending_key, kubeconfig)
        authority, pair, addresses = asyncio.run(joining.patiently(server, token, node, key, wait))
    except (Refused, bootstrapping.Distrusted) as error:
        taken = isinstance(error, bootstrapping.Distrusted) or error.code == 409
        with contextlib.suppress(OSError, ValueError):
            if taken and joining.present(kubeconfig).user == identity.USER + node:
                return None
        raise
    joining.write(kubeconfig, server, authority, node, pair)
    return addresses

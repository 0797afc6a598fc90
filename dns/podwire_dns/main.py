"""`podwire dns`: run the feeder or a server on this node, remove their kernel state, or query a name and explain the
answer.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from . import names
from .config import BadConfig, DnsConfig
from .forward import POLICIES, Tls
from .rtypes import TYPE_NAMES
from .sources import Sources

DEFAULTS = DnsConfig("", None, Path("/run/podwire"))
PLURALS = {
    "upstream": "upstreams",
    "pod_cidr": "pod_cidrs",
    "service_cidr": "service_cidrs",
    "stub": "stubs",
    "dns_address": "dns_addresses",
}
IN_A_POD: dict[str, Any] = {
    "listen": ("0.0.0.0",),
    "notrack": False,
    "health_address": ":8080",
    "ready_address": ":8181",
    "metrics_address": ":9153",
    "lame_duck": 5.0,
}
Function = Callable[..., None]


def _many(name: str, default: tuple[str, ...], text: str) -> Callable[[Function], Function]:
    return click.option(name, multiple=True, default=default, show_default=True, help=text)


OPTIONS: list[Callable[[Function], Function]] = [
    click.option("--node-name", default="", help="This node's name, for log lines."),
    click.option(
        "--kubeconfig",
        envvar="KUBECONFIG",
        type=click.Path(dir_okay=False),
        help="Kubeconfig; default: the pod's own service account.",
    ),
    click.option(
        "--run-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULTS.run_dir,
        show_default=True,
        help="Directory of dns.sock and the status files.",
    ),
    _many("--listen", DEFAULTS.listen, "Cluster DNS address; may be repeated."),
    click.option(
        "--port", type=click.IntRange(1, 65535), default=DEFAULTS.port, show_default=True, help="Of UDP and TCP."
    ),
    click.option(
        "--cluster-domain", default=DEFAULTS.cluster_domain, show_default=True, help="The DNS domain of the cluster."
    ),
    _many(
        "--upstream",
        DEFAULTS.upstreams,
        "Resolver for other names: IP, IP#PORT, tls://IP (DNS over TLS), or the path of a "
        "resolv.conf, which is followed; may be repeated. none: refuse such names.",
    ),
    click.option("--tls-servername", default="", help="Name in the certificate of upstreams with tls://."),
    click.option(
        "--tls-ca",
        type=click.Path(dir_okay=False),
        default="",
        help="File with the authorities that may sign their certificates.",
    ),
    _many("--pod-cidr", DEFAULTS.pod_cidrs, "Range whose reverse names are answered here; may be repeated."),
    _many("--service-cidr", DEFAULTS.service_cidrs, "The same for Service addresses; may be repeated."),
    click.option("--ttl", type=click.IntRange(0, 3600), default=DEFAULTS.ttl, show_default=True, help="Seconds."),
    click.option("--pods/--no-pods", default=True, show_default=True, help="Answer a-b-c-d.NAMESPACE.pod names."),
    click.option(
        "--verify-pods/--no-verify-pods",
        default=False,
        show_default=True,
        help="Answer those names only if such a pod exists; the feeder then watches all pods.",
    ),
    click.option(
        "--corefile",
        type=click.Path(dir_okay=False),
        default="",
        help="Read settings from a CoreDNS Corefile; they override the other flags. It is read again at SIGHUP and "
        "as its `reload` says.",
    ),
    click.option(
        "--ignore-access-rules/--no-ignore-access-rules",
        "ignore_access",
        default=False,
        show_default=True,
        help="Start although the Corefile restricts who is answered (acl, view ...), which is not enforced.",
    ),
    _many(
        "--dns-address",
        (),
        "Address at which clients reach this DNS, if not --listen (a Service's address); may be repeated.",
    ),
    click.option("--health-address", default="", help="HOST:PORT of /health; empty: none."),
    click.option("--ready-address", default="", help="HOST:PORT of /ready; empty: none."),
    click.option("--metrics-address", default="", help="HOST:PORT of /metrics; empty: none."),
    click.option(
        "--user",
        type=click.IntRange(0, 2**31 - 1),
        default=DEFAULTS.user,
        show_default=True,
        help="Numeric user of the server, which then has no privileges; 0: the user that starts it.",
    ),
    click.option(
        "--lame-duck",
        type=click.FloatRange(0, 300),
        default=DEFAULTS.lame_duck,
        show_default=True,
        help="Seconds of answering after SIGTERM, while /ready fails.",
    ),
    click.option(
        "--log-queries/--no-log-queries",
        default=False,
        show_default=True,
        help="Log each query, with the client's pod.",
    ),
    click.option(
        "--autopath/--no-autopath",
        default=False,
        show_default=True,
        help="Complete the names of pods' search paths in one answer.",
    ),
    _many("--stub", (), "DOMAIN=IP[#PORT],...: upstreams of names below DOMAIN; may be repeated."),
    click.option(
        "--policy",
        type=click.Choice(POLICIES),
        default=DEFAULTS.policy,
        show_default=True,
        help="Which upstream gets a query first.",
    ),
    click.option(
        "--serve-stale",
        type=click.FloatRange(0, 86400),
        default=DEFAULTS.serve_stale,
        show_default=True,
        help="Seconds for which an expired answer is given while no upstream answers.",
    ),
    click.option(
        "--prefetch/--no-prefetch", default=True, show_default=True, help="Renew popular answers before they expire."
    ),
    click.option(
        "--spare/--no-spare",
        default=True,
        show_default=True,
        help="A second server process reads the same sockets, so that the DNS survives the end of either.",
    ),
    click.option(
        "--linger",
        type=click.FloatRange(0, 300),
        default=DEFAULTS.linger,
        show_default=True,
        help="Seconds after SIGTERM for which the spare answers, or until the next server takes over.",
    ),
    click.option("--notrack/--no-notrack", default=True, show_default=True, help="Keep DNS out of conntrack."),
]


def _with_config(work: Callable[..., None]) -> Function:
    """Decorates a command that takes a DnsConfig: converts the options into the DnsConfig.

    An error in the settings becomes one line of output and exit status 1.
    """

    @wraps(work)
    def inner(**flags: Any) -> None:
        from podwire_base.kube.errors import ApiError, ConfigError
        from podwire_base.role import logs

        for many, field in PLURALS.items():
            flags[field] = flags.pop(many)
        tls = Tls(flags.pop("tls_servername"), flags.pop("tls_ca"))
        if flags["upstreams"] == ("none",):
            flags["upstreams"] = ()
        config = DnsConfig(
            **{field.name: flags.pop(field.name) for field in fields(DnsConfig) if field.name in flags}, tls=tls
        )
        logs.configure(node=config.node_name)
        try:
            Sources(config).load()
            work(config, **flags)
        except (BadConfig, ConfigError, ApiError, OSError, names.BadName) as err:
            click.echo(f"podwire dns {work.__name__}: {err}", err=True)
            sys.exit(1)

    function: Function = inner
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def _showing(*names: str) -> Callable[[Function], Function]:
    """Decorates a command: the help shows only the named settings, although all commands accept all settings."""

    def mark(function: Function) -> Function:
        for option in getattr(function, "__click_params__"):  # noqa: B009 - not in click's types
            option.hidden = option.name not in names
        return function

    return mark


@click.group()
def command() -> None:
    """The cluster's DNS on this node."""


@command.command()
@_with_config
def feeder(config: DnsConfig) -> None:
    """Watch the API, render answers, feed the servers on this node."""
    from . import feeder as role

    role.run(config)


@command.command()
@_with_config
def server(config: DnsConfig) -> None:
    """Answer queries on the cluster DNS addresses."""
    from . import role

    role.run(config)


@command.command()
@_with_config
def serve(config: DnsConfig) -> None:
    """Feeder and server together, as in a container of a Deployment behind a Service.

    By default it listens on all addresses, changes neither lo nor conntrack, shows /health on
    :8080, /ready on :8181 and /metrics on :9153, and answers for 5 s after SIGTERM.
    """
    from . import serving

    given = click.get_current_context().get_parameter_source
    pod = {name: value for name, value in IN_A_POD.items() if given(name) is ParameterSource.DEFAULT}
    serving.run(replace(config, **pod))


@command.command()
@_showing("listen", "corefile")
@_with_config
def cleanup(config: DnsConfig) -> None:
    """Remove the addresses from lo, and the nft table podwire-dns."""
    from . import host
    from .heritage import end_spares

    end_spares(config.run_dir)
    for line in host.cleanup(Sources(config).load().addresses()) or ["nothing to remove"]:
        click.echo(line)


@command.command()
@click.argument("name")
@click.argument("rtype", type=click.Choice(list(TYPE_NAMES.values()), case_sensitive=False), default="A")
@click.option(
    "--explain/--no-explain", default=True, show_default=True, help="Explain the answer with the API's objects."
)
@_showing(
    "kubeconfig", "listen", "dns_address", "port", "cluster_domain", "pod_cidr", "service_cidr", "pods", "corefile"
)
@_with_config
def query(config: DnsConfig, name: str, rtype: str, explain: bool) -> None:
    """Query this node's DNS for NAME as a pod would, and show the object behind the answer, or why there is none."""
    from dnslib import QTYPE, RCODE, DNSRecord

    config, full = Sources(config).load(), names.fqdn(name)
    number = next(value for value, text in TYPE_NAMES.items() if text == rtype.upper())
    message = bytes(DNSRecord.question(full, rtype.upper()).pack())
    answer = DNSRecord.parse(_ask(_reached(config), config.port, message))
    click.echo(f"{full} {rtype.upper()}: {RCODE[answer.header.rcode]}")
    for record in answer.rr:
        click.echo(f"  {record.rname} {record.ttl} {QTYPE[record.rtype]} {record.rdata}")
    if explain:
        for line in asyncio.run(_explain(config, full, number)):
            click.echo(f"  because {line}" if not answer.rr else f"  {line}")


def _reached(config: DnsConfig) -> str:
    """Returns an address at which the server answers."""
    first = (*config.dns_addresses, *config.addresses())[0]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(first, first)


def _ask(address: str, port: int, message: bytes) -> bytes:
    """Sends a query over TCP, which has room for every answer, and returns the response. Raises OSError."""
    try:
        with socket.create_connection((address, port), timeout=5) as sock, sock.makefile("rb") as stream:
            sock.sendall(len(message).to_bytes(2) + message)
            data = stream.read(int.from_bytes(stream.read(2)))
    except OSError as err:
        raise OSError(
            f"no answer from {address} port {port}: {err.strerror or err}; does a DNS server run there?"
        ) from err
    if not data:
        raise OSError(f"{address} port {port} closed the connection without an answer")
    return data


async def _explain(config: DnsConfig, name: str, rtype: int) -> list[str]:
    from podwire_base.kube.client.config import load
    from podwire_base.kube.client.http import ApiClient

    from . import explain
    from .build import Builder
    from .feeder import PATHS

    builder = Builder(config.schema())
    take = {"Service": builder.service, "EndpointSlice": builder.slice, "Namespace": builder.namespace}
    async with ApiClient(load(config.kubeconfig)) as api:
        for kind, path in PATHS.items():
            for obj in (await api.get(path)).get("items") or []:
                take[kind](obj)
    builder.flush(1)
    return explain.explain(builder, name, rtype)


if __name__ == "__main__":
    command()

"""The command of the proxy role: the options, the start in a node's network namespace, and the cleanup."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from podwire_base.kube.client.config import load
from podwire_base.kube.client.counted import CountedClient
from podwire_base.kube.errors import ApiError, ConfigError
from podwire_base.role import layout, logs, web
from podwire_base.role.run import main, stop_event, until_stopped

from . import backends, health, host, kubeproxyfile
from .config import DETECTORS, ProxyConfig, one_sided
from .events import Events
from .externalips import CHOICES, RESERVED, SERVE
from .health import Sites
from .memory import frugal
from .offline import configured, dry_run
from .role import Proxy

__all__ = ["ProxyConfig", "cleanup", "command", "dry_run", "run"]
log = logs.get("proxy")


async def _main(config: ProxyConfig) -> None:
    stop = stop_event()
    backends.configured(config).remove_idle(config.node())
    if config.localhost_node_ports and (problem := host.route_localnet()):
        log.warn("NodePorts on 127.0.0.1 will not answer: packets of lo cannot leave by other links", problem=problem)
    if config.oom_score_adj and (problem := host.set_oom_score(config.oom_score_adj)):
        log.warn("oomScoreAdj could not be set", value=config.oom_score_adj, problem=problem)
    proxy = Proxy(config)
    proxy.conntrack.apply()  # what is refused is told after the first sync, when the module is loaded
    async with contextlib.AsyncExitStack() as stack:
        api = CountedClient(load(config.kubeconfig))
        await stack.enter_async_context(api)
        proxy.metrics.api = api.counted
        events = Events(api, config.node_name)
        proxy.tell, proxy.post = events.send, events.post
        found = health.pages(proxy.metrics, proxy.health, config.backend, kubeproxyfile.write(config))
        addresses = {config.metrics_address, config.healthz_address} - {""}
        for address in addresses if config.bind_hard_fail else ():
            stack.push_async_callback((await web.serve(address, found)).cleanup)
        proxy.sites = Sites(found)

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                for address in () if config.bind_hard_fail else addresses:
                    group.create_task(proxy.sites.serve(address))
                group.create_task(proxy.run(api))

        await until_stopped(stop, work())
    proxy.sweeper.close()
    proxy.proxier.close()


def run(config: ProxyConfig) -> None:
    """Serves until SIGTERM or SIGINT, inside the node's network namespace. The rules stay in the kernel.

    Raises ConfigError for an invalid field or kubeconfig, and OSError if the host lacks a feature or program that the
    backend needs.
    """
    backends.check(config)
    logs.configure(node=config.node_name)
    layout.check(config.run_dir)
    backends.refuse_newer()
    layout.claim(config.run_dir)
    frugal()
    log.info("starting", backend=config.backend, pods=config.cluster_cidrs or "unknown", services=config.service_cidrs)
    for problem in one_sided(config):
        log.warn("a setting leaves out an IP family of the Services", problem=problem)
    main("proxy", _main(config))
    log.info("stopped, rules stay")


def cleanup(ns_fd: int | None = None) -> list[str]:
    """Removes everything that the proxy wrote into the network namespace. Returns a line for each item found.

    ns_fd: file descriptor of the network namespace; None: the caller's namespace. Raises NotGone and other OSErrors.
    """
    return backends.cleanup(ns_fd)


def _backend_options(command: Callable[..., None]) -> Callable[..., None]:
    for setting in backends.settings():
        command = click.option(setting.flag, type=click.Choice(setting.choices), help=setting.help)(command)
    names = backends.names()
    return click.option("--backend", type=click.Choice(names), help=f"Backend that writes the rules. [{names[0]}]")(
        command
    )


@click.command("proxy")
@click.option(
    "--config", "file", type=click.Path(path_type=Path), help="KubeProxyConfiguration v1alpha1; flags override it."
)
@click.option("--node-name", envvar="NODE_NAME", help="Name of this machine's Node object.")
@click.option("--kubeconfig", envvar="KUBECONFIG", help="A kubeconfig. [default: in-cluster]")
@click.option(
    "--run-dir",
    default="/run/podwire",
    type=click.Path(path_type=Path),
    show_default=True,
    help="Of the status file that `podwire status` reads.",
)
@_backend_options
@click.option(
    "--cluster-cidr", "cluster_cidrs", multiple=True, help="Addresses of pods; repeat for IPv6. [10.244.0.0/16]"
)
@click.option(
    "--service-cidr", "service_cidrs", multiple=True, help="Addresses of Services; repeat for IPv6. [10.96.0.0/16]"
)
@click.option(
    "--node-cidr",
    "node_cidrs",
    multiple=True,
    help="Network of the nodes, where a Service may claim only Nodes' addresses.",
)
@click.option(
    "--node-port-address",
    "node_port_addresses",
    multiple=True,
    help="CIDRs of local addresses that serve NodePorts. [the node's InternalIPs]",
)
@click.option(
    "--external-ips-on-nodes",
    type=click.Choice(CHOICES),
    help=f"What becomes of externalIPs that are a node's address. [{SERVE}]",
)
@click.option(
    "--external-ips-reserved-port",
    "external_ips_reserved_ports",
    multiple=True,
    help=f"Ports and ranges never served there. [{' '.join(RESERVED)}]",
)
@click.option("--detect-local", type=click.Choice(DETECTORS), help="How a pod's traffic is known. [ClusterCIDR]")
@click.option("--local-interface", help="The bridge, or the interfaces' prefix, for --detect-local.")
@click.option("--localhost-node-ports", is_flag=True, help="Serve NodePorts on 127.0.0.1 too (IPv4).")
@click.option("--require-ebpf", is_flag=True, help="With --backend ebpf: end if the socket hooks cannot run.")
@click.option("--ebpf-bypass", is_flag=True, help="With --backend ebpf: pods' packets pass the host's stack by.")
@click.option("--ebpf-cgroup", help="The cgroup at which the socket hooks sit. [the root of the machine's cgroup2]")
@click.option("--ebpf-bpffs", help="The bpffs with the pins of the hooks. [/sys/fs/bpf]")
@click.option("--masquerade-all", is_flag=True, help="Masquerade all traffic to ClusterIPs.")
@click.option("--metrics-address", help="HOST:PORT for /metrics, /proxyMode, /configz and /healthz. [off]")
@click.option("--healthz-address", help="HOST:PORT for /healthz and /livez. [off]")
@click.option("--dry-run", "dry", is_flag=True, help="Print what would be written and exit.")
@click.option("--cleanup", "clean", is_flag=True, help="Remove all rules of the proxy and exit.")
def command(file: Path | None, dry: bool, clean: bool, **flags: Any) -> None:
    """Serve Services on this node."""
    try:
        if clean:
            for line in cleanup():
                click.echo(f"removed {line}")
            return
        config = configured(file, flags)
        if dry:
            for line in asyncio.run(dry_run(config)):
                click.echo(line)
        else:
            run(config)
    except (ConfigError, ApiError, OSError) as err:
        raise click.ClickException(str(err)) from err

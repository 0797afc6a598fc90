"""The process behind `podwire up`. It makes namespaces and links, starts every role, and removes the cluster at its
end.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from functools import partial

from podwire_base.role import beat, logs
from podwire_base.role.supervisor import Role, Supervisor, adopt_orphans, reap_all
from podwire_base.role.title import set_title
from podwire_controlplane.controllers.driver import ControllersConfig
from podwire_controlplane.controllers.driver import run as run_controllers
from podwire_controlplane.server.main import ServerConfig
from podwire_controlplane.server.main import run as run_server
from podwire_proxy import backends

from .. import agent
from . import credentials, hooks, internet, members, network, publisher
from .config import MARKER, ClusterConfig
from .teardown import teardown

log = logs.get("cluster")


def _roles(config: ClusterConfig, held: tuple[int, ...] = ()) -> list[Role]:
    """Return the processes of the cluster itself. held: TCP ports of this machine that this process holds for them."""
    data, log_dir = config.run_dir / "api", config.run_dir / "log"
    server = ServerConfig(
        data,
        (("127.0.0.1", config.api_port, ""), (config.gateway, 6443, str(config.netns(network.SWITCH)))),
        (config.gateway, 6443),
        ",".join(config.service_cidrs),
        dns=(config.dns_address, config.cluster_domain),
        held=held,
        nodes=config.run_dir / "nodes",
    )
    controllers = ControllersConfig(
        str(data / "controllers.kubeconfig"),
        ",".join(config.cluster_cidrs),
        config.node_cidr_mask_size,
        node_prefix6=config.node_cidr_mask_size_ipv6,
        load_balancer_pool=config.balancer_pool,
    )
    own = {
        "apiserver": partial(run_server, server),
        "controllers": partial(run_controllers, controllers),
        "publisher": partial(publisher.run, config),
    }
    if config.internet:
        own["internet"] = partial(internet.run, config)
    return [
        Role(name, run, log_dir / f"{name}.log", title=(name, config.name), beat=beat.path_of(config.run_dir, name))
        for name, run in own.items()
    ]


def _node_roles(config: ClusterConfig) -> list[Role]:
    """Return the processes of the nodes that run."""
    log_dir, rows = config.run_dir / "log", []
    no_pods = (f"/proc/{os.getpid()}/ns/net", str(config.ns_dir))
    for node in config.running_nodes():
        spec = agent.AgentConfig(
            node,
            str(config.node_dir(node) / "kubeconfig"),
            config.node_dir(node),
            config.node_address(node),
            cluster_cidrs=config.cluster_cidrs,
            service_cidrs=config.service_cidrs,
            dns_address=config.dns_address,
            cluster_domain=config.cluster_domain,
            upstream_dns=config.upstream_dns,
            node_cidrs=config.node_cidrs,
            more_addresses=config.node_addresses(node)[1:],
            sets=(
                *config.role_sets(backends.chosen(config.proxy_backend)),
                *(hooks.prepare(config, node) if hooks.wanted(config) else ()),
            ),
            no_pods=no_pods,
            cri_data=config.cri_dir(node) if config.runtime == "cri" else None,
            cri_cgroup=config.cri_cgroup(node),
        )
        rows.append(
            Role(
                node,
                partial(hooks.join, config, node, partial(agent.run, spec))
                if hooks.wanted(config)
                else partial(agent.run, spec),
                log_dir / f"{node}.log",
                str(config.netns(node)),
                ("agent", node),
                beat=beat.path_of(config.run_dir, node),
            )
        )
    return rows


def _import_all() -> None:
    """Import the modules of all roles before the roles are forked. The roles then share memory pages and start fast."""
    import pyroute2

    import podwire_cni.agent
    import podwire_dns.feeder
    import podwire_dns.role
    import podwire_observe.main
    import podwire_policy.main
    import podwire_proxy.l2.announcer
    import podwire_proxy.main
    from podwire_node import kubelet

    _ = (
        podwire_cni.agent,
        podwire_dns.feeder,
        podwire_dns.role,
        podwire_observe.main,
        podwire_policy.main,
        podwire_proxy.main,
        podwire_proxy.l2.announcer,
        pyroute2,
        kubelet,
    )


def run(config: ClusterConfig, until_eof: int | None = None, held: tuple[int, ...] = ()) -> None:
    """Run the cluster until SIGTERM, SIGINT or end of file on the descriptor `until_eof`. Then remove the cluster.
    After an error everything stays: the logs, and what `podwire up` needs to take the cluster up again.
    """
    os.environ[MARKER] = str(config.run_dir)
    set_title("podwire", "cluster", config.name)
    adopt_orphans()  # pods run on when their node agent ends; this process then becomes their parent and reaps them
    try:
        credentials.make(config)
        network.ensure(config)
        for node in config.node_names():
            network.wire(config, node, up=node not in config.stopped)
        _import_all()
        log.info("starting", cluster=config.name, nodes=config.nodes)
        roles = [*_roles(config, held), *_node_roles(config)]
        follow = members.Follower(config, _node_roles)
        Supervisor(roles, config.run_dir / "supervisor.json", until_eof, calls={signal.SIGHUP: follow}).run()
    except (OSError, credentials.Damaged, network.NameTaken) as err:
        log.error("the cluster cannot run", error=str(err))
        if until_eof is not None and select.select([until_eof], [], [], 0)[0]:
            teardown(config)  # the starter ended too, so nobody else removes the cluster
        raise SystemExit(1) from err
    for line in teardown(config, say=lambda text: log.info("down", what=text)):
        log.error("stays", what=line)
    reap_all()


def main(argv: list[str]) -> None:
    """`python -m podwire.cluster.run NAME [--until-eof] [--holds FD]`: the process that `podwire up` starts in the
    background. FD: a socket that holds the port of the API server.
    """
    from .record import load

    config = load(argv[0])
    if config is None:
        raise SystemExit(f"podwire: no cluster {argv[0]!r} was prepared")
    logs.to_file(config.run_dir / "log" / "cluster.log")
    held: tuple[int, ...] = ()
    if "--holds" in argv:
        os.set_inheritable(int(argv[argv.index("--holds") + 1]), False)  # for roles, which are forked, but not for pods
        held = (config.api_port,)
    run(config, until_eof=0 if "--until-eof" in argv else None, held=held)


if __name__ == "__main__":
    main(sys.argv[1:])

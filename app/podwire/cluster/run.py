"""The process behind `podwire up`. It makes namespaces and links, starts every role, and removes the cluster at its
end.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from functools import partial
from pathlib import Path

from podwire_base.role import beat, logs
from podwire_base.role.supervisor import Role, Supervisor, adopt_orphans, reap_all
from podwire_base.role.title import set_title
from podwire_controlplane.controllers.driver import ControllersConfig
from podwire_controlplane.controllers.driver import run as run_controllers
from podwire_controlplane.server import auth, pki
from podwire_controlplane.server.main import ServerConfig
from podwire_controlplane.server.main import run as run_server
from podwire_proxy import backends

from .. import agent
from . import network, publisher
from .config import MARKER, ClusterConfig
from .teardown import teardown

log = logs.get("cluster")


def make_credentials(config: ClusterConfig) -> None:
    """Write the CA, the server certificate, and the kubeconfigs of the admin, of the controllers and of each node. The
    files have mode 0600.
    """
    ca, data = pki.Authority(), config.run_dir / "api"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{config.cluster_domain}",
    ]
    server = ca.server(names, ["127.0.0.1", config.gateway, config.kubernetes_address])
    pki.write_private(data / "ca.pem", ca.certificate)
    pki.write_private(data / "server.pem", server.certificate)
    pki.write_private(data / "server-key.pem", server.key)
    token = secrets.token_urlsafe(32)
    pki.write_private(data / "tokens.json", json.dumps({token: {"name": "admin", "groups": [auth.ADMINS]}}))
    outside, inside = f"https://127.0.0.1:{config.api_port}", f"https://{config.gateway}:6443"

    def write(path: Path, server: str, user: str, group: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pki.write_private(path, pki.kubeconfig(config.name, server, ca.certificate, user, ca.client(user, [group])))

    write(config.kubeconfig, outside, "admin", auth.ADMINS)
    write(data / "controllers.kubeconfig", outside, "system:kube-controller-manager", auth.ADMINS)
    for node in config.node_names():
        write(config.node_dir(node) / "kubeconfig", inside, f"system:node:{node}", auth.NODES)


def _roles(config: ClusterConfig) -> list[Role]:
    data, log_dir = config.run_dir / "api", config.run_dir / "log"
    server = ServerConfig(
        data,
        (("127.0.0.1", config.api_port, ""), (config.gateway, 6443, str(config.netns(network.SWITCH)))),
        (config.gateway, 6443),
        config.service_cidr,
        dns=(config.dns_address, config.cluster_domain),
    )
    controllers = ControllersConfig(
        str(data / "controllers.kubeconfig"), config.cluster_cidr, load_balancer_pool=config.balancer_pool
    )
    own = {
        "apiserver": partial(run_server, server),
        "controllers": partial(run_controllers, controllers),
        "publisher": partial(publisher.run, config),
    }
    rows = [
        Role(name, run, log_dir / f"{name}.log", title=(name, config.name), beat=beat.path_of(config.run_dir, name))
        for name, run in own.items()
    ]
    inside = (network.SWITCH, *config.node_names())
    no_pods = (f"/proc/{os.getpid()}/ns/net", *(str(config.netns(name)) for name in inside))
    for node in config.node_names():
        spec = agent.AgentConfig(
            node,
            str(config.node_dir(node) / "kubeconfig"),
            config.node_dir(node),
            config.node_address(node),
            cluster_cidrs=(config.cluster_cidr,),
            service_cidrs=(config.service_cidr,),
            dns_address=config.dns_address,
            cluster_domain=config.cluster_domain,
            upstream_dns=config.upstream_dns,
            node_cidrs=(config.node_cidr,),
            sets=config.role_sets(backends.chosen(config.proxy_backend)),
            no_pods=no_pods,
        )
        rows.append(
            Role(
                node,
                partial(agent.run, spec),
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
    import podwire_proxy.l2.announcer
    import podwire_proxy.main
    from podwire_node import kubelet

    _ = (
        podwire_cni.agent,
        podwire_dns.feeder,
        podwire_dns.role,
        podwire_proxy.main,
        podwire_proxy.l2.announcer,
        pyroute2,
        kubelet,
    )


def run(config: ClusterConfig, until_eof: int | None = None) -> None:
    """Run the cluster until SIGTERM, SIGINT or end of file on the descriptor `until_eof`. Then remove the cluster."""
    os.environ[MARKER] = str(config.run_dir)
    set_title("podwire", "cluster", config.name)
    adopt_orphans()  # pods run on when their node agent ends; this process then becomes their parent and reaps them
    try:
        make_credentials(config)
        network.make_switch(config)
        for node in config.node_names():
            network.make_node(config, node)
        _import_all()
        log.info("starting", cluster=config.name, nodes=config.nodes)
        Supervisor(_roles(config), config.run_dir / "supervisor.json", until_eof).run()
    finally:
        teardown(config, say=lambda text: log.info("down", what=text))
        reap_all()


def main(argv: list[str]) -> None:
    """`python -m podwire.cluster.run NAME [--until-eof]`: the process that `podwire up` starts in the background."""
    from .record import load

    config = load(argv[0])
    if config is None:
        raise SystemExit(f"podwire: no cluster {argv[0]!r} was prepared")
    logs.to_file(config.run_dir / "log" / "cluster.log")
    run(config, until_eof=0 if "--until-eof" in argv else None)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Turns the words of a user into a question: reads the API's objects and finds the way to the nodes. I/O."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podwire_base.kernel.ip import Family
from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError, ConfigError
from podwire_base.kube.meta import Object

from ..cluster.config import BASE, ClusterConfig
from ..cluster.record import load
from . import diagnose
from .catalogue import NEEDED, PATHS, Catalogue
from .names import BadName, Source, Target, is_ip, parse, source, target
from .observe import HERE
from .onnode import Place
from .packets import Asked
from .reach import Local, Looked, Reach
from .steps import Unreachable
from .tracing import Followed, Tracer

# of an agent on this machine: of `podwire join`, and of deploy/
RUN_DIRS = (Path("/run/podwire/node"), Path("/run/podwire"))


@dataclass(frozen=True, slots=True)
class Question:
    source: Source
    target: Target
    catalogue: Catalogue
    reach: Reach
    cluster: ClusterConfig | None = None  # on this machine


async def read(api: ApiClient, domain: str = "cluster.local") -> Catalogue:
    """Reads the objects. What may not be read is left out and named. Raises ApiError if Services cannot be read."""

    async def one(kind: str) -> tuple[str, tuple[Object, ...], str]:
        try:
            found = await api.get(PATHS[kind])
        except ApiError as err:
            if kind in NEEDED:
                raise
            return kind, (), err.message
        group = [{"kind": kind, **obj} for obj in found.get("items") or []]
        return kind, tuple(group), ""

    rows = await asyncio.gather(*(one(kind) for kind in PATHS))
    return Catalogue({kind: found for kind, found, _ in rows}, domain, {kind: why for kind, _, why in rows if why})


def local_cluster(kubeconfig: str, cluster: str | None) -> ClusterConfig | None:
    """Returns the cluster on this machine that the name or the kubeconfig means. Raises Unreachable."""
    if cluster:
        found = load(cluster)
        if found is None:
            raise Unreachable(f"no cluster {cluster!r} on this machine")
        return found
    path = Path(kubeconfig) if kubeconfig else None
    return load(path.parent.name) if path is not None and path.parent.parent == BASE else None


def default_kubeconfig(given: str | None) -> str:
    """Returns the kubeconfig that every command uses, "" if there is none."""
    from ..commands.common import Failed, find_kubeconfig

    try:
        return find_kubeconfig(given)
    except Failed:
        return ""


def question(
    src: str,
    dst: str,
    node: str,
    space: str,
    proto: str,
    v6: bool,
    netns: str,
    cluster: str | None,
    kubeconfig: str | None,
) -> Question:
    """Returns the question that the words mean. Raises BadName, Unreachable."""
    dialled = parse(dst, proto)
    if not dialled.port and not is_ip(dialled.host) and not dialled.host:
        raise BadName(f"{dst!r}: expected DST:PORT")
    addresses = is_ip(dialled.host) and (is_ip(src) or src == "node")
    own = local_cluster("" if netns else default_kubeconfig(kubeconfig), cluster)
    config = str(own.kubeconfig) if own else default_kubeconfig(kubeconfig)
    catalogue, api = Catalogue(missing=dict.fromkeys(PATHS, "no API server was asked")), None
    if config and not (netns and not kubeconfig and addresses):
        try:
            api = client_config.load(config)
            catalogue = asyncio.run(_objects(api, own.cluster_domain if own else "cluster.local"))
        except (ApiError, ConfigError) as err:
            if not addresses:  # names need the API; addresses need only the kernel's rules
                raise Unreachable(f"{err.message if isinstance(err, ApiError) else err} ({config})") from err
            catalogue = Catalogue(missing=dict.fromkeys(PATHS, str(err)))
    elif not addresses:
        raise Unreachable("no cluster: start one with `podwire up`, or pass --kubeconfig; without one, use addresses")
    if node and own and node not in own.node_names():
        raise BadName(f"cluster {own.name!r} has no node {node!r}; its nodes are {', '.join(own.node_names())}")
    sender = source(src, catalogue, space, "" if netns else node)
    wanted = target(dialled, catalogue, sender, space, v6)
    if not netns:
        sender = entering(sender, wanted, catalogue, None if own else this_node())
    return Question(sender, wanted, catalogue, _reach(netns, own, api, sender), own)


def node_and_objects(node: str, netns: str, cluster: str | None, kubeconfig: str | None) -> tuple[Place, Catalogue]:
    """Returns where a node of this machine is, and the API's objects as far as they can be read. Raises Unreachable."""
    config = default_kubeconfig(kubeconfig)
    own = local_cluster("" if netns else config, cluster)
    config = str(own.kubeconfig) if own else config
    catalogue = Catalogue(missing=dict.fromkeys(PATHS, "no API server was asked"))
    if config:
        try:
            domain = own.cluster_domain if own else "cluster.local"
            catalogue = asyncio.run(_objects(client_config.load(config), domain))
        except (ApiError, ConfigError) as err:
            catalogue = Catalogue(missing=dict.fromkeys(PATHS, f"{err.message if isinstance(err, ApiError) else err}"))
    if netns or own is None:
        return Place(netns or HERE, node, None if netns else agents_run_dir()), catalogue
    return _of_cluster(own, node), catalogue


async def _objects(config: client_config.ClientConfig, domain: str) -> Catalogue:
    async with ApiClient(config) as api:
        return await read(api, domain)


def this_node() -> str:
    """Returns the name of this machine as a node, as the agent finds it."""
    return os.environ.get("NODE_NAME") or socket.gethostname().strip().lower()


def agents_run_dir() -> Path | None:
    """Returns the run directory of the agent on this machine, None without one."""
    return next((one for one in RUN_DIRS if (one / "status").is_dir()), None)


def entering(sender: Source, wanted: Target, catalogue: Catalogue, here: str | None) -> Source:
    """Returns the sender with the node that its packet meets first. One outside the cluster enters at the node that it
    dials, else at the first one. here: the name of this machine if it may be a node; None if it is the laptop of a
    cluster in namespaces, whose own packets are its own. Raises BadName if this machine is no node.
    """
    if sender.node or not catalogue.of("Node"):
        return sender
    nodes = diagnose.all_nodes(catalogue)
    if sender.kind != "outside":
        if sender.kind == "node" and not sender.ips and here is not None and here not in nodes:
            raise BadName(
                f"SRC node: this machine ({here}) is no node of the cluster; use node/NAME of {', '.join(nodes)}"
            )
        return sender
    dialled = wanted.points[0][0] if wanted.points else ""
    node = (catalogue.node_at(dialled) if dialled else "") or (here if here in nodes else next(iter(nodes), ""))
    return Source(sender.kind, sender.ips, node or "", sender.pod, sender.words)


def _reach(netns: str, own: ClusterConfig | None, api: client_config.ClientConfig | None, sender: Source) -> Reach:
    if netns:
        return Local(lambda name: _only(netns, name, sender))
    if own is not None:
        return Local(lambda name: _of_cluster(own, name))
    return Here(api)


def _only(netns: str, name: str, sender: Source) -> Place:
    if name != sender.node:
        raise Unreachable(f"node {name} is not the one in {netns}")
    return Place(netns, name)


def _of_cluster(own: ClusterConfig, name: str) -> Place:
    if not name:
        return Place(HERE)
    if name not in own.node_names():
        raise Unreachable(f"node {name} is not of the cluster on this machine")
    return Place(str(own.netns(name)), name, own.node_dir(name))


class Here:
    """This machine as a node of a cluster, and the other nodes through their agents' pods."""

    def __init__(self, api: client_config.ClientConfig | None) -> None:
        self._api = api

        own = this_node()
        run_dir = agents_run_dir()
        self._own, self._local = ("", own), Local(lambda name: Place(HERE, name, run_dir))

    def space(self, node: str, ip: str) -> str:
        return self._local.space(node, ip) if node in self._own else ""

    def is_elsewhere(self, node: str) -> bool:
        return node not in self._own and self._api is not None

    def send(self, node: str, data: Sequence[Any]) -> Mapping[str, Any]:
        """Sends from another node. Raises Unreachable."""
        from . import agents

        assert self._api is not None
        return agents.send(self._api, node, data)

    def trace(self, node: str, family: Family, flows: list[Followed]) -> Tracer:
        if node not in self._own:
            raise Unreachable("it is another machine")
        return self._local.trace(node, family, flows)

    def look(self, node: str, asks: Sequence[Asked]) -> Looked:
        if node in self._own:
            return self._local.look(node, asks)
        if self._api is None:
            raise Unreachable(f"node {node} is another machine, and there is no kubeconfig to reach its agent with")
        from . import agents

        return agents.look(self._api, node, asks)

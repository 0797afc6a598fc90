"""Nodes of a running cluster: added, stopped, started and removed.

A command changes the cluster's record and sends SIGHUP to the cluster's process, which makes the machine match the
record (`Follower`) and writes what it did to changed.json. The record says what is wanted, so a cluster that is taken
up again has the nodes that it had.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from podwire_base.patience import patient
from podwire_base.role import files, logs
from podwire_base.role.supervisor import Role, Supervisor
from podwire_dns.heritage import end_spares
from podwire_node.runtime import Process, read

from . import credentials, cri, network
from .config import MOST_NODES, ClusterConfig
from .lifecycle import ALONE_SECONDS, alone
from .record import load, save
from .teardown import supervisor

log = logs.get("cluster")
SECONDS = 30.0  # until the cluster's process has followed a change


class CannotChange(Exception):
    """The cluster stays as it is. The message says why, and what to do."""


def changed_file(config: ClusterConfig) -> Path:
    return config.run_dir / "changed.json"


# ---- in the command


def change(name: str, work: Callable[[ClusterConfig], ClusterConfig]) -> ClusterConfig:
    """Change the record of a running cluster and wait until its process has followed. work: returns the new record.
    Raises CannotChange.
    """
    found = load(name)
    if found is None:
        raise CannotChange(f"no cluster {name!r} on this machine: `podwire list`")
    with alone(found, ALONE_SECONDS):
        found = load(name) or found
        pid = supervisor(found)
        if not pid:
            raise CannotChange(f"the process of cluster {name!r} ended: `podwire up --name {name}` takes it up again")
        wanted = work(found)
        changed_file(found).unlink(missing_ok=True)
        save(wanted)
        os.kill(pid, signal.SIGHUP)
        end = time.monotonic() + patient(SECONDS)
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError, KeyError):
                answer = json.loads(changed_file(found).read_text())
                if answer["error"]:
                    raise CannotChange(answer["error"])
                return wanted
            time.sleep(0.02)
    raise CannotChange(f"the cluster's process does not answer: {found.run_dir}/log/cluster.log")


def added(config: ClusterConfig, count: int) -> ClusterConfig:
    """Return the record with more nodes: after the highest number, or in a gap where there is no higher number. Raises
    CannotChange.
    """
    names = config.node_names()
    used = {int(name.removeprefix("node")) for name in names}
    free = [n for n in range(1, MOST_NODES + 1) if n not in used]
    chosen = [n for n in free if n > max(used)] + [n for n in free if n < max(used)]
    if len(chosen) < count:
        raise CannotChange(f"a cluster has at most {MOST_NODES} nodes; this one has {len(names)}")
    return with_nodes(config, [*names, *(f"node{n}" for n in chosen[:count])])


def with_nodes(config: ClusterConfig, names: Sequence[str]) -> ClusterConfig:
    stopped = tuple(name for name in config.stopped if name in names)
    return replace(config, nodes=len(names), names=tuple(names), stopped=stopped)


def with_stopped(config: ClusterConfig, names: Sequence[str], *, stopped: bool) -> ClusterConfig:
    rest = [name for name in config.stopped if name not in names]
    return replace(config, stopped=tuple(sorted([*rest, *names] if stopped else rest)))


# ---- in the cluster's process


class Follower:
    """Makes the machine match the record. roles: returns the roles of the nodes that run."""

    def __init__(self, config: ClusterConfig, roles: Callable[[ClusterConfig], list[Role]]) -> None:
        self.config, self.roles = config, roles

    def __call__(self, roles: Supervisor) -> None:
        error = ""
        try:
            self._follow(roles)
        except Exception as err:  # also those of pyroute2; the other nodes must not end because of this one
            error = str(err) or repr(err)
            log.error("the nodes are not as the record says", error=error)
        with contextlib.suppress(OSError):
            files.write(changed_file(self.config), json.dumps({"error": error}))

    def _follow(self, roles: Supervisor) -> None:
        wanted = load(self.config.name)
        if wanted is None:
            raise OSError(f"{self.config.record} cannot be read")
        running = {role.name: role for role in self.roles(wanted)}
        before = set(self.config.node_names())
        for name in before & set(roles.names()) - set(running):
            log.info("stopping a node", node=name)
            roles.drop(name)
        for name in before - set(wanted.node_names()):
            log.info("removing a node", node=name)
            remove(self.config, name)
        self.config = wanted
        credentials.make(wanted)
        network.ensure(wanted)
        for name in wanted.node_names():
            network.wire(wanted, name, up=name not in wanted.stopped)
        for name in running.keys() - set(roles.names()):
            log.info("starting a node", node=name)
            roles.add(running[name])


def remove(config: ClusterConfig, node: str) -> None:
    """End the processes of a node's pods, and remove its namespace and files."""
    folder = config.node_dir(node)
    for path in (*folder.glob("pods/*/sandbox.json"), *folder.glob("pods/*/containers/*/state.json")):
        found = read(path) or {}
        for pid, started in (("pid", "started"), ("shim", "shim_started")):
            if found.get(pid) and found.get(started):
                Process(found[pid], found[started]).signal(signal.SIGKILL)
    cri.remove_node(config, node)
    end_spares(folder)  # a DNS server that waits for the next agent
    network.unmake(config, node)
    network.unlink(config.netns(node))
    shutil.rmtree(folder, ignore_errors=True)

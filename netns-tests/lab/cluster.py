"""A whole embedded cluster for tests. The cluster removes itself when its pipe to this process closes, so it leaves
nothing behind even after SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from podwire.cluster.config import ClusterConfig
from podwire.cluster.lifecycle import down, up
from podwire.demo.lab import UPSTREAM_DNS, DemoLab
from podwire.demo.run import find_tool
from podwire_base.kernel.netns import call_in
from podwire_base.testing.ports import free_port

from . import evidence
from .netns import NetNS
from .patience import patient

T = TypeVar("T")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True, slots=True)
class Place:
    """A network namespace of a running cluster, given by its path. The lab's captures use this class."""

    path: str

    def call(self, work: Callable[[], T]) -> T:
        return call_in(self.path, work)


@contextlib.contextmanager
def cluster(
    nodes: int = 2,
    *,
    name: str = "t",
    bridge_nf: int = -1,
    outside: bool = False,
    proxy_backend: str = "nftables",
    publish: tuple[str, ...] = (),
    watched: bool = False,
    config: ClusterConfig | None = None,
) -> Iterator[DemoLab]:
    """Yield a running cluster with a unique name and port, and with the demo's tools. outside: also make hosts outside
    the cluster. watched: record the packets, rules and routes of the nodes, and all logs, if the test fails.
    config: the whole configuration instead.
    """
    config = config or ClusterConfig(
        name=f"{name}{os.getpid()}",
        nodes=nodes,
        api_port=free_port(),
        bridge_nf=bridge_nf,
        upstream_dns=(UPSTREAM_DNS,) if outside else (),
        proxy_backend=proxy_backend,
        publish=publish,
    )
    process: subprocess.Popen[bytes] | None = None
    tool, tool_name = find_tool()
    lab = DemoLab(config, tool, tool_name)
    try:
        process = up(config, until_eof=True).process
        if outside:
            lab.make_outside()
        with watched_nodes(lab) if watched else contextlib.nullcontext():
            yield lab
    except BaseException:  # print the last lines of the logs, which are deleted with the cluster
        print(last_words(config))
        raise
    finally:
        lab.close()
        down(config)
        if process is not None:
            process.wait(patient(10))


@dataclass(eq=False)
class Logs:
    """The logs of a watched cluster."""

    name: str
    ns: NetNS
    config: ClusterConfig

    def describe(self) -> str:
        return last_words(self.config, 2000)


@contextlib.contextmanager
def watched_nodes(lab: DemoLab) -> Iterator[None]:
    """Record the namespace of every node until the cluster is removed."""
    spaces = [NetNS(node, lab.node_netns(node)) for node in lab.config.node_names()]
    logs = Logs(lab.config.name, spaces[0], lab.config)
    evidence.tells(logs)
    try:
        yield
    except Exception:
        evidence.witness(spaces)
        raise
    finally:
        for space in spaces:
            space.close()


def last_words(config: ClusterConfig, lines: int = 25) -> str:
    """Return the last lines of every log of a cluster."""
    logs = sorted([*config.run_dir.glob("log/*"), *config.run_dir.glob("nodes/*/log/*")])
    return "\n".join(
        f"--- {path.relative_to(config.run_dir)}\n" + "\n".join(path.read_text().splitlines()[-lines:]) for path in logs
    )


def keep_logs(config: ClusterConfig, folder: Path) -> Path:
    """Copy every log of the cluster to `folder`, so that the logs stay readable after the cluster is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in config.run_dir.rglob("log/*"):
        kept = folder / path.relative_to(config.run_dir)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept)
    return folder


def machine(of: str = "podwire") -> dict[str, list[str]]:
    """Return the machine's state that a run must not change: links, addresses, routes, mounts, tables.

    of: a word in the mounts that are looked at. Beside other tests it is the cluster's name: theirs come and go.
    """

    def lines(*command: str) -> list[str]:
        return sorted(subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines())

    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return {
        "links": [line.split(": ")[1] for line in lines("ip", "-o", "link")],
        "addresses": [" ".join(line.split()[1:4]) for line in lines("ip", "-o", "addr")],
        "routes": [r.split(" expires")[0] for r in lines("ip", "route", "show", "table", "all")],
        "mounts": sorted(" ".join(m.split()[1:3]) for m in mounts if of in m or (of == "podwire" and "netns" in m)),
        "tables": lines("nft", "list", "tables"),
    }

"""`podwire up` and `podwire down`: start a cluster, wait until it is ready, and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from podwire_base.kube.client import config as client_config
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.conditions import condition, is_true
from podwire_base.kube.errors import ApiError, ConfigError
from podwire_base.patience import patient
from podwire_node.kubelet import ROLES

from .config import BASE, ClusterConfig
from .record import load, save
from .teardown import stop_supervisor, teardown

Say = Callable[[str], None]
WAIT_SECONDS = 60.0
DOWN_SECONDS = 15.0  # that `down` waits for another one; then it works beside it


class UpFailed(Exception):
    """The cluster did not become ready. The message names the missing parts and the logs."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The parts that are not ready yet."""

    what: list[str]


def _requirements() -> list[str]:
    import shutil

    problems = [] if os.geteuid() == 0 else ["podwire up needs root: it makes network namespaces"]
    for tool, package in (("nsenter", "util-linux"),):
        if not shutil.which(tool):
            problems.append(f"{tool} is missing: install {package}")
    return problems


def down_command(config: ClusterConfig) -> str:
    """Return the `podwire down` command for this cluster, with quotes for a message."""
    return "`podwire down" + (f" --name {config.name}" if config.name != ClusterConfig.name else "") + "`"


@contextlib.contextmanager
def alone(config: ClusterConfig, seconds: float) -> Iterator[None]:
    """Wait up to `seconds` for other commands that start or remove this cluster, then hold them off. The lock is on the
    run directory itself: no file of it stays, and a full disk does not matter. Without a run directory there is nothing
    to hold.
    """
    fd = _locked(config.run_dir, time.monotonic() + seconds)
    try:
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def _locked(run_dir: Path, end: float) -> int:
    """Return the descriptor that holds the lock, -1 if there is no directory or another command is still at work."""
    while True:
        try:
            fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return -1
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if run_dir.stat().st_ino == os.fstat(fd).st_ino:
                return fd  # and not the lock of a directory that was removed meanwhile
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(fd)
                return -1
            time.sleep(0.02)
        except OSError:
            pass
        os.close(fd)


def start(config: ClusterConfig, *, until_eof: bool = False) -> subprocess.Popen[bytes]:
    """Start the cluster's process in the background. With `until_eof`, this process ends when its stdin pipe closes,
    which also happens if the caller crashes. Raises UpFailed.
    """
    if problems := _requirements():
        raise UpFailed("; ".join(problems))
    if load(config.name) is not None:
        raise UpFailed(
            f"cluster {config.name!r} is up already or was not stopped cleanly: run {down_command(config)} first"
        )
    try:
        _make(config.run_dir)
    except FileExistsError:
        raise UpFailed(
            f"{config.run_dir} is left from an interrupted start: run {down_command(config)} first"
        ) from None
    (config.run_dir / "log").mkdir()
    save(config)
    with (config.run_dir / "log" / "cluster.log").open("ab") as log:
        environment = {**os.environ, "PODWIRE_CLUSTER": str(config.run_dir)}
        command = [sys.executable, "-m", "podwire.cluster.run", config.name]
        process = subprocess.Popen(
            command + (["--until-eof"] if until_eof else []),
            env=environment,
            start_new_session=True,
            stdin=subprocess.PIPE if until_eof else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    (config.run_dir / "process.json").write_text(json.dumps({"pid": process.pid}))
    return process


def _make(run_dir: Path) -> None:
    """Make the cluster's run directory. Raises FileExistsError."""
    while True:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another cluster's teardown removed the empty parent
            return run_dir.mkdir(mode=0o755)


async def _missing(api: ApiClient, config: ClusterConfig) -> list[str]:
    nodes = {n["metadata"]["name"]: n for n in (await api.get("/api/v1/nodes"))["items"]}
    rows = []
    for wanted in config.node_names():
        node = nodes.get(wanted)
        if node is None:
            rows.append(f"{wanted} is not registered")
            continue
        for kind in ("Ready", *ROLES.values()):
            if not is_true(node, kind):
                rows.append(f"{wanted}: {kind}: {condition(node, kind).get('message') or 'not yet'}")
    return rows


async def _wait(config: ClusterConfig, process: subprocess.Popen[bytes], say: Say) -> None:
    seconds = patient(WAIT_SECONDS)
    end, missing, shown = time.monotonic() + seconds, ["the API server does not answer yet"], ""
    api: ApiClient | None = None
    try:
        while time.monotonic() < end:
            if process.poll() is not None:
                raise UpFailed(f"the cluster's process ended with status {process.returncode}: {_last_words(config)}")
            try:
                if api is None and config.kubeconfig.exists():
                    api = await ApiClient(client_config.load(config.kubeconfig)).__aenter__()
                if api is not None:
                    missing = await _missing(api, config)
                    if not missing:
                        return
            except (ApiError, ConfigError):
                pass  # the kubeconfig is not written yet, or the server is still starting
            if missing[0] != shown:
                shown = missing[0]
                say(f"waiting: {shown}")
            await asyncio.sleep(0.05)
    finally:
        if api is not None:
            await api.__aexit__(None, None, None)
    raise UpFailed(
        f"not ready after {seconds:.0f} s: {'; '.join(missing)}; logs: {config.run_dir}/log and "
        f"{config.run_dir}/nodes/*/log"
    )


def _last_words(config: ClusterConfig) -> str:
    try:
        lines = (config.run_dir / "log" / "cluster.log").read_text().strip().splitlines()
        return lines[-1] if lines else "it said nothing"
    except OSError:
        return "its log does not exist"


def up(config: ClusterConfig, say: Say = lambda _: None, *, until_eof: bool = False) -> subprocess.Popen[bytes]:
    """Start the cluster and wait until every node and every role is ready. If this fails, remove the cluster and raise
    UpFailed.
    """
    process = start(config, until_eof=until_eof)
    try:
        asyncio.run(_wait(config, process, say))
    except BaseException:
        down(config)
        raise
    return process


def down(config: ClusterConfig, say: Say = lambda _: None) -> list[str]:
    """Stop and remove a cluster in any state. A cluster that does not exist is not an error. Returns what stays: one
    line for each thing, with the reason and the command that removes it.
    """
    with alone(config, DOWN_SECONDS):
        stop_supervisor(config)
        return teardown(config, say)


def clusters() -> list[ClusterConfig]:
    """Return the clusters on this machine that have a record."""
    if not BASE.is_dir():
        return []
    found = [load(entry.name) for entry in sorted(BASE.iterdir()) if entry.is_dir()]
    return [c for c in found if c is not None]

"""`podwire up` and `podwire down`: start a cluster, wait until it is ready, and stop it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
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
from podwire_base.kube.nodeconditions import ROLES
from podwire_base.patience import patient
from podwire_base.role import beat, watching
from podwire_base.role.supervisor import read_state
from podwire_controlplane.store.damage import damage, keep_aside

from .. import compiled
from . import cri, hopeless
from .config import BASE, LAYOUT, ClusterConfig
from .record import load, save
from .teardown import abandon, keep_logs, stop_supervisor, supervisor, teardown

Say = Callable[[str], None]
WAIT_SECONDS = 60.0
ALONE_SECONDS = 15.0  # that a command waits for others of the same cluster; then it works beside them
LEAST_FREE = 65536  # bytes of disk that a start needs
READY = "ready"  # a file in the run directory: the cluster was ready once
AGAIN = "run `podwire down` and `podwire up`"


class UpFailed(Exception):
    """The cluster did not become ready. The message names the missing parts and the logs."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The parts that are not ready yet."""

    what: list[str]


def _requirements() -> list[str]:
    problems = [] if os.geteuid() == 0 else ["podwire up needs root: it makes network namespaces"]
    for tool, package in (("nsenter", "util-linux"),):
        if not shutil.which(tool):
            problems.append(f"{tool} is missing: install {package}")
    if why := compiled.unbuilt():  # the API server would end at once, again and again
        problems.append(why)
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


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    """Hold off every other `podwire up` of this machine, for some milliseconds."""
    turn = os.open("/run", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield
    finally:
        os.close(turn)


def hold_port(wanted: int) -> socket.socket:
    """Return a socket that holds the TCP port `wanted` of 127.0.0.1, or any free port if it is taken. The socket does
    not listen, so clients are refused until the API server listens at the port; it may do so by SO_REUSEPORT. Raises
    UpFailed.
    """
    with _turn():  # two sockets with SO_REUSEADDR may be bound to a port until one of them listens
        for port in (wanted, 0):
            sock = socket.socket()
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run may linger
                sock.bind(("127.0.0.1", port))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            except OSError:
                sock.close()
                continue
            return sock
    raise UpFailed("no free port on 127.0.0.1")


@dataclass(frozen=True)
class Started:
    """A cluster's process. config: of the cluster. again: the cluster was there already, and its process had ended.
    notes: what the user should know about it.
    """

    process: subprocess.Popen[bytes]
    config: ClusterConfig
    again: bool = False
    notes: tuple[str, ...] = ()


def start(config: ClusterConfig, *, until_eof: bool = False, port: socket.socket | None = None) -> Started:
    """Start the cluster's process in the background, or start the process of a cluster again that lost it. With
    `until_eof`, this process ends when its stdin pipe closes, which also happens if the caller crashes. port: holds
    the cluster's port; None: hold it here. Raises UpFailed.
    """
    if problems := [*_requirements(), *cri.problems(config)]:
        raise UpFailed("; ".join(problems))
    new = False
    try:
        new = _create(config)
        with alone(config, ALONE_SECONDS):
            found = load(config.name)
            if found is None:
                raise UpFailed(f"{config.record} is missing or damaged: run {down_command(config)} first")
            notes = _prepare(found)
            return _begin(found, notes, until_eof=until_eof, port=port if found.api_port == config.api_port else None)
    except BaseException as err:
        if new and not supervisor(config):
            teardown(config)
        if isinstance(err, OSError):
            raise UpFailed(f"{err.filename or config.run_dir}: {err.strerror}") from err
        raise


def _create(config: ClusterConfig) -> bool:
    """Make the run directory and the record of a new cluster. Returns False if there is one already."""
    with _turn():
        if config.run_dir.exists():
            if config.record.exists() or (config.run_dir / "api" / "store.db").exists():
                return False
            teardown(config)  # of a start that was interrupted in its first moment: there is nothing of value
        _make(config.run_dir)
        save(config)
        return True


def _prepare(config: ClusterConfig) -> tuple[str, ...]:
    """Prepare a cluster that exists for a new process. Returns what the user should know. Raises UpFailed."""
    if supervisor(config):
        ready = (config.run_dir / READY).exists()
        state = "is up already" if ready else "is being started by another `podwire up`"
        raise UpFailed(f"cluster {config.name!r} {state}; {down_command(config)} ends it")
    if config.layout != LAYOUT:
        raise UpFailed(
            f"cluster {config.name!r} lost its process, and another version of podwire made it: run "
            f"{down_command(config)} first"
        )
    abandon(config)  # roles that are about to end still have the store and ports
    store = config.run_dir / "api" / "store.db"
    if not (config.run_dir / READY).exists() or not (why := damage(store)):
        return ()
    kept = keep_aside(store)
    where = f"it is kept as {kept} until {down_command(config)}, and " if kept else ""
    return (f"the store {store} is damaged ({why}); {where}the cluster starts with an empty one",)


def _begin(config: ClusterConfig, notes: tuple[str, ...], *, until_eof: bool, port: socket.socket | None) -> Started:
    (config.run_dir / "log").mkdir(exist_ok=True)
    port = port or hold_port(config.api_port)
    with port:
        if port.getsockname()[1] != config.api_port:
            taken = f"port {config.api_port} of 127.0.0.1 is taken by another program: end it, or {AGAIN}"
            if not (config.run_dir / "process.json").exists():  # its maker may hold the port, and begin it after this
                taken = f"cluster {config.name!r} is being started by another `podwire up`, or its {taken}"
            raise UpFailed(taken)
        command = [sys.executable, "-m", "podwire.cluster.run", config.name, "--holds", str(port.fileno())]
        with (config.run_dir / "log" / "cluster.log").open("ab") as log:
            process = subprocess.Popen(
                command + (["--until-eof"] if until_eof else []),
                env={**os.environ, "PODWIRE_CLUSTER": str(config.run_dir)},
                start_new_session=True,
                stdin=subprocess.PIPE if until_eof else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(port.fileno(),),
            )
    (config.run_dir / "process.json").write_text(json.dumps({"pid": process.pid}))
    return Started(process, config, bool(notes) or (config.run_dir / READY).exists(), notes)


def _make(run_dir: Path) -> None:
    """Make the cluster's run directory. Raises FileExistsError."""
    while True:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another cluster's teardown removed the empty parent
            return run_dir.mkdir(mode=0o755)


async def missing(api: ApiClient, config: ClusterConfig) -> list[str]:
    """Return what the nodes that run still lack: one line each, which begins with the node's name."""
    nodes = {n["metadata"]["name"]: n for n in (await api.get("/api/v1/nodes"))["items"]}
    rows = []
    for wanted in config.running_nodes():
        node = nodes.get(wanted)
        if node is None:
            rows.append(f"{wanted} is not registered")
            continue
        for kind in ("Ready", *ROLES.values()):
            if not is_true(node, kind):
                rows.append(f"{wanted}: {kind}: {condition(node, kind).get('message') or 'not yet'}")
    return rows + _starting(config)


def _starting(config: ClusterConfig) -> list[str]:
    """Return the nodes' roles whose process does not say that it is ready. After a cluster was taken up again, the API
    still has what the earlier processes said.
    """
    rows = []
    for node in config.running_nodes():
        state = read_state(config.node_dir(node) / "agent.json")
        for role in (*ROLES, "node"):
            found = watching.reading(beat.path_of(config.node_dir(node), role), state.get(role, {}).get("pid", 0))
            if found is None or not found.ready:
                rows.append(f"{node}: {role}: {found.did if found else 'starts'}")
    return rows


async def _wait(config: ClusterConfig, process: subprocess.Popen[bytes], say: Say) -> None:
    seconds = patient(WAIT_SECONDS)
    end, lacks, shown = time.monotonic() + seconds, ["the API server does not answer yet"], ""
    api: ApiClient | None = None
    try:
        while time.monotonic() < end:
            if process.poll() is not None:
                raise UpFailed(f"the cluster's process ended with status {process.returncode}: {_last_words(config)}")
            if why := cannot_start(config):
                raise UpFailed(why)
            try:
                if api is None and config.kubeconfig.exists():
                    api = await ApiClient(client_config.load(config.kubeconfig)).__aenter__()
                if api is not None:
                    lacks = await missing(api, config)
                    if not lacks:
                        return
            except (ApiError, ConfigError):
                pass  # the kubeconfig is not written yet, or the server is still starting
            if lacks[0] != shown:
                shown = lacks[0]
                say(f"waiting: {shown}")
            await asyncio.sleep(0.05)
    finally:
        if api is not None:
            await api.__aexit__(None, None, None)
    raise UpFailed(f"not ready after {seconds:.0f} s: {'; '.join(lacks)}")


def cannot_start(config: ClusterConfig) -> str:
    """Return why the start cannot succeed, "" if it still can."""
    if (free := _free(config.run_dir)) < LEAST_FREE:  # then no role and no log can say so
        return f"{os.strerror(errno.ENOSPC)}: the file system of {config.run_dir} has {free} bytes left"
    places = [(config.run_dir / "supervisor.json", config.run_dir / "log", "")]
    places += [
        (config.node_dir(n) / "agent.json", config.node_dir(n) / "log", f"{n}: ") for n in config.running_nodes()
    ]
    for state, logs, where in places:
        if role := hopeless.ended(read_state(state)):
            text = _text(logs / f"{role}.log")
            return f"{where}{role} ends again and again: {hopeless.reason(text) or _last_line(text)}"
    return ""


def _free(directory: Path) -> int:
    try:
        found = os.statvfs(directory)
    except OSError:
        return LEAST_FREE
    return found.f_bfree * found.f_frsize


def _last_words(config: ClusterConfig) -> str:
    text = _text(config.run_dir / "log" / "cluster.log")
    return hopeless.reason(text) or _last_line(text)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def up(
    config: ClusterConfig, say: Say = lambda _: None, *, until_eof: bool = False, port: socket.socket | None = None
) -> Started:
    """Start the cluster, or take it up again if its process died, and wait until every node and every role is ready.
    If this fails, remove a new cluster, but keep its logs; of a cluster that existed, leave everything. Raises
    UpFailed.
    """
    made = start(config, until_eof=until_eof, port=port)
    for note in made.notes:
        say(note)
    try:
        asyncio.run(_wait(made.config, made.process, say))
        with contextlib.suppress(OSError):
            (made.config.run_dir / READY).touch()
    except BaseException as err:
        where = _give_up(made)
        if isinstance(err, UpFailed):
            raise UpFailed(f"{err}\n  logs: {where}") from err
        raise
    with contextlib.suppress(OSError):
        shutil.rmtree(made.config.failed_dir)
    return made


def _give_up(made: Started) -> str:
    """End a start that failed, and return the folders of its logs."""
    config = made.config
    if made.again:
        abandon(config)
        return f"{config.run_dir}/log, {config.run_dir}/nodes/*/log; everything else of the cluster is kept too"
    keep_logs(config)
    stop_supervisor(config)
    teardown(config)
    return str(config.failed_dir)


def down(config: ClusterConfig, say: Say = lambda _: None) -> list[str]:
    """Stop and remove a cluster in any state. A cluster that does not exist is not an error. Returns what stays: one
    line for each thing, with the reason and the command that removes it.
    """
    with alone(config, ALONE_SECONDS):
        stop_supervisor(config)
        shutil.rmtree(config.failed_dir, ignore_errors=True)
        return teardown(config, say)


def clusters() -> list[ClusterConfig]:
    """Return the clusters on this machine that have a record."""
    if not BASE.is_dir():
        return []
    found = [load(entry.name) for entry in sorted(BASE.iterdir()) if entry.is_dir()]
    return [c for c in found if c is not None]

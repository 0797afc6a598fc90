"""Two processes for `podwire ui`: one with the caller's rights that asks the nodes, one without that serves. I/O.

Under sudo the server becomes the user who called sudo; as plain root it becomes nobody. A browser is started as that
user, and never as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from podwire_base.role import privileges
from podwire_base.role.run import stop_event, until_stopped

from . import server
from .keeper import Keeper
from .link import Teller

NOBODY = 65534
OPENER = "xdg-open"


@dataclass(frozen=True, slots=True)
class Caller:
    """The user as whom the server runs. uid 0: there is none, and the server stays what it is."""

    uid: int
    gid: int
    name: str
    home: str


def caller(environ: Mapping[str, str], euid: int, egid: int) -> Caller:
    """Returns who called: under sudo the one who called sudo; as plain root nobody."""
    uid, gid = euid, egid
    if euid == 0:
        uid = int(environ.get("SUDO_UID") or 0) or NOBODY
        gid = int(environ.get("SUDO_GID") or 0) or NOBODY
    try:
        found = pwd.getpwuid(uid)
        return Caller(uid, gid, found.pw_name, found.pw_dir)
    except KeyError:
        return Caller(uid, gid, str(uid), "/")


def url(sock: socket.socket, key: str) -> str:
    host = "127.0.0.1" if sock.family == socket.AF_INET else "[::1]"
    return f"http://{host}:{sock.getsockname()[1]}/#{key}"


def start(make: Callable[[], Keeper], port: int, who: Caller, *, browser: bool) -> None:
    """Serves until Ctrl-C, SIGTERM or the end of the other process. make: called when the server runs, so that no
    credentials are in its memory. Raises OSError if the port is taken.
    """
    sockets = server.listen(port)
    content, key = server.files(), secrets.token_urlsafe(32)
    ours, its = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        _child(its, sockets, content, key, who)
    its.close()
    address, port = url(sockets[0], key), sockets[0].getsockname()[1]
    for sock in sockets:
        sock.close()
    with contextlib.ExitStack() as undo:
        undo.callback(_end, child)
        keeper = make()
        click.echo(address)
        click.echo(f"the network at port {port} of this machine alone; Ctrl-C ends it", err=True)
        if browser:
            undo.callback(shutil.rmtree, _browse(address, who), ignore_errors=True)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_until_stopped(keeper.run(ours)))


def _end(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)


def _child(
    sock: socket.socket, sockets: list[socket.socket], content: server.Files, key: str, who: Caller
) -> None:  # never returns
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the loop listens: the parent ends this process
        if os.geteuid() == 0 and who.uid:
            privileges.drop(who.uid, who.gid)
        asyncio.run(_serve(sock, sockets, content, key))
        code = 0
    except BaseException as err:  # nothing of the parent's may run in this process
        print(f"podwire ui: the server ended: {err!r}", file=sys.stderr)
    finally:
        os._exit(code)


async def _serve(sock: socket.socket, sockets: list[socket.socket], content: server.Files, key: str) -> None:
    teller = Teller(sock)
    page = server.Page(teller, key, sockets[0].getsockname()[1], content)
    async with server.serving(page, sockets):
        await _until_stopped(teller.run())


async def _until_stopped(work: Coroutine[Any, Any, object]) -> None:
    await until_stopped(stop_event(), work)


# The browser


def redirect(address: str) -> str:
    """Returns a page that leads to ours: so the key is in no program's arguments, which every user may read."""
    return f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}"><title>podwire</title>\n'


def environment(environ: Mapping[str, str], who: Caller) -> dict[str, str]:
    """Returns the environment of a program that runs as the user: what sudo changed is put back."""
    kept = {key: value for key, value in environ.items() if not key.startswith("SUDO_")}
    runtime = f"/run/user/{who.uid}"
    kept |= {"HOME": who.home, "USER": who.name, "LOGNAME": who.name}
    if Path(runtime).is_dir():
        kept["XDG_RUNTIME_DIR"] = runtime
        kept.setdefault("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")
    return kept


def _browse(address: str, who: Caller) -> str:
    """Opens the page in the user's browser. Returns the folder of the file that leads there."""
    folder = tempfile.mkdtemp(prefix="podwire-ui-")
    file = Path(folder) / "open.html"
    file.touch(0o600)
    file.write_text(redirect(address))
    drops = os.geteuid() == 0
    if who.uid in (0, NOBODY):
        click.echo("a browser is never started as root: open the address in yours", err=True)
        return folder
    if drops:
        os.chown(folder, who.uid, who.gid)
        os.chown(file, who.uid, who.gid)
    try:
        subprocess.Popen(
            [OPENER, str(file)], env=environment(os.environ, who), cwd="/", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            user=who.uid if drops else None, group=who.gid if drops else None,
            extra_groups=os.getgrouplist(who.name, who.gid) if drops else None,
        )  # fmt: skip
    except OSError as err:
        click.echo(f"no browser: {OPENER}: {err.strerror}; open the address yourself", err=True)
    return folder

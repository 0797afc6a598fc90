"""The role of the server: prepares its node, gives up its privileges, serves, and keeps a spare server beside it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time

from podwire_base.role import beat, layout, logs, waits
from podwire_base.role.privileges import parent_signal
from podwire_base.role.run import main, stop_event
from podwire_base.role.status import RoleStatus

from . import host, native, rights, udp
from .config import DnsConfig
from .healing import NodeState
from .heritage import Heritage, inherit
from .server import Server
from .sources import Sources, hold_hangup
from .spareprocess import ORPHAN_SECONDS
from .spares import Spares

log = logs.get("dns")
STATUS_SECONDS = 1.0
LINGER_SECONDS = 0.1
GARBAGE = 50_000
SWITCH_SECONDS = 0.0002  # the maximum delay by the feed of a query that waits for the interpreter


async def _main(
    config: DnsConfig, sources: Sources, heritage: Heritage, listener: socket.socket | None, node: NodeState
) -> None:
    stop, parent = stop_event(), os.getppid()
    status = RoleStatus(config.run_dir, "dns", rights.write)
    async with Server(config, sources, stop, heritage, sharing=listener is not None) as server:
        if not stop.is_set():
            log.info(
                "serving", listen=list(config.addresses()), port=config.port, upstreams=list(server.forwarder.down())
            )
        following = asyncio.create_task(sources.follow(config, log, server.reload))
        healing = asyncio.create_task(node.follow(lambda: server.config))
        sparing = asyncio.create_task(asyncio.sleep(0))
        if listener is not None:
            signal.signal(udp.KICK, lambda *_: None)
            server.spares = Spares(server, listener)
            server.follower.relay = server.spares.relay
            sparing = asyncio.create_task(server.spares.follow())
        while not stop.is_set():
            server.report(status, node)
            await waits.until_set(stop, STATUS_SECONDS)
        for task in (following, healing):
            task.cancel()
        spares = server.spares
        if spares is not None and spares.spare is not None and os.getppid() != parent and parent_signal():
            await _linger(server, spares, stop)
        else:
            await server.lame_duck()
            status.update(ready=False, message="stopped", reason="Stopped")
        sparing.cancel()
        if spares is not None:
            if server.config.linger and not spares.dismissed:
                spares.linger(server.config.linger)
            await spares.leave()


async def _linger(server: Server, spares: Spares, stop: asyncio.Event) -> None:
    """Goes on when the supervisor has died, until the next server takes the sockets over, or until another SIGTERM.

    Status, beat and pages are the next server's.
    """
    log.warn("the supervisor is gone, serving until the next server takes over", at_most_s=ORPHAN_SECONDS)
    beat.begin(None)
    server.rest()
    stop.clear()
    spares.lingering, end = True, time.monotonic() + ORPHAN_SECONDS
    while not spares.dismissed and not stop.is_set() and time.monotonic() < end:
        await waits.until_set(stop, LINGER_SECONDS)


def run(config: DnsConfig) -> None:
    """Serves until SIGTERM. The addresses and the notrack rules stay.

    Raises BadConfig, or OSError if an address is in use.
    """
    layout.claim(config.run_dir)
    hold_hangup()
    host.run_soon()  # also for the start: until its end, the node has no DNS
    sources = Sources(config)
    real = sources.load()
    sources.tell(log)
    host.prepare(real.addresses(), real.port, notrack=real.notrack)
    native.library()  # now: the server's user may be unable to read a checkout below /root
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # imported modules stay in memory
    gc.set_threshold(GARBAGE)  # reference cycles are rare: frequent collections would find no garbage
    heritage, listener = _heritage(real)
    node = NodeState(config.node_name)
    rights.give_up(real, lambda: Sources(config))  # the last step: what comes after it has no rights
    main("dns", _main(real, sources, heritage, listener, node))


def _heritage(config: DnsConfig) -> tuple[Heritage, socket.socket | None]:
    """Returns the sockets of a predecessor, and the socket on which the spare of this server will listen."""
    if config.spare:
        try:
            return inherit(config.run_dir)
        except OSError as err:  # a path that is too long, a directory that cannot be written
            log.warn("no spare server: the DNS is away while this server starts again", error=str(err))
    return Heritage(), None

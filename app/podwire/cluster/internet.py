"""The role of a cluster that gives pods the internet: rules in the switch's namespace, then slirp4netns behind them.

The role stays in the machine's network namespace and changes nothing there. It follows the machine's addresses, because
a laptop changes its network, and writes the rules anew. When slirp4netns ends, the role ends too, and the supervisor
starts it again.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from podwire_base.kernel.addresses import destinations, local_addresses
from podwire_base.kernel.ip import IPAddress
from podwire_base.kernel.netlink import socket as netlink
from podwire_base.kernel.netns import call_in
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.role import beat, logs

from . import network, outward
from .config import ClusterConfig

log = logs.get("internet")
GROUPS = (5, 9)  # RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR
LOOK_SECONDS = 1.0
RESOLV_CONF = Path("/etc/resolv.conf")


def program() -> str:
    """Return the path of slirp4netns, "" if it is not installed."""
    return shutil.which(outward.PROGRAM) or ""


def problem() -> str:
    """Return the reason why pods cannot have the internet here, "" if they can."""
    if not program():
        return f"{outward.PROGRAM} is not installed (Debian's package {outward.PROGRAM})"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun does not exist: `modprobe tun`"
    return ""


def _resolvers() -> list[str]:
    try:
        rows = [line.split() for line in RESOLV_CONF.read_text().splitlines()]
    except (OSError, UnicodeDecodeError):
        return []
    return [words[1].partition("%")[0] for words in rows if len(words) > 1 and words[0] == "nameserver"]


def works(config: ClusterConfig, seconds: float = 5.0) -> bool:
    """Return whether slirp4netns has made its device within this time."""

    def look() -> bool:
        return outward.TAP in (name for _, name in socket.if_nameindex())

    end = time.monotonic() + seconds
    while not (found := call_in(str(config.netns(network.SWITCH)), look)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def choose(cluster_ranges: tuple[str, ...]) -> str:
    """Return a range for slirp4netns that neither the machine nor the cluster uses; "" if there is none."""
    mine = [str(network) for network in (*destinations(), *local_addresses())]
    return outward.choose_cidr((*mine, *_resolvers(), *cluster_ranges))


class _Role:
    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.own: tuple[IPAddress, ...] | None = None

    def write_rules(self) -> None:
        """Write the rules, if the machine's addresses have changed."""
        own = local_addresses()
        if own == self.own:
            return
        self.own = own
        tx = outward.plan(own, self.config.host_access)
        call_in(str(self.config.netns(network.SWITCH)), lambda: nft_socket.apply(tx))
        log.info("rules written", machine_addresses=len(own), host_access=self.config.host_access)
        if clash := outward.overlapping(self.config.internet, destinations()):
            log.warn("the machine's routes overlap the range of slirp4netns", cidr=self.config.internet, routes=clash)

    def start(self) -> tuple[subprocess.Popen[bytes], int]:
        """Start slirp4netns; return it, and the descriptor whose closing ends it."""
        ready_read, ready_write = os.pipe()
        exit_read, exit_write = os.pipe()
        words = outward.command(
            program(), str(self.config.netns(network.SWITCH)), self.config.internet, ready_write, exit_read
        )
        child = subprocess.Popen(words, pass_fds=(ready_write, exit_read), stdin=subprocess.DEVNULL)
        os.close(ready_write)
        os.close(exit_read)
        with os.fdopen(ready_read, "rb") as file:
            if not file.read(1):
                log.error("slirp4netns ended at its start", status=child.wait(), command=" ".join(words))
                raise SystemExit(1)
        log.info("serving", cidr=self.config.internet, pid=child.pid)
        beat.tell(True, f"slirp4netns with {self.config.internet}")
        return child, exit_write

    def run(self) -> None:
        with netlink.open_socket(netlink.ROUTE, groups=GROUPS) as changes:
            self.write_rules()
            child, _ = self.start()
            try:
                while child.poll() is None:
                    if select.select([changes], [], [], LOOK_SECONDS)[0]:
                        _drain(changes)
                        self.write_rules()
                    beat.tick("following the machine's addresses")
                log.error("slirp4netns ended", status=child.returncode)
                raise SystemExit(1)
            finally:
                if child.poll() is None:
                    child.terminate()
                    child.wait(2)


def _drain(changes: socket.socket) -> None:
    """Read what has come; its content does not matter, and neither do messages that were lost (ENOBUFS)."""
    end = time.monotonic() + 0.2  # an address often comes with others
    changes.setblocking(False)
    while time.monotonic() < end:
        try:
            changes.recv(65536)
        except OSError:
            time.sleep(0.02)


def _stop(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def run(config: ClusterConfig) -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, _stop)
    if why := problem():
        log.error("pods have no internet", reason=why)
        raise SystemExit(1)
    _Role(config).run()

"""Feeder and server of one place in one command: what a container of the Deployment runs.

Both are children; one that ends is started again after 0.1 s, 0.2 s ... 10 s, and the other goes on. SIGTERM ends the
server first, after its lame-duck time; SIGHUP goes to both.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from podwire_base.role import logs

from .config import BadConfig, DnsConfig
from .sources import Sources

log = logs.get("dns")
FIRST, LAST, GOOD_SECONDS = 0.1, 10.0, 30.0
HEARD = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
PATIENCE_SECONDS = 10.0
PR_SET_PDEATHSIG = 1


def _feeder(config: DnsConfig) -> None:
    from . import feeder

    feeder.run(config)


def _server(config: DnsConfig) -> None:
    from . import server

    server.run(config)


@dataclass(slots=True)
class _Child:
    name: str
    work: Callable[[DnsConfig], None]
    pid: int = 0
    started: float = 0.0
    delay: float = FIRST
    due: float = field(default_factory=time.monotonic)

    def start(self, config: DnsConfig) -> None:
        parent = os.getpid()
        self.started, self.pid = time.monotonic(), os.fork()
        if self.pid:
            return
        status = 1
        try:
            _end_with(parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD - {signal.SIGHUP})  # that one, when the role can hear it
            self.work(config)
            status = 0
        except (OSError, ValueError) as err:
            log.error("role ended", name=self.name, error=str(err))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def ended(self, status: int) -> None:
        now = time.monotonic()
        self.pid = 0
        self.delay = FIRST if now - self.started > GOOD_SECONDS else min(LAST, self.delay * 2)
        self.due = now + self.delay
        code = os.waitstatus_to_exitcode(status)
        log.warn("role ended, it is started again", name=self.name, status=code, seconds=self.delay)

    def tell(self, number: int) -> None:
        if self.pid:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> None:
        """Until it has ended; by force, if it does not in time."""
        end = time.monotonic() + seconds
        while self.pid:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                self.pid = 0
                return
            if time.monotonic() > end:
                self.tell(signal.SIGKILL)
            time.sleep(0.02)


def _end_with(parent: int) -> None:
    """Have the kernel send SIGTERM once the parent is gone, also where it was killed: a half alone would hold the
    port."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went before we could say so
        os._exit(1)


def run(config: DnsConfig) -> None:
    """Until SIGTERM. Raises BadConfig for settings that cannot work, before anything is started."""
    sources = Sources(config)
    lame_duck = sources.load().lame_duck
    signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    feeder, server = _Child("dns-feeder", _feeder), _Child("dns", _server)
    children = (server, feeder)
    while True:
        now = time.monotonic()
        for child in children:
            if not child.pid and now >= child.due:
                child.start(config)
        due = [child.due - now for child in children if not child.pid]
        heard = signal.sigtimedwait(HEARD, max(0.0, min(due, default=60.0)))
        number = heard.si_signo if heard is not None else 0
        if number == signal.SIGHUP:
            with contextlib.suppress(BadConfig):  # the children say so, and go on as before
                lame_duck = sources.load().lame_duck
            for child in children:
                child.tell(number)
        elif number in (signal.SIGTERM, signal.SIGINT):
            break
        _reap(children)
    server.tell(signal.SIGTERM)
    server.wait(lame_duck + PATIENCE_SECONDS)
    feeder.tell(signal.SIGTERM)
    feeder.wait(PATIENCE_SECONDS)


def _reap(children: tuple[_Child, ...]) -> None:
    """Reaps foreign processes too, as the first process of a container must."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        for child in children:
            if child.pid == pid:
                child.ended(status)

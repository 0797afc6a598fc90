"""Runs feeder and server in one command, for the containers of the Deployment.

SIGTERM ends the server first, after its lame-duck time. SIGHUP goes to both processes.
"""

from __future__ import annotations

import contextlib
import signal
from functools import partial

from podwire_base.role import beat
from podwire_base.role.supervisor import Role, Supervisor

from .config import BadConfig, DnsConfig
from .sources import Sources

PATIENCE_SECONDS = 10.0  # seconds from the end of a process's work at SIGTERM to SIGKILL


def _feeder(config: DnsConfig) -> None:
    from . import feeder

    feeder.run(config)


def _server(config: DnsConfig) -> None:
    from . import role

    role.run(config)


def run(config: DnsConfig) -> None:
    """Runs until SIGTERM. Raises BadConfig for invalid settings before a process starts."""
    sources = Sources(config)
    lame_duck = sources.load().lame_duck

    def reload() -> None:
        nonlocal lame_duck
        with contextlib.suppress(BadConfig):  # both processes log the error and continue with the old settings
            lame_duck = sources.load().lame_duck

    def title(name: str) -> tuple[str, ...]:
        return (name, config.node_name) if config.node_name else (name,)

    server = Role(
        "dns",
        partial(_server, config),
        title=title("dns"),
        grace=lambda: lame_duck + PATIENCE_SECONDS,
        beat=beat.path_of(config.run_dir, "dns"),
    )
    feeder = Role(
        "dns-feeder",
        partial(_feeder, config),
        title=title("dns-feeder"),
        grace=lambda: PATIENCE_SECONDS,
        beat=beat.path_of(config.run_dir, "dns-feeder"),
    )
    beat.ensure(beat.path_of(config.run_dir, "serve"))
    Supervisor([server, feeder], None, passed_on={signal.SIGHUP: reload}, in_turn=True).run()

"""The role `identity`: it renews the node's certificate at two thirds of the certificate's life. Only nodes that
`podwire join` made have it; a kubelet renews its own certificate.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from podwire_base.kube.errors import ConfigError
from podwire_base.kube.times import timestamp
from podwire_base.role import logs
from podwire_base.role.run import main, stop_event, until_stopped
from podwire_base.role.status import RoleStatus

log = logs.get("identity")
LONGEST = 3600.0  # seconds between two looks: the machine's clock may be set, and it may sleep
FIRST_RETRY = 10.0


@dataclass(frozen=True)
class IdentityConfig:
    """kubeconfig: the file that `podwire join` wrote."""

    node_name: str
    kubeconfig: str
    run_dir: Path


def now() -> float:
    return time.time()


async def keep(config: IdentityConfig) -> None:
    """Renew the certificate whenever it is due. A failure is tried again after 10 s, then at intervals that double up
    to an hour; a third of the certificate's life is left for that.
    """
    from podwire_controlplane.server import identity

    from . import joining

    kubeconfig, status, retry = Path(config.kubeconfig), RoleStatus(config.run_dir, "identity"), FIRST_RETRY
    while True:
        wait, present = LONGEST, now()
        try:
            facts = joining.present(kubeconfig)
            due = identity.renewal_time(facts.start, facts.end)
            if due <= present:
                facts = await joining.renew(kubeconfig)
                due = identity.renewal_time(facts.start, facts.end)
                log.info("the node's certificate was renewed", serial=facts.serial, until=timestamp(facts.end))
            status.update(ready=True, message=f"certificate until {timestamp(facts.end)}, renewed on {timestamp(due)}")
            wait, retry = min(LONGEST, max(1.0, due - present)), FIRST_RETRY
        except (*joining.ERRORS, ConfigError) as err:
            log.warn("the node's certificate is not renewed", error=str(err), again_s=retry)
            status.update(ready=False, reason="NotRenewed", message=f"the certificate is not renewed: {err}")
            wait, retry = retry, min(LONGEST, retry * 2)
        await asyncio.sleep(wait)


def run(config: IdentityConfig) -> None:
    """Keep the certificate fresh until SIGTERM."""

    async def body() -> None:
        await until_stopped(stop_event(), keep(config))

    main("identity", body())

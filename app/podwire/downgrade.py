"""Makes the state of a node readable for the version before: `podwire cleanup --for-downgrade`. Pods, leases, rules,
tunnels and routes stay, and the older agents take them over.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from podwire_base.kernel.nft import ruleset as nft
from podwire_base.kernel.nft import socket as nft_socket
from podwire_base.role import layout
from podwire_cni import nodetable, tablesets, tunneltable
from podwire_cni.ipam.store import Busy, DirStore
from podwire_policy import apply as policy
from podwire_proxy import backends

STATUS = (
    "identity",
    "policy",
    "observe",
)  # roles that the version before does not have: nobody would renew their status


class AgentRuns(Exception):
    """An agent of the node still runs. It would write its state again."""


def downgrade(run_dir: Path) -> Iterator[str]:
    """Yield a line for each thing that was removed. Call it inside the node's network namespace. Raises AgentRuns,
    NewerLayout, ConfigError and OSError.
    """
    layout.check(run_dir)
    backends.refuse_newer()
    try:
        store = DirStore(run_dir / "cni" / "leases", wait=0)
    except Busy as err:
        raise AgentRuns(f"an agent uses {run_dir}: stop it first, pods and Services work on meanwhile") from err
    store.forget_layout()
    store.close()
    with nft_socket.Connection() as conn:
        marks = [chain for chain in conn.chains() if nodetable.layout_of(chain)]
        later = [table for table in conn.tables() if table in (*tunneltable.tables(), *tablesets.LEASES.values())]
        undo = nft.Transaction().delete(*marks)
        for table in later:  # an older agent does not follow them: its pods would have no lease there
            undo.remove(table)
        conn.commit(undo)
    yield from (f"table {table.family} {table.name}" for table in later)
    yield from (f"chain {chain.table.family} {chain.table.name} {chain.name}" for chain in marks)
    yield from policy.cleanup()  # the version before does not follow it: new pods would be isolated
    yield from backends.downgrade()
    for role in STATUS:
        if (path := run_dir / "status" / f"{role}.json").exists():
            path.unlink()
            yield f"file {path}"
    if layout.forget(run_dir):
        yield f"file {run_dir / layout.FILE}"

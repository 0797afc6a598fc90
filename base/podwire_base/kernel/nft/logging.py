"""Tries whether the kernel can log packets. I/O."""

from __future__ import annotations

from .. import nflog
from . import ruleset as nft
from . import socket as nft_socket


def problem(name: str, ns_fd: int | None = None) -> str:
    """Returns why rules cannot log packets here, "" if they can. name: of a table for the trial, which the same
    transaction removes.
    """
    table = nft.Table("ip", name)
    chain = nft.Chain(table, "log")
    rule = nft.Rule(chain, (nft.Limit(1, 1), nft.Log(nflog.GROUP, "podwire", nflog.LENGTH)))
    try:
        with nft_socket.Connection(ns_fd) as conn:
            conn.commit(nft.Transaction().remake(table).add(chain, rule).remove(table))
    except OSError as err:
        return f"the kernel cannot (nft_log, nft_limit, nfnetlink_log): {err}"
    return ""

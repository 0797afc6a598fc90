"""The error of a refused transaction."""

from __future__ import annotations

from ..netlink.codec import NetlinkError
from . import objects as o


class NftError(OSError):
    """The kernel refused a whole transaction. op: the first failing operation. errno: the error of this operation."""

    def __init__(self, error: NetlinkError, op: o.Op | None, total: int) -> None:
        more = f", and {total - 1} more" if total > 1 else ""
        super().__init__(error.errno, f"nf_tables: {op or 'request'}: {error.name} {error.strerror}{more}")
        self.op = op

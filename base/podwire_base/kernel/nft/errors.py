"""What the kernel says when it refuses a transaction."""

from __future__ import annotations

import errno
import os

from . import codec
from . import objects as o


class NftError(OSError):
    """The kernel refused a transaction, whole. `errno` is of the first failing operation, `op` names it."""

    def __init__(self, error: codec.Error, op: o.Op | None, total: int) -> None:
        name = errno.errorcode.get(error.errno, str(error.errno))
        words = f" ({error.text})" if error.text else ""
        more = f", and {total - 1} more" if total > 1 else ""
        super().__init__(error.errno, f"nf_tables: {op or 'request'}: {name} {os.strerror(error.errno)}{words}{more}")
        self.op = op

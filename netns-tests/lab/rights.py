"""Work of a child process that has given up capabilities: capset(2)."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Callable, Collection
from typing import Any

from podwire_base.kernel.netns import setns
from podwire_base.role import kernelconfig

_VERSION_3 = 0x20080522  # linux/capability.h
_libc = ctypes.CDLL(None, use_errno=True)


def keep(capabilities: Collection[int]) -> None:
    """Give up all other capabilities of this process's only thread. Raises OSError."""
    mask = sum(1 << one for one in capabilities)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    head = struct.pack("=Ii", _VERSION_3, 0)
    if _libc.capset(head, struct.pack("=6I", low, low, 0, high, high, 0)):
        raise OSError(ctypes.get_errno(), "capset")
    kernelconfig.running.cache_clear()


def with_only(capabilities: Collection[int], ns_fd: int, work: Callable[[], Any]) -> Any:
    """Return what `work` returns, as JSON carries it, in a child in the network namespace `ns_fd`. An OSError that
    `work` raises is returned as its text.
    """
    read, write = os.pipe()
    if not (child := os.fork()):
        found: object = "the child failed"
        try:
            setns(ns_fd)
            keep(capabilities)
            found = work()
        except OSError as err:
            found = err.strerror or str(err)
        except Exception as err:
            found = repr(err)
        finally:
            os.write(write, json.dumps(found).encode())
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:
        told = json.loads(answer.read())
    os.waitpid(child, 0)
    return told

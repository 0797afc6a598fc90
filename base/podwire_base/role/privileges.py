"""Gives up what a process does not need: user, groups, capabilities and the way back (capabilities(7), prctl(2)).

A process that parses what strangers send keeps the descriptors that were opened before, and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from pathlib import Path

from .supervisor import PR_SET_PDEATHSIG

PR_GET_PDEATHSIG, PR_SET_DUMPABLE = 2, 4
PR_CAPBSET_DROP, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 24, 28, 38, 47
CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 6, 7, 8
PR_CAP_AMBIENT_CLEAR_ALL = 4
# SECBIT_NOROOT and SECBIT_NO_SETUID_FIXUP with their locks, and the lock of SECBIT_KEEP_CAPS: uid 0 is nobody special
NO_ROOT = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5
VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def drop(user: int, group: int) -> None:
    """Become `user` and `group` with no other group, no capability and no way to gain one. It cannot be undone. Other
    threads would keep their capabilities, so there may be none yet. Raises OSError; then some privileges may be left,
    and the process should end.
    """
    signal = ctypes.c_int()
    _check(_libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(signal), 0, 0, 0), "read the signal of the parent's death")
    _check(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear the ambient capabilities")
    for capability in range(_last() + 1):
        _check(_libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "drop a capability of the bounding set")
    _check(_libc.prctl(PR_SET_SECUREBITS, NO_ROOT, 0, 0, 0), "lock the rights of uid 0")
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    head, none = struct.pack("=Ii", VERSION_3, 0), bytes(24)
    _check(_libc.capset(head, none), "drop the capabilities")
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")
    # A change of user takes these away: the parent's death would no longer end this process, and it could not read its
    # own /proc/self/fd.
    _check(_libc.prctl(PR_SET_PDEATHSIG, signal.value, 0, 0, 0), "end with the parent")
    _check(_libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "read the own /proc")


def parent_signal() -> int:
    """Returns the signal that the kernel sends to this process when its parent ends; 0: none."""
    signal = ctypes.c_int()
    return signal.value if _libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(signal), 0, 0, 0) == 0 else 0


def can_drop() -> bool:
    """Whether this process has the capabilities that `drop` needs. A container may lack them."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        have = int(status()["CapEff"], 16)
        return all(have >> capability & 1 for capability in (CAP_SETGID, CAP_SETUID, CAP_SETPCAP))
    return False


def _last() -> int:
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


def status() -> dict[str, str]:
    """Returns the fields of /proc/self/status."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


def no_new_privileges() -> bool:
    """Whether this process and its children can gain no privileges, for example because of a unit's NoNewPrivileges."""
    with contextlib.suppress(OSError):
        return status().get("NoNewPrivs") == "1"
    return False

"""A place for socket hooks in tests: a cgroup that this process joins, and a bpffs, both for one World alone.

A socket keeps the cgroup it was made in, so the process joins before it makes the sockets that hooks shall see. The
hooks sit at this cgroup, never at the machine's root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from pathlib import Path

import pytest

from podwire_base.role.features import BPF_SOCKET_HOOKS
from podwire_base.testing import features
from podwire_proxy.ebpf import maps, native, places
from podwire_proxy.ebpf.backend import Ebpf
from podwire_proxy.ebpf.maps import Client
from podwire_proxy.testing import scenarios as s

from .serviceworld import V6, World

CLIENTS = (s.POD_A, s.POD_B)
_libc = ctypes.CDLL(None, use_errno=True)
_made: dict[int, Ebpf] = {}  # by the World's node


def who(ip: str) -> int:
    """Return maps.POD for the address of a pod whose sockets meet the hooks, else 0."""
    return maps.POD if ip in (*CLIENTS, *(V6[one] for one in CLIENTS)) else 0


def clients(world: World) -> list[Client]:
    return [Client(places.cookie(world.pods[ip].fd), maps.POD, ip, V6[ip]) for ip in CLIENTS]


def backend(world: World) -> Ebpf:
    """Return the backend whose hooks see what this process dials from now on, until the World's node is closed."""
    if world.node.fd not in _made:
        if native.code("sock") is None:
            pytest.skip("the eBPF programs are not built: no clang at the build")
        with features.needed(BPF_SOCKET_HOOKS):
            undo = contextlib.ExitStack()
            world.node.on_close(undo.close)
            _made[world.node.fd] = Ebpf(str(_cgroup(undo)), str(_bpffs(undo)), require=True)
            undo.callback(_made.pop, world.node.fd)
    return _made[world.node.fd]


def _cgroup(undo: contextlib.ExitStack) -> Path:
    root = places.cgroup("")
    before = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].splitlines()[0]
    made = root / f"podwire-test-{os.getpid()}-{len(_made)}"
    undo.callback(made.rmdir)
    made.mkdir()
    undo.callback((root / before.lstrip("/") / "cgroup.procs").write_text, str(os.getpid()))
    (made / "cgroup.procs").write_text(str(os.getpid()))
    return made


def _bpffs(undo: contextlib.ExitStack) -> Path:
    point = Path(tempfile.mkdtemp(prefix="podwire-bpf-"))
    undo.callback(point.rmdir)
    undo.callback(_libc.umount2, os.fsencode(point), 2)
    return places.bpffs(str(point))

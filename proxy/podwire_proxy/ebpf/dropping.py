"""Sees packets that the kernel drops, while it is open: a program at the raw tracepoint kfree_skb. I/O.

It needs CAP_BPF and CAP_PERFMON, Linux 5.17 (the first whose tracepoint tells reasons) and the kernel's types (BTF).
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from podwire_base import native as built
from podwire_base.kernel.bpf import btf, elf
from podwire_base.kernel.bpf import syscalls as bpf
from podwire_base.kernel.bpf.ring import Ring
from podwire_base.kernel.dropped import Dropped, packet
from podwire_base.role.features import BPF_DROP_REASONS, CAP_BPF, CAP_PERFMON, explain, lacks
from podwire_base.role.kernelconfig import running

from . import native

TYPES = Path("/sys/kernel/btf/vmlinux")
TRACEPOINT = "kfree_skb"
# struct fields of native/drops.bpf.c, in its order
FIELDS = (
    ("sk_buff", "protocol"),
    ("sk_buff", "head"),
    ("sk_buff", "network_header"),
    ("sk_buff", "len"),
    ("sk_buff", "dev"),
    ("sk_buff", "sk"),
    ("sk_buff", "skb_iif"),
    ("net_device", "nd_net.net"),
    ("net_device", "ifindex"),
    ("sock", "__sk_common.skc_net.net"),
    ("net", "net_cookie"),
)
_EVENT = struct.Struct("<QQQIIII96s")
_NOTHING = bytes(4)


class Tracer:
    """spaces: the numbers of the network namespaces whose packets count; None: all. Raises OSError, which says what is
    missing.
    """

    def __init__(self, spaces: Iterable[int] | None) -> None:
        self._open = contextlib.ExitStack()
        try:
            self._load(spaces)
        except BaseException:
            self.close()
            raise

    def _load(self, spaces: Iterable[int] | None) -> None:
        code = native.code("drops")
        if code is None:
            why = built.reason(native.FOLDER, "drops") or "install podwire again (make install)"
            raise OSError(errno.ENOEXEC, f"the program is not built: {why}")
        obj = elf.parse(code)
        try:
            types = btf.Types(TYPES.read_bytes())
            offsets = [types.offset(*field) for field in FIELDS]
            self._reasons = types.names("skb_drop_reason", "SKB_DROP_REASON_")
        except FileNotFoundError:
            raise OSError(errno.EOPNOTSUPP, f"this kernel does not show its types: there is no {TYPES}") from None
        except btf.NoTypes as err:
            raise OSError(errno.EOPNOTSUPP, f"{explain(BPF_DROP_REASONS, running())}: {err}") from None
        try:
            self._maps = {name: self._own(bpf.create_map(name, spec)) for name, spec in obj.maps.items()}
            bpf.update(self._maps["fields"], _NOTHING, struct.pack("<12I", *offsets, spaces is None))
            self._spaces = set[int]()
            self.follow(spaces or ())
            self._attach(obj)
        except PermissionError as err:
            missing = lacks(running(), CAP_BPF, CAP_PERFMON) or err.strerror
            needs = "packets that the kernel drops are shown to root, or with CAP_BPF and CAP_PERFMON"
            raise OSError(err.errno, f"{needs}: {missing}") from err
        self._lost_spec, self._lost = obj.maps["lost"], 0
        self._ring = Ring(self._maps["events"], obj.maps["events"].max_entries)
        self._open.callback(self._ring.close)
        self._epoch = time.time() - time.monotonic()

    def _own(self, fd: int) -> int:
        self._open.callback(os.close, fd)
        return fd

    def _attach(self, obj: elf.Object) -> None:
        for name in ("dropped4", "dropped3"):
            code = obj.programs[f"raw_tp/{name}"].linked(self._maps)
            program = self._own(bpf.load(bpf.Kind.RAW_TRACEPOINT, name, code, obj.licence))
            try:
                self._own(bpf.open_tracepoint(TRACEPOINT, program))
            except OSError as err:
                if err.errno != errno.EINVAL:  # it asks for more than this kernel's tracepoint tells
                    raise
            else:
                return
        raise OSError(errno.EOPNOTSUPP, explain(BPF_DROP_REASONS, running()))

    def close(self) -> None:
        self._open.close()

    def fileno(self) -> int:
        return self._ring.fileno()

    def follow(self, spaces: Iterable[int]) -> None:
        """Makes these the namespaces whose packets count."""
        wanted = set(spaces)
        for space in self._spaces - wanted:
            bpf.delete(self._maps["spaces"], struct.pack("<Q", space))
        for space in wanted - self._spaces:
            bpf.update(self._maps["spaces"], struct.pack("<Q", space), _NOTHING)
        self._spaces = wanted

    def read(self, most: int) -> list[Dropped]:
        """Returns what is there, at most `most` packets. The interface has no name yet: its namespace has it."""
        found = list[Dropped]()
        for record in self._ring.records(most):
            at, space, _, reason, index, _, copied, data = _EVENT.unpack_from(record)
            if (seen := packet(data[:copied])) is not None:
                name = self._reasons.get(reason, f"REASON_{reason:#x}")
                found.append(Dropped(self._epoch + at / 1e9, name, seen, "", index, space))
        return found

    def lost(self) -> int:
        """Returns how many packets the ring had no room for since the last call."""
        total = sum(number for _, number in bpf.sums(self._maps["lost"], self._lost_spec))
        more, self._lost = total - self._lost, total
        return more

"""The system call bpf(2): maps, programs, links, pins. I/O.

Every function raises OSError. A descriptor that a function returns belongs to the caller.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path

from ..netns import within
from .elf import MapSpec, storage_types

PERCPU_HASH, PERCPU_ARRAY, SK_STORAGE = 5, 6, 24
_NUMBERS = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)
ATTRIBUTES = 128  # bytes; the kernel takes more than it knows, as long as the rest is zero
LOG = 1 << 20
MANY = 4096  # elements that one call moves at most


class _Command(IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    OBJ_GET_INFO_BY_FD = 15
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


class Kind(IntEnum):
    """Types of programs."""

    SCHED_CLS = 3
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18


class Refused(OSError):
    """The verifier refuses a program. log: what it says, for people who mend the program."""

    def __init__(self, code: int, program: str, log: str) -> None:
        last = [line for line in log.splitlines() if line and not line.startswith("processed ")]
        super().__init__(code, f"{program}: {os.strerror(code)}: {last[-1] if last else 'the kernel gives no reason'}")
        self.log = log


def _address(data: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data)) if data else 0


def _answered(command: _Command, form: str, *values: int | bytes) -> tuple[int, int, bytearray]:
    """form, values: the fields of the command's attributes. Returns (the result, the error's number, the attributes as
    the kernel left them).
    """
    number = _NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf: not known for machine {os.uname().machine}")
    attributes = bytearray(struct.pack("<" + form, *values).ljust(ATTRIBUTES, b"\0"))
    # ctypes is enough here: integers alone go to the call, an address among them
    result = _libc.syscall(
        ctypes.c_long(number), ctypes.c_int(command), ctypes.c_void_p(_address(attributes)), ctypes.c_uint(ATTRIBUTES)
    )
    return result, ctypes.get_errno() if result < 0 else 0, attributes


def _call(command: _Command, form: str, *values: int | bytes) -> bytearray:
    _, code, attributes = _answered(command, form, *values)
    if code:
        raise OSError(code, f"bpf {command.name}: {os.strerror(code)}")
    return attributes


def _descriptor(command: _Command, form: str, *values: int | bytes) -> int:
    """The kernel makes every descriptor close-on-exec."""
    fd, code, _ = _answered(command, form, *values)
    if code:
        raise OSError(code, f"bpf {command.name}: {os.strerror(code)}")
    return fd


def create_map(name: str, spec: MapSpec) -> int:
    """Returns the descriptor of a new map. name: up to 15 letters, for bpftool."""
    form, head = "6II16sIIII", (*spec, 0, 0, name.encode()[:15], 0)
    if spec.kind != SK_STORAGE:
        return _descriptor(_Command.MAP_CREATE, form, *head, 0, 0, 0)
    blob = bytearray(storage_types(spec.value_size))
    types = _descriptor(_Command.BTF_LOAD, "QQII", _address(blob), 0, len(blob), 0)
    try:
        return _descriptor(_Command.MAP_CREATE, form, *head, types, 1, 2)
    finally:
        os.close(types)


def map_shape(fd: int) -> MapSpec:
    """Returns what a map was created with."""
    info = bytearray(80)
    _call(_Command.OBJ_GET_INFO_BY_FD, "IIQ", fd, len(info), _address(info))
    kind, _, key, value, entries, flags = struct.unpack_from("<6I", info)
    return MapSpec(kind, key, value, entries, flags)


def load(kind: Kind, name: str, code: bytes, licence: str, attach_type: int = 0) -> int:
    """Returns the descriptor of a program that the verifier accepted. attach_type: where it will be attached; the
    verifier must know. Raises Refused, with the verifier's words.
    """
    text, words = bytearray(code), bytearray(licence.encode() + b"\0")
    form = "IIQQIIQII16sII"
    short = name.encode()[:15]

    def attempt(log: bytearray) -> int:
        values = (kind, len(code) // 8, _address(text), _address(words), bool(log), len(log), _address(log), 0, 0)
        return _descriptor(_Command.PROG_LOAD, form, *values, short, 0, attach_type)

    try:
        return attempt(bytearray())
    except OSError as err:
        if err.errno not in (errno.EACCES, errno.EINVAL, errno.E2BIG):
            raise
        log = bytearray(LOG)
        try:
            return attempt(log)
        except OSError as again:
            raise Refused(again.errno or errno.EINVAL, name, log.rstrip(b"\0").decode(errors="replace")) from None


def run(fd: int, packet: bytes) -> tuple[int, bytes]:
    """Runs a program over a packet, without a network. Returns (what the program returned, the packet afterwards)."""
    given, got = bytearray(packet), bytearray(len(packet))
    form = "4I2Q2I"
    after = _call(_Command.PROG_TEST_RUN, form, fd, 0, len(given), len(got), _address(given), _address(got), 1, 0)
    return struct.unpack_from("<i", after, 4)[0], bytes(got)


def attach_to_cgroup(program: int, cgroup: int, attach_type: int) -> int:
    """Returns the descriptor of a link. The program runs as long as the link or a pin of it exists."""
    return _descriptor(_Command.LINK_CREATE, "IIII", program, cgroup, attach_type, 0)


def attach_to_link(program: int, ifindex: int, attach_type: int, ns_fd: int | None = None) -> int:
    """Returns the descriptor of a program's place at a network link (tcx): it runs until the descriptor is closed, or
    the network link goes. ns_fd: the namespace that has the network link.
    """
    values = program, ifindex, attach_type, 0, 0, 0, 0
    return within(ns_fd, lambda: _descriptor(_Command.LINK_CREATE, "IIIIIIQ", *values))


def open_tracepoint(name: str, program: int) -> int:
    """Returns the descriptor of a program's place at a raw tracepoint: it runs until the descriptor is closed. Raises
    OSError, EINVAL if the program asks for more arguments than the tracepoint has.
    """
    words = bytearray(name.encode() + b"\0")
    return _descriptor(_Command.RAW_TRACEPOINT_OPEN, "QI", _address(words), program)


def replace(link: int, program: int) -> None:
    """Puts another program in the place of a link's, with no moment between."""
    _call(_Command.LINK_UPDATE, "IIII", link, program, 0, 0)


def detach(link: int) -> None:
    _call(_Command.LINK_DETACH, "I", link)


def pin(fd: int, path: Path) -> None:
    """Keeps a map, program or link alive under a path of a bpffs."""
    name = bytearray(os.fsencode(path) + b"\0")
    _call(_Command.OBJ_PIN, "QII", _address(name), fd, 0)


def pinned(path: Path) -> int:
    name = bytearray(os.fsencode(path) + b"\0")
    return _descriptor(_Command.OBJ_GET, "QII", _address(name), 0, 0)


def lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    wanted, got = bytearray(key), bytearray(value_size)
    try:
        _call(_Command.MAP_LOOKUP_ELEM, "IIQQQ", fd, 0, _address(wanted), _address(got), 0)
    except OSError as err:
        if err.errno == errno.ENOENT:
            return None
        raise
    return bytes(got)


def update(fd: int, key: bytes, value: bytes) -> None:
    wanted, given = bytearray(key), bytearray(value)
    _call(_Command.MAP_UPDATE_ELEM, "IIQQQ", fd, 0, _address(wanted), _address(given), 0)


def delete(fd: int, key: bytes) -> None:
    """Deletes an element. It may be gone already."""
    wanted = bytearray(key)
    try:
        _call(_Command.MAP_DELETE_ELEM, "IIQQQ", fd, 0, _address(wanted), 0, 0)
    except OSError as err:
        if err.errno != errno.ENOENT:
            raise


_BATCH = "4Q2I2Q"


def update_many(fd: int, items: Sequence[tuple[bytes, bytes]]) -> None:
    """Writes elements with one call. Raises OSError (E2BIG) if the map is full; those before are then written."""
    if items:
        keys, values = (bytearray(b"".join(part)) for part in zip(*items, strict=True))
        _call(_Command.MAP_UPDATE_BATCH, _BATCH, 0, 0, _address(keys), _address(values), len(items), fd, 0, 0)


def delete_many(fd: int, keys: Sequence[bytes]) -> None:
    """Deletes elements, one call each: a batch would stop at the first that is gone already."""
    for key in keys:
        delete(fd, key)


def dump(fd: int, spec: MapSpec) -> Iterator[tuple[bytes, bytes]]:
    """Yields (key, value) of a hash map's elements."""
    room = min(MANY, spec.max_entries)
    before, after = bytearray(), bytearray(max(4, spec.key_size))
    while True:
        keys, values = bytearray(room * spec.key_size), bytearray(room * spec.value_size)
        where = (_address(before), _address(after), _address(keys), _address(values))
        _, code, attributes = _answered(_Command.MAP_LOOKUP_BATCH, _BATCH, *where, room, fd, 0, 0)
        if code not in (0, errno.ENOENT):  # ENOENT: these are the last
            raise OSError(code, f"bpf {_Command.MAP_LOOKUP_BATCH.name}: {os.strerror(code)}")
        for index in range(struct.unpack_from("<I", attributes, 32)[0]):
            key, value = index * spec.key_size, index * spec.value_size
            yield bytes(keys[key : key + spec.key_size]), bytes(values[value : value + spec.value_size])
        if code:
            return
        before, after = after, bytearray(len(after))


def possible_cpus() -> int:
    """Returns the number of CPUs for which a map that is kept for each CPU has a value."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().rpartition(",")[2].rpartition("-")[2]
    return int(last) + 1


def sums(fd: int, spec: MapSpec) -> Iterator[tuple[bytes, int]]:
    """Yields (key, the sum over all CPUs) of a map of numbers of 64 bits that is kept for each CPU."""
    cpus = possible_cpus()
    whole = spec._replace(value_size=8 * cpus)
    found: Iterable[tuple[bytes, bytes]] = dump(fd, whole)
    if spec.kind == PERCPU_ARRAY:
        keys = (struct.pack("<I", index) for index in range(spec.max_entries))
        found = ((key, lookup(fd, key, whole.value_size) or bytes(whole.value_size)) for key in keys)
    for key, value in found:
        yield key, sum(struct.unpack(f"<{cpus}Q", value))


def cgroup_of(link: int) -> int:
    """Returns the number (inode) of the cgroup that a link is attached to; 0 if the cgroup is gone."""
    info = bytearray(64)
    _call(_Command.OBJ_GET_INFO_BY_FD, "IIQ", link, len(info), _address(info))
    number: int = struct.unpack_from("<Q", info, 16)[0]
    return number

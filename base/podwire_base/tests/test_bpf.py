"""The loader of eBPF objects: what it reads from a file, what it refuses, and how a program gets its maps."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from podwire_base.kernel.bpf import elf

LOAD = struct.pack("<BBhi", 0x18, 1, 0, 0) + bytes(8)  # r1 = 64 bit constant
SECTIONS = ("", ".strtab", "cgroup/connect4", ".relcgroup/connect4", "maps", "license", ".symtab")


def file(*, machine: int = elf.EM_BPF, kind: int = elf.R_BPF_64_64, symbols: bool = True) -> bytes:
    """An object with one program that loads the map `things` at its second instruction."""
    names = b"\0" + b"\0".join(name.encode() for name in (*SECTIONS[1:], "things")) + b"\0"
    place = {name: names.index(b"\0" + name.encode() + b"\0") + 1 for name in (*SECTIONS[1:], "things")} | {"": 0}
    program = struct.pack("<BBhi", 0xB7, 0, 0, 1) + LOAD + struct.pack("<BBhi", 0x95, 0, 0, 0)
    contents = {
        ".strtab": (3, names, 0, 0),
        "cgroup/connect4": (1, program, 0, 0),
        ".relcgroup/connect4": (elf.SHT_REL, struct.pack("<QQ", 8, 1 << 32 | kind), 6, 2),
        "maps": (1, struct.pack("<5I", 1, 20, 32, 1024, 0), 0, 0),
        "license": (1, b"Dual BSD/GPL\0", 0, 0),
        ".symtab": (2 if symbols else 1, bytes(24) + struct.pack("<IBBHQQ", place["things"], 0, 0, 4, 0, 20), 1, 0),
    }
    body, heads, offset = b"", bytes(64), 64
    for name in SECTIONS[1:]:
        sort, data, link, info = contents[name]
        heads += struct.pack("<IIQQQQIIQQ", place[name], sort, 0, 0, offset, len(data), link, info, 8, 0)
        body, offset = body + data, offset + len(data)
    head = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, machine, 1, 0, 0, offset, 0, 64, 0, 0, 64, 7, 1
    )
    return head + body + heads


def test_programs_maps_and_the_licence_are_read() -> None:
    found = elf.parse(file())
    assert found.licence == "Dual BSD/GPL"
    assert found.maps == {"things": elf.MapSpec(1, 20, 32, 1024, 0)}
    program = found.programs["cgroup/connect4"]
    assert (len(program.code), dict(program.maps)) == (32, {8: "things"})


def test_a_program_gets_the_descriptors_of_its_maps() -> None:
    program = elf.parse(file()).programs["cgroup/connect4"]
    linked = program.linked({"things": 77})
    assert linked[:8] == program.code[:8] and linked[16:] == program.code[16:]
    assert struct.unpack("<BBhi", linked[8:16]) == (0x18, elf.PSEUDO_MAP_FD << 4 | 1, 0, 77)
    with pytest.raises(KeyError):
        program.linked({})
    assert replace(program, maps={}).linked({}) == program.code


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a little-endian ELF"),
        (b"#!/bin/sh\n" * 30, "not a little-endian ELF"),
        (file(machine=62), "made for machine 62"),
        (file(kind=10), "not of a map"),
        (file(symbols=False), "has no symbols"),
        (file()[:200], "cut off or damaged"),
        (file()[:40], "cut off or damaged"),
    ],
    ids=["empty", "a script", "another machine", "a call", "stripped", "cut", "cut early"],
)
def test_other_files_are_refused_by_name(data: bytes, told: str) -> None:
    with pytest.raises((elf.BadObject, IndexError), match=told):
        elf.parse(data)


@pytest.mark.parametrize("cut", range(0, 700, 13))
def test_a_file_that_is_cut_off_anywhere_is_refused(cut: int) -> None:
    with pytest.raises(elf.BadObject):
        elf.parse(file()[:cut])


def test_the_types_of_socket_storage_are_what_the_kernel_documents() -> None:
    blob = elf.storage_types(816)
    magic, version, _, head, at, size, texts, length = struct.unpack_from("<HBBIIIII", blob)
    assert (magic, version, head, at, texts, len(blob)) == (0xEB9F, 1, 24, 0, size, 24 + size + length)
    assert struct.unpack_from("<IIII", blob, 24) == (1, 1 << 24, 4, 32), "int key"
    assert struct.unpack_from("<III", blob, 40) == (0, 4 << 24, 816), "a struct without members"

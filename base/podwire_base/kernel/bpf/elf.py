"""Reads the ELF file that `clang -target bpf` writes: programs, maps, licence, and where programs name maps. Pure.

A small part of ELF is enough, because the programs keep to it: each program is a section of its own without calls into
another, maps are the symbols of the section `maps` (five numbers of 32 bits each, as in the header bpf.h of the
programs), and the only relocations are those of maps (R_BPF_64_64). Everything else is refused by name. Sources: ELF
specification, "Linux eBPF relocations" in the kernel's documentation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

EM_BPF, SHT_REL, R_BPF_64_64 = 247, 9, 1
LITTLE_ENDIAN, CLASS_64 = 1, 2
PSEUDO_MAP_FD = 1  # in the source register of a 64 bit load: its constant is a map's file descriptor
INSTRUCTION = 8  # bytes


class BadObject(ValueError):
    """The file is not an object that this loader understands. The message says what is strange."""


class MapSpec(NamedTuple):
    """A map as the kernel creates it. kind: the number of the map's type. Sizes in bytes."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Program:
    """section: for example "cgroup/connect4". code: instructions of 8 bytes. maps: offset of the load -> map's name."""

    section: str
    code: bytes
    maps: Mapping[int, str]

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """Returns the code with the file descriptors of the maps in it."""
        code = bytearray(self.code)
        for offset, name in self.maps.items():
            code[offset + 1] = code[offset + 1] & 0x0F | PSEUDO_MAP_FD << 4
            struct.pack_into("<i", code, offset + 4, descriptors[name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class Object:
    """programs: by section."""

    programs: Mapping[str, Program]
    maps: Mapping[str, MapSpec]
    licence: str


class _Section(NamedTuple):
    name: str
    kind: int
    data: bytes
    link: int
    info: int


class _Symbol(NamedTuple):
    name: str
    section: int
    value: int


def parse(data: bytes) -> Object:
    """Returns what the file holds. Raises BadObject."""
    try:
        return _parse(data)
    except (struct.error, IndexError, UnicodeDecodeError) as err:
        raise BadObject(f"the file is cut off or damaged: {err}") from None


def _parse(data: bytes) -> Object:
    if data[:4] != b"\x7fELF" or data[4] != CLASS_64 or data[5] != LITTLE_ENDIAN:
        raise BadObject("not a little-endian ELF file of 64 bits")
    if (machine := struct.unpack_from("<H", data, 18)[0]) != EM_BPF:
        raise BadObject(f"made for machine {machine}, not for BPF ({EM_BPF})")
    sections = list(_sections(data))
    symbols = list(_symbols(sections))
    found = {section.name: section for section in sections}
    maps = {
        symbol.name: MapSpec(*struct.unpack_from("<5I", found["maps"].data, symbol.value))
        for symbol in symbols
        if symbol.name and symbol.section < len(sections) and sections[symbol.section].name == "maps"
    }
    relocations = {sections[section.info].name: section for section in sections if section.kind == SHT_REL}
    programs = {
        name: Program(name, section.data, _maps_of(relocations.get(name), name, symbols, maps))
        for name, section in found.items()
        if "/" in name and section.kind != SHT_REL
    }
    licence = found["license"].data.rstrip(b"\0").decode() if "license" in found else ""
    return Object(programs, maps, licence)


def _sections(data: bytes) -> Iterator[_Section]:
    start, size, count, names = *struct.unpack_from("<Q", data, 40), *struct.unpack_from("<3H", data, 58)
    heads = [struct.unpack_from("<IIQQQQII", data, start + index * size) for index in range(count)]
    texts = data[heads[names][4] : heads[names][4] + heads[names][5]]
    for name, kind, _, _, offset, length, link, info in heads:
        yield _Section(_text(texts, name), kind, data[offset : offset + length], link, info)


def _symbols(sections: list[_Section]) -> Iterator[_Symbol]:
    table = next((section for section in sections if section.kind == 2), None)  # SHT_SYMTAB
    if table is None:
        raise BadObject("has no symbols: the file was stripped")
    for name, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", table.data):
        yield _Symbol(_text(sections[table.link].data, name), section, value)


def _text(texts: bytes, offset: int) -> str:
    return texts[offset : texts.index(b"\0", offset)].decode()


def _maps_of(
    section: _Section | None, program: str, symbols: list[_Symbol], maps: Mapping[str, MapSpec]
) -> dict[int, str]:
    found = dict[int, str]()
    for offset, info in struct.iter_unpack("<QQ", section.data if section else b""):
        symbol, kind = symbols[info >> 32], info & 0xFFFFFFFF
        if kind != R_BPF_64_64 or symbol.name not in maps:
            raise BadObject(f"{program}: the relocation at {offset} of {symbol.name or 'a section'!r} is not of a map")
        found[offset] = symbol.name
    return found


def storage_types(value_size: int) -> bytes:
    """Returns the BTF that the kernel wants for socket storage: type 1 is an int of 4 bytes (the key), type 2 a struct
    of `value_size` bytes (the value). Source: "BPF Type Format" in the kernel's documentation.
    """
    names = b"\0key\0"
    kinds = struct.pack("<IIII", 1, 1 << 24, 4, 32) + struct.pack("<III", 0, 4 << 24, value_size)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(kinds), len(kinds), len(names)) + kinds + names

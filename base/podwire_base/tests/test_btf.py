"""The kernel's types: offsets of fields, also of unnamed parts, and names of enumerations. Pure."""

from __future__ import annotations

import struct

import pytest

from podwire_base.kernel.bpf.btf import MAGIC, NoTypes, Types


def blob() -> bytes:
    """struct packet { int head; union { struct { int link; const int tail; }; int all; }; }; and an enum why."""
    texts = b"\0int\0packet\0head\0link\0tail\0all\0why\0SKB_A\0SKB_B\0"

    def text(name: str) -> int:
        return texts.index(b"\0" + name.encode() + b"\0") + 1

    def kind(number: int, parts: int = 0, *, fields: bool = False) -> int:
        return number << 24 | parts | fields << 31

    types = struct.pack("<IIII", text("int"), kind(1), 4, 32)  # 1
    types += struct.pack("<III", 0, kind(10), 1)  # 2: const int
    inner = struct.pack("<III", text("link"), 1, 0) + struct.pack("<III", text("tail"), 2, 8 << 24 | 32)
    types += struct.pack("<III", 0, kind(4, 2, fields=True), 8) + inner  # 3
    types += struct.pack("<III", 0, kind(5, 2), 8)  # 4
    types += struct.pack("<III", 0, 3, 0) + struct.pack("<III", text("all"), 1, 0)
    types += struct.pack("<III", text("packet"), kind(4, 2), 12)  # 5
    types += struct.pack("<III", text("head"), 1, 0) + struct.pack("<III", 0, 4, 32)
    types += struct.pack("<III", text("why"), kind(6, 2), 4)  # 6
    types += struct.pack("<II", text("SKB_A"), 1) + struct.pack("<II", text("SKB_B"), 2)
    return struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, len(types), len(types), len(texts)) + types + texts


def test_offsets_go_through_unnamed_parts() -> None:
    types = Types(blob())
    places = {name: types.offset("packet", name) for name in ("head", "link", "tail", "all")}
    assert places == {"head": 0, "link": 4, "tail": 8, "all": 4}


def test_names_of_an_enumeration_lose_their_prefix() -> None:
    assert Types(blob()).names("why", "SKB_") == {1: "A", 2: "B"}


@pytest.mark.parametrize(
    ("structure", "path", "told"),
    [("packet", "gone", "struct packet has no gone"), ("nothing", "head", "no nothing"), ("why", "A", "no why")],
)
def test_what_a_kernel_lacks_is_named(structure: str, path: str, told: str) -> None:
    with pytest.raises(NoTypes, match=told):
        Types(blob()).offset(structure, path)


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb", b"\0" * 30], ids=["empty", "cut", "zeros"])
def test_other_data_are_refused(data: bytes) -> None:
    with pytest.raises(NoTypes, match="not BTF"):
        Types(data)

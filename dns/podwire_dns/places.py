"""The endpoints of Services with a ClusterIP, from which their names and reverse names are made on demand. Pure.

CoreDNS answers `a-b-c-d.svc.ns.svc.zone` and the reverse name of each endpoint of every Service. Rendered, these would
be two answers for each endpoint of the cluster. Here an endpoint takes 8 bytes in the feeder, and an address one small
entry in a server: address -> the Services that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from . import names

NUMBER = 4  # bytes of a Service's number
BULK = 64  # so many new endpoints are sorted in at once


@dataclass(slots=True)
class Places:
    """A map address -> Services, by the wire names of the Services. It is a sorted array for each length of address:
    address and number of the Service, without an object for each entry.
    """

    _rows: dict[int, bytearray] = field(default_factory=lambda: {4: bytearray(), 16: bytearray()})
    _numbers: dict[bytes, int] = field(default_factory=dict)
    _bases: list[bytes] = field(default_factory=list)
    _counts: list[int] = field(default_factory=list)  # endpoints of each number
    _free: list[int] = field(default_factory=list)

    def add(self, base: bytes, addresses: Iterable[bytes]) -> None:
        """Adds endpoints of a Service; they must be new. base: the Service's name in wire form."""
        self.load([(base, addresses)])

    def load(self, found: Iterable[tuple[bytes, Iterable[bytes]]]) -> None:
        """Adds the endpoints of many Services."""
        fresh: dict[int, list[bytes]] = {4: [], 16: []}
        for base, addresses in found:
            for address in addresses:
                number = self._number(base)
                self._counts[number] += 1
                fresh[len(address)].append(address + number.to_bytes(NUMBER))
        for length, rows in fresh.items():
            if len(rows) > BULK:
                size, known = length + NUMBER, bytes(self._rows[length])
                every = sorted([*rows, *(known[at : at + size] for at in range(0, len(known), size))])
                self._rows[length] = bytearray().join(every)
            else:
                for row in rows:
                    at = self._find(row)
                    self._rows[length][at:at] = row

    def remove(self, base: bytes, addresses: Iterable[bytes]) -> None:
        """Removes endpoints of a Service; they must exist."""
        for address in addresses:
            number = self._numbers[base]
            at = self._find(address + number.to_bytes(NUMBER))
            del self._rows[len(address)][at : at + len(address) + NUMBER]
            self._counts[number] -= 1
            if not self._counts[number]:
                del self._numbers[base]
                self._free.append(number)

    def at(self, address: bytes) -> list[bytes]:
        """Returns the names of the Services that have this endpoint, sorted."""
        rows, size = self._rows[len(address)], len(address) + NUMBER
        at, found = self._find(address + bytes(NUMBER)), []
        while rows[at : at + len(address)] == address:
            found.append(self._bases[int.from_bytes(rows[at + len(address) : at + size])])
            at += size
        return sorted(found)

    def addresses(self) -> Iterable[bytes]:
        """Yields each address once."""
        for length, rows in self._rows.items():
            before = b""
            for at in range(0, len(rows), length + NUMBER):
                address = bytes(rows[at : at + length])
                if address != before:
                    yield address
                before = address

    def _number(self, base: bytes) -> int:
        number = self._numbers.get(base)
        if number is None:
            if self._free:
                number = self._free.pop()
                self._bases[number] = base
            else:
                number = len(self._bases)
                self._bases.append(base)
                self._counts.append(0)
            self._numbers[base] = number
        return number

    def _find(self, row: bytes) -> int:
        """Returns the offset of the first row that is not smaller."""
        size = len(row)
        rows = self._rows[size - NUMBER]
        low, high = 0, len(rows) // size
        while low < high:
            middle = (low + high) // 2
            if rows[middle * size : middle * size + size] < row:
                low = middle + 1
            else:
                high = middle
        return low * size


def packed(bases: Iterable[bytes]) -> bytes:
    """Returns the form in which a server keeps the Services of an address: their names, one behind the other."""
    return b"".join(bases)


def unpacked(value: bytes) -> list[bytes]:
    """Returns the names that `packed` joined."""
    found, at, begin = [], 0, 0
    while at < len(value):
        if value[at]:
            at += 1 + value[at]
        else:
            at += 1
            found.append(value[begin:at])
            begin = at
    return found


def endpoint_name(address: bytes, base: bytes) -> bytes:
    """Returns the name of an endpoint without a hostname: its address with dashes, below its Service."""
    label = names.dashed_label(address)
    return bytes((len(label),)) + label + base

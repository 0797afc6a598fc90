"""Iterates over the addresses of a range set in order. It makes no list, because an IPv6 /64 has too many addresses."""

from __future__ import annotations

from collections.abc import Iterator

from ..types import IPAddress, IPNetwork, Range, RangeSet


def podcidr_range(cidr: IPNetwork) -> Range:
    """Returns the range of a node's podCIDR. The first address is the gateway. For IPv4, the range does not contain the
    last address, which is the broadcast address.
    """
    return Range(cidr, cidr[1], cidr[-2] if cidr.version == 4 else cidr[-1], cidr[1])


def capacity(ranges: RangeSet) -> int:
    """Returns the number of addresses that pods can get from the set."""
    return sum(int(r.end) - int(r.start) + 1 - (r.gateway in r) for r in ranges)


def walk(ranges: RangeSet, after: IPAddress | None) -> Iterator[tuple[IPAddress, Range]]:
    """Yields every address that a pod may get, once. Starts after the address `after` and wraps around at the end."""
    first = next((i for i, r in enumerate(ranges) if after is not None and after in r), None)
    if first is None or after is None:
        for r in ranges:
            yield from _between(r, int(r.start), int(r.end))
        return
    home = ranges[first]
    yield from _between(home, int(after) + 1, int(home.end))
    for r in (*ranges[first + 1 :], *ranges[:first]):
        yield from _between(r, int(r.start), int(r.end))
    yield from _between(home, int(home.start), int(after))


def _between(r: Range, low: int, high: int) -> Iterator[tuple[IPAddress, Range]]:
    kind = type(r.start)
    for number in range(low, high + 1):
        address = kind(number)
        if address != r.gateway:
            yield address, r

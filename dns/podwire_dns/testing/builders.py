"""Makes an Answerer from objects, without separate processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import feed, names
from ..answer import Answerer
from ..answertable import AnswerTable
from ..build import Builder
from ..cache import Cache
from ..config import DnsConfig
from ..zone import ZoneData
from . import cases

CONFIG = DnsConfig("n1", None, Path("unused"), upstreams=(), service_cidrs=("10.96.0.0/16", "fd00:96::/112"))


def builder(
    services: Iterable[Any] = (), slices: Iterable[Any] = (), namespaces: Iterable[Any] = (), config: DnsConfig = CONFIG
) -> Builder:
    made = Builder(config.schema())
    for obj in namespaces:
        made.namespace(obj)
    for obj in services:
        made.service(obj)
    for obj in slices:
        made.slice(obj)
    return made


def fed(source: Builder, serial: int = 1, memory: AnswerTable | None = None) -> ZoneData:
    """Returns the zone of a server that received the whole feed as bytes."""
    source.flush(serial)
    schema = source.config
    zones = tuple(names.to_wire(z) for z in (schema.zone, *schema.reverse))
    hello = feed.Hello(feed.VERSION, zones, schema.denial_ttl, schema.pods)
    zone: ZoneData | None = None
    for frame in feed.snapshot(hello, source.answers, iter(source.names), serial, source.placed()):
        message = feed.decode(frame[4:])
        if isinstance(message, feed.Hello):
            zone = ZoneData.begin(message, memory)
        elif isinstance(message, feed.Delta):
            assert zone is not None
            zone.apply(message)
        else:
            assert zone is not None
            zone.synced = True
    assert zone is not None
    return zone


def answerer(
    zone: ZoneData,
    *,
    recursion: bool = False,
    rand: Callable[[int], int] = lambda n: 0,
    clock: Callable[[], float] = lambda: 0.0,
) -> Answerer:
    return Answerer(zone, Cache(), clock, rand, recursion)


def conformance_zone(memory: AnswerTable | None = None) -> ZoneData:
    """Returns the zone of the cluster in cases.py."""
    return fed(builder(cases.SERVICES, cases.SLICES, cases.NAMESPACES), memory=memory)

"""The whole table over real sockets, UDP and TCP, received in batches and packet by packet. And a check that the table
is large enough.

netns-tests send the same queries to the running processes. These tests also cover all modes of pods' names, and a
server without a zone.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import dns.message
import pytest

from podwire_base.testing.ports import free_port
from podwire_dns.answertable import AnswerTable
from podwire_dns.server import Server
from podwire_dns.testing import builders, cases, edges, judge
from podwire_dns.testing.cases import Case
from podwire_dns.zone import ZoneData

WAYS = [(udp, batches) for udp in (True, False) for batches in (True, False)]


def serving(
    tmp_path: Path,
    zone: Callable[[AnswerTable | None], ZoneData] | None,
    work: Callable[[int], None],
    *,
    batches: bool = True,
) -> None:
    """Run `work(port)` beside a server with this zone; None: the server has no zone yet."""
    config = dataclasses.replace(
        builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port(), batches=batches
    )

    async def body() -> None:
        async with Server(config) as server:
            if zone is not None:
                server.take_zone(zone(server.memory()))
            await asyncio.to_thread(work, config.port)

    asyncio.run(body())


def exchange(port: int, messages: Iterable[bytes], *, udp: bool, patience: float = 5.0) -> list[bytes]:
    """The answer to each message; b"" if none arrives within `patience` seconds."""
    found = []
    for message in messages:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM) as sock:
            sock.settimeout(patience)
            sock.connect(("127.0.0.1", port))
            try:
                if udp:
                    sock.send(message)
                    found.append(sock.recv(65535))
                else:
                    sock.sendall(len(message).to_bytes(2) + message)
                    with sock.makefile("rb") as stream:
                        found.append(stream.read(int.from_bytes(stream.read(2))))
            except TimeoutError:
                found.append(b"")
    return found


def ask(port: int, table: list[Case], *, udp: bool) -> None:
    queries = [dns.message.make_query(case.name, case.rtype, use_edns=0, payload=1232).to_wire() for case in table]
    for case, answer in zip(table, exchange(port, queries, udp=udp), strict=True):
        try:
            judge.check(case, answer)
        except AssertionError as err:
            raise AssertionError(f"{case} over {'UDP' if udp else 'TCP'}: {err}") from err


def pods(mode: str, memory: AnswerTable | None) -> ZoneData:
    """The table's cluster with pods' names disabled or verified."""
    config = dataclasses.replace(builders.CONFIG, pods=mode != "disabled")
    source = builders.builder(cases.SERVICES, cases.SLICES, cases.NAMESPACES, config)
    for pod in edges.RUNNING if mode == "verified" else ():
        source.pod(pod)
    return dataclasses.replace(builders.fed(source, memory=memory), pods=False)


@pytest.mark.parametrize(("udp", "batches"), WAYS)
def test_every_case(tmp_path: Path, udp: bool, batches: bool) -> None:
    serving(tmp_path, builders.conformance_zone, lambda port: ask(port, cases.CASES, udp=udp), batches=batches)


@pytest.mark.parametrize("udp", [True, False], ids=["udp", "tcp"])
@pytest.mark.parametrize(("mode", "table"), [("verified", edges.PODS_VERIFIED), ("disabled", edges.PODS_DISABLED)])
def test_names_of_pods(tmp_path: Path, mode: str, table: list[Case], udp: bool) -> None:
    serving(tmp_path, partial(pods, mode), lambda port: ask(port, table, udp=udp))


@pytest.mark.parametrize(("udp", "batches"), WAYS)
def test_edges(tmp_path: Path, udp: bool, batches: bool) -> None:
    def work(port: int) -> None:
        for edge in edges.EDGES:
            (answer,) = exchange(port, [edge.message], udp=udp, patience=5.0 if edge.rcode else 0.3)
            if not edge.rcode:
                assert answer == b"", edge.name
                continue
            rcode, (records, _, _) = judge.read(answer)
            assert (rcode, len(records)) == (edge.rcode, edge.answers), edge.name
            assert answer[:2] == edge.message[:2], edge.name

    serving(tmp_path, builders.conformance_zone, work, batches=batches)


@pytest.mark.parametrize("udp", [True, False], ids=["udp", "tcp"])
def test_before_the_first_zone_it_is_servfail(tmp_path: Path, udp: bool) -> None:
    def work(port: int) -> None:
        queries = [dns.message.make_query(name, rtype).to_wire() for name, rtype in edges.NOT_SYNCED]
        for query, answer in zip(edges.NOT_SYNCED, exchange(port, queries, udp=udp), strict=True):
            assert judge.read(answer) == ("SERVFAIL", [set(), set(), set()]), query

    serving(tmp_path, None, work)


def test_the_table_is_as_large_as_coredns_own() -> None:
    counts = {
        "common": len({str(case) for case in (*cases.CLUSTER_IP, *cases.HEADLESS)}),
        "edge": len({edge.name for edge in edges.EDGES}),
        "pods": len({str(case) for case in cases.PODS}) + len(edges.PODS_VERIFIED) + len(edges.PODS_DISABLED),
        "reverse": len({str(case) for case in cases.REVERSE}),
        "apex": len({str(case) for case in cases.APEX}),
        "external": len({str(case) for case in cases.EXTERNAL}),
        "not synced": len(set(edges.NOT_SYNCED)),
    }
    least = {"common": 26, "edge": 12, "pods": 14, "reverse": 11, "apex": 6, "external": 7, "not synced": 8}
    assert {kind: count for kind, count in counts.items() if count < least[kind]} == {}
    assert set(cases.CASES) >= {
        *cases.CLUSTER_IP,
        *cases.HEADLESS,
        *cases.PODS,
        *cases.REVERSE,
        *cases.APEX,
        *cases.EXTERNAL,
    }

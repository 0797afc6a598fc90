"""The compiled packet loop gives the same answers as the plain one, for valid queries and corrupted ones."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import gc
import random
import select
import socket
import struct
import weakref
from pathlib import Path

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import pytest

from podwire_base.patience import patient
from podwire_base.testing.ports import free_port
from podwire_dns import native
from podwire_dns.answertable import AnswerTable, TableAnswers, TableNames
from podwire_dns.cache import Upstreamed
from podwire_dns.names import to_wire
from podwire_dns.server import Server
from podwire_dns.testing import builders, cases
from podwire_dns.testing.fuzz import mutate, seeds

MANY = 3000


def packets() -> list[bytes]:
    rand, start = random.Random(5), seeds()
    extra = [data[:12] + data[12:].swapcase() for data in start]
    # truncated within the question: the remaining bytes stand for something in the zone
    extra += [
        start[0][:12] + to_wire(name) + rest
        for name in ("cluster.local.", cases.SVC, f"svc1.{cases.SVC}")
        for rest in (b"", b"\0", b"\1", b"\0\1", b"\0\0\0\0")
    ]
    return [*start, *extra, *(mutate(rand.choice(start), rand) for _ in range(MANY))]


def need_module() -> None:
    library = native.library()
    if library.left_out:
        pytest.skip(f"the packet module is not built here: {library.problem}")
    assert library.module is not None, library.problem


@pytest.mark.parametrize("way", ["table", "batches", "packets"])
def test_the_loop_answers_as_the_answerer_does(tmp_path: Path, way: str) -> None:
    """From the table alone if it has the answer; by the interpreter, in batches; and packet by packet."""
    batches = way != "packets"
    if batches:
        need_module()
    config = dataclasses.replace(
        builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port(), batches=batches
    )
    judge = builders.answerer(builders.conformance_zone())

    async def serve() -> None:
        async with Server(config) as server:
            server.take_zone(builders.conformance_zone(server.memory() if way == "table" else None))
            await asyncio.to_thread(ask_all)

    def same(first: bytes, second: bytes) -> bool:
        """The answers are equal, except that addresses may start at any of them."""
        return first == second or (first[:12] == second[:12] and sorted(first) == sorted(second))

    def ask_all() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", config.port))
            sock.settimeout(patient(5))
            end = bytes.fromhex("ffff0000000000000000000000")  # a malformed message that always gets FORMERR
            sent = [data for data in packets() if data[:2] != end[:2]]  # the id identifies its answer
            for at in range(0, len(sent), 40):
                expected: list[bytes] = []
                for data in sent[at : at + 40]:
                    answer = judge.handle(data, udp=True)
                    assert answer is None or isinstance(answer, bytes)
                    expected += [answer] if answer is not None else []
                    if data:
                        sock.send(data)
                sock.send(end)
                got = []
                while (data := sock.recv(65535))[:2] != b"\xff\xff" or len(data) != 12:
                    got.append(data)
                # Fast answers may overtake slow ones of the same batch.
                got += [sock.recv(65535) for _ in range(len(expected) - len(got))]
                for answer in expected:
                    mine = next((data for data in got if same(answer, data)), None)
                    assert mine is not None, f"no answer {answer.hex()} among {[data.hex() for data in got]}"
                    got.remove(mine)
                assert not got

    asyncio.run(serve())


@pytest.mark.parametrize("batches", [True, False])
def test_answers_of_the_forward_cache(tmp_path: Path, batches: bool) -> None:
    """They keep their records' order, are not authoritative, count their TTLs down, and are cut to the client's
    size."""
    if batches:
        need_module()
    config = dataclasses.replace(
        builders.CONFIG,
        run_dir=tmp_path,
        listen=("127.0.0.1",),
        port=free_port(),
        batches=batches,
        upstreams=("192.0.2.1",),
    )
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc6\x33\x64"

    def value(count: int) -> bytes:
        return count.to_bytes(2) + b"\0\0\0\0" + b"".join(record + bytes((number,)) for number in range(count))

    async def ask(name: str, *, dnssec: bool = False) -> dns.message.Message:
        query = dns.message.make_query(name, "A", want_dnssec=dnssec)
        return await dns.asyncquery.udp(query, "127.0.0.1", port=config.port, timeout=patient(5))

    async def serve() -> None:
        async with Server(config) as server:
            server.answerer.data, now = builders.conformance_zone(), [1000.0]
            server.answerer.clock = lambda: now[0]
            for name, count, dnssec in (
                ("few.example.", 3, False),
                ("many.example.", 60, False),
                ("few.example.", 2, True),
            ):
                key = to_wire(name) + b"\0\1\0\1"
                server.answerer.cache.put((key, dnssec, False), Upstreamed(0, value(count)), now[0])
            now[0] += 10
            for _ in range(5):
                answer = await ask("few.example.")
                assert [r.address for r in answer.answer[0]] == [f"198.51.100.{i}" for i in range(3)]
            assert answer.answer[0].ttl == 50
            assert answer.flags & (dns.flags.AA | dns.flags.RA | dns.flags.RD) == dns.flags.RA | dns.flags.RD
            assert (await ask("many.example.")).flags & dns.flags.TC
            assert len((await ask("few.example.", dnssec=True)).answer[0]) == 2
            assert server.answerer.counts["hit"] == (5 if batches else 0)

    asyncio.run(serve())


def test_hits_do_not_wait_for_the_interpreter(tmp_path: Path) -> None:
    """While one thread holds the interpreter, the table's answers are still given: records, NODATA and NXDOMAIN."""
    need_module()
    config = dataclasses.replace(builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port())
    keeping = ctypes.PyDLL(None)  # its functions hold the interpreter while they wait

    def answered(name: str, rtype: str) -> dns.message.Message:
        query = dns.message.make_query(name, rtype)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", config.port))
            sock.setblocking(False)
            sock.send(query.to_wire())
            waiting = struct.pack("=ihh", sock.fileno(), select.POLLIN, 0)
            assert keeping.poll(waiting, 1, 10_000) == 1, "no answer while the interpreter was kept"
            return dns.message.from_wire(sock.recv(65535))

    async def serve() -> None:
        async with Server(config) as server:
            server.take_zone(builders.conformance_zone(server.memory()))
            assert answered(f"svc1.{cases.SVC}", "A").answer
            assert answered(f"_http._tcp.svc1.{cases.SVC}", "SRV").additional
            nothing, absent = answered(f"svc1.{cases.SVC}", "AAAA"), answered(f"nowhere.{cases.SVC}", "A")
            assert (nothing.rcode(), absent.rcode()) == (dns.rcode.NOERROR, dns.rcode.NXDOMAIN)
            assert [bool(m.authority) and not m.answer for m in (nothing, absent)] == [True, True]

    asyncio.run(serve())


def test_a_zone_that_was_replaced_is_freed_at_once(tmp_path: Path) -> None:
    """A feeder that restarts sends the zone again: tens of megabytes, which must be freed without a garbage
    collection.
    """
    need_module()
    config = dataclasses.replace(builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port())

    async def serve() -> None:
        async with Server(config) as server:
            gc.disable()
            try:
                for _ in range(3):
                    memory = server.memory()
                    server.take_zone(builders.conformance_zone(memory))
                    known = weakref.ref(memory)
                    del memory
                    assert known() is not None
                    server.take_zone(builders.conformance_zone(server.memory()))
                    assert known() is None
            finally:
                gc.enable()

    asyncio.run(serve())


def test_a_table_grows_and_shrinks_like_a_dict() -> None:
    need_module()
    table, mirror, rand = AnswerTable(native.load()), dict[bytes, bytes](), random.Random(11)
    answers, names = TableAnswers(table), TableNames(table)
    keys = [rand.randbytes(rand.randint(1, 259)) for _ in range(5000)]
    for _ in range(6):
        fresh = {key: rand.randbytes(rand.choice((0, 6, 200, 1024, 1025, 70_000))) for key in rand.sample(keys, 1000)}
        answers.update(fresh)
        mirror.update(fresh)
        for key in rand.sample(keys, 900):
            assert answers.pop(key, None) == mirror.pop(key, None)
        names.update(keys[:100])  # the same bytes as keys of answers
        names.difference_update(keys[50:200])
        assert len(answers) == len(mirror)
        assert [answers.get(key) for key in keys] == [mirror.get(key) for key in keys]
        assert [key in answers for key in keys] == [key in mirror for key in keys]
        assert [key in names for key in keys[:250]] == [index < 50 for index in range(250)]


def test_cases_are_asked() -> None:
    assert len(packets()) > MANY + len(cases.CASES) // 3

"""The compiled packet loop answers what the plain one answers, for good queries and for spoiled ones."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import socket
from pathlib import Path

import pytest

from podwire_dns import native
from podwire_dns.native import build
from podwire_dns.server import Server
from podwire_dns.testing import builders, cases
from podwire_dns.testing.fuzz import mutate, seeds

MANY = 3000


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def packets() -> list[bytes]:
    rand, start = random.Random(5), seeds()
    extra = [data[:12] + data[12:].swapcase() for data in start]
    return [*start, *extra, *(mutate(rand.choice(start), rand) for _ in range(MANY))]


@pytest.mark.parametrize("batches", [True, False])
def test_the_loop_answers_as_the_answerer_does(tmp_path: Path, batches: bool) -> None:
    if batches and native.load() is None:
        if why := build.missing():
            pytest.skip(f"the packet module cannot be built here: {why}")
        pytest.fail("the packet module was not built at install time: run make clean install")
    config = dataclasses.replace(builders.CONFIG, run_dir=tmp_path, listen=("127.0.0.1",), port=free_port(), batches=batches)
    judge = builders.answerer(builders.conformance_zone())

    async def serve() -> None:
        async with Server(config) as server:
            server.answerer.data = builders.conformance_zone()
            await asyncio.to_thread(ask_all)

    def same(first: bytes, second: bytes) -> bool:
        """Addresses may begin at any of them; nothing else may differ."""
        return first == second or (first[:12] == second[:12] and sorted(first) == sorted(second))

    def ask_all() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(("127.0.0.1", config.port))
            sock.settimeout(5)
            end = bytes.fromhex("ffff0000000000000000000000")  # a malformed message that always gets FORMERR
            for at in range(0, len(sent := packets()), 40):
                expected: list[bytes] = []
                for data in sent[at:at + 40]:
                    answer = judge.handle(data, udp=True)
                    assert answer is None or isinstance(answer, bytes)
                    expected += [answer] if answer is not None else []
                    if data:
                        sock.send(data)
                sock.send(end)
                got = []
                while (data := sock.recv(65535))[:2] != b"\xff\xff" or len(data) != 12:
                    got.append(data)
                # Slow answers may be overtaken by fast ones of the same batch.
                got += [sock.recv(65535) for _ in range(len(expected) - len(got))]
                for answer in expected:
                    mine = next((data for data in got if same(answer, data)), None)
                    assert mine is not None, f"no answer {answer.hex()} among {[data.hex() for data in got]}"
                    got.remove(mine)
                assert not got

    asyncio.run(serve())


def test_cases_are_asked() -> None:
    assert len(packets()) > MANY + len(cases.CASES) // 3

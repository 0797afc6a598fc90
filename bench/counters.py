"""Counts the work of single operations: system calls, netlink messages, Python instructions. The counts do not depend
on the machine's load, so a test can compare them with budgets (bench/budgets.toml).

    counters.py            all acts as JSON
    counters.py ACT DIR    one act, between two marks that strace sees; DIR is scratch space

The operations (ACT): CNI ADD and DEL in the agent, replacing one endpoint among 1,000 Services, one DNS answer,
creating one object, delivering one event to one of 200 watchers, one object of a list of 10,000. The program needs root
and strace. "bytecodes" are the executed Python instructions; for CNI, only those of the thread that serves the call,
from the call's arrival to the answer. "netlink messages" are messages sent to the kernel. "map elements" are elements
of sets and maps written or deleted. "verdict elements" are elements of verdict maps; for each commit that contains such
elements, the kernel checks the whole map again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from dnslib import DNSRecord
from ending import undone_by_signals

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "netns-tests"))
BEGIN, END = "/podwire-count-begin", "/podwire-count-end"
STRACE = ("strace", "-f", "-v", "-s", "65536", "-o")
SENT = re.compile(r"\b(sendto|sendmsg|sendmmsg)\(")
MESSAGE = re.compile(r"nlmsg_type=(?!NFNL_MSG_BATCH)")
SYNC = re.compile(r"\b(fsync|fdatasync)\(")
FUTEX = re.compile(r"\bfutex\(")
Counts = dict[str, int]


def budgets(version: tuple[int, int]) -> dict[str, Counts]:
    """Returns operation -> (name of a count -> budget) for this minor version of Python. A count without a budget for
    this version is left out.
    """
    minor = ".".join(str(number) for number in version)
    acts = tomllib.loads((HERE / "budgets.toml").read_text())
    chosen = {
        act: {what: most.get(minor) if isinstance(most, dict) else most for what, most in budget.items()}
        for act, budget in acts.items()
    }
    return {act: {what: most for what, most in budget.items() if most is not None} for act, budget in chosen.items()}


def mark(path: str) -> None:
    os.access(path, os.F_OK)


# From Python 3.12 on, sys.settrace misses the instructions that a function executes before the interpreter instruments
# the function. Python 3.13 counted half of the instructions.
MONITORING: Any = getattr(sys, "monitoring", None)
TOOL = 4  # a tool id that sys.monitoring does not reserve


def monitor(each: Callable[[CodeType, int], None]) -> None:
    """Call `each` for every Python instruction of every thread, except the instructions of `each` itself."""
    MONITORING.use_tool_id(TOOL, "podwire")
    MONITORING.register_callback(TOOL, MONITORING.events.INSTRUCTION, each)
    MONITORING.set_events(TOOL, MONITORING.events.INSTRUCTION)


class Bytecodes:
    """A context manager that counts the Python instructions of this thread, except those of functions that already run
    when the context is entered.
    """

    def __init__(self) -> None:
        self.count, self.thread = 0, threading.get_ident()

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.count += event == "opcode"
        return self._trace

    def _instruction(self, code: CodeType, _: int) -> None:
        self.count += code not in self.outer and threading.get_ident() == self.thread

    def __enter__(self) -> Bytecodes:
        if MONITORING is None:
            sys.settrace(self._trace)
            return self
        self.outer = {Bytecodes.__exit__.__code__}
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            self.outer.add(frame.f_code)
            frame = frame.f_back
        monitor(self._instruction)
        return self

    def __exit__(self, *_: object) -> None:
        if MONITORING is None:
            sys.settrace(None)
            return
        MONITORING.set_events(TOOL, 0)
        MONITORING.free_tool_id(TOOL)


class Calls:
    """Counts the Python instructions of each call that the wiring agent's listener serves, and appends each count as a
    line to the file `path`. Call `start` before the listener starts its threads.
    """

    def __init__(self, path: str) -> None:
        from podwire_cni.listener import Listener

        self.path, self.here, self.begin = path, threading.local(), Listener._serve.__code__

    def start(self) -> None:
        if MONITORING is None:
            threading.settrace(self._trace)
            return
        events = MONITORING.events
        monitor(self._instruction)
        MONITORING.register_callback(TOOL, events.PY_START, lambda *_: self._began())
        MONITORING.register_callback(TOOL, events.PY_RETURN, lambda *_: self._returned())
        MONITORING.set_local_events(TOOL, self.begin, events.PY_START | events.PY_RETURN)

    def _began(self) -> None:
        self.here.serving, self.here.count = True, 0

    def _returned(self) -> None:
        self.here.serving = False
        with open(self.path, "a") as file:
            file.write(f"{self.here.count}\n")

    def _instruction(self, _: CodeType, __: int) -> None:
        if getattr(self.here, "serving", False):
            self.here.count += 1

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is self.begin and event == "call":
            self.here.call = frame
            self._began()
        elif getattr(self.here, "call", None) is None:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.here.count += event == "opcode"
        if event == "return" and frame is self.here.call:
            self.here.call = None
            self._returned()
        return self._trace


# ---- acts, each in a process of its own under strace; its output is added to strace's counts


def endpoint_change(_: Path) -> Counts:
    from bench_proxy import Cluster

    cluster = Cluster(None, 1_000, 10)
    cluster.load()
    cluster.proxier.sweep()

    def change(number: int, moved: int) -> Any:
        cluster.tracker.slice(f"default/s{number}-1", cluster.slice(number, moved))
        changed = cluster.tracker.flush()
        cluster.proxier.sync(cluster.tracker.dataplane, changed)
        cluster.proxier.sweep()

    change(1, 100_000)
    mark(BEGIN)
    change(2, 200_000)
    mark(END)
    with Bytecodes() as counted:
        change(3, 300_000)
    return {"bytecodes": counted.count, **_elements(cluster)}


def _elements(cluster: Any) -> Counts:
    """Counts the elements of another endpoint change. The change is planned but not sent to the kernel."""
    from podwire_base.kernel.nft.fake import FakeConnection
    from podwire_base.kernel.nft.ruleset import Elements
    from podwire_proxy.nftables.layout import Layout
    from podwire_proxy.nftables.plan import Planner

    planner, kernel = Planner(Layout("ip"), cluster.info), FakeConnection()
    for tx in (planner.full(cluster.tracker.dataplane, None), planner.sweep()):
        kernel.commit(tx)
        planner.committed(tx)
    cluster.tracker.slice("default/s4-1", cluster.slice(4, 400_000))
    tx = planner.change(cluster.tracker.dataplane, cluster.tracker.flush())
    held = [op.thing for op in tx if isinstance(op.thing, Elements)]
    maps = Layout("ip").sets()
    return {
        "map elements": sum(len(e.items) for e in held),
        "verdict elements": sum(len(e.items) for e in held if maps[e.set.name].data == ("verdict",)),
    }


def dns_answer(folder: Path) -> Counts:
    from podwire_dns.server import Server
    from podwire_dns.testing import builders, cases

    config = dataclasses.replace(builders.CONFIG, run_dir=folder, listen=("127.0.0.1",), port=5353)
    query = bytes(DNSRecord.question(f"svc1.{cases.SVC}").pack())
    answerer = builders.answerer(builders.conformance_zone())

    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.1", 5353))
            client.settimeout(5)
            for number in range(101):  # query 0 is a warm-up and is not counted
                if number == 1:
                    mark(BEGIN)
                client.send(query)
                assert DNSRecord.parse(client.recv(4096)).rr
            mark(END)

    async def serve() -> None:
        async with Server(config) as server:
            server.answerer.data = builders.conformance_zone()
            await asyncio.to_thread(ask)

    asyncio.run(serve())
    with Bytecodes() as counted:
        answer = answerer.handle(query, udp=True)
    assert isinstance(answer, bytes) and DNSRecord.parse(answer).rr
    return {"bytecodes": counted.count, "per": 100, "marked by a client": 1}


def object_create(folder: Path) -> Counts:
    from podwire_base.kube.registry import of
    from podwire_controlplane.allocators import ServiceAllocator
    from podwire_controlplane.server.objects import Objects
    from podwire_controlplane.server.writes import Scope, WriteOptions
    from podwire_controlplane.store.sqlite import SqliteStore

    async def work() -> Counts:
        store = SqliteStore(folder / "store.db")
        objects = Objects(store, ServiceAllocator(ipaddress.ip_network("10.96.0.0/16")))
        await objects.start()
        await objects.create(Scope(of("Namespace"), "", "default"), {"metadata": {"name": "default"}}, WriteOptions())

        async def create(name: str) -> None:
            await objects.create(
                Scope(of("Service"), "default", name),
                {"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}},
                WriteOptions(),
            )

        await create("first")
        mark(BEGIN)
        await create("second")
        mark(END)
        with Bytecodes() as counted:
            await create("third")
        await store.close()
        return {"bytecodes": counted.count}

    return asyncio.run(work())


async def _watched(folder: Path, watchers: int) -> Counts:
    """Counts the delivery of one event to each of several clients, which have a socket each."""
    from podwire_base.kube.registry import of
    from podwire_controlplane.server.answers import View
    from podwire_controlplane.server.selection import selection
    from podwire_controlplane.server.watch import Encoder, Hub, Watcher, WatchRequest
    from podwire_controlplane.store.memory import MemoryStore

    store, resource, loop = MemoryStore(), of("ConfigMap"), asyncio.get_running_loop()
    hub, encoded = Hub(store), 0
    request = WatchRequest(
        resource.prefix("default"), selection(resource, "", ""), View(resource), 1, False, False, 60.0, "one"
    )
    plain = Encoder.event

    def event(self: Encoder, kind: str, raw: bytes, **more: Any) -> bytes:
        nonlocal encoded
        encoded += 1
        return plain(self, kind, raw, **more)

    ends, links = [], []
    with contextlib.ExitStack() as stack:
        for _ in range(watchers):
            near, far = socket.socketpair()
            ends.append(far)
            link, _protocol = await loop.create_connection(asyncio.Protocol, sock=near)
            links.append(link)
            watcher = Watcher(link, chunked=True)
            watcher.live = True
            stack.enter_context(hub._watching(request, watcher))

        async def change(text: str) -> None:
            key = resource.key("default", "a")
            item = await store.get(key)
            value = b'{"metadata":{"name":"a"},"data":{"a":"%s"}}' % text.encode()
            await store.put(key, value, item.revision if item else 0)

        await change("0")
        Encoder.event = event  # type: ignore[method-assign]  # counted, not changed
        mark(BEGIN)
        await change("1")
        mark(END)
        assert encoded == 1, "an event is encoded once for all equal views"
        with Bytecodes() as counted:
            await change("2")
        assert all(len(end.recv(65536).splitlines()) >= 9 for end in ends)  # three events, each a chunk of three lines
    for end, link in zip(ends, links, strict=True):
        link.close()
        end.close()
    hub.close()
    return {"bytecodes": counted.count // watchers, "per": watchers}


def watch_delivery(folder: Path) -> Counts:
    return asyncio.run(_watched(folder, 200))


def listed_object(folder: Path) -> Counts:
    """Counts one object of a list of 10,000 by a label that a hundred of them have, read from SQLite."""
    from podwire_base.kube.registry import of
    from podwire_controlplane.server import lists
    from podwire_controlplane.server.query import ListOptions
    from podwire_controlplane.server.selection import selection
    from podwire_controlplane.store.sqlite import SqliteStore

    resource, objects = of("ConfigMap"), 10_000

    async def work() -> Counts:
        store = SqliteStore(folder / "store.db")
        for at in range(0, objects, 1000):  # writes of one moment share a commit
            await asyncio.gather(
                *(
                    store.put(
                        resource.key("default", f"m{n}"),
                        b'{"metadata":{"name":"m%d","labels":{"group":"g%d"}},"data":{}}' % (n, n % 100),
                        0,
                    )
                    for n in range(at, at + 1000)
                )
            )
        options = ListOptions(labels="group=g7")
        chosen = selection(resource, options.labels, "")

        async def read() -> None:
            page = await lists.read(store, resource, "default", options, chosen)
            assert len(page.items) == objects // 100

        await read()
        mark(BEGIN)
        await read()
        mark(END)
        with Bytecodes() as counted:
            await read()
        await store.close()
        return {"bytecodes": counted.count // objects}

    return asyncio.run(work())


ACTS: dict[str, Callable[[Path], Counts]] = {
    "endpoint change": endpoint_change,
    "DNS answer": dns_answer,
    "object create": object_create,
    "watch delivery": watch_delivery,
    "listed object": listed_object,
}


# ---- counting


def count(lines: list[str], own: Counts) -> Counts:
    """Returns the counts of one operation. lines: the system calls that strace recorded. own: the counts that the
    operation made itself; own["per"] is the number of repetitions, and the counts of strace are divided by it and
    rounded: what a role does once in some seconds may fall between the marks, and is no part of the operation.
    """
    times = own.pop("per", 1)
    seen = {
        "syscalls": len(lines),
        "netlink messages": sum(len(MESSAGE.findall(x)) for x in lines if SENT.search(x)),
        "syncs": sum(1 for line in lines if SYNC.search(line)),
    }
    return {**{name: (2 * number + times) // (2 * times) for name, number in seen.items()}, **own}


def between(trace: str, client: bool) -> list[str]:
    """Returns the lines of the system calls between the two marks, each call once (strace prints an interrupted call
    twice). client: a thread of the traced process is the client and sets the marks. Then the calls of that thread do
    not count. The futex calls never count: with them threads wait for a lock, as often as the scheduler has them wait.
    """
    lines = trace.splitlines()
    at = [
        next(i for i, line in enumerate(lines) if f'"{path}"' in line and "access" in line.split("(")[0])
        for path in (BEGIN, END)
    ]
    thread = lines[at[0]].split()[0] if client else ""
    return [
        line
        for line in calls(lines[at[0] + 1 : at[1]])
        if not FUTEX.search(line) and not (client and line.split()[0] == thread)
    ]


def calls(lines: list[str]) -> list[str]:
    return [
        line for line in lines if "(" in line and "resumed>" not in line and "+++" not in line and "---" not in line
    ]


def act(name: str) -> Counts:
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        done = subprocess.run(
            [*STRACE, str(trace), "unshare", "-n", sys.executable, str(HERE / "counters.py"), name, folder],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
        own = json.loads(done.stdout.splitlines()[-1])
        return count(between(trace.read_text(errors="replace"), bool(own.pop("marked by a client", 0))), own)


def cni() -> dict[str, Counts]:
    """Returns the counts of ADD and DEL in a running agent of the lab."""
    from lab.cninode import CniNode, put_node
    from lab.fakeapi import FakeApi
    from lab.netns import Lab

    with tempfile.TemporaryDirectory() as folder, Lab() as lab:
        ns = lab.netns("n1")
        ns.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0"])
        ns.run(["ip", "address", "add", "192.0.2.1/24", "dev", "eth0"])
        with FakeApi(ns, "192.0.2.1") as api:
            put_node(api, "n1", "10.244.1.0/24", "192.0.2.1")
            node = CniNode(ns, Path(folder), "n1", api)
            # The periodic repair of the agent (every ten seconds) must not run during a measurement, nor the thread
            # that names the pods to the Service proxy after the answer.
            still = "from podwire_cni import following, publishing; following.RESYNC_SECONDS = publishing.GATHER = 3600"
            node.code = f"{still}; {node.code}"
            try:
                node.start()
                out = dict[str, Counts]()
                for number in range(4):  # the first ADD and DEL are a warm-up
                    pod = lab.netns(f"pod{number}")
                    for verb in ("ADD", "DEL"):
                        assert node.agent is not None
                        with Tracing(node.agent.pid, Path(folder) / f"{verb}{number}") as seen:
                            answer = node.cni(verb, f"c{number}", pod)
                            assert answer.status == 0, answer.out
                        if number:  # the minimum, because the number of lock waits varies
                            found = count(calls(seen.lines), {})
                            out[f"CNI {verb}"] = min(
                                found, out.get(f"CNI {verb}", found), key=lambda one: one["syscalls"]
                            )
                node.stop()
                for verb, more in _in_python(node, lab).items():
                    out[f"CNI {verb}"] |= more
            finally:
                node.close()
    return out


def _in_python(node: Any, lab: Any) -> dict[str, Counts]:
    """Returns the Python instructions of each verb, and the elements that each verb changes in the agent's nft tables.
    A second agent makes these counts: it counts its own instructions and does not run under strace.
    """
    from lab.patience import wait_until

    path = node.run_dir / "bytecodes"
    node.code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import counters; "
        f"counters.Calls({str(path)!r}).start(); {node.code}"
    )
    node.start()
    held, done, least = node.table_elements(), 0, dict[str, Counts]()
    for number in range(5):
        pod = lab.netns(f"counted{number}")
        for verb in ("ADD", "DEL"):
            answer = node.cni(verb, f"p{number}", pod)
            assert answer.status == 0, answer.out
            done += 1
            wait_until(lambda: path.exists() and len(path.read_text().splitlines()) == done, "the call is written down")  # noqa: B023
            before, held = held, node.table_elements()
            found = {"bytecodes": int(path.read_text().splitlines()[-1]), "map elements": abs(held - before)}
            # Take the minimum, because the number of times that a call polls the kernel varies from run to run.
            least[verb] = min(found, least.get(verb, found), key=lambda one: one["bytecodes"])
    return least


class Tracing:
    """A context manager that runs strace on all threads of a running process. `lines` has the output after the exit."""

    def __init__(self, pid: int, path: Path) -> None:
        self.path, self.lines = path, list[str]()
        # nsenter replaces itself by the program (exec), so `pid` is the process id of the agent.
        self.process = subprocess.Popen([*STRACE, str(path), "-p", str(pid)], stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Tracing:
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if "attached" not in line:
            raise RuntimeError(f"strace: {line}")
        time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)  # a DEL deletes the veth in the background
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=20)
        self.lines = self.path.read_text(errors="replace").splitlines()


def measure() -> dict[str, Counts]:
    return {**cni(), **{name: act(name) for name in ACTS}}


if __name__ == "__main__":
    if len(sys.argv) == 3:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        print(json.dumps(ACTS[sys.argv[1]](Path(sys.argv[2]))))
    else:
        with undone_by_signals():
            print(json.dumps(measure(), indent=1))

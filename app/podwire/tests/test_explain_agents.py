"""A node of a cluster elsewhere is asked through its agent's pod, with the reader's own rights."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from podwire.explain import agents, onnode
from podwire.explain.answer import Answer
from podwire.explain.ask import explain
from podwire.explain.lookup import Here, Question
from podwire.explain.names import parse, source, target
from podwire.explain.packets import Asked
from podwire.explain.reach import Looked
from podwire.explain.sending import prove
from podwire.explain.steps import Unreachable
from podwire.explain.walk import walk
from podwire_base.kube.client.config import ClientConfig

from .explain_cluster import catalogue
from .explain_world import Nodes, node


@dataclass
class Server:
    """An API server with the pods of agents, and the exec subresource. answer: what the command prints."""

    url: str = ""
    refuse: int = 0
    phase: str = "Running"
    garbage: bytes = b""
    failure: str = ""
    asked: list[Any] = field(default_factory=list)

    async def pods(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.query))
        pod = {"metadata": {"name": "podwire-x"}, "spec": {"nodeName": "node2"}, "status": {"phase": self.phase}}
        return web.json_response({"items": [pod]})

    async def exec(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.query.getall("command"), request.headers.get("Authorization")))
        if self.refuse:
            return web.Response(status=self.refuse)
        ws = web.WebSocketResponse(protocols=("v5.channel.k8s.io",))
        await ws.prepare(request)
        message = await ws.receive()
        assert message.type == WSMsgType.BINARY
        assert message.data[:1] == b"\0"
        if self.failure:
            await ws.send_bytes(b"\2" + self.failure.encode())
            await ws.send_bytes(b"\3" + json.dumps({"status": "Failure", "message": "exit code 1"}).encode())
        else:
            out = self.garbage or self.walk(json.loads(message.data[1:]))
            for at in range(0, len(out), 1000):
                await ws.send_bytes(b"\1" + out[at : at + 1000])
            await ws.send_bytes(b"\3" + json.dumps({"status": "Success"}).encode())
        await ws.close()
        return ws

    def walk(self, request: Any) -> bytes:
        if "send" in request:
            self.asked.append(request["send"])
            told: Any = [
                ["podwire-trace", "postrouting-end", "policy", 0, "accept", 1, "10.244.2.3", "10.96.0.20", 1, 2]
            ]
            sent: Any = {"verdict": "drop", "words": "no answer within 1.5 s", "told": told, "links": {"2": "eth0"}}
            return json.dumps({"version": request["version"], "sent": sent}).encode()
        facts = node("node2", catalogue())
        walks = [walk(facts, onnode.packet_of(one)).to_json() for one in request["asks"]]
        told = {"addresses": list(facts.addresses), "podCIDRs": [], "serviceCIDRs": [], "rules": "x", "roles": {}}
        return json.dumps({"version": request["version"], "walks": walks, "node": told}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    made, ready, loop = Server(), threading.Event(), asyncio.new_event_loop()
    runners = list[web.AppRunner]()

    async def start() -> None:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/kube-system/pods", made.pods)
        app.router.add_get("/api/v1/namespaces/kube-system/pods/{name}/exec", made.exec)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(start()), loop.run_forever()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield made
    finally:
        asyncio.run_coroutine_threadsafe(runners[0].cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


ASK = [Asked("10.244.1.9", "10.244.2.3", "TCP", 5432)]


def test_the_agent_of_another_node_answers_through_exec(server: Server) -> None:
    looked = agents.look(ClientConfig(server.url, token="admin"), "node2", ASK)
    assert [(way.ip, way.verdict) for way in looked.walks[0].ways] == [("10.244.2.3", "deliver")]
    listed, run = server.asked
    assert listed == {"labelSelector": "app.kubernetes.io/name=podwire", "fieldSelector": "spec.nodeName=node2"}
    assert run == (["podwire", "node-walk"], "Bearer admin")


def test_a_packet_of_a_pod_elsewhere_is_explained(server: Server) -> None:
    class Both:
        def look(self, name: str, asks: Any) -> Looked:
            if name == "node2":
                return agents.look(ClientConfig(server.url), name, asks)
            return Nodes({"node1": node("node1", catalogue())}).look(name, asks)

    objects = catalogue()
    sender = source("data/db-0", objects)
    said = explain(sender, target(parse("web.default:80"), objects, sender), objects, Both())
    assert (said.node, said.verdict, said.ends[0].node, said.doubts) == ("node2", "forward", "node1", [])


def test_send_from_a_node_elsewhere_goes_through_its_agent(server: Server) -> None:
    """The node sends, and what was sent does not meet the fate that was explained."""
    objects = catalogue()
    sender = source("data/db-0", objects)
    wanted = target(parse("web.default:80"), objects, sender)
    reach = Here(ClientConfig(server.url))
    said = Answer("data/db-0", "web", "TCP", "10.244.2.3", "10.96.0.20", 80, "node2", verdict="forward")
    prove(Question(sender, wanted, objects, reach), said)
    assert server.asked[-1] == ["10.244.2.3", "10.96.0.20", 80, "TCP"]
    assert (said.sent, said.agrees, said.last_seen) == (
        "no answer within 1.5 s", False, "the packet, on node2: left by eth0",
    )  # fmt: skip
    assert said.doubts == ["only node node2, which sent it, was followed"]
    server.garbage = b'{"version": 1}'
    with pytest.raises(Unreachable, match="another form"):
        prove(Question(sender, wanted, objects, reach), said)


@pytest.mark.parametrize("data", [["10.0.0.1"], "x", [1, 2, 3, 4, 5]])
def test_a_misshapen_order_to_send_is_refused(data: Any) -> None:
    with pytest.raises(onnode.Misshapen, match=r"is not .source, destination, port, protocol."):
        onnode.answer(onnode.Place(), {"version": 1, "send": data})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"refuse": 403}, "you may not create pods/exec in kube-system (HTTP 403)"),
        ({"refuse": 404}, "this API server has no exec for podwire-x"),
        ({"phase": "Pending"}, "node2 has podwire-x, which does not run"),
        ({"garbage": b"exec format error"}, "does not answer: b'exec format error'"),
        ({"garbage": b"[]"}, "answers b'[]'"),
        ({"garbage": b'{"version": 99, "walks": [], "node": {}}'}, "answers version 99"),
        ({"garbage": b'{"version": 1, "walks": [{}], "node": {}}'}, "use one version of podwire"),
        ({"failure": "No such command 'node-walk'."}, "does not answer: 'exit code 1'"),
    ],
)
def test_an_agent_that_does_not_answer_is_told_with_the_reason(server: Server, change: Any, words: str) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(Unreachable) as told:
        agents.look(ClientConfig(server.url), "node2", ASK)
    assert words in str(told.value)


def test_no_api_server_is_no_traceback() -> None:
    with pytest.raises(Unreachable, match="node2"):
        agents.look(ClientConfig("http://127.0.0.1:9"), "node2", ASK)

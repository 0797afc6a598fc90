"""The log of a container, from the node agent through the API server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from podwire_base.testing.builders import node, pod
from podwire_controlplane.testing.servers import Server
from podwire_node.serving import Serving

PODS = "/api/v1/namespaces/default/pods"


class WithNode(Server):
    """A server whose machine has the node n1 too."""

    async def _start(self) -> None:
        assert self.nodes
        self._serving = asyncio.create_task(Serving(self.nodes / "n1").run())
        await super()._start()

    async def _leave(self) -> None:
        self._serving.cancel()
        await super()._leave()


def test_a_log_comes_from_the_node(tmp_path: Path) -> None:
    server = WithNode()
    server.nodes = tmp_path
    with server:
        server.ask("POST", "/api/v1/nodes", node("n1"))
        _, made = server.ask("POST", PODS, pod("far", nodeName="n1"))
        status, told = server.ask("GET", f"{PODS}/far/log")
        assert status == 400 and told["message"] == 'container "c" in pod "far" is waiting to start: ContainerCreating'
        log = tmp_path / "n1/pods" / made["metadata"]["uid"] / "containers/c/log"
        log.parent.mkdir(parents=True)
        log.write_text("2027-01-15T08:00:00Z stdout F one\n2027-01-15T08:00:01Z stderr F two\n")
        for query, text in (("", b"one\ntwo\n"), ("?tailLines=1&timestamps=true", b"2027-01-15T08:00:01Z two\n")):
            with server.open("GET", f"{PODS}/far/log{query}") as answer:
                assert (answer.status, answer.read()) == (200, text)
                assert answer.headers.get_content_type() == "text/plain"

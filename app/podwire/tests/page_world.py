"""A made-up cluster for the page: Services in namespaces, who calls them, and some that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from podwire.page import words
from podwire.page.view import Heard, Objects, Told, View

AT = 1_790_000_005.0
SPACES = ("infra", "monitoring", "pay", "shop", "web", "data", "auth", "search", "mail", "files")
NODES = ("node1", "node2", "node3")
HOSTILE = "<img src=x onerror=alert(1)>"
FAILS = (
    ("refused", "no-endpoints"),
    ("dropped", "policy"),
    ("unanswered", ""),
    ("reset", ""),
    ("refused", "closed-port"),
)


def end(kind: str, space: str, name: str, node: str = "") -> dict[str, str]:
    return {"kind": kind, "namespace": space, "name": name, "node": node}


def row(
    source: dict[str, str], target: dict[str, str], service: tuple[str, str, str] | None, **more: Any
) -> dict[str, Any]:
    named = dict(zip(("namespace", "name", "port"), service, strict=True)) if service else None
    sums = {
        "opened": 10,
        "ended": 10,
        "packets": 50,
        "bytes": 4000,
        "back_packets": 40,
        "back_bytes": 90000,
        "targets": 0,
    }
    return {
        "source": source, "target": target, "service": named, "protocol": "tcp", "verdict": "forwarded",
        "reason": "", "probe": False, "events": 20, **sums, **more,
    }  # fmt: skip


def pod(space: str, number: int) -> dict[str, str]:
    return end("pod", space, f"app{number}-7d4b9c6f5-x{number}", NODES[number % 3])


class World:
    """spaces: how many namespaces. each: Services of each. hostile: names that are markup."""

    def __init__(self, spaces: int, each: int, *, failing: int = 5, hostile: bool = False) -> None:
        self.view, self.at, self.told = View(), AT, list[Told]()
        self.objects = Objects()
        names = SPACES[:spaces]
        services, slices, pods = {}, {}, {}
        for space in names:
            for number in range(each):
                own = HOSTILE if hostile and number == 0 else f"app{number}"
                services[f"{space}/{own}"] = {"metadata": {"namespace": space, "name": own}}
                who = pod(space, number)
                owner = {"kind": "ReplicaSet", "name": f"app{number}-7d4b9c6f5", "controller": True}
                pods[f"{space}/{who['name']}"] = {
                    "metadata": {
                        "namespace": space, "name": who["name"], "labels": {"pod-template-hash": "7d4b9c6f5"},
                        "ownerReferences": [owner],
                    }
                }  # fmt: skip
                slices[f"{space}/{own}-1"] = {
                    "metadata": {"namespace": space, "labels": {"kubernetes.io/service-name": own}},
                    "endpoints": [
                        {
                            "nodeName": NODES[(number + i) % 3], "conditions": {"ready": i < 2},
                            "targetRef": {"name": f"{own}-{i}"},
                        }
                        for i in range(1 + number % 4)
                    ],
                }  # fmt: skip
        self.objects.services, self.objects.slices, self.objects.pods = services, slices, pods
        self.objects.nodes = {
            one: {
                "metadata": {"name": one},
                "status": {"conditions": [{"type": "Ready", "status": str(one != "node3")}]},
            }
            for one in NODES
        }
        self.heard = [Heard("node1", "", {"lost": 0}), Heard("node2", "", {"lost": 412}), Heard("node3", "no answer")]
        self.rows = []
        keys = [tuple(key.split("/", 1)) for key in services]
        for number, (space, own) in enumerate(keys):
            caller = pod(names[(number + 1) % len(names)], number % each)
            self.rows.append(
                (
                    NODES[number % 2],
                    row(caller, pod(space, number % each), (space, own, "80"), opened=3 + number * 7 % 40),
                )
            )
        for number in range(failing):
            verdict, reason = FAILS[number % len(FAILS)]
            space, own = keys[(number * 3 + 1) % len(keys)]
            caller = end("outside", "", "203.0.113.9") if number == 1 else pod(names[0], number % each)
            target = end("service", space, own)
            self.rows.append(
                ("node1", row(caller, target, (space, own, "80"), verdict=verdict, reason=reason, back_bytes=0))
            )

    def snapshot(self, at: float | None = None) -> dict[str, Any]:
        until = at or self.at
        slots = range(int(until // 10) - 5, int(until // 10) + 1)
        told = [Told(node, slot, one) for slot in slots for node, one in self.rows]
        return self.view.snapshot(told, self.heard, self.objects, until)


class Source:
    """Tells the page's server of a world. `step` is set for each further snapshot."""

    def __init__(self, world: World) -> None:
        self.world, self.asked = world, list[tuple[str, Any]]()
        self.queues: set[asyncio.Queue[dict[str, Any]]] = set()
        self.latest = world.snapshot()

    def tell(self) -> None:
        self.latest = self.world.snapshot()
        for queue in self.queues:
            queue.put_nowait(self.latest)

    async def snapshots(self) -> AsyncGenerator[dict[str, Any], None]:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.queues.add(queue)
        try:
            yield self.latest
            while True:
                yield await queue.get()
        finally:
            self.queues.discard(queue)

    async def ask(self, what: str, value: Any) -> dict[str, Any]:
        self.asked.append((what, value))
        if what == "at":
            return self.world.snapshot(self.world.at - value)
        if value not in self.world.view.samples:
            return {"unknown": True}
        sample = self.world.view.samples[value][1]
        return {
            "lines": [
                "packet       10.244.0.7 -> 10.96.14.3:80/tcp, on node node1",
                "source       10.244.0.7: a pod's address",
                "Service      infra/app1: 0 of 2 endpoints ready",
                "verdict      reject: the Service has no endpoint that is ready",
            ],
            "commands": words.commands(sample, words.explaining(sample, None)),
        }

"""The client `kubernetes_asyncio`: objects, patches, a watch that ends and goes on, and one that a bookmark starts."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from kubernetes_asyncio import client, config, watch

said: dict[str, Any] = {}


def config_map(name: str) -> Any:
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"of": "async"}), data={"color": "red"})


async def objects(core: Any) -> None:
    await asyncio.gather(*(core.create_namespaced_config_map("default", config_map(f"a{n}")) for n in range(20)))
    found = await core.read_namespaced_config_map("a3", "default")
    found.data["color"] = "blue"
    said["replaced"] = (await core.replace_namespaced_config_map("a3", "default", found)).data
    try:
        await core.replace_namespaced_config_map("a3", "default", found)
    except client.ApiException as err:
        said["conflict"] = err.status
    patched = await core.patch_namespaced_config_map("a3", "default", {"data": {"size": "1"}})
    said["patched"] = patched.data
    changes = [{"op": "remove", "path": "/data/size"}]
    said["removed"] = (await core.patch_namespaced_config_map("a3", "default", changes)).data
    listed = await core.list_namespaced_config_map("default", label_selector="of=async")
    said["listed"] = len(listed.items)


async def watched(core: Any) -> None:
    """The watch of one second ends. The next one goes on at the version of the last event or bookmark."""
    start = (await core.list_namespaced_config_map("default")).metadata.resource_version
    which = {"label_selector": "of=async", "allow_watch_bookmarks": True}
    seen = []
    await core.create_namespaced_config_map("default", config_map("b"))
    async with watch.Watch() as first:
        words = {"resource_version": start, "timeout_seconds": 1, **which}
        async for event in first.stream(core.list_namespaced_config_map, "default", **words):
            seen.append(event["type"])
    said["first"] = sorted(set(seen))
    await core.delete_namespaced_config_map("b", "default")
    async with watch.Watch() as second:
        words = {"resource_version": first.resource_version, **which}
        async for event in second.stream(core.list_namespaced_config_map, "default", **words):
            if event["type"] != "BOOKMARK":
                said["second"] = (event["type"], event["object"].metadata.name)
                break


async def listed_by_a_watch(core: Any) -> None:
    """A list in the form of a watch, whose end a bookmark tells."""
    words = {"send_initial_events": True, "resource_version_match": "NotOlderThan", "allow_watch_bookmarks": True}
    seen = []
    async with watch.Watch() as stream:
        async for event in stream.stream(
            core.list_namespaced_config_map, "default", label_selector="of=async", **words
        ):
            if event["type"] == "BOOKMARK":
                said["end"] = event["raw_object"]["metadata"]["annotations"]
                break
            seen.append(event["object"].metadata.name)
    said["initial"] = len(seen)


async def main() -> None:
    await config.load_kube_config()
    async with client.ApiClient() as api:
        core = client.CoreV1Api(api)
        await objects(core)
        await watched(core)
        await listed_by_a_watch(core)
    json.dump(said, sys.stdout)


asyncio.run(main())

"""The client `pykube`: objects, its own merge patches, tables of an old version, a watch, and a kind by its name."""

from __future__ import annotations

import json
import sys
from typing import Any

import pykube
from pykube.query import now

said: dict[str, Any] = {}
api = pykube.HTTPClient(pykube.KubeConfig.from_env())
said["version"] = api.version
query = pykube.ConfigMap.objects(api, namespace="default").filter(selector={"of": "pykube"})
body = {"metadata": {"name": "a", "namespace": "default", "labels": {"of": "pykube"}}, "data": {"color": "red"}}
one = pykube.ConfigMap(api, {"apiVersion": "v1", "kind": "ConfigMap", **body})
events = query.watch(since=now)
one.create()
one.obj["data"]["color"] = "blue"
one.update()
one.patch({"data": {"size": "1"}})
one.reload()
said["data"] = one.obj["data"]
said["selected"] = [found.name for found in query.all().filter(field_selector={"metadata.name": "a"})]
table = query.as_table()
said["columns"] = [column["name"] for column in table.columns]
said["row"] = table.rows[0]["cells"][:2]
said["by name"] = pykube.object_factory(api, "v1", "ConfigMap").objects(api, namespace="default").get(name="a").name
template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
spec = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}
meta = {"name": "web", "namespace": "default"}
web = pykube.Deployment(api, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
web.create()
web.scale(3)
said["scaled"] = web.replicas
web.delete(propagation_policy="Background")
one.delete()
said["left"] = pykube.ConfigMap.objects(api, namespace="default").get_or_none(name="a")
seen = []
for event in events:
    seen.append(event.type)
    if event.type == "DELETED":
        break
said["watched"] = seen
json.dump(said, sys.stdout)

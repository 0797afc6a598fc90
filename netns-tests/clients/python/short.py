"""The client `kr8s`: objects by their kinds' names, patches, labels, a watch, and a Deployment's scale."""

from __future__ import annotations

import json
import sys
from typing import Any

import kr8s
from kr8s.objects import ConfigMap, Deployment

said: dict[str, Any] = {}
api = kr8s.api()
said["version"] = api.version()["major"]
said["kinds"] = len([one for one in api.api_resources() if one["kind"] in ("Pod", "Service", "EndpointSlice")])

one = ConfigMap({"metadata": {"name": "a", "labels": {"of": "kr8s"}}, "data": {"color": "red"}})
one.create()
said["exists"] = (one.exists(), ConfigMap({"metadata": {"name": "none"}}).exists())
one.patch({"data": {"color": "blue"}})
one.label(more="yes")
one.annotate({"note": "a b"})
said["found"] = [found.data.to_dict() for found in kr8s.get("configmaps", label_selector={"more": "yes"})]
said["by short name"] = [found.name for found in kr8s.get("cm", "a")]
watch = api.watch("configmaps", label_selector="of=kr8s")
said["first"] = next(iter(watch))[0]

template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
spec = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}
web = Deployment({"metadata": {"name": "web"}, "spec": spec})
web.create()
web.raw["spec"]["replicas"] = 3
web.patch({"spec": {"replicas": 3}})
web.refresh()
said["scaled"] = web.replicas
web.delete(propagation_policy="Background")
try:
    ConfigMap({"metadata": {"name": "A_b"}}).create()
except kr8s.ServerError as err:
    said["refused"] = err.response.status_code
one.delete()
said["left"] = [found.name for found in kr8s.get("configmaps", label_selector="of=kr8s")]
json.dump(said, sys.stdout)

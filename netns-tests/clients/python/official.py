"""The client `kubernetes`: objects, patches, pages, a watch that goes on from a bookmark, and custom objects."""

from __future__ import annotations

import json
import sys
from typing import Any

from kubernetes import client, config, dynamic, watch

config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()
said: dict[str, Any] = {}


def config_map(name: str, color: str) -> Any:
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels={"of": "official"}), data={"color": color})


def objects() -> None:
    core.create_namespaced_config_map("default", config_map("a", "red"))
    found = core.read_namespaced_config_map("a", "default")
    found.data["color"] = "blue"
    said["replaced"] = core.replace_namespaced_config_map("a", "default", found).data
    try:
        core.replace_namespaced_config_map("a", "default", found)
    except client.ApiException as err:
        said["conflict"] = (err.status, json.loads(err.body)["reason"])
    said["merged"] = core.patch_namespaced_config_map("a", "default", {"data": {"size": "1"}}).data
    changes = [{"op": "remove", "path": "/data/size"}]
    said["patched"] = core.patch_namespaced_config_map("a", "default", changes).data
    try:
        core.create_namespaced_config_map("default", config_map("A_b", "red"))
    except client.ApiException as err:
        said["refused"] = (err.status, json.loads(err.body)["details"]["causes"][0]["field"])


def pages() -> None:
    for name in "bcde":
        core.create_namespaced_config_map("default", config_map(name, "red"))
    names: list[list[str]] = []
    more = ""
    while more or not names:
        page = core.list_namespaced_config_map("default", label_selector="of=official", limit=2, _continue=more)
        names.append([one.metadata.name for one in page.items])
        more = page.metadata._continue
    said["pages"] = names


def watched() -> None:
    """Other objects make the version rise, which only bookmarks tell this watch."""
    which = {"field_selector": "metadata.name=watched", "allow_watch_bookmarks": True}
    start = core.list_namespaced_config_map("default").metadata.resource_version
    core.create_namespaced_config_map("default", config_map("other", "red"))
    first = watch.Watch()
    kinds = []
    for event in first.stream(core.list_namespaced_config_map, "default", resource_version=start, **which):
        kinds.append(event["type"])
        if event["type"] == "BOOKMARK" and int(first.resource_version) > int(start):
            first.stop()
    said["bookmarks"] = sorted(set(kinds))
    core.create_namespaced_config_map("default", config_map("watched", "red"))
    core.delete_namespaced_config_map("watched", "default")
    second, seen = watch.Watch(), []
    for event in second.stream(
        core.list_namespaced_config_map, "default", resource_version=first.resource_version, **which
    ):
        if event["type"] != "BOOKMARK":
            seen.append((event["type"], event["object"].metadata.name))
        if event["type"] == "DELETED":
            second.stop()
    said["resumed"] = seen


def workloads() -> None:
    labels = {"app": "web"}
    container = client.V1Container(name="c", image="i", ports=[client.V1ContainerPort(container_port=80)])
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels), spec=client.V1PodSpec(containers=[container])
    )
    spec = client.V1DeploymentSpec(selector=client.V1LabelSelector(match_labels=labels), template=template, replicas=2)
    made = apps.create_namespaced_deployment(
        "default", client.V1Deployment(metadata=client.V1ObjectMeta(name="web"), spec=spec)
    )
    said["strategy"] = made.spec.strategy.type
    scale = apps.read_namespaced_deployment_scale("web", "default")
    scale.spec.replicas = 5
    apps.replace_namespaced_deployment_scale("web", "default", scale)
    said["scaled"] = apps.read_namespaced_deployment("web", "default").spec.replicas
    change = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "j"}]}}}}
    patched = apps.patch_namespaced_deployment("web", "default", change)
    said["strategic"] = (patched.spec.template.spec.containers[0].image, patched.metadata.generation)
    apps.delete_namespaced_deployment("web", "default", propagation_policy="Background")
    service = client.V1Service(
        metadata=client.V1ObjectMeta(name="web"),
        spec=client.V1ServiceSpec(selector=labels, ports=[client.V1ServicePort(port=80, target_port="http")]),
    )
    said["service"] = core.create_namespaced_service("default", service).spec.type
    said["removed"] = core.delete_collection_namespaced_config_map("default", label_selector="of=official").kind


def others() -> None:
    """What finds its own way: discovery, applying without types, reviews, tokens and versions."""
    api = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"a": "1"}}
    said["applied"] = api.server_side_apply(body, "applied", "default", field_manager="me").data.to_dict()
    review = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(
            resource_attributes=client.V1ResourceAttributes(verb="delete", resource="nodes")
        )
    )
    said["allowed"] = client.AuthorizationV1Api().create_self_subject_access_review(review).status.allowed
    core.create_namespaced_service_account("default", client.V1ServiceAccount(metadata={"name": "robot"}))
    asked = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    token = core.create_namespaced_service_account_token("robot", "default", asked).status.token
    known = client.AuthenticationV1Api().create_token_review(
        client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token))
    )
    said["token"] = known.status.user.username
    said["version"] = client.VersionApi().get_code().major


objects()
pages()
watched()
workloads()
others()
json.dump(said, sys.stdout)

"""Finds pods as people name them: a pod, `deploy/NAME`, `svc/NAME`, a label selector; and completes such names."""

from __future__ import annotations

import os
from collections.abc import Callable

import click

from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import Refused
from podwire_base.kube.meta import Object, deleting, name
from podwire_base.kube.registry import Resource, by_name

from ..cluster.config import BASE
from .common import Failed, with_api


def is_running(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running" and not deleting(pod)


def selector_of(obj: Object) -> str:
    """Return the label selector of a workload or a Service as a parameter of the API, "" if it has none."""
    found = (obj.get("spec") or {}).get("selector") or {}
    structured = isinstance(found.get("matchLabels"), dict) or isinstance(found.get("matchExpressions"), list)
    labels = (found.get("matchLabels") or {}) if structured else found
    parts = [f"{key}={value}" for key, value in labels.items()]
    for one in (found.get("matchExpressions") or []) if structured else []:
        values = f"({','.join(one.get('values') or [])})"
        parts.append(
            {
                "In": f"{one['key']} in {values}",
                "NotIn": f"{one['key']} notin {values}",
                "Exists": str(one["key"]),
                "DoesNotExist": f"!{one['key']}",
            }[one["operator"]]
        )
    return ",".join(parts)


def pods_by_selector(cluster: str, space: str, selector: str) -> list[str]:
    """Return the names of the pods that a selector chooses, in a cluster on this machine. Raises Failed."""

    async def work(api: ApiClient) -> list[str]:
        found = await api.get(f"/api/v1/namespaces/{space}/pods", labelSelector=selector)
        return sorted(name(pod) for pod in found["items"])

    return with_api(str(BASE / cluster / "kubeconfig"), work)


def pod_of(cluster: str, space: str, text: str) -> str:
    """Return the name of a pod for POD, pod/NAME, or KIND/NAME of what has pods: then a running one of them. Raises
    Failed.
    """
    kind, slash, own = text.partition("/")
    resource = by_name(kind) if slash else None
    if not slash:
        return text
    if resource is None:
        raise Failed(f"{text!r}: kind {kind!r} is unknown; expected POD, deploy/NAME, svc/NAME or another KIND/NAME")
    if resource.kind == "Pod":
        return own

    async def work(api: ApiClient) -> str:
        return await _one(api, resource, space, own)

    return with_api(str(BASE / cluster / "kubeconfig"), work)


async def _one(api: ApiClient, resource: Resource, space: str, own: str) -> str:
    label = f"{resource.singular}/{own}"
    try:
        selector = selector_of(await api.get(resource.path(space, own)))
    except Refused as error:
        if error.code != 404:
            raise
        raise Failed(f"there is no {label} in namespace {space}: `podwire get {resource.plural} -A`") from None
    if not selector:
        raise Failed(f"{label} has no selector, so it has no pods")
    pods = (await api.get(f"/api/v1/namespaces/{space}/pods", labelSelector=selector))["items"]
    running = sorted(name(pod) for pod in pods if is_running(pod))
    if not running:
        why = f"{len(pods)} pods, none of them runs" if pods else "no pods"
        raise Failed(f"{label} has {why}: `podwire get pods -n {space} -l {selector}`")
    return running[0]


# ---- completion


def completing(plural: str, *, kinds: bool = False) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a function that completes names of one kind. kinds: also KIND/NAME of what has pods."""

    def complete(context: click.Context, _param: click.Parameter, begun: str) -> list[str]:
        kind, slash, _ = begun.partition("/")
        resource = by_name(kind if slash else plural)
        if resource is None:
            return []
        space = str(context.params.get("space") or "default")

        async def work(api: ApiClient) -> list[str]:
            found = await api.request("GET", resource.path(space if resource.namespaced else ""), timeout=3)
            return [name(obj) for obj in found["items"]]

        try:
            names = with_api(context.params.get("kubeconfig") or os.environ.get("KUBECONFIG"), work)
        except Exception:  # a cluster that does not answer completes nothing
            return []
        prefix = f"{kind}/" if slash else ""
        more = [k for k in ("deploy/", "svc/") if k.startswith(begun)] if kinds and not slash else []
        return [found for own in names if (found := prefix + own).startswith(begun)] + more

    return complete


def complete_objects(context: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Complete KIND, or NAME after a kind, of `get` and `delete`."""
    from podwire_base.kube.registry import RESOURCES

    words = context.params.get("what") or ()
    if words:
        return completing(str(words[0]))(context, _param, begun)
    if "/" in begun:
        return completing("pods")(context, _param, begun)
    return sorted({r.plural for r in RESOURCES if r.plural.startswith(begun)})

"""Asks a node of a cluster elsewhere: runs the node's half in its agent's pod, through the exec subresource with the
reader's own rights (pods/exec in kube-system). No port is opened and no agent gets a right. I/O.

Source: the remote command protocol of Kubernetes over WebSocket, `v5.channel.k8s.io` and `v4.channel.k8s.io`: the first
byte of a message is the channel: 0 stdin, 1 stdout, 2 stderr, 3 a Status at the end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import aiohttp

from podwire_base.kube.client.config import ClientConfig
from podwire_base.kube.client.http import ApiClient
from podwire_base.kube.errors import ApiError
from podwire_base.kube.meta import Object, name

from .onnode import VERSION
from .packets import Asked
from .reach import Looked, read, request_of
from .steps import Unreachable

NAMESPACE, LABEL, CONTAINER = "kube-system", "app.kubernetes.io/name=podwire", "agent"
COMMAND = ("podwire", "node-walk")
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
SECONDS = 30.0
_MOST = 64 << 20  # bytes of an answer


def look(config: ClientConfig, node: str, asks: Sequence[Asked]) -> Looked:
    """Raises Unreachable."""
    try:
        return read(node, asyncio.run(_ask(config, node, request_of(asks))))
    except ApiError as err:
        raise Unreachable(f"node {node}: {err.message}") from err


def send(config: ClientConfig, node: str, data: Sequence[Any]) -> Mapping[str, Any]:
    """Sends one packet's flow from a node for `--send`, see onnode.py. Raises Unreachable."""
    try:
        answer = asyncio.run(_ask(config, node, {"version": VERSION, "send": list(data)}))
        sent = answer["sent"]
        if {"verdict", "words", "told", "links"} <= set(sent):
            return dict(sent)
    except ApiError as err:
        raise Unreachable(f"node {node}: {err.message}") from err
    except (KeyError, TypeError):
        pass  # told below
    raise Unreachable(f"node {node} answers in another form: use one version of podwire")


async def _ask(config: ClientConfig, node: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
    async with ApiClient(config) as api:
        found = await api.get(
            f"/api/v1/namespaces/{NAMESPACE}/pods", labelSelector=LABEL, fieldSelector=f"spec.nodeName={node}"
        )
        pod = agent_of(found.get("items") or [], node)
        # one line: the older protocol cannot end stdin
        out, why = await run(api, config, pod, json.dumps(request).encode() + b"\n")
    try:
        answer = json.loads(out)
    except ValueError:
        raise Unreachable(f"the agent of node {node} ({pod}) does not answer: {why or out[:200]!r}") from None
    if not isinstance(answer, dict):
        raise Unreachable(f"the agent of node {node} ({pod}) answers {out[:200]!r}")
    return answer


def agent_of(pods: Sequence[Object], node: str) -> str:
    """Returns the name of the agent's pod that runs on the node. Raises Unreachable."""
    mine = [pod for pod in pods if (pod.get("spec") or {}).get("nodeName") == node]
    running = [pod for pod in mine if (pod.get("status") or {}).get("phase") == "Running"]
    if not running:
        what = "runs no pod of podwire" if not mine else f"has {name(mine[0])}, which does not run"
        raise Unreachable(f"node {node} {what} ({LABEL} in {NAMESPACE}); run `podwire explain` on that node itself")
    return name(running[0])


async def run(api: ApiClient, config: ClientConfig, pod: str, given: bytes) -> tuple[bytes, str]:
    """Runs the node's half in a pod. Returns (stdout, what went wrong). Raises Unreachable."""
    words = [("command", word) for word in COMMAND]
    query = urlencode([*words, ("container", CONTAINER), ("stdin", "true"), ("stdout", "true"), ("stderr", "true")])
    url = f"{api.server}/api/v1/namespaces/{NAMESPACE}/pods/{pod}/exec?{query}"
    headers = {"Authorization": f"Bearer {config.token}"} if config.token else {}
    options: dict[str, Any] = {"ssl": config.ssl} if config.ssl is not None else {}
    if config.server_name:
        options["server_hostname"] = config.server_name
    out, err, status = bytearray(), bytearray(), b""
    try:
        async with (
            asyncio.timeout(SECONDS),
            api.session.ws_connect(
                url, protocols=PROTOCOLS, headers=headers, max_msg_size=0, compress=0, **options
            ) as ws,
        ):
            await ws.send_bytes(b"\0" + given)
            async for message in ws:
                if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                    continue
                channel, data = message.data[0], message.data[1:]
                if channel == 3:
                    status = data
                    break
                (out if channel == 1 else err).extend(data)
                if len(out) > _MOST:
                    raise Unreachable(f"{pod} answers more than {_MOST} bytes")
    except TimeoutError:
        raise Unreachable(f"{pod} did not answer within {SECONDS:.0f} s") from None
    except aiohttp.WSServerHandshakeError as error:
        raise Unreachable(_refused(pod, error.status)) from error
    except (aiohttp.ClientError, OSError) as error:
        raise Unreachable(f"{pod}: {getattr(error, 'strerror', None) or type(error).__name__}") from error
    return bytes(out), _why(status) or err.decode(errors="replace").strip()[:200]


def _refused(pod: str, status: int) -> str:
    if status in (401, 403):
        return f"you may not create pods/exec in {NAMESPACE} (HTTP {status}): it needs the rights of an admin"
    if status in (404, 405, 501):
        return f"this API server has no exec for {pod} (HTTP {status}); run `podwire explain` on the node itself"
    return f"exec in {pod} was refused (HTTP {status})"


def _why(status: bytes) -> str:
    """Returns the message of a Status that is no success."""
    try:
        found = json.loads(status or b"{}")
    except ValueError:
        return ""
    return "" if found.get("status") in (None, "Success") else str(found.get("message") or found.get("reason"))

"""The subresources that reach into a node: log, exec, attach, portforward and proxy.

The request and the object are checked as upstream does (pkg/registry/core/pod). Logs come from the node agents of the
same machine (tonode.py). For everything else this API server opens no connections to kubelets or pods. So it answers
what kube-apiserver answers where it cannot reach them: that there is no way to the node.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from podwire_base.kube import errors
from podwire_base.kube.errors import Cause, StatusError
from podwire_base.kube.meta import Object, uid
from podwire_base.kube.registry import Resource, of
from podwire_base.kube.times import parse_time

from ..rules.fields import forbidden, invalid, not_supported, required
from .query import boolean, number

SUBS = ("log", "exec", "attach", "portforward", "proxy")
_GET = Callable[[Resource, str, str], Awaitable[Object]]  # (kind, namespace, name) -> object; raises 404
_OPTIONS = {"log": "PodLogOptions", "exec": "PodExecOptions", "attach": "PodAttachOptions"}
_NAME = re.compile(r"(?:(?P<scheme>https?|):)?(?P<name>[^:]+)(?::(?P<port>[^:]*))?")


@dataclass(frozen=True, slots=True)
class Reach:
    """A container of a node to which a request goes."""

    sub: str
    node: str
    namespace: str
    pod: str
    uid: str
    container: str

    def away(self) -> StatusError:
        """Return the error of an API server that does not reach the node."""
        text = f"{self.sub} of pod {self.pod}: the API server has no connection to the kubelet of node {self.node}"
        return StatusError(500, "", text)


async def answer(
    resource: Resource, namespace: str, name: str, sub: str, query: Mapping[str, str], *, upgrades: bool, get: _GET
) -> str | Reach:
    """Return the text of a log, or where it is. Raises a StatusError for all else. query: the first value of each
    parameter. upgrades: whether the client asks for another protocol.
    """
    if sub == "proxy":
        raise await _proxy(resource, namespace, name, get)
    causes = _log_causes(query) if sub == "log" else _stream_causes(sub, query)
    if causes:
        kind = _OPTIONS[sub]
        text = "; ".join(f"{c.field}: {c.message}" for c in causes)
        raise StatusError(
            422, "Invalid", f'{kind} "{name}" is invalid: {text}', name=name, causes=causes, about=("", kind)
        )
    pod = await get(resource, namespace, name)
    if sub != "portforward":
        _container(pod, name, query.get("container", ""))
    node = pod["spec"].get("nodeName")
    if not node:
        if sub == "log":
            return ""  # upstream too: nothing has been written yet
        raise errors.bad_request(f"pod {name} does not have a host assigned")
    await get(of("Node"), "", node)
    if sub != "log" and not upgrades:
        raise errors.bad_request("Upgrade request required")
    container = query.get("container") or str(pod["spec"]["containers"][0]["name"])
    to = Reach(sub, str(node), namespace, name, uid(pod), container)
    if sub == "log":
        return to
    raise to.away()


def _container(pod: Object, name: str, wanted: str) -> None:
    """Raise 400 if a request names no container of the pod, or none where the pod has several."""
    spec = pod["spec"]
    rows = [
        c.get("name") for kind in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(kind) or []
    ]
    if wanted and wanted not in rows:
        raise errors.bad_request(f"container {wanted} is not valid for pod {name}")
    if not wanted and len(spec.get("containers") or []) != 1:
        listed = " ".join(str(row) for row in rows)
        raise errors.bad_request(f"a container name must be specified for pod {name}, choose one of: [{listed}]")


def _log_causes(query: Mapping[str, str]) -> list[Cause]:
    causes = []
    tail, limit, since = (number(query, field) for field in ("tailLines", "limitBytes", "sinceSeconds"))
    if tail is not None and tail < 0:
        causes.append(invalid("tailLines", tail, "must be greater than or equal to 0"))
    if limit is not None and limit < 1:
        causes.append(invalid("limitBytes", limit, "must be greater than 0"))
    time = query.get("sinceTime")
    if time:
        try:
            parse_time(time)
        except ValueError:
            raise errors.bad_request(f"sinceTime: {time[:80]!r} is no time (RFC 3339)") from None
    if time and since is not None:
        causes.append(forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"))
    elif since is not None and since < 1:
        causes.append(invalid("sinceSeconds", since, "must be greater than 0"))
    stream = query.get("stream", "All")
    if stream not in ("All", "Stderr", "Stdout"):
        causes.append(not_supported("stream", stream, ("All", "Stderr", "Stdout")))
    elif stream != "All" and tail is not None:
        causes.append(forbidden("", "`tailLines` and specific `stream` are mutually exclusive for now"))
    return causes


def _stream_causes(sub: str, query: Mapping[str, str]) -> list[Cause]:
    """Check exec and attach. Upstream's options default to no stdin and no terminal; attach shows the output."""
    if sub == "portforward":
        return []
    shown = sub == "attach"
    stdin, tty = (boolean(query, field) or False for field in ("stdin", "tty"))
    out, err = (shown if (value := boolean(query, field)) is None else value for field in ("stdout", "stderr"))
    causes = []
    if tty and err and "stderr" in query:
        causes.append(invalid("stderr", True, "tty and stderr cannot both be true"))
    if not (stdin or out or err):
        causes.append(required("stdin", "at least one of stdin, stdout and stderr must be set"))
    if sub == "exec" and not query.get("command"):
        causes.append(required("command"))
    return causes


async def _proxy(resource: Resource, namespace: str, name: str, get: _GET) -> StatusError:
    """Return why an object is not reached. name: NAME, NAME:PORT or SCHEME:NAME:PORT."""
    kind = resource.singular
    match = _NAME.fullmatch(name)
    if match is None:
        return errors.bad_request(f"invalid {kind} request {name[:200]!r}")
    own, port = match["name"], match["port"] or ""
    obj = await get(resource, namespace, own)
    if resource.plural == "pods":
        if not (obj.get("status") or {}).get("podIP"):
            return errors.bad_request("address not allowed")
    elif resource.plural == "services":
        if why := _no_port(obj, own, port):
            return StatusError(503, "ServiceUnavailable", why)
        return StatusError(503, "ServiceUnavailable", f'no endpoints available for service "{own}"')
    text = f"error trying to reach {kind} {own}: the API server has no connection to it"
    return StatusError(503, "ServiceUnavailable", text)


def _no_port(service: Object, name: str, wanted: str) -> str:
    rows: list[Any] = service["spec"].get("ports") or []
    if wanted and not any(wanted in (row.get("name"), str(row.get("port"))) for row in rows):
        return f'no service port "{wanted}" found for service "{name}"'
    return ""

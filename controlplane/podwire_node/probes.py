"""Container probes (core/v1 Probe): HTTP, TCP, gRPC and exec. The probes run on the node, with the period and the
thresholds of their specs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from podwire_base.kube.meta import Object

from . import grpchealth

Exec = Callable[[list[str], float], Awaitable[int]]


def port_number(container: Object, wanted: int | str) -> int:
    """Return a probe's port number. `wanted` is a number or the name of a container port. Raises ValueError."""
    if isinstance(wanted, int):
        return wanted
    for port in container.get("ports") or []:
        if port.get("name") == wanted:
            return int(port["containerPort"])
    return int(wanted)


async def attempt(probe: Object, container: Object, address: str, run: Exec) -> str:
    """Make one attempt. Return "" for a success, else what went wrong. No result within timeoutSeconds is a failure."""
    limit = float(probe.get("timeoutSeconds") or 1)
    try:
        async with asyncio.timeout(limit):
            if action := probe.get("exec"):
                status = await run(list(action.get("command") or []), limit)
                return f"the command ended with status {status}" if status else ""
            if action := probe.get("tcpSocket"):
                _, writer = await asyncio.open_connection(
                    action.get("host") or address, port_number(container, action["port"])
                )
                writer.close()
                return ""
            if action := probe.get("httpGet"):
                status = await _http(action, container, address)
                return "" if 200 <= status < 400 else f"HTTP status {status}"
            if action := probe.get("grpc"):
                return await grpchealth.check(address, int(action["port"]), str(action.get("service") or ""))
    except TimeoutError:
        return f"no answer within {limit:g} s"
    except (OSError, ValueError, KeyError, aiohttp.ClientError) as err:
        return getattr(err, "strerror", None) or f"{type(err).__name__}: {err}"
    return "the probe has no action that this node agent knows: httpGet, tcpSocket, grpc or exec"


async def act(action: Object, container: Object, address: str, run: Exec) -> str:
    """Run a lifecycle handler: sleep, exec or httpGet. Return "" for a success, else what went wrong."""
    try:
        if sleep := action.get("sleep"):
            await asyncio.sleep(float(sleep.get("seconds") or 0))
        elif command := action.get("exec"):
            status = await run(list(command.get("command") or []), 0.0)
            return f"the command ended with status {status}" if status else ""
        elif get := action.get("httpGet"):
            status = await _http(get, container, address)
            return "" if 200 <= status < 400 else f"HTTP status {status}"
    except (OSError, ValueError, KeyError, aiohttp.ClientError) as err:
        return getattr(err, "strerror", None) or f"{type(err).__name__}: {err}"
    return ""


async def _http(action: Object, container: Object, address: str) -> int:
    """Return the status of the answer."""
    host = str(action.get("host") or address)
    scheme = str(action.get("scheme") or "HTTP").lower()
    bracketed = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{bracketed}:{port_number(container, action['port'])}{action.get('path') or '/'}"
    headers = {h["name"]: h["value"] for h in action.get("httpHeaders") or []}
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer,
    ):
        return answer.status


async def watch(
    probe: Object,
    container: Object,
    address: str,
    run: Exec,
    changed: Callable[[bool, str], None],
    *,
    once: bool = False,
) -> None:
    """Run the probe until cancelled; with `once` until its first success (a startup probe). Call
    `changed(healthy, what went wrong)` when the number of consecutive results reaches successThreshold or
    failureThreshold and changes the container's health.
    """
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    successes = failures = 0
    state: bool | None = None
    while True:
        problem = await attempt(probe, container, address, run)
        if not problem:
            successes, failures = successes + 1, 0
        else:
            successes, failures = 0, failures + 1
        now = state
        if successes >= int(probe.get("successThreshold") or 1):
            now = True
        elif failures >= int(probe.get("failureThreshold") or 3):
            now = False
        if now is not None and now is not state:
            state = now
            changed(now, problem)
        if once and state:
            return
        await asyncio.sleep(float(probe.get("periodSeconds") or 10))

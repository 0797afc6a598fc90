"""Runs a command in a container through the API server: the exec subresource over WebSocket (KEP-4006).

A message begins with the number of its channel: 1 standard output, 2 standard error, 3 a Status object at the end. The
command gets no standard input, because v4.channel.k8s.io cannot close it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import msgspec
from yarl import URL

from ..errors import BadAnswer, Refused, Unreachable
from .aio import aiohttp
from .http import ApiClient

PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")


@dataclass(frozen=True, slots=True)
class Done:
    """status: the exit status of the command."""

    status: int
    out: bytes
    errors: bytes


def exit_status(raw: bytes) -> int:
    """Return the exit status that a Status object of channel 3 names. Raises Refused if the command did not run."""
    found = msgspec.json.decode(raw) if raw else {}
    if found.get("status") == "Success":
        return 0
    for cause in (found.get("details") or {}).get("causes") or []:
        if cause.get("reason") == "ExitCode":
            with contextlib.suppress(ValueError):
                return int(cause.get("message", ""))
    raise Refused(
        int(found.get("code") or 500), str(found.get("reason") or ""), str(found.get("message") or "exec failed")
    )


async def run(api: ApiClient, pod: str, container: str, command: list[str], timeout: float) -> Done:
    """Run a command and wait for its end. pod: the path of the pod in the API. Raises ApiError, and TimeoutError after
    `timeout` seconds.
    """
    query = [("container", container), ("stdout", "true"), ("stderr", "true"), *(("command", word) for word in command)]
    headers = {"Authorization": f"Bearer {api.config.token}"} if api.config.token else {}
    parts: dict[int, bytearray] = {1: bytearray(), 2: bytearray(), 3: bytearray()}
    try:
        async with (
            asyncio.timeout(timeout),
            api.session.ws_connect(
                URL(f"{api.server}{pod}/exec", encoded=True).with_query(query),
                headers=headers,
                protocols=PROTOCOLS,
                ssl=api.config.ssl or True,
                server_hostname=api.config.server_name or None,
                max_msg_size=0,
            ) as stream,
        ):
            async for message in stream:
                if message.type is aiohttp.WSMsgType.BINARY and message.data and message.data[0] in parts:
                    parts[message.data[0]] += message.data[1:]
    except aiohttp.WSServerHandshakeError as err:
        raise Refused(
            err.status, "", f"exec in {pod.rpartition('/')[2]}: the server answers {err.status} {err.message}"
        ) from err
    except (aiohttp.ClientError, OSError) as err:
        if isinstance(err, TimeoutError):
            raise
        raise Unreachable(f"exec in {pod.rpartition('/')[2]}: {err}") from err
    try:
        return Done(exit_status(bytes(parts[3])), bytes(parts[1]), bytes(parts[2]))
    except msgspec.DecodeError as err:
        raise BadAnswer(f"exec in {pod.rpartition('/')[2]}: the status cannot be read") from err

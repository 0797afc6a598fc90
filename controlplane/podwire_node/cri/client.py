"""Calls of CRI v1 over gRPC. Messages are dicts in the JSON form of protobuf, with the field names of api.proto.

grpc and cri_api are the extra `podwire[cri]`; only the node agent of a cri cluster imports this module.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..runtime import RuntimeFailed

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # this process forks only to exec, and the hooks cost time

import grpc
import grpc.aio
from cri_api.v1 import api_pb2
from google.protobuf.json_format import MessageToDict, ParseDict

_LARGE = 64 << 20  # bytes: a status has all labels, and ExecSync what a command printed
NOT_FOUND = "NOT_FOUND"


class CriFailed(RuntimeFailed):
    """The runtime refused a call. code: the gRPC status, such as NOT_FOUND; UNAVAILABLE: it does not answer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """One connection to a runtime. It is made again when the runtime comes back."""

    def __init__(self, sock: Path) -> None:
        self.sock = sock
        self._channel: Any = None
        self._methods: dict[str, tuple[Any, Any]] = {}

    def _method(self, own: str) -> tuple[Any, Any]:
        if self._channel is None:
            options = [
                ("grpc.max_receive_message_length", _LARGE),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.use_local_subchannel_pool", 1),
            ]
            self._channel = grpc.aio.insecure_channel(f"unix:{self.sock}", options=options)
        if own not in self._methods:
            services = api_pb2.DESCRIPTOR.services_by_name
            service = next(one for one in services.values() if own in one.methods_by_name)
            kinds = service.methods_by_name[own]
            asked, told = (getattr(api_pb2, kind.name) for kind in (kinds.input_type, kinds.output_type))
            call = self._channel.unary_unary(
                f"/{service.full_name}/{own}",
                request_serializer=asked.SerializeToString,
                response_deserializer=told.FromString,
            )
            self._methods[own] = call, asked
        return self._methods[own]

    async def call(
        self, method: str, request: dict[str, Any] | None = None, seconds: float = 120.0, *, wait: bool = True
    ) -> dict[str, Any]:
        """Make a call and return its answer. Fields without a value are absent. wait: for a runtime that is being
        started again, up to `seconds`. Raises CriFailed.
        """
        call, asked = self._method(method)
        try:
            answer = await call(ParseDict(request or {}, asked()), timeout=seconds, wait_for_ready=wait)
        except grpc.aio.AioRpcError as err:
            raise CriFailed(err.code().name, err.details() or err.code().name) from None
        found: dict[str, Any] = MessageToDict(answer, preserving_proto_field_name=True)
        return found

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel, self._methods = None, {}
